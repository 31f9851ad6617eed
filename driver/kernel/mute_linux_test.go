//go:build kernel

package kernel_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestLinuxMute: an interface is off the network while it is muted, and after
// that as it was, addresses of both families included.
func TestLinuxMute(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, box, other := newSpace(t), newSpace(t), newSpace(t)
	k := s.open()
	apply(t, k, networks("192.0.2.1", "192.0.2.9"))
	h := handover(kernel.Macvlan, box)
	if err := k.Hand(ctx, h); err != nil {
		t.Fatal(err)
	}
	s.sh("ip link set is-c1 netns %s", box.path())
	if changed, err := k.Mute(ctx, h); changed || err != nil {
		t.Errorf("muted what Docker is configuring: %v, %v", changed, err)
	}
	box.sh("ip link set is-c1 name eth0; ip addr add 10.0.0.31/24 dev eth0; ip addr add fd02::31/64 nodad dev eth0; ip link set eth0 up")
	neighbour := kernel.Handover{Link: kernel.Link{Name: "is-c2", Kind: kernel.Macvlan, MAC: mac(0x32), MTU: 1420, Parent: "is-v1"}}
	if err := k.Hand(ctx, neighbour); err != nil {
		t.Fatal(err)
	}
	s.sh("ip link set is-c2 netns %s", other.path())
	other.sh("ip addr add 10.0.0.32/24 dev is-c2; ip addr add fd02::32/64 nodad dev is-c2; ip link set is-c2 up")
	reach := func() {
		t.Helper()
		// With -w it asks until it is answered: the kernel gives a link that came up
		// the routes to its IPv6 addresses a moment later (addrconf_dad_work).
		other.sh("ping -c 1 -w 5 -i 0.2 10.0.0.31; ping -c 1 -w 5 -i 0.2 fd02::31")
	}
	reach()
	for _, keeps := range []bool{true, false} {
		if changed, err := k.Mute(ctx, h); !changed || err != nil {
			t.Fatalf("muted: %v, %v", changed, err)
		}
		if changed, err := k.Mute(ctx, h); changed || err != nil {
			t.Errorf("muted again: %v, %v", changed, err)
		}
		contains(t, box.sh("ip link show eth0"), "state DOWN")
		tenants, err := k.Tenants(ctx, sandboxes(t, box))
		if err != nil || len(tenants) != 1 || !tenants[0].Muted || len(tenants[0].Addrs) != 2 {
			t.Errorf("tenants %+v, %v", tenants, err)
		}
		box.sh("ip link set eth0 up") // by somebody in the container
		if changed, err := k.Mute(ctx, h); !changed || err != nil {
			t.Errorf("muted what came up: %v, %v", changed, err)
		}
		if !keeps { // where the setting cannot be made
			box.sh("ip addr flush dev eth0 scope global")
		}
		if changed, err := k.Unmute(ctx, h); !changed || err != nil {
			t.Fatalf("unmuted: %v, %v", changed, err)
		}
		reach()
		if out := box.sh("ip link show eth0"); strings.Contains(out, "alias") {
			t.Errorf("still marked: %s", out)
		}
	}
	box.sh("ip link set eth0 down")
	if changed, err := k.Unmute(ctx, h); changed || err != nil {
		t.Errorf("set up what somebody else took down: %v, %v", changed, err)
	}
	h.Link.MAC = mac(0x77)
	if changed, err := k.Mute(ctx, h); changed || err != nil {
		t.Errorf("muted nothing: %v, %v", changed, err)
	}
	if _, err := k.Mute(ctx, kernel.Handover{Link: h.Link, Sandbox: "/nowhere"}); !errors.Is(err, kernel.ErrNoSandbox) {
		t.Errorf("in no sandbox: %v", err)
	}
	h.Link.Down = true
	if made, err := k.Mend(ctx, h); made || err != nil {
		t.Errorf("made what shall be down: %v, %v", made, err)
	}
}

