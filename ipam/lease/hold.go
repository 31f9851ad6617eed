package lease

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Contest is another host's claim to what this host was granted.
type Contest struct {
	Host  cluster.HostID
	Claim cluster.Claim
}

func (c *Contest) Error() string {
	return fmt.Sprintf("keep a new block: host %s claims block %s of pool %s, by lease %d", c.Host.Short(), c.Claim.Block, c.Claim.Pool, c.Claim.Lease)
}

// ErrGivenBack is the error of taking up a lease that this run gave back, or is
// about to: the answer that brought it was made before. Asked again, the
// cluster makes a new lease, or says who has it.
var ErrGivenBack = errors.New("it was given back meanwhile")

// granted takes up a lease (rule H2), or gives it back unused when another host
// claims it (rule H7).
func (m *Machine) granted(pool cluster.PoolKey, l cluster.Lease, exact bool, contest *Contest) (Step, error) {
	b := Block{Lease: l.ID, Pool: l.Pool, Prefix: l.Block, Holes: slices.Clone(l.Without), Exact: exact && l.Block.IsSingleIP()}
	if l.Pool != pool {
		return Step{}, fmt.Errorf("keep %s: not one of pool %s", b, pool)
	}
	return m.keep(b, slices.Collect(maps.Values(m.Pool(b.Pool).Blocks)), contest)
}

// keep is the one way by which a block becomes active. others are the blocks
// of the pool that this host has.
func (m *Machine) keep(b Block, others []Block, contest *Contest) (Step, error) {
	p := m.Pool(b.Pool)
	if b.Lease == 0 || !inside(b.Pool.Prefix, b.Prefix) {
		return Step{}, fmt.Errorf("keep %s: not one of pool %s", b, b.Pool)
	}
	if m.Returned[b.Lease] {
		return Step{}, fmt.Errorf("keep %s: %w", b, ErrGivenBack)
	}
	if p.moves(b.Lease) {
		return Step{}, fmt.Errorf("keep %s: %w", b, ErrBusy)
	}
	if known, ok := p.Blocks[b.Lease]; ok {
		if known.Draining {
			return Step{}, fmt.Errorf("keep %s: %w", b, ErrGivenBack)
		}
		return Step{}, nil
	}
	for _, other := range others {
		if other.Claim().Overlaps(b.Claim()) {
			return Step{}, fmt.Errorf("keep %s: overlaps %s, which this host holds", b, other)
		}
	}
	if contest != nil {
		b.Draining = true
		return Step{Writes: []Write{m.write(b)}, Send: []cluster.Command{releaseOf(b, netip.Addr{})}, Dropped: []Block{b}}, contest
	}
	return Step{Writes: []Write{m.write(b)}, Taken: []Block{b}}, nil
}

// Claims lists the active blocks, by number, and those that a step is just
// taking up: what this host says to others that it keeps (rule H7).
func (m *Machine) Claims() []cluster.Claim {
	var out []cluster.Claim
	for _, p := range m.Pools {
		for b := range p.kept() {
			out = append(out, b.Claim())
		}
	}
	slices.SortFunc(out, func(a, b cluster.Claim) int { return int(int64(a.Lease) - int64(b.Lease)) })
	return out
}

// kept yields the active blocks, and those that a step is just taking up: of
// two hosts that take up one address and ask each other, one at least must say
// so. What is on its way out counts until that is done.
func (p *Pool) kept() func(func(Block) bool) {
	return func(yield func(Block) bool) {
		for _, b := range p.Blocks {
			if !b.Draining && !yield(b) {
				return
			}
		}
		for id, b := range p.moving {
			if _, known := p.Blocks[id]; !known && b != nil && !b.Draining && !yield(*b) {
				return
			}
		}
	}
}

// Keeps reports whether this host keeps some address of a claim as its own, as
// Claims lists it: the answer to another host that was granted it.
func (m *Machine) Keeps(claim cluster.Claim) bool {
	p, ok := m.Pools[claim.Pool]
	if !ok {
		return false
	}
	for b := range p.kept() {
		if b.Claim().Overlaps(claim) {
			return true
		}
	}
	return false
}
