//go:build kernel

package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// handover is a container's interface in one of the two attach kinds.
func handover(kind kernel.Kind, box *space) kernel.Handover {
	h := kernel.Handover{
		Link: kernel.Link{Name: "is-c1", Kind: kind, MAC: mac(0x31), MTU: 1420}, Sandbox: box.path(), Name: "eth0",
		Addrs: []netip.Prefix{prefix("10.0.0.31/24"), prefix("fd02::31/64")},
		Routes: []kernel.Route{
			{Dst: prefix("10.5.0.0/16"), Via: addr("10.0.0.1")}, {Dst: prefix("10.6.0.0/16")},
			{Dst: prefix("fd05::/64"), Via: addr("fd02::1")}, {Dst: prefix("fd06::/64")},
		},
	}
	if kind == kernel.Macvlan {
		h.Link.Parent = "is-v1"
	} else {
		h.Link.Peer = "is-h1"
		h.Host = kernel.Link{Name: "is-h1", Kind: kernel.Veth, Standing: kernel.Adopted, MTU: 1420, Master: "is-b2", Peer: "is-c1"}
	}
	return h
}

func TestLinuxHandAndMend(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			s, box := newSpace(t), newSpace(t)
			k := s.open()
			want := networks("192.0.2.1", "192.0.2.9")
			apply(t, k, want)
			h := handover(kind, box)
			claimed := func() kernel.State {
				all := stateOf(with(h.Link, func(l *kernel.Link) { l.Standing = kernel.HandedOver }))
				if h.Host.Name != "" {
					all.Put(h.Host)
				}
				for _, o := range want {
					all.Put(o)
				}
				return all
			}
			for range 2 { // what stands there is replaced
				if err := k.Hand(ctx, h); err != nil {
					t.Fatal(err)
				}
			}
			out := s.sh("ip -d link show is-c1")
			contains(t, out, mac(0x31).String(), "mtu 1420", "state DOWN")
			if strings.Contains(out, "addrgenmode none") {
				t.Errorf("the container cannot make a link-local address: %s", out)
			}
			apply(t, k, claimed())
			if kind == kernel.Veth {
				contains(t, s.sh("ip -d link show is-h1"), "master is-b2", "addrgenmode none", "mtu 1420", ",UP")
			}
			if name, err := k.Observe(ctx, h); name != "" || err != nil {
				t.Errorf("observed %q, %v", name, err)
			}
			s.sh("ip link set is-c1 netns %s", box.path())
			if name, err := k.Observe(ctx, h); name != "" || err != nil {
				t.Errorf("observed %q before Docker renamed it, %v", name, err)
			}
			if made, err := k.Mend(ctx, h); made || err != nil {
				t.Errorf("mended what Docker is configuring: %v, %v", made, err)
			}
			box.sh("ip link set is-c1 name eth1; ip link set eth1 up")
			if name, err := k.Observe(ctx, h); name != "eth1" || err != nil {
				t.Errorf("observed %q, %v", name, err)
			}
			apply(t, k, claimed())

			// It dies with what is below. Docker's sandboxes have IPv6 off.
			box.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
			s.sh("ip link del %s", h.Below())
			if out := box.sh("ip -br link"); strings.Contains(out, "eth1") {
				t.Fatalf("still there: %s", out)
			}
			apply(t, k, want)
			box.sh("ip link add eth1 type bridge") // its old name is taken
			h.Name = "eth1"
			made, err := k.Mend(ctx, h)
			if !made || err != nil {
				t.Fatalf("mended: %v, %v", made, err)
			}
			checkMended(t, box, "eth0")
			if out := s.sh("ip -br link"); strings.Contains(out, "is-c1") {
				t.Errorf("left on the host: %s", out)
			}
			apply(t, k, claimed())
			if made, err := k.Mend(ctx, h); made || err != nil {
				t.Errorf("mended twice: %v, %v", made, err)
			}

			// A plugin that was killed half-way: at every step it is taken up again.
			for _, undo := range []string{
				"ip link set eth0 down; ip link set eth0 name is-c1; ip addr flush dev is-c1",
				"ip addr flush dev eth0",
				"ip link set eth0 down",
				"ip route flush dev eth0 proto boot; ip -6 route flush dev eth0 proto boot",
			} {
				box.sh("%s; ip link set $(ip -br link | sed -n 's/^\\(is-c1\\|eth0\\).*/\\1/p' | cut -d@ -f1) group %d", undo, kernel.Group+1)
				h.Name = "eth0"
				if made, err := k.Mend(ctx, h); !made || err != nil {
					t.Errorf("after %s: %v, %v", undo, made, err)
				}
				checkMended(t, box, "eth0")
			}
			if kind == kernel.Veth { // killed before the host end was marked
				s.sh("ip link set is-h1 group 0 nomaster down")
				box.sh("ip link set eth0 group %d", kernel.Group+1)
				if made, err := k.Mend(ctx, h); !made || err != nil {
					t.Errorf("after the host end was lost: %v, %v", made, err)
				}
				apply(t, k, claimed())
			}

			// Docker gives it back; nobody claims it; it goes.
			box.sh("ip link set eth0 down; ip link set eth0 name is-c1; ip link set is-c1 netns %s", s.path())
			apply(t, k, claimed())
			apply(t, k, want)
			if out := s.sh("ip -br link"); strings.Contains(out, "is-c1") || strings.Contains(out, "is-h1") {
				t.Errorf("left: %s", out)
			}
		})
	}
}

