//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// peer is a host that routes, with an address of its own inside of its block.
type peer struct {
	*space
	k    *kernel.Linux
	vtep netip.Addr
	own  []netip.Addr // 10.40.N.1 and fd40:N::1
	want kernel.State
}

// newPeers makes two hosts on one wire, each with a bridge that has its addresses.
func newPeers(t *testing.T, vteps [2]string) (a, b *peer) {
	t.Helper()
	hosts := make([]*peer, 2)
	for i := range hosts {
		p := &peer{space: newSpace(t), vtep: addr(vteps[i])}
		p.k = p.open()
		p.own = []netip.Addr{addr(fmt.Sprintf("10.40.%d.1", i+1)), addr(fmt.Sprintf("fd40:%d::1", i+1))}
		p.want = stateOf(kernel.Link{Name: "is-g1", Kind: kernel.Bridge, MTU: 1500})
		for _, own := range p.own {
			p.want.Put(kernel.Addr{Dev: "is-g1", Prefix: netip.PrefixFrom(own, own.BitLen())})
		}
		hosts[i] = p
	}
	a, b = hosts[0], hosts[1]
	bits := "/24"
	if a.vtep.Is6() {
		bits = "/64"
	}
	join(a.space, b.space, vteps[0]+bits, vteps[1]+bits)
	apply(t, a.k, a.want)
	apply(t, b.k, b.want)
	return a, b
}

// block is what a peer leases of a family.
func (p *peer) block(v4 bool) netip.Prefix {
	if v4 {
		return netip.PrefixFrom(p.own[0], 24).Masked()
	}
	return netip.PrefixFrom(p.own[1], 64).Masked()
}

// leads wants b's blocks by a way, but for the families that it does not carry.
func (p *peer) leads(b *peer, way kernel.FIB, families ...bool) {
	for i, v4 := range []bool{true, false} {
		if slices.Contains(families, v4) {
			way.Dst, way.Src = b.block(v4), p.own[i]
			p.want.Put(way)
		}
	}
}

// echoes reports which of b's addresses answer a's own ones.
func echoes(t *testing.T, a, b *peer, within time.Duration) []bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	got, err := a.k.Echo(ctx, []kernel.Probe{{Src: a.own[0], Dst: b.own[0]}, {Src: a.own[1], Dst: b.own[1]}})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func mustEcho(t *testing.T, a, b *peer, want ...bool) {
	t.Helper()
	await(t, "echo", func() error {
		if got := echoes(t, a, b, 500*time.Millisecond); !slices.Equal(got, want) {
			return fmt.Errorf("answered %v, want %v", got, want)
		}
		return nil
	})
}

// Hosts on one wire: a route to a block is a way there, and a blackhole is none.
func TestLinuxHop(t *testing.T) {
	t.Parallel()
	a, b := newPeers(t, [2]string{"192.0.2.1", "192.0.2.2"})
	mustEcho(t, a, b, false, false)
	for _, p := range []struct{ from, to *peer }{{a, b}, {b, a}} {
		hop, err := p.from.k.Hop(context.Background(), p.to.vtep)
		if err != nil || hop != (kernel.Hop{Dev: "u0", Src: p.from.vtep}) {
			t.Fatalf("hop %+v, %v", hop, err)
		}
		p.from.leads(p.to, kernel.FIB{Via: p.to.vtep, Dev: "u0"}, true)
		p.from.want.Put(kernel.FIB{Dst: prefix("10.40.99.0/24")}, kernel.FIB{Dst: prefix("fd40:99::/64")})
		apply(t, p.from.k, p.from.want)
	}
	mustEcho(t, a, b, true, false)
	contains(t, a.sh("ip route; ip -6 route"), "blackhole 10.40.99.0/24 proto 105", "blackhole fd40:99::/64", "10.40.2.0/24 via 192.0.2.2 dev u0 proto 105 src 10.40.1.1")
	if _, err := a.k.Hop(context.Background(), a.vtep); err == nil || !strings.Contains(err.Error(), "it is no other host") {
		t.Errorf("the way to itself: %v", err)
	}
	if _, err := a.k.Hop(context.Background(), addr("198.51.100.9")); err == nil {
		t.Error("there is a way to where none leads")
	}
	a.sh("ip route add 198.51.100.9/32 via 192.0.2.2")
	if hop, err := a.k.Hop(context.Background(), addr("198.51.100.9")); err != nil || hop.Via != b.vtep {
		t.Errorf("hop by a router %+v, %v", hop, err)
	}
	foreign, err := a.k.Foreigns(context.Background())
	if err != nil || len(foreign) != 2 || foreign[0].String() != "192.0.2.0/24 dev u0 proto kernel" || foreign[1].String() != "198.51.100.9/32 via 192.0.2.2 dev u0 proto boot" {
		t.Errorf("routes of others %v, %v", foreign, err)
	}
	// Somebody else's route to the same destination stays, whatever becomes of ours.
	a.sh("ip route add 10.40.2.0/24 via 192.0.2.9")
	apply(t, a.k, a.want)
	delete(a.want, kernel.FIB{Dst: b.block(true)}.Key())
	apply(t, a.k, a.want)
	contains(t, a.sh("ip route show 10.40.2.0/24"), "10.40.2.0/24 via 192.0.2.9")
}

