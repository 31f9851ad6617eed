package lease

import (
	"fmt"

	"github.com/isthmus-net/isthmus/cluster"
)

// Standing is how a host stands with the registry of its cluster: how far it
// followed it through being put together again, by its generations. 0 counts as
// 1: no registry was put together again. One cluster's say nothing of another's.
type Standing struct {
	Cluster cluster.ID `json:"cluster"`
	Known   uint64     `json:"known"` // the newest generation that this host was told of
	Held    uint64     `json:"held"`  // the newest that all blocks were held against
}

// in is the standing in a cluster, the zero one if it is of another.
func (s Standing) in(id cluster.ID) Standing {
	if s.Cluster != id {
		return Standing{Cluster: id}
	}
	return s
}

// open reports whether the newest registry has not confirmed the blocks yet.
func (s Standing) open() bool { return max(s.Known, 1) > max(s.Held, 1) }

// and is both of two of one cluster, which were decided at different times. With
// another cluster it begins anew.
func (s Standing) and(t Standing) Standing {
	if s.Cluster != t.Cluster {
		return t
	}
	return Standing{s.Cluster, max(s.Known, t.Known), max(s.Held, t.Held)}
}

// Rebuilt takes note that the registry was put together again: what a lost log
// leased may be another's now. From its Done on there is doubt about all blocks
// until a Reconcile with a registry of that generation, whatever crashes come
// between, and no answer counts to what was asked of the lost log. A generation
// that the host was told of before is no news, nor is any for a host that has
// nothing.
//
// The host may be let in by the new registry after Done, and not before.
func (m *Machine) Rebuilt(id cluster.ID, gen uint64) Step {
	before := m.Standing.in(id)
	next := before.and(Standing{Cluster: id, Known: gen})
	if m.bare() {
		next.Held = next.Known
	}
	if max(next.Known, 1) == max(before.Known, 1) {
		return Step{}
	}
	return Step{Writes: []Write{{Standing: &next}}}
}

// Barred says why this host must not use anything, as it knows from its own
// disk; "" if it may.
func (m *Machine) Barred() string {
	if !m.Standing.open() {
		return ""
	}
	return fmt.Sprintf("the registry of the cluster was rebuilt (generation %d), and has not confirmed the blocks of this host yet", m.Standing.Known)
}

// bare reports whether there is nothing that could be held against a registry.
func (m *Machine) bare() bool {
	for _, p := range m.Pools {
		if len(p.Blocks)+len(p.Used)+len(p.busy)+len(p.moving) > 0 {
			return false
		}
	}
	return len(m.Outstanding) == 0
}

// follow takes up what is on disk of the standing.
func (m *Machine) follow(next Standing) {
	before := m.Standing.in(next.Cluster)
	m.Standing = before.and(next)
	if m.Standing.Known > before.Known && m.Standing.open() {
		m.unprove()
	}
}

// unprove doubts all blocks.
func (m *Machine) unprove() {
	m.Confirmed = false
	m.Doubt = m.Barred()
	clear(m.Outstanding)
	for _, p := range m.Pools {
		for id := range p.Blocks {
			m.Unproven[id] = true
		}
	}
}

// Outdated reports whether a registry is of a generation before the newest that
// this host was told of.
func (m *Machine) Outdated(r *cluster.Registry) bool {
	return max(r.Gen, 1) < max(m.Standing.in(r.Cluster).Known, 1)
}
