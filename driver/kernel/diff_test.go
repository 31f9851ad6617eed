package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

func stateOf(objects ...kernel.Object) kernel.State {
	s := kernel.State{}
	s.Put(objects...)
	return s
}

func text(ops []kernel.Op) string {
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintln(&b, op)
	}
	return b.String()
}

func mac(n byte) cluster.MAC { return cluster.MAC{2, 0, 0, 0, 0, n} }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	tunnel  = kernel.Link{Name: "is-v1", Kind: kernel.VXLAN, MAC: mac(1), MTU: 1450, VNI: 7, Local: addr("192.0.2.1"), Port: 8475, Proxy: true}
	herald  = kernel.Link{Name: "is-a1", Kind: kernel.Macvlan, MAC: mac(2), MTU: 1450, Parent: "is-v1"}
	child   = kernel.Link{Name: "is-c1", Kind: kernel.Macvlan, MAC: mac(3), MTU: 1450, Parent: "is-v1", Standing: kernel.HandedOver}
	bridge  = kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MAC: mac(4), MTU: 1450}
	port    = kernel.Link{Name: "is-h1", Kind: kernel.Veth, MTU: 1450, Master: "is-b1", Standing: kernel.Adopted}
	dropIn  = kernel.Guard{Dev: "is-v1", Rule: kernel.DropInput}
	remote  = kernel.FDB{Dev: "is-v1", MAC: mac(9), Dst: addr("192.0.2.9")}
	flood9  = kernel.FDB{Dev: "is-v1", Dst: addr("192.0.2.9")}
	fence   = kernel.Guard{Rule: kernel.DropStrangers, Tunnel: netip.MustParseAddrPort("192.0.2.1:8475")}
	admit2  = kernel.Guard{Rule: kernel.Admit, Peer: addr("192.0.2.2")}
	admit3  = kernel.Guard{Rule: kernel.Admit, Peer: addr("192.0.2.3")}
	remote4 = kernel.Neigh{Dev: "is-v1", IP: addr("10.0.0.9"), MAC: mac(9)}
)

func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

