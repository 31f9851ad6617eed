//go:build kernel

package bgp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// isolate moves the whole test into a network namespace of its own: the
// library opens its sockets on threads that no test controls.
func isolate() {
	const mark = "ISTHMUS_BGP_ISOLATED"
	if os.Getenv(mark) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), mark+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		runtime.LockOSThread() // the thread that the child must not outlive
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "run the test in a namespace:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := setUp("lo"); err != nil {
		fmt.Fprintln(os.Stderr, "set lo up:", err)
		os.Exit(1)
	}
}

func setUp(link string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// space is a network namespace that one thread stays in until the test ends.
// Processes that it starts die with it.
type space struct {
	ns   netns.NsHandle
	work chan func()
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		s.ns, err = netns.New()
		made <- err
		for fn := range s.work {
			fn()
		}
	}()
	err := <-made
	t.Cleanup(func() {
		close(s.work)
		s.ns.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	s.in(t, func() error { return setUp("lo") })
	return s
}

// in runs fn within the namespace.
func (s *space) in(t *testing.T, fn func() error) {
	t.Helper()
	done := make(chan error)
	s.work <- func() { done <- fn() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// join links this namespace with that of a router, and gives both ends their
// addresses.
func join(t *testing.T, link string, router *space, here, there []string) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "host", PeerNamespace: netlink.NsFd(router.ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	if err := address(link, here); err != nil {
		t.Fatal(err)
	}
	router.in(t, func() error { return address("host", there) })
}

func address(link string, prefixes []string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		a, err := netlink.ParseAddr(p)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}
