//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// spared is the smaller of two sizes where time is short (go test -short), as on
// a machine that is emulated: the host's own kernel is shown the full one.
func spared[T any](full, small T) T {
	if testing.Short() {
		return small
	}
	return full
}

// space is a network namespace that ends with the test.
type space struct {
	t    testing.TB
	file *os.File
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t}
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
	s.sh("ip link set lo up")
	return s
}

// path names the namespace for ip, and for the kernel door as a sandbox.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// in runs fn on a thread inside the namespace.
func (s *space) in(fn func() error) error {
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

// try runs a shell command inside; sh fails the test if it fails.
func (s *space) try(command string) (string, error) {
	var out []byte
	err := s.in(func() (err error) {
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return err
	})
	return string(out), err
}

func (s *space) sh(format string, args ...any) string {
	s.t.Helper()
	command := fmt.Sprintf(format, args...)
	out, err := s.try(command)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// open opens the kernel door inside.
func (s *space) open() *kernel.Linux {
	s.t.Helper()
	log := logrus.New()
	log.SetOutput(s.t.Output())
	var k *kernel.Linux
	err := s.in(func() (err error) {
		k, err = kernel.Open(kernel.Config{Log: log})
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(k.Close)
	return k
}

// parent makes the LAN of kerneltest.New: eth0, whose other end sw is up in the
// same namespace.
func (s *space) parent() {
	s.t.Helper()
	s.sh(`ip link add eth0 address 02:00:00:00:00:01 type veth peer name sw
		ip addr add 192.0.2.1/24 dev eth0; ip link set sw up; ip link set eth0 up`)
}

// makes asks whether the kernel can make a kind of link. Where it cannot, the
// error of trying it must name the module.
func makes(t *testing.T, k *kernel.Linux, kind kernel.Kind) bool {
	t.Helper()
	able, err := k.Makes(context.Background(), kind)
	if err != nil {
		t.Fatal(err)
	}
	if able {
		return true
	}
	l := kernel.Link{Name: "is-x", Kind: kind, Parent: "eth0"}
	switch kind {
	case kernel.VLAN:
		l.Name, l.VID = "eth0.9", 9
	case kernel.Dummy:
		l.Parent = ""
	}
	want := fmt.Sprintf("kernel lacks %s: load the module %s (modprobe ", kind, kind.Module())
	if err := k.Do(context.Background(), []kernel.Op{{Action: kernel.Add, Object: l}}); err == nil {
		t.Errorf("made a %s on a kernel that lacks it", kind)
	} else {
		contains(t, err.Error(), want)
	}
	if kind == kernel.IPvlan {
		err := k.Hand(context.Background(), kernel.Handover{Link: l})
		if err == nil {
			t.Errorf("handed a %s over on a kernel that lacks it", kind)
		} else {
			contains(t, err.Error(), want)
		}
	}
	return false
}

// join connects two namespaces by a veth pair called u0 on both sides.
func join(a, b *space, addrA, addrB string) {
	a.t.Helper()
	a.sh("ip link add u0 type veth peer name u0 netns %s", b.path())
	a.sh("ip addr add %s dev u0 nodad; ip link set u0 up", addrA)
	b.sh("ip addr add %s dev u0 nodad; ip link set u0 up", addrB)
}

// take does what Docker does with an interface that was handed over.
func take(host, box *space, link, name string, addrs ...string) {
	host.t.Helper()
	host.sh("ip link set %s netns %s", link, box.path())
	box.sh("ip link set %s name %s", link, name)
	for _, a := range addrs {
		box.sh("ip addr add %s dev %s nodad", a, name)
	}
	box.sh("ip link set %s up", name)
}

// echo runs a TCP server inside that answers with what it got.
func (s *space) echo(address string) {
	s.t.Helper()
	var l net.Listener
	err := s.in(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 5)
			if n, err := c.Read(b); err == nil {
				_, _ = c.Write(b[:n])
			}
			c.Close()
		}
	}()
}

// reach sends to an echo server and waits for the answer.
func (s *space) reach(address string, within time.Duration) error {
	return s.in(func() error {
		c, err := net.DialTimeout("tcp", address, within)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 5)
		_, err = c.Read(b)
		return err
	})
}

// capture collects the frames that pass an interface until stop is called.
func (s *space) capture(dev string) (stop func() [][]byte) {
	s.t.Helper()
	var fd int
	err := s.in(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all)); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return func() (frames [][]byte) {
		defer unix.Close(fd)
		b := make([]byte, 65536)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return frames
			}
			frames = append(frames, append([]byte(nil), b[:n]...))
		}
	}
}

// send puts a raw frame on an interface.
func (s *space) send(dev string, frame []byte) {
	s.t.Helper()
	err := s.in(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6})
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// await polls until check passes.
func await(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
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

func mustDump(t testing.TB, k kernel.Kernel) kernel.State {
	t.Helper()
	s, err := k.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// apply makes want, and checks that nothing is left to do.
func apply(t testing.TB, k kernel.Kernel, want kernel.State) []kernel.Op {
	t.Helper()
	ops := kernel.Diff(mustDump(t, k), want, kernel.Options{})
	if err := k.Do(context.Background(), ops); err != nil {
		t.Fatalf("%v\nin\n%s", err, text(ops))
	}
	if again := kernel.Diff(mustDump(t, k), want, kernel.Options{}); len(again) > 0 {
		t.Fatalf("second difference:\n%safter\n%s", text(again), text(ops))
	}
	return ops
}

func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("lacks %q in\n%s", p, text)
		}
	}
}
