//go:build kernel

package kernel_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// node is a host with one container, n = 1 or 2.
type node struct {
	*space
	k    *kernel.Linux
	box  *space
	want kernel.State
	h    kernel.Handover
}

const vxlanPort = 8475

func containerMAC(n int) cluster.MAC { return mac(0x10 + byte(n)) }

// The same device name, VNI and addresses in all tests: host n has VTEP MAC n,
// its container 10.32.0.1n and fd32::1n. Each host runs the setup commands first.
func newNodes(t *testing.T, kind kernel.Kind, underlay string, setup ...string) (a, b *node) {
	t.Helper()
	a = &node{space: newSpace(t), box: newSpace(t)}
	b = &node{space: newSpace(t), box: newSpace(t)}
	bits, mtu := 24, 1450
	if strings.Contains(underlay, ":") {
		bits, mtu = 64, 1430
	}
	vtep := func(n int) netip.Addr { return addr(fmt.Sprint(underlay, n)) }
	join(a.space, b.space, fmt.Sprintf("%s/%d", vtep(1), bits), fmt.Sprintf("%s/%d", vtep(2), bits))
	for i, x := range []*node{a, b} {
		n, other := i+1, 2-i
		x.sh("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter")
		for _, command := range setup {
			x.sh("%s", command)
		}
		x.k = x.open()
		v := kernel.Link{Name: "is-v1", Kind: kernel.VXLAN, MAC: mac(byte(n)), MTU: mtu, VNI: 7, Local: vtep(n), Port: vxlanPort, Proxy: true}
		x.h = kernel.Handover{
			Link:    kernel.Link{Name: "is-c1", Kind: kind, MAC: containerMAC(n), MTU: mtu},
			Sandbox: x.box.path(), Name: "eth0",
			Addrs: []netip.Prefix{prefix(fmt.Sprintf("10.32.0.1%d/24", n)), prefix(fmt.Sprintf("fd32::1%d/64", n))},
		}
		x.want = stateOf(
			kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.AddrPortFrom(vtep(n), vxlanPort)},
			kernel.Guard{Rule: kernel.DropStrangers, Tunnel: netip.AddrPortFrom(vtep(n), vxlanPort)},
			kernel.Guard{Rule: kernel.Admit, Peer: vtep(other)},
			kernel.FDB{Dev: v.Name, Dst: vtep(other)},
			kernel.FDB{Dev: v.Name, MAC: containerMAC(other), Dst: vtep(other)},
			kernel.FDB{Dev: v.Name, MAC: mac(byte(other)), Dst: vtep(other)}, // so that frames to the VTEP's MAC arrive
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("10.32.0.1%d", other)), MAC: containerMAC(other)},
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("fd32::1%d", other)), MAC: containerMAC(other)},
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("fe80::ff:fe00:1%d", other)), MAC: containerMAC(other)},
		)
		if kind == kernel.Macvlan {
			x.h.Link.Parent = v.Name
			x.want.Put(kernel.Link{Name: "is-a1", Kind: kernel.Macvlan, MAC: mac(0x40 + byte(n)), MTU: mtu, Parent: v.Name},
				kernel.Guard{Dev: "is-v1", Rule: kernel.DropInput}, kernel.Guard{Dev: "is-a1", Rule: kernel.DropInput})
		} else {
			v.Master = "is-b1"
			x.h.Host = kernel.Link{Name: "is-h1", Kind: kernel.Veth, Standing: kernel.Adopted, MTU: mtu, Master: "is-b1"}
			x.want.Put(kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MAC: mac(byte(n)), MTU: mtu}, x.h.Host,
				kernel.Guard{Dev: "is-b1", Rule: kernel.DropBridgeInput}, kernel.Guard{Dev: "is-b1", Rule: kernel.AcceptForward})
		}
		x.want.Put(v)
		apply(t, x.k, x.want)
		x.start(t)
	}
	b.box.echo(":80")
	return a, b
}

// start does what Docker does at a container's start.
func (x *node) start(t *testing.T) {
	t.Helper()
	if err := x.k.Hand(context.Background(), x.h); err != nil {
		t.Fatal(err)
	}
	take(x.space, x.box, x.h.Link.Name, "eth0", x.h.Addrs[0].String(), x.h.Addrs[1].String())
}

// unguarded returns the wanted state without guards.
func (x *node) unguarded() kernel.State {
	s := kernel.State{}
	for k, o := range x.want {
		if k.Type != "guard" {
			s[k] = o
		}
	}
	return s
}

var containerB = []string{"10.32.0.12:80", "[fd32::12]:80"}

func mustReach(t *testing.T, from *space, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		await(t, "reach "+a, func() error { return from.reach(a, time.Second) })
	}
}

