package lease

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Machine is one host's address blocks. It is not safe for concurrent use:
// whoever drives it holds a lock over each call, but need not hold it between
// a step and its Done: what a step is about is busy until then, and other steps
// leave it alone. The exported fields are its state; production reads them, and
// changes them by steps only.
type Machine struct {
	Host cluster.HostID

	// Disk state as of the last Done, with what is volatile about each pool.
	Pools    map[cluster.PoolKey]*Pool
	Standing Standing

	// Trust in the disk since the start, see Boot.
	Settled   bool   // the others in reach have been asked
	Doubt     string // why stored blocks must not be used; stays until a registry confirms
	Confirmed bool   // a fresh registry has been reconciled in this run

	// Outstanding requests by number; Request is the newest number given.
	// Numbers must not repeat over the runs of a host as far as answers to an
	// earlier run can reach a later one: a simulation sets Request after Load.
	Outstanding map[uint64]cluster.Command
	Request     uint64

	// Returned are the leases given back or lost in this run: neither a late
	// answer nor an old copy of the registry revives them.
	Returned map[uint64]bool
	// Unproven are the leases that came from an earlier run's disk and that no
	// registry has confirmed since.
	Unproven map[uint64]bool
	// Told are the holes that the cluster has taken, with the index of that.
	Told map[Hole]uint64

	turn uint64 // of the newest use
}

// Hole is one address carved out of a lease.
type Hole struct {
	Lease uint64
	Addr  netip.Addr
}

// Pool is what a machine knows of one pool.
type Pool struct {
	*Shelf
	Pinned map[netip.Addr]bool // on their way to become gateway or reserved: not for endpoints
	Peak   Peak
	busy   map[netip.Addr]bool // in a step that is not done
	moving map[uint64]*Block   // blocks in such a step, as they will be; nil: forgotten
}

// Step is what a machine decided.
type Step struct {
	Writes []Write           // must be on disk before Done
	Send   []cluster.Command // may leave after Done, each by Ask
	// Lost are addresses that this host has no right to any more, in use or just
	// being handed out: an endpoint on one is to be detached.
	Lost []Address
	// Taken and Dropped are the blocks that a Reconcile found or missed.
	Taken   []Block
	Dropped []Block

	confirms bool // Done makes the disk trusted
}

// Address is an address of a pool.
type Address struct {
	Pool cluster.PoolKey
	Addr netip.Addr
}

// Message is a numbered command.
type Message struct {
	Request uint64
	Command cluster.Command
}

// New returns the machine of a host without any stored state.
func New(host cluster.HostID) *Machine { return Load(host, Disk{}) }

// Load returns the machine of a host that starts with what is on disk. The
// disk belongs to the machine from then on. Nothing of it is used before Boot
// has settled.
func Load(host cluster.HostID, d Disk) *Machine {
	m := &Machine{
		Host:        host,
		Standing:    d.Standing,
		Pools:       map[cluster.PoolKey]*Pool{},
		Outstanding: map[uint64]cluster.Command{},
		Returned:    map[uint64]bool{},
		Unproven:    map[uint64]bool{},
		Told:        map[Hole]uint64{},
	}
	for key, s := range d.Pools {
		m.Pools[key] = newPool(s)
		for id := range s.Blocks {
			m.Unproven[id] = true
		}
	}
	if m.Standing.open() {
		m.unprove()
	}
	return m
}

func newPool(s *Shelf) *Pool {
	return &Pool{Shelf: s, Pinned: map[netip.Addr]bool{}, busy: map[netip.Addr]bool{}, moving: map[uint64]*Block{}}
}

// Disk returns a copy of what is on disk, as far as steps are Done.
func (m *Machine) Disk() Disk {
	d := m.disk()
	return d.Clone()
}

func (m *Machine) disk() *Disk {
	d := &Disk{Standing: m.Standing, Pools: make(map[cluster.PoolKey]*Shelf, len(m.Pools))}
	for key, p := range m.Pools {
		d.Pools[key] = p.Shelf
	}
	return d
}

// Pool returns the state of a pool, new if need be.
func (m *Machine) Pool(key cluster.PoolKey) *Pool {
	p, ok := m.Pools[key]
	if !ok {
		p = newPool(newShelf())
		m.Pools[key] = p
	}
	return p
}

