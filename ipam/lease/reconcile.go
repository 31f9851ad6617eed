package lease

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Unknown lists the leases that a registry gives this host and that it does
// not know, by number: a Reconcile with this registry would take them up. They
// are to be held against the claims of other hosts first.
func (m *Machine) Unknown(r *cluster.Registry) []cluster.Lease {
	var out []cluster.Lease
	for id, l := range r.Leases {
		if l.Holder != m.Host || m.Returned[id] {
			continue
		}
		if p, ok := m.Pools[l.Pool]; ok {
			if _, known := p.Blocks[id]; known || p.moves(id) {
				continue
			}
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Reconcile settles what a crash, a lost answer or a disk set back left open
// (rule H4), by a fresh copy of the registry: one that includes the Hello of
// this run. Unknown leases are taken up, but for those in contests, which are
// given back unused; blocks that the host no longer holds are dropped, with
// the addresses lost; holes that it forgot are made again. A draining block
// keeps draining. The copy may be older than what this run knows: a lease
// granted after it is not missed, and one given back since is not revived.
//
// From its Done on the disk is trusted. The errors are of leases that cannot be
// taken up. A copy of a generation before the newest that this host was told of
// settles nothing.
func (m *Machine) Reconcile(r *cluster.Registry, contests map[uint64]Contest) (Step, []error) {
	var s Step
	if m.Outdated(r) {
		return s, nil
	}
	var stay []Block
	for _, key := range m.keys() {
		for _, b := range m.Pools[key].Sorted() {
			l, held := r.Leases[b.Lease]
			switch held = held && l.Holder == m.Host; {
			case m.Pools[key].moves(b.Lease): // settled by the next one
			case held:
				delete(m.Unproven, b.Lease)
				s.add(m.rehole(b, l, r.Index))
			case r.Index >= b.Lease || m.Unproven[b.Lease]:
				s.add(m.forget(b))
				s.Dropped = append(s.Dropped, b)
				continue
			}
			stay = append(stay, b)
		}
	}
	var errs []error
	for _, l := range m.Unknown(r) {
		var contest *Contest
		if c, ok := contests[l.ID]; ok {
			contest = &c
		}
		b := Block{Lease: l.ID, Pool: l.Pool, Prefix: l.Block, Holes: slices.Clone(l.Without)}
		step, err := m.keep(b, stay, contest)
		s.add(step)
		stay = append(stay, step.Taken...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	s.confirms = true
	before := m.Standing.in(r.Cluster)
	if held := before.and(Standing{r.Cluster, r.Gen, r.Gen}); max(held.Held, 1) > max(before.Held, 1) {
		s.Writes = append(s.Writes, Write{Standing: &held})
	}
	return s, errs
}

// rehole compares the holes of a held block with what the registry says.
func (m *Machine) rehole(b Block, l cluster.Lease, index uint64) Step {
	var s Step
	var more []netip.Addr
	p := m.Pool(b.Pool)
	for _, a := range l.Without {
		if !b.Prefix.Contains(a) || slices.Contains(b.Holes, a) {
			continue
		}
		more = append(more, a)
		if p.claimed(a) {
			s.Lost = append(s.Lost, Address{b.Pool, a})
		}
	}
	for _, a := range b.Holes {
		h := Hole{b.Lease, a}
		switch taken := slices.Contains(l.Without, a); {
		case taken:
			m.Told[h] = max(m.Told[h], index, 1)
		case m.Told[h] <= index:
			delete(m.Told, h) // lost again, or not yet said in this run: to be sent
		}
	}
	if len(more) > 0 {
		s.Writes = append(s.Writes, m.write(b.with(more...)))
		for _, a := range more {
			m.Told[Hole{b.Lease, a}] = max(index, 1)
		}
	}
	return s
}

func (s *Step) add(t Step) {
	s.Writes = append(s.Writes, t.Writes...)
	s.Send = append(s.Send, t.Send...)
	s.Lost = append(s.Lost, t.Lost...)
	s.Taken = append(s.Taken, t.Taken...)
	s.Dropped = append(s.Dropped, t.Dropped...)
}
