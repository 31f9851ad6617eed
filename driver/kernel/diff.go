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
	// their link is wanted, and the peers admitted, as long as strangers shall be
	// dropped: what was learned from other hosts is not pruned
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
//	links to add or set: bridges, then VXLAN devices, then macvlan and veth
//	FDB entries, then neighbours, to add or set
//	removals in reverse: neighbours, FDB entries, links (children first), guards
//
// A link's removal takes the macvlan links above it and its entries with it,
// and a new MAC flushes its neighbours (the kernel does both), so those of them
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
			if ok && h == w {
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
		if (k.Type == "fdb" || k.Type == "neigh") && has(base, k.Dev) && !has(want, k.Dev) {
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

func linkKey(name string) Key { return Key{"link", name, ""} }

func has(s State, link string) bool {
	_, ok := s[linkKey(link)]
	return ok
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
// ones and those whose VTEP is of another family than the link is to have; and
// the peers admitted, but stale ones, where strangers shall be dropped.
func withRemote(have, want State, stale func(Object) bool) State {
	out := maps.Clone(want)
	fenced := false
	for _, w := range want {
		g, ok := w.(Guard)
		fenced = fenced || ok && g.Rule == DropStrangers
	}
	for k, h := range have {
		if g, ok := h.(Guard); ok && g.Rule == Admit {
			if _, ok := out[k]; !ok && fenced && (stale == nil || !stale(g)) {
				g.Broken = false
				out[k] = g
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
	vnis, ports, stations := map[vni]bool{}, map[string]bool{}, map[station]bool{}
	for _, w := range want {
		l, ok := w.(Link)
		if !ok || l.Standing != Kept {
			continue
		}
		switch l.Kind {
		case VXLAN:
			vnis[vni{l.VNI, l.Port, l.Local.Is4()}] = true
		case Macvlan:
			stations[station{l.Parent, l.MAC}] = true
		}
		if l.Master != "" {
			ports[l.Name] = true
		}
	}
	// The kernel refuses a second VXLAN device of one VNI, a second macvlan of
	// one MAC, and to make a bridge port of what has macvlan links above it.
	inTheWay := func(l Link) bool {
		switch l.Kind {
		case VXLAN:
			return vnis[vni{l.VNI, l.Port, l.Local.Is4()}]
		case Macvlan:
			return ports[l.Parent] || stations[station{l.Parent, l.MAC}]
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

// without returns what is left of have once the kernel removed links and
// flushed the neighbours of links that will go down or change their MAC.
func without(have, want State, links []Link) State {
	gone, flushed := map[string]bool{}, map[string]bool{}
	for _, l := range links {
		gone[l.Name] = true
	}
	for k, h := range have {
		l, ok := h.(Link)
		if !ok {
			continue
		}
		if l.Kind == Macvlan && gone[l.Parent] {
			gone[l.Name] = true // macvlan on macvlan stands on the same parent
		}
		if w, ok := want[k].(Link); ok && w.Standing != HandedOver && (w.Down && !l.Down || !w.MAC.IsZero() && w.MAC != l.MAC) {
			flushed[l.Name] = true
		}
	}
	if len(gone)+len(flushed) == 0 {
		return have
	}
	base := make(State, len(have))
	for k, h := range have {
		switch k.Type {
		case "fdb":
			if gone[k.Dev] {
				continue
			}
		case "neigh":
			if gone[k.Dev] || flushed[k.Dev] {
				continue
			}
		case "link":
			if gone[k.Dev] {
				continue
			}
			if l := h.(Link); gone[l.Master] {
				l.Master = ""
				h = l
			}
		}
		base[k] = h
	}
	return base
}

// changeable reports whether Set can make w of l. MAC, MTU, master and the
// VTEP's address (within its family) change in place; VNI, port, proxy and
// family of a VXLAN device and the parent of a macvlan do not.
func changeable(l, w Link) bool {
	return l.Kind == w.Kind && l.Parent == w.Parent &&
		l.VNI == w.VNI && l.Port == w.Port && l.Proxy == w.Proxy && l.Local.Is4() == w.Local.Is4()
}

// sameLink compares a link of a dump with a wanted one that it can be changed
// into; a zero MAC or MTU is not compared.
func sameLink(l, w Link) bool {
	return (w.MAC.IsZero() || l.MAC == w.MAC) && (w.MTU == 0 || l.MTU == w.MTU) &&
		l.Master == w.Master && l.Local == w.Local && l.Down == w.Down
}

// ops sorts operations by the kind of their object.
type ops struct{ guards, links, fdb, neigh []Op }

func (o *ops) append(op Op) {
	switch op.Object.(type) {
	case Guard:
		o.guards = append(o.guards, op)
	case Link:
		o.links = append(o.links, op)
	case FDB:
		o.fdb = append(o.fdb, op)
	case Neigh:
		o.neigh = append(o.neigh, op)
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
	for _, list := range [][]Op{o.guards, o.fdb, o.neigh} {
		slices.SortFunc(list, func(a, b Op) int {
			return direction * CompareKeys(a.Object.Key(), b.Object.Key())
		})
	}
	if direction < 0 {
		return slices.Concat(o.neigh, o.fdb, o.links, o.guards)
	}
	return slices.Concat(o.guards, o.links, o.fdb, o.neigh)
}

// compareLinks puts what stands below before what stands on it.
func compareLinks(a, b Link) int {
	rank := func(l Link) int {
		switch l.Kind {
		case Bridge:
			return 0
		case VXLAN:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
}