func TestDiff(t *testing.T) {
	moved := with(tunnel, func(l *kernel.Link) { l.Local = addr("192.0.2.7") })
	vni8 := with(tunnel, func(l *kernel.Link) { l.VNI = 8 })
	renamed := with(tunnel, func(l *kernel.Link) { l.Name = "is-v2" })
	newMAC := with(tunnel, func(l *kernel.Link) { l.MAC = mac(77) })
	enslaved := with(tunnel, func(l *kernel.Link) { l.Master = "is-b1" })
	down := with(tunnel, func(l *kernel.Link) { l.Down = true })
	six := with(tunnel, func(l *kernel.Link) { l.Local = addr("fd00::1") })

	for _, c := range []struct {
		name       string
		have, want kernel.State
		options    kernel.Options
		ops        string
	}{
		{"creation: guards, links from below, entries", stateOf(), stateOf(herald, tunnel, dropIn, remote4, remote, flood9, child, bridge, port), kernel.Options{}, `
add guard drop-input dev is-v1
add link is-b1 type bridge address 02:00:00:00:00:04 mtu 1450
add link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-a1 type macvlan link is-v1 address 02:00:00:00:00:02 mtu 1450
add fdb 00:00:00:00:00:00 dev is-v1 dst 192.0.2.9
add fdb 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9
add neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
		{"removal: children first, entries with their link, guards last", stateOf(herald, tunnel, dropIn, remote4, remote, child, bridge, port), stateOf(), kernel.Options{}, `
del link is-c1 type macvlan link is-v1 address 02:00:00:00:00:03 mtu 1450 (handed over)
del link is-a1 type macvlan link is-v1 address 02:00:00:00:00:02 mtu 1450
del link is-h1 type veth master is-b1 mtu 1450 (adopted)
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
del link is-b1 type bridge address 02:00:00:00:00:04 mtu 1450
del guard drop-input dev is-v1
`},
		{"entries: neighbours go before forwarding entries", stateOf(tunnel, remote, flood9, remote4), stateOf(tunnel), kernel.Options{}, `
del neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
del fdb 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9
del fdb 00:00:00:00:00:00 dev is-v1 dst 192.0.2.9
`},
		{"handed over: presence is no difference", stateOf(tunnel, child), stateOf(tunnel, child), kernel.Options{}, ``},
		{"handed over: nor is a different one, which is Docker's", stateOf(tunnel, with(child, func(l *kernel.Link) { l.MTU, l.Down = 1000, true })), stateOf(tunnel, child), kernel.Options{}, ``},
		{"unclaimed endpoint goes", stateOf(tunnel, child), stateOf(tunnel), kernel.Options{}, `
del link is-c1 type macvlan link is-v1 address 02:00:00:00:00:03 mtu 1450 (handed over)
`},
		{"adopted: repaired", stateOf(bridge, with(port, func(l *kernel.Link) { l.Master = "" })), stateOf(bridge, port), kernel.Options{}, `
set link is-h1 type veth master is-b1 mtu 1450 (adopted)
`},
		{"VTEP moves in place", stateOf(tunnel, herald, remote4), stateOf(moved, herald, remote4), kernel.Options{}, `
set link is-v1 type vxlan id 7 local 192.0.2.7 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
`},
		{"down goes up", stateOf(down), stateOf(tunnel), kernel.Options{}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
`},
		{"down: what stands on it stays, neighbours go by themselves", stateOf(tunnel, herald, remote, remote4, dropIn), stateOf(down, herald, remote, dropIn), kernel.Options{}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450 down
`},
		{"down: it stays so", stateOf(down, herald), stateOf(down, herald), kernel.Options{}, ``},
		{"down: up again, with neighbours", stateOf(down, herald, remote), stateOf(tunnel, herald, remote, remote4), kernel.Options{}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
		{"down: unsettled, without neighbours even so", stateOf(tunnel, remote, remote4), stateOf(down), kernel.Options{KeepRemote: true}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450 down
`},
		{"unsettled: peers stay admitted", stateOf(fence, admit2, admit3), stateOf(fence, admit2), kernel.Options{KeepRemote: true}, ``},
		{"unsettled: but not those known to be refused", stateOf(fence, admit2, admit3), stateOf(fence, admit2), kernel.Options{KeepRemote: true, Stale: func(o kernel.Object) bool { return o == kernel.Object(admit3) }}, `
del guard admit peer 192.0.2.3
`},
		{"unsettled: nor without a tunnel", stateOf(fence, admit2, admit3), stateOf(), kernel.Options{KeepRemote: true}, `
del guard drop-strangers tunnel 192.0.2.1:8475
del guard admit peer 192.0.2.3
del guard admit peer 192.0.2.2
`},
		{"settled: peers go", stateOf(fence, admit2, admit3), stateOf(fence, admit2), kernel.Options{}, `
del guard admit peer 192.0.2.3
`},
		{"left alone: what nobody wants, as it shall be then", stateOf(tunnel, herald, remote, dropIn, bridge), stateOf(), kernel.Options{Leave: func(o kernel.Object) kernel.Object {
			if l, ok := o.(kernel.Link); ok && l == tunnel {
				return down
			}
			if o.Key().Dev == bridge.Name {
				return nil
			}
			return o
		}}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450 down
del link is-b1 type bridge address 02:00:00:00:00:04 mtu 1450
`},
		{"left alone: not what somebody wants", stateOf(tunnel), stateOf(newMAC), kernel.Options{Leave: func(o kernel.Object) kernel.Object { return o }}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:4d mtu 1450
`},
		{"a new MAC flushes neighbours only", stateOf(tunnel, remote, remote4), stateOf(newMAC, remote, remote4), kernel.Options{}, `
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:4d mtu 1450
add neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
		{"another VNI needs another device, with all on it", stateOf(tunnel, herald, child, remote, remote4, dropIn), stateOf(vni8, herald, child, remote, remote4, dropIn), kernel.Options{}, `
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-v1 type vxlan id 8 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-a1 type macvlan link is-v1 address 02:00:00:00:00:02 mtu 1450
add fdb 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9
add neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
		{"a bridge made anew gets its ports back", stateOf(with(bridge, func(l *kernel.Link) { l.Kind = kernel.Veth }), enslaved), stateOf(bridge, enslaved), kernel.Options{}, `
del link is-b1 type veth address 02:00:00:00:00:04 mtu 1450
add link is-b1 type bridge address 02:00:00:00:00:04 mtu 1450
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy master is-b1 address 02:00:00:00:00:01 mtu 1450
`},
		{"what nobody wants does not hold a VNI that somebody wants", stateOf(tunnel), stateOf(renamed), kernel.Options{}, `
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-v2 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
`},
		{"nor does an announcer keep its device from becoming a port", stateOf(tunnel, herald), stateOf(bridge, enslaved), kernel.Options{}, `
del link is-a1 type macvlan link is-v1 address 02:00:00:00:00:02 mtu 1450
add link is-b1 type bridge address 02:00:00:00:00:04 mtu 1450
set link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy master is-b1 address 02:00:00:00:00:01 mtu 1450
`},
		{"broken guard is set right", stateOf(with(dropIn, func(g *kernel.Guard) { g.Broken = true })), stateOf(dropIn), kernel.Options{}, `
set guard drop-input dev is-v1
`},
		{"unsettled: remote entries stay", stateOf(tunnel, remote, remote4), stateOf(tunnel), kernel.Options{KeepRemote: true}, ``},
		{"unsettled: but what is wanted changes", stateOf(tunnel, remote), stateOf(tunnel, with(remote, func(f *kernel.FDB) { f.Dst = addr("192.0.2.8") })), kernel.Options{KeepRemote: true}, `
set fdb 02:00:00:00:00:09 dev is-v1 dst 192.0.2.8
`},
		{"unsettled: a device made anew gets them back", stateOf(tunnel, remote, remote4), stateOf(vni8), kernel.Options{KeepRemote: true}, `
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-v1 type vxlan id 8 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add fdb 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9
add neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
		{"unsettled: but not those of another family", stateOf(tunnel, remote), stateOf(six), kernel.Options{KeepRemote: true}, `
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
add link is-v1 type vxlan id 7 local fd00::1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
`},
		{"unsettled: the user's own word holds", stateOf(tunnel, remote, dropIn), stateOf(), kernel.Options{KeepRemote: true}, `
del link is-v1 type vxlan id 7 local 192.0.2.1 dstport 8475 proxy address 02:00:00:00:00:01 mtu 1450
del guard drop-input dev is-v1
`},
		{"unsettled: what is known to be stale goes", stateOf(tunnel, remote, remote4), stateOf(tunnel), kernel.Options{KeepRemote: true, Stale: func(o kernel.Object) bool { return o == kernel.Object(remote4) }}, `
del neigh 10.0.0.9 dev is-v1 lladdr 02:00:00:00:00:09
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, want := text(kernel.Diff(c.have, c.want, c.options)), strings.TrimPrefix(c.ops, "\n"); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestRecreated(t *testing.T) {
	ops := kernel.Diff(stateOf(tunnel, herald), stateOf(with(tunnel, func(l *kernel.Link) { l.Port = 9 }), with(herald, func(l *kernel.Link) { l.MTU = 1400 })), kernel.Options{})
	if got := kernel.Recreated(ops); !slices.Equal(got, []string{"is-v1", "is-a1"}) {
		t.Errorf("recreated %q", got)
	}
}

// everything is what a kernel can make that lacks nothing.
var everything = []kernel.Kind{kernel.Macvlan, kernel.IPvlan, kernel.VLAN, kernel.Dummy}

// plan draws a consistent wanted state: a few networks in both attach kinds, and
// networks on parents, of what the kernel can make.
func plan(t *rapid.T, label string, able []kernel.Kind) kernel.State {
	s := parents(t, label, able)
	for n := range byte(4) {
		if !rapid.Bool().Draw(t, label+" network") {
			continue
		}
		pick := func(what string, of ...string) string {
			return rapid.SampledFrom(of).Draw(t, fmt.Sprint(label, " ", n, " ", what))
		}
		number := func(what string, low, high int) int {
			return rapid.IntRange(low, high).Draw(t, fmt.Sprint(label, " ", n, " ", what))
		}
		v6 := pick("family", "4", "6") == "6"
		local, far := "192.0.2.%d", "198.51.100.%d"
		if v6 {
			local, far = "fd00::%d", "fd01::%d"
		}
		// One of two names for one VNI, and now and then another VNI.
		v := kernel.Link{Name: "is-v" + pick("name", "a", "b") + string('0'+n), Kind: kernel.VXLAN,
			VNI: uint32(int(n)*10 + number("vni", 0, 1)), Local: addr(fmt.Sprintf(local, number("local", 1, 2))),
			Port: 8475, Down: pick("down", "no", "no", "yes") == "yes",
			Proxy: pick("proxy", "yes", "yes", "no") == "yes", MAC: mac(10*n + byte(number("mac", 0, 1))), MTU: number("mtu", 1400, 1401)}
		if pick("attach", "macvlan", "bridge") == "bridge" {
			br := kernel.Link{Name: fmt.Sprint("is-br", n), Kind: kernel.Bridge, MAC: v.MAC, MTU: v.MTU}
			v.Master = br.Name
			s.Put(br, kernel.Guard{Dev: br.Name, Rule: kernel.DropBridgeInput}, kernel.Guard{Dev: br.Name, Rule: kernel.AcceptForward})
			for i := range number("endpoints", 0, 2) {
				s.Put(kernel.Link{Name: fmt.Sprintf("is-h%d%d", n, i), Kind: kernel.Veth, Standing: kernel.Adopted, MTU: v.MTU, Master: br.Name},
					kernel.Link{Name: fmt.Sprintf("is-e%d%d", n, i), Kind: kernel.Veth, Standing: kernel.HandedOver, MTU: v.MTU, Peer: fmt.Sprintf("is-h%d%d", n, i)})
			}
		} else {
			a := kernel.Link{Name: fmt.Sprint("is-a", n), Kind: kernel.Macvlan, MAC: mac(100 + n), MTU: v.MTU, Parent: v.Name}
			s.Put(a, kernel.Guard{Dev: a.Name, Rule: kernel.DropInput}, kernel.Guard{Dev: v.Name, Rule: kernel.DropInput})
			for i := range number("endpoints", 0, 2) {
				s.Put(kernel.Link{Name: fmt.Sprintf("is-m%d%d", n, i), Kind: kernel.Macvlan, Standing: kernel.HandedOver, MAC: mac(110 + 10*n + byte(i)), MTU: v.MTU, Parent: v.Name})
			}
		}
		s.Put(v, kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.AddrPortFrom(v.Local, v.Port)})
		for i := range number("remotes", 0, 3) {
			dst := addr(fmt.Sprintf(far, number("host", 1, 2)))
			m := mac(200 + byte(i))
			s.Put(kernel.FDB{Dev: v.Name, MAC: m, Dst: dst}, kernel.FDB{Dev: v.Name, Dst: dst}, kernel.Guard{Rule: kernel.Admit, Peer: dst})
			if v.Down {
				continue
			}
			s.Put(kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("10.0.%d.%d", n, i)), MAC: m},
				kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("fd02::%d:%d", n, i)), MAC: m})
		}
	}
	return s
}

