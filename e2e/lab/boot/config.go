package boot

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Config describes one host to its first process. All paths are the machine's.
type Config struct {
	Name     string            `json:"name"`
	Lower    string            `json:"lower"` // the read-only tree below the host's disk, "/" or a chroot tree
	Disk     string            `json:"disk"`  // what the host wrote, kept over a reboot
	Work     string            `json:"work"`  // scratch of overlayfs, on the file system of Disk
	Root     string            `json:"root"`  // an empty directory to mount the whole on
	Binds    map[string]string `json:"binds"` // directory on the host -> directory on the machine
	Detached bool              `json:"detached"`
}

// Tool is where a host finds this program.
const Tool = "/usr/local/bin/box"

const (
	stageCgroup = "boot-cgroup"
	stageHost   = "boot-host"
	stageEnter  = "enter"
	ready       = "ready\n"
)

// Process is the first process of a host.
type Process struct {
	*exec.Cmd
	owner io.Closer
}

// Start boots a host: tool is the path of the program that calls [Main], cgroup
// the host's path below every cgroup mount, console the file that gets what the
// host says later. It returns when the host is ready for commands, or why not.
// Process.Wait must be called.
func Start(tool, cgroup string, console *os.File, c Config) (*Process, error) {
	cmd := exec.Command(tool, stageCgroup, cgroup)
	cmd.Env = Environ()
	cmd.Stderr = console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", c.Name, err)
	}
	said, say, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", c.Name, err)
	}
	defer said.Close()
	cmd.Stdout = say
	err = cmd.Start()
	say.Close()
	if err != nil {
		return nil, fmt.Errorf("boot %s: %w", c.Name, err)
	}
	p := &Process{Cmd: cmd, owner: in}
	if err := json.NewEncoder(in).Encode(c); err != nil {
		p.stop()
		return nil, fmt.Errorf("boot %s: %w", c.Name, err)
	}
	answer, err := io.ReadAll(said)
	if err == nil && string(answer) == ready {
		return p, nil
	}
	p.stop()
	if err == nil {
		err = fmt.Errorf("%s", strings.TrimSpace(string(answer)))
	}
	return nil, fmt.Errorf("boot %s: %w", c.Name, err)
}

func (p *Process) stop() {
	p.Process.Kill()
	p.Wait()
}

// Wait waits for the end of the host, and releases what was held for it.
func (p *Process) Wait() error {
	err := p.Cmd.Wait()
	p.owner.Close()
	return err
}

// Environ is the environment of every process of a host. Debian's own
// directories come first: a machine may carry other programs of the same names.
func Environ() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"}
}
