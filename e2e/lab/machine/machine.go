package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	program   = "qemu-system-x86_64"
	memoryMiB = 3072
	cores     = 2
	// bootLimit is generous: it takes ten seconds on a machine with nothing else
	// to do.
	bootLimit = 3 * time.Minute
)

// A Reader gets what the jobs of a machine print.
type Reader interface {
	// Begin is told of the job whose lines follow.
	Begin(job int) error
	// Line gets one line, with its end, as the machine prints it.
	Line(line []byte) error
	// End is told the job's exit status.
	End(status int) error
}

// Run starts a machine with what is in payload, works off the jobs one by one,
// and powers it off. The error is the machine's, the reader's, or that of ctx; a
// job that fails is not one. Nothing is left but the console, the file that gets
// what the kernel and init say.
func Run(ctx context.Context, d Disk, payload, console string, jobs []Job, r Reader, progress func(string)) error {
	work, err := os.MkdirTemp(filepath.Dir(console), "machine-")
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	defer os.RemoveAll(work)
	mark := newMark()
	if err := os.WriteFile(filepath.Join(payload, initFile), []byte(initOf(mark, jobs)), 0o755); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	image := filepath.Join(work, "payload")
	size, err := sizeOf(payload)
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	if err := makeFileSystem(ctx, payload, image, size+size/8+16<<20); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	// An abstract socket: the path of a file may be too long for one.
	name := "isthmus-machine-" + mark[1:]
	port, err := net.Listen("unix", "@"+name)
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	defer port.Close()
	begun := time.Now()
	q, err := power(ctx, d, image, name, console)
	if err != nil {
		return err
	}
	err = q.follow(port, mark, len(jobs), r, func(version string) {
		progress(fmt.Sprintf("Linux %s is up after %.1f s", version, time.Since(begun).Seconds()))
	})
	if off := q.off(err == nil); err == nil {
		err = off
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		said, _ := os.ReadFile(console)
		return fmt.Errorf("machine with Debian %s: %w; the end of its console:\n%s", d.Release, err, tail(said, 40))
	}
	return nil
}

// sizeOf adds up the files of a directory, each in whole blocks.
func sizeOf(dir string) (int64, error) {
	var size int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size() + 8192
		}
		return err
	})
	return size, err
}

// qemu is a running machine.
type qemu struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
	err    error // of the process, once it ended
}

func power(ctx context.Context, d Disk, payload, port, console string) (*qemu, error) {
	accel := "tcg,thread=multi"
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		accel = "kvm"
	}
	drive := func(id, file string, more string) []string {
		return []string{"-drive", "id=" + id + ",if=none,format=raw,file=" + file + more, "-device", "virtio-blk-pci,drive=" + id}
	}
	q := &qemu{ended: make(chan struct{})}
	q.cmd = exec.CommandContext(ctx, program, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
		"-machine", "q35", "-accel", accel, "-cpu", "max", "-m", strconv.Itoa(memoryMiB), "-smp", strconv.Itoa(cores),
		"-kernel", d.Kernel, "-initrd", d.Initrd,
		// A kernel in trouble ends at once; what protects real processors only costs.
		"-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr nowatchdog",
		"-serial", "file:"+console,
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,abstract=on,path="+port, "-device", "virtserialport,chardev=port,nr=1")
	q.cmd.Args = append(q.cmd.Args, drive("disk", d.Image, ",snapshot=on")...)
	q.cmd.Args = append(q.cmd.Args, drive("payload", payload, ",readonly=on")...)
	q.cmd.Stderr = &q.stderr
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // its end would be the machine's
		defer runtime.UnlockOSThread()
		err := q.cmd.Start()
		started <- err
		if err == nil {
			q.err = q.cmd.Wait()
			close(q.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start machine: %w; scripts/install brings qemu", err)
	}
	return q, nil
}

// off waits for the machine to power itself off, or ends it at once.
func (q *qemu) off(orderly bool) error {
	if orderly {
		select {
		case <-q.ended:
		case <-time.After(time.Minute):
			orderly = false
		}
	}
	if !orderly {
		q.cmd.Process.Kill()
		<-q.ended
		return errors.New("it does not power off")
	}
	if q.err != nil {
		return fmt.Errorf("%s: %w: %s", program, q.err, strings.TrimSpace(q.stderr.String()))
	}
	return nil
}

// follow reads the port until the last job has ended.
func (q *qemu) follow(port net.Listener, mark string, jobs int, r Reader, up func(version string)) error {
	go func() { // what follow waits for on the port will not come then
		<-q.ended
		port.Close()
	}()
	conn, err := port.Accept()
	if err != nil {
		<-q.ended
		return fmt.Errorf("%s ended: %w: %s", program, q.err, strings.TrimSpace(q.stderr.String()))
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(bootLimit)); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	for begun, done := false, 0; ; {
		line, err := in.ReadBytes('\n')
		version, status, ours := told(mark, strings.TrimSuffix(string(line), "\n"))
		switch {
		case errors.Is(err, io.EOF):
			return fmt.Errorf("it went down when %d of %d jobs were done", done, jobs)
		case err != nil:
			return fmt.Errorf("it does not come up: %w", err)
		case ours && version != "":
			err = conn.SetReadDeadline(time.Time{})
			up(version)
			begun = true
			if err == nil {
				err = r.Begin(0)
			}
		case ours:
			err = r.End(status)
			if done++; err == nil && done == jobs {
				return nil
			}
			if err == nil {
				err = r.Begin(done)
			}
		case begun:
			err = r.Line(line)
		}
		if err != nil {
			return err
		}
	}
}

func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(text), "\r", "")), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
