package kernel

import (
	"cmp"
	"maps"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Options bound what Diff may do.
type Options struct {
	// KeepRemote keeps FDB and neighbour entries that nobody wants, as long as
	// their link is wanted, the peers admitted, as long as there are tunnels,
	// pools of networks that are not wanted here, as long as anything is
	// routed, and routes through other hosts: what was learned from other hosts is not pruned
	// before the view of the cluster has settled. A link that nobody wants goes
	// even so, since networks are the user's word and not the cluster's.
	KeepRemote bool
	// Stale names entries that KeepRemote does not protect: those known to be
	// wrong without the cluster, such as a neighbour whose address is now an
	// endpoint of this host. nil: none.
	Stale func(Object) bool
	// Leave names objects that stay although nobody wants them, by what they
	// shall be then: usually as they are; nil for what may go. nil: none stay.
	Leave func(Object) Object
}

// Diff computes the operations that turn have into want, in an order in which
// each can succeed:
//
//	guards to add, before the links that they guard come up
//	links to remove first: what cannot be changed in place (Remove, then Add),
//	  and what nobody wants and stands in the way of something wanted
//	links to add or set: bridges, VXLAN devices, veth and dummy, VLANs (outer
//	  before inner), then macvlan and ipvlan
//	addresses, gateways and uplinks, FDB entries, neighbours, then routes, to add or set
//	removals in reverse: routes, neighbours, FDB entries, gateways and uplinks,
//	  addresses, links (children first), guards
//
// What else routes comes with the guards.
//
// A link's removal takes the links above it with it, and its entries, addresses
// and routes; going down costs it neighbours, routes and IPv6 addresses, and a new
// MAC its neighbours. The kernel does all that, so those of them
// that are wanted are added again in the same list. What stands on a link that
// is removed is not removed one by one.
//
// Diff is pure, and its result does not depend on the order of maps. It changes
// neither argument.
func Diff(have, want State, o Options) []Op {
	if o.Leave != nil {
		want = withLeft(have, want, o.Leave)
	}
	if o.KeepRemote {
		want = withRemote(have, want, o.Stale)
	}
	early := displaced(have, want)
	base := without(have, want, early)

	var add, remove ops
	for _, l := range early {
		add.links = append(add.links, Op{Remove, l})
	}
	for k, w := range want {
		h, ok := base[k]
		switch w := w.(type) {
		case Link:
			if w.Standing == HandedOver || !ok && w.Standing == Adopted {
				continue
			}
			if ok && sameLink(h.(Link), w) {
				continue
			}
		default:
			if ok && h == w || waits(base, want, w) {
				continue
			}
		}
		if ok {
			add.append(Op{Set, w})
		} else {
			add.append(Op{Add, w})
		}
	}
	for k, h := range base {
		if _, ok := want[k]; ok {
			continue
		}
		if on := onLink(h); on != "" && has(base, on) && !has(want, on) {
			continue // it goes with its link
		}
		remove.append(Op{Remove, h})
	}
	return slices.Concat(add.sorted(1), remove.sorted(-1))
}

// Recreated names the links that ops create, in order: what stood above them
// in a sandbox is gone, and must be mended.
func Recreated(list []Op) []string {
	var names []string
	for _, op := range list {
		if l, ok := op.Object.(Link); ok && op.Action == Add {
			names = append(names, l.Name)
		}
	}
	return names
}

// waits reports what is for the host end of a pair that is not there yet: it comes
// with the container's end, which somebody else makes.
func waits(base, want State, o Object) bool {
	dev := o.Key().Dev
	if f, ok := o.(FIB); ok {
		dev = f.Dev
	}
	switch o.(type) {
	case Addr, FIB, Gateway:
		l, ok := want[linkKey(dev)].(Link)
		return ok && l.Standing == Adopted && !has(base, dev)
	}
	return false
}

func linkKey(name string) Key { return Key{"link", name, ""} }

func has(s State, link string) bool {
	_, ok := s[linkKey(link)]
	return ok
}

// onLink names the link whose end is that of o; empty where none is.
func onLink(o Object) string {
	switch o := o.(type) {
	case FDB, Neigh, Addr:
		return o.Key().Dev
	case FIB:
		return o.Dev
	}
	return ""
}

// withLeft adds to want what is left alone of have.
func withLeft(have, want State, leave func(Object) Object) State {
	out := maps.Clone(want)
	for k, h := range have {
		if _, ok := want[k]; ok {
			continue
		}
		if o := leave(h); o != nil {
			out[k] = o
		}
	}
	return out
}

// withRemote adds to want the entries of have on wanted links, but the stale
// ones and those whose VTEP is of another family than the link is to have;
// the peers admitted, but stale ones, where there are tunnels; the pools of
// other networks, but stale ones, where there is a gateway; and the routes through other hosts, but stale ones and those on links of ours that go.
func withRemote(have, want State, stale func(Object) bool) State {
	out := maps.Clone(want)
	tunnels, routed, wanted := false, false, map[uint32]bool{}
	for _, w := range want {
		switch w := w.(type) {
		case Guard:
			tunnels = tunnels || w.Rule == DropStrangers || w.Rule == NoTrack
		case Gateway:
			routed = true
		case Pool:
			wanted[w.Network] = true
		}
	}
	for k, h := range have {
		if g, ok := h.(Guard); ok && g.Rule == Admit {
			if _, ok := out[k]; !ok && tunnels && (stale == nil || !stale(g)) {
				g.Broken = false
				out[k] = g
			}
			continue
		}
		if p, ok := h.(Pool); ok {
			if _, ok := out[k]; !ok && routed && !wanted[p.Network] && (stale == nil || !stale(p)) {
				out[k] = p
			}
			continue
		}
		if t, ok := h.(Link); ok && t.Remote.IsValid() {
			if _, ok := out[k]; !ok && routed && (stale == nil || !stale(t)) {
				out[k] = t
			}
			continue
		}
		if f, ok := h.(FIB); ok {
			if t, ok := have[linkKey(f.Dev)].(Link); ok && t.Remote.IsValid() && routed {
				if _, ok := out[k]; !ok && (stale == nil || !stale(t)) {
					out[k] = f
				}
				continue
			}
			if _, ok := out[k]; !ok && f.Via.IsValid() && (!has(have, f.Dev) || has(want, f.Dev)) && (stale == nil || !stale(f)) {
				out[k] = f
			}
			continue
		}
		l, ok := want[linkKey(k.Dev)].(Link)
		if !ok || k.Type != "fdb" && (k.Type != "neigh" || l.Down) { // a link that is down has no neighbours
			continue
		}
		if f, ok := h.(FDB); ok && l.Local.IsValid() && f.Dst.Is4() != l.Local.Is4() {
			continue
		}
		if _, ok := out[k]; !ok && (stale == nil || !stale(h)) {
			out[k] = h
		}
	}
	return out
}

// displaced lists the links of have that must go before anything is added,
// children before their parents.
func displaced(have, want State) []Link {
	type vni struct {
		id   uint32
		port uint16
		v4   bool
	}
	type station struct {
		parent string
		mac    cluster.MAC
	}
	type tag struct {
		parent, proto string
		vid           uint16
	}
	type tenure struct { // what a parent is wanted for
		parent string
		kind   Kind
		alone  bool
	}
	vnis, tags, ports := map[vni]bool{}, map[tag]bool{}, map[string]bool{}
	stations, tenures := map[station]bool{}, map[tenure]bool{}
	for _, w := range want {
		l, ok := w.(Link)
		if !ok || l.Standing != Kept {
			continue
		}
		l = l.normal()
		switch l.Kind {
		case VXLAN:
			vnis[vni{l.VNI, l.Port, l.Local.Is4()}] = true
		case VLAN:
			tags[tag{l.Parent, l.Proto, l.VID}] = true
		case Macvlan, IPvlan:
			stations[station{l.Parent, l.MAC}] = true
			tenures[tenure{l.Parent, l.Kind, l.alone()}] = true
		}
		if l.Master != "" {
			ports[l.Name] = true
		}
	}
	// The kernel refuses a second VXLAN device of one VNI, a second VLAN device of
	// one VLAN, a second macvlan of one MAC, macvlan and ipvlan on one parent, a
	// neighbour of a passthru link, and to make a bridge port of what has any of
	// them above it.
	inTheWay := func(l Link) bool {
		l = l.normal()
		switch l.Kind {
		case VXLAN:
			return vnis[vni{l.VNI, l.Port, l.Local.Is4()}]
		case VLAN:
			return tags[tag{l.Parent, l.Proto, l.VID}]
		case Macvlan, IPvlan:
			other := IPvlan
			if l.Kind == IPvlan {
				other = Macvlan
			}
			return ports[l.Parent] || !l.MAC.IsZero() && stations[station{l.Parent, l.MAC}] ||
				tenures[tenure{l.Parent, other, false}] || tenures[tenure{l.Parent, other, true}] ||
				tenures[tenure{l.Parent, l.Kind, true}] || l.alone() && tenures[tenure{l.Parent, l.Kind, false}]
		}
		return false
	}
	var out []Link
	for k, h := range have {
		l, ok := h.(Link)
		if !ok {
			continue
		}
		w, wanted := want[k].(Link)
		switch {
		case wanted && w.Standing == HandedOver:
		case wanted && !changeable(l, w), !wanted && inTheWay(l):
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Link) int { return -compareLinks(a, b) })
	return out
}

// without returns what is left of have once the kernel removed links, and what
// it takes from links that will go down or change their MAC.
func without(have, want State, links []Link) State {
	gone, flushed, downed := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, l := range links {
		gone[l.Name] = true
	}
	for found := len(gone) > 0; found; {
		found = false
		for _, h := range have {
			if l, ok := h.(Link); ok && gone[l.Parent] && !gone[l.Name] {
				gone[l.Name], found = true, true
			}
		}
	}
	for k, h := range have {
		l, ok := h.(Link)
		if !ok {
			continue
		}
		if w, ok := want[k].(Link); ok && w.Standing != HandedOver {
			if w.Down && !l.Down {
				downed[l.Name], flushed[l.Name] = true, true
			}
			if !w.MAC.IsZero() && w.MAC != l.MAC {
				flushed[l.Name] = true
			}
		}
	}
	if len(gone)+len(flushed) == 0 {
		return have
	}
	base := make(State, len(have))
	for k, h := range have {
		on := onLink(h)
		if gone[on] {
			continue
		}
		switch o := h.(type) {
		case Neigh:
			if flushed[on] {
				continue
			}
		case FIB:
			if downed[on] {
				continue
			}
		case Addr:
			if downed[on] && o.Prefix.Addr().Is6() {
				continue
			}
		case Link:
			if gone[o.Name] {
				continue
			}
			if gone[o.Master] {
				o.Master = ""
				h = o
			}
		}
		base[k] = h
	}
	return base
}

// alone reports whether l is the only link that its parent can have.
func (l Link) alone() bool { return l.Mode == "passthru" }

// changeable reports whether Set can make w of l. MAC, MTU, master, the mode of
// a macvlan (but passthru) or ipvlan, and the VTEP's address (within its family)
// change in place; VNI, port, proxy and family of a VXLAN device, the tag of a
// VLAN, and what a link stands on do not.
func changeable(l, w Link) bool {
	l, w = l.normal(), w.normal()
	return l.Kind == w.Kind && l.Parent == w.Parent && l.alone() == w.alone() && l.VID == w.VID && l.Proto == w.Proto &&
		l.VNI == w.VNI && l.Port == w.Port && l.Proxy == w.Proxy && l.Local.Is4() == w.Local.Is4() &&
		l.Remote == w.Remote && (!l.Remote.IsValid() || l.Local == w.Local)
}

// sameLink compares a link of a dump with a wanted one that it can be changed
// into; a zero MAC or MTU is not compared.
func sameLink(l, w Link) bool {
	l, w = l.normal(), w.normal()
	return (w.MAC.IsZero() || l.MAC == w.MAC) && (w.MTU == 0 || l.MTU == w.MTU) &&
		l.Master == w.Master && l.Local == w.Local && l.Down == w.Down &&
		l.Mode == w.Mode && l.Flag == w.Flag && l.BCQueue == w.BCQueue && (w.Mode != "source" || l.Sources == w.Sources)
}

// ops sorts operations by the kind of their object.
type ops struct{ guards, links, addrs, ways, fdb, neigh, fib []Op }

func (o *ops) append(op Op) {
	switch op.Object.(type) {
	case Guard, Pool, Passage, Source, Publish:
		o.guards = append(o.guards, op)
	case Gateway, Uplink:
		o.ways = append(o.ways, op)
	case Link:
		o.links = append(o.links, op)
	case Addr:
		o.addrs = append(o.addrs, op)
	case FDB:
		o.fdb = append(o.fdb, op)
	case Neigh:
		o.neigh = append(o.neigh, op)
	case FIB:
		o.fib = append(o.fib, op)
	}
}

// sorted returns all in the order of creation (1) or of removal (-1).
// Removals among operations to add keep their place at the front.
func (o *ops) sorted(direction int) []Op {
	early := 0
	for direction > 0 && early < len(o.links) && o.links[early].Action == Remove {
		early++
	}
	slices.SortFunc(o.links[early:], func(a, b Op) int {
		return direction * compareLinks(a.Object.(Link), b.Object.(Link))
	})
	for _, list := range [][]Op{o.guards, o.addrs, o.ways, o.fdb, o.neigh, o.fib} {
		slices.SortFunc(list, func(a, b Op) int {
			return direction * CompareKeys(a.Object.Key(), b.Object.Key())
		})
	}
	if direction < 0 {
		return slices.Concat(o.fib, o.neigh, o.fdb, o.ways, o.addrs, o.links, o.guards)
	}
	return slices.Concat(o.guards, o.links, o.addrs, o.ways, o.fdb, o.neigh, o.fib)
}

// compareLinks puts what stands below before what stands on it. The name of a
// VLAN begins with that of its parent.
func compareLinks(a, b Link) int {
	rank := func(l Link) int {
		return slices.Index([]Kind{Bridge, VXLAN, IPIP, GRE, Veth, Dummy, VLAN, Macvlan, IPvlan}, l.Kind)
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
}
