package kernel_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

var (
	vlan50   = kernel.Link{Name: "eth0.50", Kind: kernel.VLAN, Parent: "eth0", VID: 50, MTU: 1500}
	vlan50_7 = kernel.Link{Name: "eth0.50.7", Kind: kernel.VLAN, Parent: "eth0.50", VID: 7, MTU: 1500}
	shim     = kernel.Link{Name: "is-h9", Kind: kernel.Macvlan, Parent: "eth0.50.7", MAC: mac(0x59), MTU: 1500}
	shimAddr = kernel.Addr{Dev: "is-h9", Prefix: netip.MustParsePrefix("10.9.0.1/32")}
	shimFIB  = kernel.FIB{Dst: netip.MustParsePrefix("10.9.0.7/32"), Dev: "is-h9", Src: addr("10.9.0.1")}
	block    = kernel.FIB{Dst: netip.MustParsePrefix("10.8.0.0/28"), Via: addr("192.0.2.9"), Dev: "eth0"}
	guest    = kernel.Link{Name: "is-g9", Kind: kernel.Macvlan, Parent: "eth0.50.7", MAC: mac(0x5a), MTU: 1500, Standing: kernel.HandedOver}
)

func TestDiffParents(t *testing.T) {
	lan := stateOf(vlan50, vlan50_7, shim, shimAddr, shimFIB, block)
	without := func(s kernel.State, objects ...kernel.Object) kernel.State {
		out := kernel.State{}
		for _, o := range s {
			if !slices.Contains(objects, o) {
				out.Put(o)
			}
		}
		return out
	}
	plus := func(s kernel.State, objects ...kernel.Object) kernel.State {
		out := without(s)
		out.Put(objects...)
		return out
	}
	ipShim := kernel.Link{Name: "is-h8", Kind: kernel.IPvlan, Parent: "eth0.50.7", Mode: "l3", MTU: 1500}
	for _, c := range []struct {
		name       string
		have, want kernel.State
		options    kernel.Options
		ops        string
	}{
		{"creation: outer VLAN, inner VLAN, shim, its address, routes", stateOf(), plus(lan, guest), kernel.Options{}, `
add link eth0.50 type vlan link eth0 protocol 802.1Q id 50 mtu 1500
add link eth0.50.7 type vlan link eth0.50 protocol 802.1Q id 7 mtu 1500
add link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500
add addr 10.9.0.1/32 dev is-h9
add fib 10.8.0.0/28 via 192.0.2.9 dev eth0
add fib 10.9.0.7/32 dev is-h9 src 10.9.0.1
`},
		{"removal: in reverse, addresses and routes with their link", lan, stateOf(), kernel.Options{}, `
del fib 10.8.0.0/28 via 192.0.2.9 dev eth0
del link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500
del link eth0.50.7 type vlan link eth0.50 protocol 802.1Q id 7 mtu 1500
del link eth0.50 type vlan link eth0 protocol 802.1Q id 50 mtu 1500
`},
		{"a shim without its address", lan, without(lan, shimAddr, shimFIB), kernel.Options{}, `
del fib 10.9.0.7/32 dev is-h9 src 10.9.0.1
del addr 10.9.0.1/32 dev is-h9
`},
		{"another VLAN protocol needs another device, with all on it", plus(lan, guest), plus(lan, with(vlan50, func(l *kernel.Link) { l.Proto = "802.1ad" }), guest), kernel.Options{}, `
del link eth0.50 type vlan link eth0 protocol 802.1Q id 50 mtu 1500
add link eth0.50 type vlan link eth0 protocol 802.1ad id 50 mtu 1500
add link eth0.50.7 type vlan link eth0.50 protocol 802.1Q id 7 mtu 1500
add link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500
add addr 10.9.0.1/32 dev is-h9
add fib 10.9.0.7/32 dev is-h9 src 10.9.0.1
`},
		{"the words of a default are no difference", lan, plus(lan, with(shim, func(l *kernel.Link) { l.Mode, l.BCQueue = "bridge", 1000 }), with(vlan50, func(l *kernel.Link) { l.Proto = "802.1q" })), kernel.Options{}, ``},
		{"MTU and mode of a macvlan change in place", lan, plus(lan, with(shim, func(l *kernel.Link) { l.Mode, l.MTU, l.BCQueue = "private", 1400, 50 }), with(vlan50_7, func(l *kernel.Link) { l.MTU = 1400 })), kernel.Options{}, `
set link eth0.50.7 type vlan link eth0.50 protocol 802.1Q id 7 mtu 1400
set link is-h9 type macvlan link eth0.50.7 mode private bcqueuelen 50 address 02:00:00:00:00:59 mtu 1400
`},
		{"sources change in place", stateOf(vlan50, with(shim, func(l *kernel.Link) { l.Parent, l.Mode, l.Sources = "eth0", "source", "02:00:00:00:00:01" })), stateOf(vlan50, with(shim, func(l *kernel.Link) {
			l.Parent, l.Mode, l.Sources = "eth0", "source", "02:00:00:00:00:01,02:00:00:00:00:02"
		})), kernel.Options{}, `
set link is-h9 type macvlan link eth0 mode source sources 02:00:00:00:00:01,02:00:00:00:00:02 address 02:00:00:00:00:59 mtu 1500
`},
		{"passthru does not", lan, plus(without(lan, shimAddr, shimFIB), with(shim, func(l *kernel.Link) { l.Mode, l.MAC = "passthru", kernel.Link{}.MAC })), kernel.Options{}, `
del link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500
add link is-h9 type macvlan link eth0.50.7 mode passthru mtu 1500
`},
		{"the mode of an ipvlan does", stateOf(ipShim), stateOf(with(ipShim, func(l *kernel.Link) { l.Mode, l.Flag = "l3s", "private" })), kernel.Options{}, `
set link is-h8 type ipvlan link eth0.50.7 mode l3s private mtu 1500
`},
		{"an ipvlan in place of a macvlan: what nobody wants goes first", lan, plus(without(lan, shim, shimAddr, shimFIB), ipShim), kernel.Options{}, `
del link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500
add link is-h8 type ipvlan link eth0.50.7 mode l3 bridge mtu 1500
`},
		{"a VLAN under another name", stateOf(with(vlan50, func(l *kernel.Link) { l.Name = "eth1.50" })), stateOf(vlan50), kernel.Options{}, `
del link eth1.50 type vlan link eth0 protocol 802.1Q id 50 mtu 1500
add link eth0.50 type vlan link eth0 protocol 802.1Q id 50 mtu 1500
`},
		{"a shim that goes down loses its routes", lan, plus(lan, with(shim, func(l *kernel.Link) { l.Down = true })), kernel.Options{}, `
set link is-h9 type macvlan link eth0.50.7 address 02:00:00:00:00:59 mtu 1500 down
add fib 10.9.0.7/32 dev is-h9 src 10.9.0.1
`},
		{"a route by another way", lan, plus(lan, with(block, func(f *kernel.FIB) { f.Via = addr("192.0.2.8") })), kernel.Options{}, `
set fib 10.8.0.0/28 via 192.0.2.8 dev eth0
`},
		{"unsettled: routes through others stay, those to the host's own containers go", lan, stateOf(vlan50, vlan50_7, shim, shimAddr), kernel.Options{KeepRemote: true}, `
del fib 10.9.0.7/32 dev is-h9 src 10.9.0.1
`},
		{"unsettled: but not stale ones", stateOf(block), stateOf(), kernel.Options{KeepRemote: true, Stale: func(o kernel.Object) bool { return o == kernel.Object(block) }}, `
del fib 10.8.0.0/28 via 192.0.2.9 dev eth0
`},
		{"unsettled: nor those on a link of ours that goes", stateOf(ipShim, with(block, func(f *kernel.FIB) { f.Dev = "is-h8" })), stateOf(), kernel.Options{KeepRemote: true}, `
del link is-h8 type ipvlan link eth0.50.7 mode l3 bridge mtu 1500
`},
		{"a pair without a bridge: both ends", stateOf(), stateOf(kernel.Link{Name: "is-d1", Kind: kernel.Veth, Peer: "is-e1", MTU: 1500}, kernel.Link{Name: "is-e1", Kind: kernel.Veth, Peer: "is-d1", MTU: 1500, Standing: kernel.Adopted}), kernel.Options{}, `
add link is-d1 type veth mtu 1500
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := text(kernel.Diff(c.have, c.want, c.options)), strings.TrimPrefix(c.ops, "\n"); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestWords(t *testing.T) {
	if err := kernel.Lacks(kernel.VLAN); !strings.Contains(err.Error(), "kernel lacks vlan: load the module 8021q (modprobe 8021q)") {
		t.Error(err)
	}
	if err := kernel.Lacks(kernel.IPvlan); !strings.Contains(err.Error(), "kernel lacks ipvlan: load the module ipvlan ") {
		t.Error(err)
	}
	if got := kernel.JoinMACs([]cluster.MAC{mac(2), mac(1), mac(2)}); got != "02:00:00:00:00:01,02:00:00:00:00:02" {
		t.Error(got)
	}
}

// parents draws networks on eth0, which is not ours: on itself or on VLANs, each
// parent with links of one kind, a shim of the host's own among them.
func parents(t *rapid.T, label string, able []kernel.Kind) kernel.State {
	s := kernel.State{}
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label+" "+what) }
	on := []string{"eth0"}
	if slices.Contains(able, kernel.VLAN) {
		for _, vid := range []uint16{50, 51} {
			if pick(fmt.Sprint("vlan ", vid), "yes", "no") == "no" {
				continue
			}
			outer := kernel.Link{Name: fmt.Sprint("eth0.", vid), Kind: kernel.VLAN, Parent: "eth0", VID: vid, MTU: 1500, Proto: pick("protocol", "", "", "802.1ad")}
			s.Put(outer)
			on = append(on, outer.Name)
			if pick("inner", "yes", "no") == "yes" {
				inner := kernel.Link{Name: outer.Name + ".7", Kind: kernel.VLAN, Parent: outer.Name, VID: 7, MTU: 1500}
				s.Put(inner)
				on = append(on, inner.Name)
			}
		}
	}
	if slices.Contains(able, kernel.Dummy) && pick("dummy", "yes", "no") == "yes" {
		s.Put(kernel.Link{Name: "is-d7", Kind: kernel.Dummy, MTU: 1500})
		on = append(on, "is-d7")
	}
	for _, parent := range on {
		i := slices.Index([]string{"eth0", "eth0.50", "eth0.50.7", "eth0.51", "eth0.51.7", "is-d7"}, parent)
		l := kernel.Link{Name: fmt.Sprint("is-p", i), Kind: kernel.Macvlan, Parent: parent, MAC: mac(0x60 + byte(i)), MTU: 1500}
		// Where containers stand the kind stays what it is, as with a network.
		kinds := []string{"none", "macvlan", "passthru", "ipvlan"}
		guests := i%2 == 0
		if guests {
			kinds = []string{"none", map[bool]string{true: "ipvlan", false: "macvlan"}[i == 2]}
		}
		kind := pick(parent, kinds...)
		switch kind {
		case "none":
			continue
		case "macvlan":
			l.Mode = pick("mode", "", "private", "vepa", "source")
			if l.Mode == "source" {
				l.Sources = pick("sources", "", "02:00:00:00:00:01", "02:00:00:00:00:01,02:00:00:00:00:02")
			}
			l.BCQueue = rapid.SampledFrom([]int{0, 500}).Draw(t, label+" queue")
		case "passthru":
			l.Mode, l.MAC = "passthru", kernel.Link{}.MAC
		case "ipvlan":
			if !slices.Contains(able, kernel.IPvlan) {
				continue
			}
			l.Kind, l.MAC = kernel.IPvlan, kernel.Link{}.MAC
			l.Mode, l.Flag = pick("mode", "", "l3", "l3s"), pick("flag", "", "private", "vepa")
		}
		s.Put(l)
		if pick("host access", "yes", "no") == "yes" {
			for _, f := range []struct{ own, guest string }{{"10.7.%d.1/32", "10.7.%d.9/32"}, {"fd07::%d:1/128", "fd07::%d:9/128"}} {
				own := netip.MustParsePrefix(fmt.Sprintf(f.own, i))
				s.Put(kernel.Addr{Dev: l.Name, Prefix: own}, kernel.FIB{Dst: netip.MustParsePrefix(fmt.Sprintf(f.guest, i)), Dev: l.Name, Src: own.Addr()})
			}
		}
		if guests && pick("guest", "yes", "no") == "yes" {
			g := l
			g.Name, g.Standing = fmt.Sprint("is-q", i), kernel.HandedOver
			if !g.MAC.IsZero() {
				g.MAC = mac(0x70 + byte(i))
			}
			s.Put(g)
		}
	}
	if pick("block", "yes", "no") == "yes" {
		s.Put(kernel.FIB{Dst: netip.MustParsePrefix("10.6.0.0/28"), Via: addr(pick("via", "192.0.2.8", "192.0.2.9")), Dev: "eth0"})
	}
	return s
}