// inner returns the frames inside the VXLAN packets among frames.
func inner(frames [][]byte) (out [][]byte) {
	for _, f := range frames {
		at := 0
		switch {
		case len(f) > 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP && f[23] == unix.IPPROTO_UDP:
			at = 14 + int(f[14]&15)*4
		case len(f) > 62 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[20] == unix.IPPROTO_UDP:
			at = 54
		default:
			continue
		}
		if len(f) > at+16+14 && binary.BigEndian.Uint16(f[at+2:]) == vxlanPort {
			out = append(out, f[at+16:])
		}
	}
	return out
}

// resolution tells an ARP packet, neighbour solicitation or advertisement.
func resolution(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		return len(f) > 54 && f[20] == unix.IPPROTO_ICMPV6 && (f[54] == 135 || f[54] == 136)
	}
	return false
}

func TestLinuxTraffic(t *testing.T) {
	t.Parallel()
	for i, underlay := range []string{"192.0.2.", "fd99::"} {
		kinds := []kernel.Kind{kernel.Macvlan, kernel.Veth}
		for _, kind := range spared(kinds, kinds[i:i+1]) {
			t.Run(string(kind)+" "+underlay, func(t *testing.T) {
				a, b := newNodes(t, kind, underlay)
				stop := b.capture("u0")
				mustReach(t, a.box, containerB...)
				frames := inner(stop())
				if len(frames) < 10 {
					t.Errorf("only %d frames passed the wire", len(frames))
				}
				if i := slices.IndexFunc(frames, resolution); i >= 0 {
					t.Errorf("address resolution on the wire: %x", frames[i])
				}

				// The device dies, is made again, and the interface with it.
				a.sh("ip link del is-v1")
				if kind == kernel.Veth {
					a.sh("ip link del is-h1")
				}
				ops := apply(t, a.k, a.want)
				if !slices.Contains(kernel.Recreated(ops), "is-v1") {
					t.Errorf("recreated %q", kernel.Recreated(ops))
				}
				if made, err := a.k.Mend(context.Background(), a.h); !made || err != nil {
					t.Fatalf("mend: %v, %v", made, err)
				}
				apply(t, a.k, a.want)
				mustReach(t, a.box, containerB...)
			})
		}
	}
}

// Containers have IPv6 on a host that has none, with neighbours answered locally.
func TestLinuxTrafficWithIPv6Off(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
			stop := b.capture("u0")
			mustReach(t, a.box, containerB...)
			if i := slices.IndexFunc(inner(stop()), resolution); i >= 0 {
				t.Error("address resolution on the wire")
			}
		})
	}
}

func TestLinuxTunnelFollowsLocal(t *testing.T) {
	t.Parallel()
	a, b := newNodes(t, kernel.Macvlan, "192.0.2.")
	mustReach(t, a.box, containerB...)
	a.sh("ip addr add 192.0.2.77/24 dev u0")
	v := a.want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
	v.Local = addr("192.0.2.77")
	a.want.Put(v)
	apply(t, a.k, a.want)
	b.want.Put(kernel.Guard{Rule: kernel.Admit, Peer: v.Local})
	for _, k := range []kernel.FDB{{Dev: "is-v1", MAC: containerMAC(1)}, {Dev: "is-v1", MAC: mac(1)}} {
		k.Dst = v.Local
		b.want.Put(k)
	}
	apply(t, b.k, b.want)
	a.sh("ip addr del 192.0.2.1/24 dev u0; ip addr add 192.0.2.77/24 dev u0 2>/dev/null || true")
	mustReach(t, a.box, containerB...)
}

func TestLinuxAnnounce(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.")
			mustReach(t, a.box, containerB...)
			dev := "is-a1"
			if kind == kernel.Veth {
				dev = "is-b1"
			}
			for _, ip := range []string{"10.32.0.12", "fd32::12"} {
				contains(t, a.box.sh("ip neigh show %s dev eth0", ip), containerMAC(2).String())
			}
			stop := b.capture("u0")
			moved := mac(0x77)
			err := a.k.Announce(context.Background(), []kernel.Announcement{
				{Dev: dev, To: containerMAC(1), IP: addr("10.32.0.12"), MAC: moved},
				{Dev: dev, To: containerMAC(1), IP: addr("fd32::12"), MAC: moved},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range []string{"10.32.0.12", "fd32::12"} {
				await(t, "announce "+ip, func() error {
					if out := a.box.sh("ip neigh show %s dev eth0", ip); !strings.Contains(out, moved.String()) {
						return fmt.Errorf("still %s", out)
					}
					return nil
				})
			}
			if i := slices.IndexFunc(inner(stop()), resolution); i >= 0 {
				t.Errorf("an announcement reached the wire")
			}
			err = a.k.Announce(context.Background(), []kernel.Announcement{{Dev: "is-none", To: moved, IP: addr("10.32.0.12"), MAC: moved}})
			if err == nil || !strings.Contains(err.Error(), "announce from is-none") {
				t.Errorf("from a missing link: %v", err)
			}
		})
	}
}
