package lease

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// Block is one lease as this host keeps it. Blocks are values: a change is a
// new one, stored before it counts. Holes is never changed in place.
type Block struct {
	Lease    uint64          `json:"-"` // the key it is stored under
	Pool     cluster.PoolKey `json:"pool"`
	Prefix   netip.Prefix    `json:"block"`
	Draining bool            `json:"draining,omitempty"` // being given back, never used again
	Exact    bool            `json:"exact,omitempty"`    // leased for one --ip: kept for it while that can be
	Holes    []netip.Addr    `json:"holes,omitempty"`    // given back one by one, sorted; never used again
}

// Covers reports whether an address lies in the block and was not carved out.
func (b Block) Covers(a netip.Addr) bool {
	return b.Prefix.Contains(a) && !slices.Contains(b.Holes, a)
}

// Claim is the block as the host speaks of it to others.
func (b Block) Claim() cluster.Claim {
	return cluster.Lease{ID: b.Lease, Pool: b.Pool, Block: b.Prefix, Without: b.Holes}.Claim()
}

// with returns the block with more holes.
func (b Block) with(holes ...netip.Addr) Block {
	all := append(slices.Clone(b.Holes), holes...)
	slices.SortFunc(all, netip.Addr.Compare)
	b.Holes = slices.Compact(all)
	return b
}

// Use is an address in use.
type Use struct {
	Name  string    `json:"name,omitempty"` // container, where the engine tells it
	Since time.Time `json:"since"`
	// Turn tells one use of an address from the next. It is not stored: 0 is a
	// use of an earlier run.
	Turn uint64 `json:"-"`
}

// Freed is the memory of an address that was in use before.
type Freed struct {
	At   time.Time `json:"at"`
	Name string    `json:"name,omitempty"` // container that had it
}

// Write is one change of the disk: of Standing, or of the block with
// number Lease, or, when that is 0, of the address Addr of Pool.
type Write struct {
	Standing *Standing // else nil

	Lease uint64
	Block *Block // nil: forgotten

	Pool  cluster.PoolKey
	Addr  netip.Addr
	Used  *Use   // nil: not in use
	Freed *Freed // nil: no memory of it
}

// Shelf is what is stored of one pool.
type Shelf struct {
	Blocks map[uint64]Block
	Used   map[netip.Addr]Use
	Freed  map[netip.Addr]Freed
}

func newShelf() *Shelf {
	return &Shelf{Blocks: map[uint64]Block{}, Used: map[netip.Addr]Use{}, Freed: map[netip.Addr]Freed{}}
}

// Disk is all that survives a crash. The zero value is an empty disk.
type Disk struct {
	Standing Standing
	Pools    map[cluster.PoolKey]*Shelf
}

// Shelf returns what is stored of a pool, to be filled by whoever reads a disk.
func (d *Disk) Shelf(key cluster.PoolKey) *Shelf {
	s, ok := d.Pools[key]
	if !ok {
		if d.Pools == nil {
			d.Pools = map[cluster.PoolKey]*Shelf{}
		}
		s = newShelf()
		d.Pools[key] = s
	}
	return s
}

// Apply does all writes of a step.
func (d *Disk) Apply(writes []Write) {
	for _, w := range writes {
		switch {
		case w.Standing != nil:
			d.Standing = d.Standing.and(*w.Standing)
		case w.Lease != 0 && w.Block != nil:
			d.Shelf(w.Block.Pool).Blocks[w.Lease] = *w.Block
		case w.Lease != 0:
			delete(d.Shelf(w.Pool).Blocks, w.Lease)
		default:
			s := d.Shelf(w.Pool)
			set(s.Used, w.Addr, w.Used)
			set(s.Freed, w.Addr, w.Freed)
		}
	}
}

func set[V any](m map[netip.Addr]V, a netip.Addr, v *V) {
	if v == nil {
		delete(m, a)
	} else {
		m[a] = *v
	}
}

// Clone copies the disk: a snapshot that can be set back to.
func (d *Disk) Clone() Disk {
	out := Disk{Standing: d.Standing, Pools: make(map[cluster.PoolKey]*Shelf, len(d.Pools))}
	for key, s := range d.Pools {
		out.Pools[key] = &Shelf{Blocks: maps.Clone(s.Blocks), Used: maps.Clone(s.Used), Freed: maps.Clone(s.Freed)}
	}
	return out
}
