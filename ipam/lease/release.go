package lease

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// ErrInUse is the error of giving back what is in use.
var ErrInUse = errors.New("in use")

// releaseOf is the command that gives a block back, or with a valid address
// that one of it. It names the lease, so that a late copy of it cannot end a
// newer lease of the same block.
func releaseOf(b Block, a netip.Addr) cluster.Command {
	return cluster.Command{Release: &cluster.Release{Lease: b.Lease, Addr: a}}
}

// Drain begins to give blocks back (rule H3): from Done on none of their
// addresses is handed out. A block of which anything is taken is refused
// (ErrInUse), and then none drains. Blocks unknown or draining are left out.
func (m *Machine) Drain(pool cluster.PoolKey, leases ...uint64) (Step, error) {
	var s Step
	if err := m.Gate(); err != nil {
		return s, err
	}
	p := m.Pool(pool)
	var blocks []Block
	for _, id := range leases {
		b, ok := p.Blocks[id]
		if !ok || b.Draining {
			continue
		}
		if !p.Empty(b) {
			return Step{}, fmt.Errorf("give back %s: %w", b, ErrInUse)
		}
		if p.moves(id) {
			return Step{}, fmt.Errorf("give back %s: %w", b, ErrBusy)
		}
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		b.Draining = true
		s.Writes = append(s.Writes, m.write(b))
		s.Send = append(s.Send, releaseOf(b, netip.Addr{}))
	}
	return s, nil
}

// Carve begins to give one address back: from Done on it is a hole of its
// block, and never handed out from it again. A block of which nothing is left
// for endpoints then is drained instead. scope tells which addresses are for
// endpoints.
func (m *Machine) Carve(pool cluster.PoolKey, scope Scope, a netip.Addr) (Step, error) {
	if err := m.Gate(); err != nil {
		return Step{}, err
	}
	p := m.Pool(pool)
	b, ok := p.Covering(a)
	switch {
	case !ok || b.Draining:
		return Step{}, nil // not ours, or on its way
	case p.Taken(a):
		return Step{}, fmt.Errorf("give back address %s: %w", a, ErrInUse)
	case p.moves(b.Lease):
		return Step{}, fmt.Errorf("give back address %s: %w", a, ErrBusy)
	}
	left := false
	for x := range b.addrs() {
		left = left || x != a && (scope.Usable(x) || p.Taken(x))
	}
	if !left {
		return m.Drain(pool, b.Lease)
	}
	return Step{Writes: []Write{m.write(b.with(a)), {Pool: pool, Addr: a}}, Send: []cluster.Command{releaseOf(b, a)}}, nil
}

// Releases lists what is stored as given back, and not known to have reached
// the cluster: to be sent, again if need be. What turned out to be in use is
// left out: it is never handed out again, but not given to others either.
func (m *Machine) Releases(pool cluster.PoolKey) []cluster.Command {
	p, ok := m.Pools[pool]
	if !ok {
		return nil
	}
	var out []cluster.Command
	for _, b := range p.Sorted() {
		if b.Draining {
			if p.Empty(b) {
				out = append(out, releaseOf(b, netip.Addr{}))
			}
			continue
		}
		for _, a := range b.Holes {
			if m.Told[Hole{b.Lease, a}] == 0 && !p.Taken(a) {
				out = append(out, releaseOf(b, a))
			}
		}
	}
	return out
}

// released notes that the cluster has taken back a block, or one address.
func (m *Machine) released(r cluster.Release, index uint64) Step {
	b, ok := m.find(r.Lease)
	switch {
	case !ok:
		return Step{}
	case r.Addr.IsValid():
		m.Told[Hole{r.Lease, r.Addr}] = max(1, index)
		return Step{}
	case !b.Draining || m.Pool(b.Pool).moves(b.Lease):
		return Step{} // not what this run asked for, or done already
	}
	return m.forget(b)
}

// forget drops a block, and the memory of its free addresses.
func (m *Machine) forget(b Block) Step {
	p := m.Pool(b.Pool)
	p.moving[b.Lease] = nil
	s := Step{Writes: []Write{{Lease: b.Lease, Pool: b.Pool}}}
	for a := range b.addrs() {
		if _, had := p.Freed[a]; had && !p.Taken(a) {
			s.Writes = append(s.Writes, Write{Pool: b.Pool, Addr: a})
		}
		if p.claimed(a) {
			s.Lost = append(s.Lost, Address{b.Pool, a})
		}
	}
	return s
}

// claimed reports whether an address is in use, or in a step that may put it in
// use.
func (p *Pool) claimed(a netip.Addr) bool {
	_, used := p.Used[a]
	return used || p.busy[a]
}
