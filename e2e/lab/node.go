package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab/boot"
)

// node is what a host and the switch have in common: a first process, the
// namespaces it holds, and a disk.
type node struct {
	name   string
	dir    string // of the machine; holds disk, work, root, console
	cgroup string
	lower  string
	binds  map[string]string

	mu    sync.RWMutex
	first process
	ended chan struct{} // closed when a first process that this process started was reaped
}

// boot starts the node's first process, running tool.
func (n *node) boot(tool string, detached bool) error {
	for _, dir := range []string{"disk", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil {
			return err
		}
	}
	console, err := os.OpenFile(filepath.Join(n.dir, "console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()
	p, err := boot.Start(tool, n.cgroup, console, boot.Config{
		Name: n.name, Lower: n.lower, Binds: n.binds, Detached: detached,
		Disk: filepath.Join(n.dir, "disk"), Work: filepath.Join(n.dir, "work"), Root: filepath.Join(n.dir, "root"),
	})
	if err != nil {
		return err
	}
	first, err := processOf(p.Process.Pid)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Wait()
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.first, n.ended = first, ended
	return err
}

func (n *node) pid() process {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.first
}

// halt ends all processes of the node, and with them its namespaces.
func (n *node) halt(ctx context.Context) error {
	n.mu.RLock()
	first, ended := n.first, n.ended
	n.mu.RUnlock()
	if err := first.kill(ctx); err != nil {
		return fmt.Errorf("halt %s: %w", n.name, err)
	}
	if ended != nil {
		<-ended
	}
	return removeCgroups(ctx, n.cgroup)
}

// removeCgroups waits until the kernel has emptied the groups of processes that
// were killed, which takes it a moment.
func removeCgroups(ctx context.Context, path string) error {
	var last error
	err := await(ctx, "remove cgroups "+path, func() (bool, error) {
		last = boot.RemoveCgroups(path)
		return last == nil, nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// Command prepares a command that runs on the host, with the host's files,
// processes, network and environment. Ending ctx kills it and its children.
func (n *node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return n.enter(ctx, []string{"-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"}, append([]string{boot.Tool, "enter"}, args...))
}

// tool prepares a command of the machine that sees the host's network and ends
// with the host, but has the machine's files: it works whatever the host's disk
// holds.
func (n *node) tool(ctx context.Context, args ...string) *exec.Cmd {
	return n.enter(ctx, []string{"-n", "-p"}, args)
}

func (n *node) enter(ctx context.Context, namespaces, args []string) *exec.Cmd {
	all := slices.Concat([]string{"-t", strconv.Itoa(n.pid().Pid)}, namespaces, []string{"--"}, args)
	cmd := exec.CommandContext(ctx, "nsenter", all...)
	cmd.Env = boot.Environ()
	// nsenter forks to enter a pid namespace: only the group reaches the child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Exec runs a command on the host and returns what it printed. The error holds
// what it printed to standard error.
func (n *node) Exec(ctx context.Context, args ...string) (string, error) {
	return n.run(n.Command(ctx, args...), args)
}

func (n *node) run(cmd *exec.Cmd, args []string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", n.name, strings.Join(args, " "), err, bytes.TrimSpace(append(stderr.Bytes(), stdout.Bytes()...)))
	}
	return strings.TrimSpace(stdout.String()), err
}

// start runs a command in the background, with its output appended to a file on
// the node's disk, and returns its process id there.
func (n *node) start(ctx context.Context, log string, args ...string) (int, error) {
	out, err := n.Exec(ctx, append([]string{"-log", log}, args...)...)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// running says whether the node has a process of that id.
func (n *node) running(pid int) bool {
	_, err := os.Stat(n.Path(fmt.Sprintf("/proc/%d", pid)))
	return err == nil
}

// Path is where the machine finds a file of the host, while that is up. Write
// /run, not /var/run: an absolute symbolic link on the way leads to the
// machine's own file.
func (n *node) Path(file string) string {
	return fmt.Sprintf("/proc/%d/root%s", n.pid().Pid, file)
}

// disk is where the machine finds a file that the host wrote, up or not.
func (n *node) disk(file string) string { return filepath.Join(n.dir, "disk", file) }

// DiskPath is where the machine finds a file that the host wrote, also while
// the host is off. While it is up such files are only to be read.
func (n *node) DiskPath(file string) string { return n.disk(file) }

// WriteFile makes a file on the host, and the directories above it.
func (n *node) WriteFile(file, content string, mode os.FileMode) error {
	path := n.disk(file)
	if n.pid().alive() {
		path = n.Path(file)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s on %s: %w", file, n.name, err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return fmt.Errorf("write %s on %s: %w", file, n.name, err)
	}
	return os.Chmod(path, mode)
}

// CopyDir copies a directory of the machine to the host, with modes and links.
func (n *node) CopyDir(from, to string) error {
	target := n.Path(to)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, n.name, err)
	}
	if out, err := exec.Command("cp", "-a", from+"/.", target).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s to %s: %w: %s", from, n.name, err, out)
	}
	return nil
}
