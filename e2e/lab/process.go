package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process of the machine for all time: ids are used again, start
// times are not. The zero value is a process that has ended.
type process struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since the machine booted
}

func processOf(pid int) (process, error) {
	start, err := startTime(pid)
	return process{Pid: pid, Start: start}, err
}

// startTime reads field 22 of proc_pid_stat(5).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("find process %d: %w", pid, err)
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("find process %d: unknown format of stat", pid)
	}
	if f[0][0] == 'Z' {
		return 0, fmt.Errorf("find process %d: it has ended", pid)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

func (p process) alive() bool {
	start, err := startTime(p.Pid)
	return p.Pid > 0 && err == nil && start == p.Start
}

// kill ends the process at once and waits until it has; when it is the first
// of a pid namespace, all others of that have ended too by then.
func (p process) kill(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.Pid, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for process %d: %w", p.Pid, ctx.Err())
		}
	}
}

// await polls cond until it holds or fails, or ctx ends.
func await(ctx context.Context, what string, cond func() (bool, error)) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