func checkMended(t *testing.T, box *space, name string) {
	t.Helper()
	out := box.sh("ip addr show %s; ip route show dev %s; ip -6 route show dev %s", name, name, name)
	contains(t, out, mac(0x31).String(), "mtu 1420", ",UP", "inet 10.0.0.31/24", "inet6 fd02::31/64",
		"10.0.0.0/24", "10.5.0.0/16 via 10.0.0.1", "10.6.0.0/16 scope link", "fd05::/64 via fd02::1", "fd06::/64")
	if strings.Contains(out, "scope global tentative") {
		t.Errorf("not usable at once: %s", out)
	}
}

// As in a managed plugin, /proc/sys is read-only for the whole process: the
// test runs in a child with mounts of its own.
func TestLinuxMendWithReadOnlyProc(t *testing.T) {
	t.Parallel()
	const marker = "ISTHMUS_TEST_CHILD"
	if os.Getenv(marker) == "" {
		child := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), marker+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s, box := newSpace(t), newSpace(t)
	k := s.open()
	apply(t, k, networks("192.0.2.1", "192.0.2.9"))
	box.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
	const sys = "/proc/sys"
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(sys, sys, "", unix.MS_BIND, ""),
		unix.Mount("", sys, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(sys+"/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0); !errors.Is(err, unix.EROFS) {
		t.Fatalf("%s is not read-only: %v", sys, err)
	}
	made, err := k.Mend(context.Background(), handover(kernel.Macvlan, box))
	if !made || err != nil {
		t.Fatalf("mended: %v, %v", made, err)
	}
	checkMended(t, box, "eth0")
	if err := os.WriteFile(sys+"/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("Mend changed the mounts of the process: %v", err)
	}
}

func TestLinuxNoSandbox(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	file := filepath.Join(t.TempDir(), "0123456789ab")
	for _, path := range []string{file, file + "/deeper", "/dev/null", t.TempDir()} {
		h := handover(kernel.Macvlan, s)
		h.Sandbox = path
		if path == file {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := k.Mend(context.Background(), h); !errors.Is(err, kernel.ErrNoSandbox) {
			t.Errorf("mend in %s: %v", path, err)
		}
		if _, err := k.Observe(context.Background(), h); !errors.Is(err, kernel.ErrNoSandbox) {
			t.Errorf("observe %s: %v", path, err)
		}
	}
	// A sandbox, but nothing to stand on.
	h := handover(kernel.Macvlan, newSpace(t))
	if made, err := k.Mend(context.Background(), h); made || err == nil || !strings.Contains(err.Error(), "find parent is-v1") {
		t.Errorf("without its parent: %v, %v", made, err)
	}
	if err := k.Hand(context.Background(), h); err == nil || !strings.Contains(err.Error(), "find parent is-v1") {
		t.Errorf("without its parent: %v", err)
	}
}