// A tunnel in place of the wire, one replaced route each: VXLAN, and IPIP and GRE where
// the kernel has them. What is larger than the route's MTU is refused, and arrives when cut.
func TestLinuxTunnels(t *testing.T) {
	t.Parallel()
	for _, vteps := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8::2"}} {
		for kind, overhead := range map[kernel.Kind][2]int{kernel.VXLAN: {50, 70}, kernel.IPIP: {20, 40}, kernel.GRE: {24, 52}} {
			t.Run(fmt.Sprintf("%s over %s", kind, vteps[0]), func(t *testing.T) {
				a, b := newPeers(t, vteps)
				v6, families := a.vtep.Is6(), []bool{true, false}
				mtu := 1500 - overhead[0]
				if v6 {
					mtu = 1500 - overhead[1]
				} else if kind == kernel.IPIP {
					families = []bool{true} // it carries no IPv6
				}
				if able, err := a.k.Makes(context.Background(), kind.Over(a.vtep)); err != nil {
					t.Fatal(err)
				} else if !able {
					err := a.k.Do(context.Background(), []kernel.Op{{Action: kernel.Add, Object: kernel.Link{Name: "is-t1", Kind: kind, MTU: mtu, Local: a.vtep, Remote: b.vtep}}})
					if err == nil || !strings.Contains(err.Error(), "kernel lacks "+string(kind.Over(a.vtep))) {
						t.Errorf("made one on a kernel that lacks it, or said %v", err)
					}
					return
				}
				a.sh("nft 'add table inet theirs; add chain inet theirs in { type filter hook input priority 0; }; add rule inet theirs in ct state new'")
				untracked := kernel.Guard{Rule: kernel.NoTrack, Kind: kind, Tunnel: netip.AddrPortFrom(a.vtep, 0)}
				if kind == kernel.VXLAN {
					untracked = kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.AddrPortFrom(a.vtep, 8475)}
				}
				a.want.Put(untracked, kernel.Guard{Rule: kernel.Admit, Peer: b.vtep})
				for n, p := range []struct{ from, to *peer }{{a, b}, {b, a}} {
					way := kernel.FIB{Dev: "is-t1", MTU: mtu}
					if kind == kernel.VXLAN {
						p.from.want.Put(
							kernel.Link{Name: "is-t1", Kind: kind, VNI: 9, Port: 8475, MTU: mtu, Local: p.from.vtep, MAC: mac(byte(n))},
							kernel.FDB{Dev: "is-t1", MAC: mac(byte(1 - n)), Dst: p.to.vtep},
						)
						for i := range p.to.own {
							p.from.want.Put(kernel.Neigh{Dev: "is-t1", IP: p.to.own[i], MAC: mac(byte(1 - n))})
							way.Via, way.Onlink = p.to.own[i], true
							p.from.leads(p.to, way, i == 0)
						}
					} else {
						p.from.want.Put(kernel.Link{Name: "is-t1", Kind: kind, MTU: mtu, Local: p.from.vtep, Remote: p.to.vtep})
						p.from.leads(p.to, way, families...)
					}
					apply(t, p.from.k, p.from.want)
				}
				mustEcho(t, a, b, true, len(families) == 2)
				ping := func(size int, more string) error {
					_, err := a.try(fmt.Sprintf("ping -c 1 -W 2 -M do -s %d %s -I %s %s", size-28, more, a.own[0], b.own[0]))
					return err
				}
				if err := ping(mtu, ""); err != nil {
					t.Errorf("a packet of %d bytes does not pass: %v", mtu, err)
				}
				if ping(mtu+1, "") == nil {
					t.Errorf("a packet of %d bytes passes", mtu+1)
				}
				tracked := func() bool { // by the addresses of the tunnel's ends
					for line := range strings.Lines(a.sh("cat /proc/net/nf_conntrack")) {
						if strings.Contains(line, " src="+a.vtep.StringExpanded()+" dst="+b.vtep.StringExpanded()+" ") && !strings.Contains(line, "icmp") {
							return true
						}
					}
					return false
				}
				if tracked() {
					t.Errorf("tracked:\n%s", a.sh("cat /proc/net/nf_conntrack"))
				}
				delete(a.want, untracked.Key())
				apply(t, a.k, a.want)
				if err := ping(mtu, ""); err != nil {
					t.Error(err)
				}
				if !tracked() {
					t.Error("not tracked without the guard: the test shows nothing")
				}
				a.sh("ip link del is-t1")
				apply(t, a.k, a.want)
				mustEcho(t, a, b, true, len(families) == 2)
				// Back to the wire, and nothing is left.
				if !v6 {
					a.leads(b, kernel.FIB{Via: b.vtep, Dev: "u0"}, true)
					apply(t, a.k, a.want)
					mustEcho(t, a, b, true, len(families) == 2)
				}
				apply(t, a.k, stateOf())
				if left := a.sh("ip -o link show group 26995; ip route show proto 105; ip -6 route show proto 105"); left != "" {
					t.Errorf("left: %s", left)
				}
			})
		}
	}
}