// TestLinuxMuteInALAN: a muted interface on a parent answers nothing, ARP and ND
// included, and is as it was after that, with its routes. It is known by its MAC,
// or where it has its parent's by its alias.
func TestLinuxMuteInALAN(t *testing.T) {
	t.Parallel()
	for _, link := range []kernel.Link{
		{Kind: kernel.Macvlan, MAC: mac(0x31)},
		{Kind: kernel.Macvlan, Mode: "passthru"},
		{Kind: kernel.IPvlan},
	} {
		t.Run(string(link.Kind)+link.Mode, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			s, box, lan := newSpace(t), newSpace(t), newSpace(t)
			s.sh("ip link add eth0 type veth peer name port netns %s; ip link set eth0 up", lan.path())
			lan.sh("ip addr add 10.0.0.1/24 dev port; ip addr add fd02::1/64 dev port nodad; ip link set port up")
			k := s.open()
			if !makes(t, k, link.Kind) {
				return
			}
			link.Name, link.Parent, link.MTU = "is-e0123456789", "eth0", 1500
			h := kernel.Handover{
				Link: link, Sandbox: box.path(), Addrs: []netip.Prefix{prefix("10.0.0.31/24"), prefix("fd02::31/64")},
				Routes: []kernel.Route{{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.1")}, {Dst: prefix("::/0"), Via: addr("fd02::1")}},
			}
			if err := k.Hand(ctx, h); err != nil {
				t.Fatal(err)
			}
			take(s, box, link.Name, "eth0", "10.0.0.31/24", "fd02::31/64")
			box.sh("ip route add default via 10.0.0.1; ip -6 route add default via fd02::1")
			routes := func() string { return box.sh("ip route; ip -6 route show default") }
			before := routes()
			for range spared(2, 1) {
				await(t, "heard", func() error {
					_, err := lan.try("ping -c1 -W1 10.0.0.31; ping -c1 -W1 fd02::31")
					return err
				})
				if changed, err := k.Mute(ctx, h); !changed || err != nil {
					t.Fatalf("muted: %v, %v", changed, err)
				}
				lan.sh("ip neigh flush dev port; ip -6 neigh flush dev port")
				for _, ip := range []string{"10.0.0.31", "fd02::31"} {
					if out, err := lan.try("ping -c1 -W1 " + ip); err == nil {
						t.Errorf("heard: %s", out)
					}
					if out := lan.sh("ip neigh show %s dev port", ip); strings.Contains(out, "lladdr") || out == "" {
						t.Errorf("asked for %s: %q", ip, out)
					}
				}
				tenants, err := k.Tenants(ctx, sandboxes(t, box))
				if err != nil || len(tenants) != 1 || !tenants[0].Muted || (tenants[0].Link == link.Name) != link.MAC.IsZero() {
					t.Errorf("tenants %+v, %v", tenants, err)
				}
				if name, err := k.Observe(ctx, h); name != "eth0" || err != nil {
					t.Errorf("observed %q, %v", name, err)
				}
				if changed, err := k.Unmute(ctx, h); !changed || err != nil {
					t.Fatalf("unmuted: %v, %v", changed, err)
				}
				if after := routes(); after != before {
					t.Errorf("routes\n%s\nwere\n%s", after, before)
				}
				if out := box.sh("ip link show eth0"); strings.Contains(out, "cut off") || strings.Contains(out, "alias "+link.Name) != link.MAC.IsZero() {
					t.Errorf("marked: %s", out)
				}
			}
			// One that was muted while it was made is not finished.
			box.sh("ip link set eth0 down; ip link set eth0 group %d", kernel.Group+1)
			h.Link.Down = true
			if made, err := k.Mend(ctx, h); made || err != nil || strings.Contains(box.sh("ip link show eth0"), ",UP") {
				t.Errorf("finished what shall be down: %v, %v", made, err)
			}
		})
	}
}

// sandboxes is a directory with one sandbox in it.
func sandboxes(t *testing.T, box *space) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(box.path(), filepath.Join(dir, "box")); err != nil {
		t.Fatal(err)
	}
	return dir
}