// world draws a kernel that once held a plan, was used by Docker and was then
// meddled with.
func world(t *rapid.T) *kerneltest.Fake {
	f := kerneltest.New()
	before := plan(t, "before", everything)
	if err := f.Do(context.Background(), kernel.Diff(nil, before, kernel.Options{})); err != nil {
		t.Fatal(err)
	}
	keys := slices.SortedFunc(maps.Keys(before), kernel.CompareKeys)
	for _, k := range keys {
		l, ok := before[k].(kernel.Link)
		if !ok || l.Standing != kernel.HandedOver {
			continue
		}
		host, _ := before[kernel.Link{Name: l.Peer}.Key()].(kernel.Link)
		if err := f.Hand(context.Background(), kernel.Handover{Link: l, Host: host}); err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "taken") {
			if err := f.Take(l.Name, "/sandbox", "eth-"+l.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range rapid.IntRange(0, 5).Draw(t, "meddlings") {
		if len(keys) == 0 {
			break
		}
		k := rapid.SampledFrom(keys).Draw(t, "victim")
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			f.Delete(k)
		case 1:
			f.SetDown(k.Dev)
		case 2:
			f.Put(kernel.Guard{Dev: "is-x", Rule: kernel.DropInput, Broken: true})
		}
	}
	return f
}

func dump(t *rapid.T, f *kerneltest.Fake) kernel.State {
	s, err := f.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// holds checks that have is what want asks for.
func holds(t *rapid.T, have, want kernel.State) {
	for k, w := range want {
		h, ok := have[k]
		l, isLink := w.(kernel.Link)
		switch {
		case isLink && l.Standing == kernel.HandedOver:
		case !ok && isLink && l.Standing == kernel.Adopted:
		case !ok:
			t.Fatalf("lacks %s", w)
		case isLink:
			g := h.(kernel.Link)
			l.Standing, l.Peer, g.Peer = 0, "", ""
			if l.MAC.IsZero() {
				g.MAC = l.MAC
			}
			if g != l {
				t.Fatalf("have %s, want %s", g, l)
			}
		case h != w:
			t.Fatalf("have %s, want %s", h, w)
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			t.Fatalf("nobody wants %s", h)
		}
	}
}

func TestDiffMakesWant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, want := world(t), plan(t, "want", everything)
		have := dump(t, f)
		ops := kernel.Diff(have, want, kernel.Options{})
		if err := f.Do(context.Background(), ops); err != nil {
			t.Fatalf("%v\nin\n%s", err, text(ops))
		}
		after := dump(t, f)
		holds(t, after, want)
		if again := kernel.Diff(after, want, kernel.Options{}); len(again) > 0 {
			t.Fatalf("second difference:\n%s", text(again))
		}
		if twice := kernel.Diff(have, want, kernel.Options{}); text(twice) != text(ops) {
			t.Fatalf("not deterministic:\n%s\n%s", text(ops), text(twice))
		}
		order(t, ops)
	})
}