// Done ends a step: its writes count when err is nil, and never happened
// otherwise.
func (m *Machine) Done(s Step, err error) {
	for _, w := range s.Writes {
		if w.Standing != nil {
			if err == nil {
				m.follow(*w.Standing)
			}
			continue
		}
		p := m.Pool(w.Pool)
		if w.Lease == 0 {
			delete(p.busy, w.Addr)
		} else {
			delete(p.moving, w.Lease)
		}
		if err != nil {
			continue
		}
		switch {
		case w.Lease != 0 && w.Block != nil:
			p.Blocks[w.Lease] = *w.Block
		case w.Lease != 0:
			delete(p.Blocks, w.Lease)
			delete(m.Unproven, w.Lease)
			m.Returned[w.Lease] = true
		default:
			set(p.Used, w.Addr, w.Used)
			set(p.Freed, w.Addr, w.Freed)
		}
	}
	if s.confirms && err == nil && !m.Standing.open() {
		m.Confirmed, m.Settled, m.Doubt = true, true, ""
	}
}

// Ask numbers a command that is sent now. The answer is passed to Answered; a
// command that is given up is passed to Abandon.
func (m *Machine) Ask(c cluster.Command) Message {
	m.Request++
	m.Outstanding[m.Request] = c
	return Message{m.Request, c}
}

// Abandon ends the wait for an answer: should it come late, it does not count.
// What the command may have done shows in the registry.
func (m *Machine) Abandon(request uint64) { delete(m.Outstanding, request) }

// ErrStale is the error of an answer that nobody waits for.
var ErrStale = errors.New("take up an answer: no request waits for it")

// Answered takes up the answer to an outstanding request: a lease that Grant
// or GrantExact brought, or the end of one that Release gave back. Refusals of
// a grant, and answers to other commands, change nothing here. A lease that
// another host claims (contest) is given back unused, and the error is the
// contest.
func (m *Machine) Answered(request uint64, res cluster.Result, contest *Contest) (Step, error) {
	c, ok := m.Outstanding[request]
	if !ok {
		return Step{}, ErrStale
	}
	delete(m.Outstanding, request)
	switch {
	case c.Release != nil:
		if res.Refused != nil && res.Refused.Code != cluster.NotHeld {
			return Step{}, res.Refused
		}
		return m.released(*c.Release, res.Index), nil
	case res.Refused != nil:
		return Step{}, res.Refused
	case c.Grant != nil:
		return m.granted(c.Grant.Pool, res.Lease, false, contest)
	case c.GrantExact != nil:
		return m.granted(c.GrantExact.Pool, res.Lease, true, contest)
	}
	return Step{}, nil
}

// find returns a block by its number.
func (m *Machine) find(lease uint64) (Block, bool) {
	for _, p := range m.Pools {
		if b, ok := p.Blocks[lease]; ok {
			return b, true
		}
	}
	return Block{}, false
}

// write makes a block's new value part of a step.
func (m *Machine) write(b Block) Write {
	m.Pool(b.Pool).moving[b.Lease] = &b
	return Write{Lease: b.Lease, Block: &b, Pool: b.Pool}
}

// Sorted lists the blocks of a pool by address, then by number.
func (p *Pool) Sorted() []Block {
	return slices.SortedFunc(maps.Values(p.Blocks), func(a, b Block) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Lease, b.Lease))
	})
}

// Covering returns the block that entitles this host to an address. A draining
// one still covers, but hands out nothing.
func (p *Pool) Covering(a netip.Addr) (Block, bool) {
	for _, b := range p.Blocks {
		if b.Covers(a) {
			return b, true
		}
	}
	return Block{}, false
}

// Taken reports whether an address is in use, or in a step, or pinned.
func (p *Pool) Taken(a netip.Addr) bool {
	_, used := p.Used[a]
	return used || p.busy[a] || p.Pinned[a]
}

// Empty reports whether nothing of a block is taken.
func (p *Pool) Empty(b Block) bool {
	for a := range b.addrs() {
		if p.Taken(a) {
			return false
		}
	}
	return true
}

// Usable reports whether addresses are handed out of a block: it is active, and
// not in a step.
func (p *Pool) Usable(b Block) bool { return !b.Draining && !p.moves(b.Lease) }

// moves reports whether a block is in a step that is not done.
func (p *Pool) moves(lease uint64) bool {
	_, ok := p.moving[lease]
	return ok
}

// addrs yields what a block covers, upwards. Blocks are small.
func (b Block) addrs() func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for a := b.Prefix.Masked().Addr(); b.Prefix.Contains(a); a = a.Next() {
			if !slices.Contains(b.Holes, a) && !yield(a) {
				return
			}
		}
	}
}

func inside(pool, block netip.Prefix) bool {
	return block.IsValid() && block == block.Masked() && pool.Bits() <= block.Bits() && pool.Contains(block.Addr())
}

func (b Block) String() string { return fmt.Sprintf("block %s of lease %d", b.Prefix, b.Lease) }

// Busy reports whether an address is in a step that is not done.
func (p *Pool) Busy(a netip.Addr) bool { return p.busy[a] }
