//go:build kernel

package lantest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Space is a network namespace that ends with the test.
type Space struct {
	t    testing.TB
	file *os.File
}

// NewSpace makes one, with its loopback up. It needs root.
func NewSpace(t testing.TB) *Space {
	t.Helper()
	s := &Space{t: t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare (these tests need root): %w", err)
			}
			s.file, err = os.Open("/proc/thread-self/ns/net")
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.file.Close() })
	s.Sh("ip link set lo up")
	return s
}

// Path names the namespace for ip.
func (s *Space) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// In runs fn on a thread inside the namespace.
func (s *Space) In(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// Try runs a shell command inside; Sh fails the test if it fails.
func (s *Space) Try(command string) (string, error) {
	var out []byte
	err := s.In(func() (err error) {
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return err
	})
	return string(out), err
}

// Sh is Try with a format.
func (s *Space) Sh(format string, args ...any) string {
	s.t.Helper()
	command := fmt.Sprintf(format, args...)
	out, err := s.Try(command)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// Switch makes a bridge br0 inside, and plugs each space into it as eth0.
func (s *Space) Switch(plugged ...*Space) {
	s.t.Helper()
	s.Sh("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up")
	for n, p := range plugged {
		s.Sh("ip link add p%d type veth peer name eth0 netns %s", n, p.Path())
		s.Sh("ip link set p%d master br0 up", n)
		p.Sh("ip link set eth0 up")
	}
}

// Await polls until check passes.
func Await(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
