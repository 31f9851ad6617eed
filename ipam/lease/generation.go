package lease

import (
	"fmt"

	"github.com/isthmus-net/isthmus/cluster"
)

// Generation says how far a host has followed the registry through being put
// together again. 0 counts as 1: no registry was.
type Generation struct {
	Known uint64 `json:"known"` // the newest that this host was told of
	Held  uint64 `json:"held"`  // the newest that all blocks were held against
}

// told returns how it stands once the host was told of a generation.
func (g Generation) told(gen uint64) Generation {
	g.Known = max(g.Known, gen)
	return g
}

// open reports whether the blocks were not held yet against the newest
// generation.
func (g Generation) open() bool { return max(g.Known, 1) > max(g.Held, 1) }

// Rebuilt takes note that the registry was put together again: what a lost log
// leased may be another's now. From its Done on there is doubt about all blocks
// until a Reconcile with a registry of that generation, whatever crashes come
// between, and no answer counts to what was asked of the lost log. A generation
// that the host was told of before is no news, nor is any for a host that has
// nothing.
//
// The host may be let in by the new registry after Done, and not before.
func (m *Machine) Rebuilt(gen uint64) Step {
	next := m.Generation.told(gen)
	if m.bare() {
		next.Held = next.Known
	}
	if max(next.Known, 1) == max(m.Generation.Known, 1) {
		return Step{}
	}
	return Step{Writes: []Write{{Generation: &next}}}
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

// follow takes up what is on disk of the generation.
func (m *Machine) follow(next Generation) {
	before := m.Generation
	m.Generation = Generation{max(before.Known, next.Known), max(before.Held, next.Held)}
	if m.Generation.Known > before.Known && m.Generation.open() {
		m.unprove()
	}
}

// unprove doubts all blocks.
func (m *Machine) unprove() {
	m.Confirmed = false
	m.Doubt = fmt.Sprintf("the registry of the cluster was rebuilt (generation %d), and has not confirmed the blocks of this host yet", m.Generation.Known)
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
	return max(r.Gen, 1) < max(m.Generation.Known, 1)
}