// order checks the order that Diff promises.
func order(t *rapid.T, ops []kernel.Op) {
	phase := func(op kernel.Op) int {
		n := map[string]int{"guard": 0, "link": 2, "addr": 3, "fdb": 4, "neigh": 5, "fib": 6}[op.Object.Key().Type]
		if op.Action == kernel.Remove {
			return 14 - n // fib 8, neigh 9, fdb 10, addr 11, link 12, guard 14
		}
		return n
	}
	at := 0
	for i, op := range ops {
		p := phase(op)
		early := op.Action == kernel.Remove && p == 12 && at <= 1
		for _, later := range ops[i:] {
			early = early && (later.Action == kernel.Remove && phase(later) == 12 || phase(later) >= 2)
		}
		if early && slices.ContainsFunc(ops[i:], func(o kernel.Op) bool { return o.Action != kernel.Remove }) {
			p = 1
		}
		if p < at {
			t.Fatalf("%s is out of order in\n%s", op, text(ops))
		}
		at = p
	}
}

func TestDiffConvergesAfterFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, want := world(t), plan(t, "want", everything)
		ops := kernel.Diff(dump(t, f), want, kernel.Options{})
		for range rapid.IntRange(1, 3).Draw(t, "faults") {
			if len(ops) > 0 {
				f.Fail(1, rapid.SampledFrom(ops).Draw(t, "fails").String(), errors.New("injected"))
			}
		}
		for round := 0; len(ops) > 0; round++ {
			if round > 8 {
				t.Fatalf("still different after %d rounds:\n%s", round, text(ops))
			}
			_ = f.Do(context.Background(), ops)
			ops = kernel.Diff(dump(t, f), want, kernel.Options{})
		}
		holds(t, dump(t, f), want)
	})
}

func TestKeepRemoteLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, want := world(t), plan(t, "want", everything)
		have := dump(t, f)
		ops := kernel.Diff(have, want, kernel.Options{KeepRemote: true})
		for _, op := range ops {
			if typ := op.Object.Key().Type; op.Action == kernel.Remove && (typ == "fdb" || typ == "neigh") {
				t.Fatalf("%s", op)
			}
			if r, ok := op.Object.(kernel.FIB); ok && op.Action == kernel.Remove && r.Via.IsValid() {
				t.Fatalf("%s", op)
			}
		}
		if err := f.Do(context.Background(), ops); err != nil {
			t.Fatal(err)
		}
		after := dump(t, f)
		for k, h := range have {
			l, ok := want[kernel.Link{Name: k.Dev}.Key()].(kernel.Link)
			if !ok || k.Type != "fdb" && k.Type != "neigh" {
				continue
			}
			if e, isFDB := h.(kernel.FDB); isFDB && e.Dst.Is4() != l.Local.Is4() || !isFDB && l.Down {
				continue
			}
			if after[k] == nil {
				t.Fatalf("lost %s by\n%s", h, text(ops))
			}
		}
		if again := kernel.Diff(after, want, kernel.Options{KeepRemote: true}); len(again) > 0 {
			t.Fatalf("second difference:\n%s", text(again))
		}
	})
}

// One network of 10,000 remote endpoints, each with an IPv4 and an IPv6
// address, of which one in a hundred changed.
func BenchmarkDiff(b *testing.B) {
	have, want := stateOf(tunnel), stateOf(tunnel)
	for i := range 10_000 {
		m := cluster.MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}
		objects := []kernel.Object{
			kernel.FDB{Dev: tunnel.Name, MAC: m, Dst: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)})},
			kernel.Neigh{Dev: tunnel.Name, IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), MAC: m},
			kernel.Neigh{Dev: tunnel.Name, IP: netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}), MAC: m},
		}
		want.Put(objects...)
		if i%100 != 0 {
			have.Put(objects...)
		}
	}
	for b.Loop() {
		if n := len(kernel.Diff(have, want, kernel.Options{})); n != 300 {
			b.Fatal(n)
		}
	}
}
