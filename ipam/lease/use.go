package lease

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// What stands in the way of an address that was asked for.
var (
	ErrNone      = errors.New("no free address in the blocks of this host")
	ErrUncovered = errors.New("not in a block of this host")
	ErrBusy      = errors.New("changing hands right now") // ask again after the next Done
)

// Allocate chooses an address of the active blocks for an endpoint (rule H1):
// the one that the name had last, else the lowest that nobody had, else the one
// that was freed first. exact lets it use what is kept for some --ip. The error
// is *Untrusted or ErrNone.
func (m *Machine) Allocate(pool cluster.PoolKey, s Scope, name string, exact bool, now time.Time) (Step, netip.Addr, error) {
	if err := m.Gate(); err != nil {
		return Step{}, netip.Addr{}, err
	}
	p := m.Pool(pool)
	a, ok := choose(s, p.Active(exact), p.Taken, p.Freed, name)
	if !ok {
		return Step{}, a, ErrNone
	}
	return m.mark(pool, a, name, now), a, nil
}

// Take hands out the very address (rule H1). The error is *Untrusted,
// ErrUncovered, ErrBusy, or ErrInUse.
func (m *Machine) Take(pool cluster.PoolKey, a netip.Addr, name string, now time.Time) (Step, error) {
	if err := m.Gate(); err != nil {
		return Step{}, err
	}
	p := m.Pool(pool)
	_, used := p.Used[a]
	switch b, ok := p.Covering(a); {
	case !ok || b.Draining:
		return Step{}, ErrUncovered
	case p.busy[a] || p.moves(b.Lease):
		return Step{}, ErrBusy
	case used || p.Pinned[a]:
		return Step{}, ErrInUse
	}
	return m.mark(pool, a, name, now), nil
}

// Renew passes an address from the use turn to the next one: asked for again,
// or left over by an unclean shutdown. The error is *Untrusted, ErrBusy, or
// ErrInUse when it is not in that use any more.
func (m *Machine) Renew(pool cluster.PoolKey, a netip.Addr, turn uint64, name string, now time.Time) (Step, error) {
	if err := m.Gate(); err != nil {
		return Step{}, err
	}
	p := m.Pool(pool)
	if p.busy[a] {
		return Step{}, ErrBusy
	}
	if u, ok := p.Used[a]; !ok || u.Turn != turn {
		return Step{}, ErrInUse
	}
	b, ok := p.Covering(a)
	switch {
	case !ok || b.Draining:
		return Step{}, ErrUncovered
	case p.moves(b.Lease):
		return Step{}, ErrBusy
	}
	return m.mark(pool, a, name, now), nil
}

// Free ends the use of an address. From Done on it can be handed out again.
// One that is not in use, or whose use is just changing, is left alone.
func (m *Machine) Free(pool cluster.PoolKey, a netip.Addr, now time.Time) (Step, bool) {
	p := m.Pool(pool)
	u, ok := p.Used[a]
	if !ok || p.busy[a] {
		return Step{}, false
	}
	w := Write{Pool: pool, Addr: a}
	if b, ok := p.Covering(a); ok && !b.Draining {
		w.Freed = &Freed{At: now, Name: u.Name}
	}
	p.busy[a] = true
	return Step{Writes: []Write{w}}, true
}

// Adopt takes an address as used that was found in use: trusted or not, and
// whether a block covers it or not. One that is known already is left alone.
func (m *Machine) Adopt(pool cluster.PoolKey, a netip.Addr, name string, now time.Time) (Step, bool) {
	p := m.Pool(pool)
	if _, used := p.Used[a]; used || p.busy[a] {
		return Step{}, false
	}
	return m.mark(pool, a, name, now), true
}

// Unremember drops the memory of who had the free addresses of a pool.
func (m *Machine) Unremember(pool cluster.PoolKey) Step {
	var s Step
	p := m.Pool(pool)
	for _, a := range slices.SortedFunc(maps.Keys(p.Freed), netip.Addr.Compare) {
		if !p.Taken(a) {
			s.Writes = append(s.Writes, Write{Pool: pool, Addr: a})
		}
	}
	return s
}

func (m *Machine) mark(pool cluster.PoolKey, a netip.Addr, name string, now time.Time) Step {
	m.turn++
	m.Pool(pool).busy[a] = true
	return Step{Writes: []Write{{Pool: pool, Addr: a, Used: &Use{Name: name, Since: now, Turn: m.turn}}}}
}

// Uncovered lists the addresses in use that no active block covers, sorted:
// their endpoints have no right to them.
func (p *Pool) Uncovered() []netip.Addr {
	var out []netip.Addr
	for _, a := range slices.SortedFunc(maps.Keys(p.Used), netip.Addr.Compare) {
		if b, ok := p.Covering(a); !ok || b.Draining {
			out = append(out, a)
		}
	}
	return out
}
