package rules

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Sizes of a block, in addresses, as powers of two.
const (
	defaultBlock = 3 // 8 addresses
	maxBlock     = 6 // cluster.BlockMax addresses
)

var _ = [1]int{}[cluster.BlockMax-1<<maxBlock] // they are the same

func (d *draft) grant(host cluster.HostID, c cluster.Grant) cluster.Result {
	p, ok := d.Pools[masked(c.Pool)]
	if !ok {
		return unknownPool(c.Pool)
	}
	in := p.Key.Prefix
	if c.Range.IsValid() {
		in = c.Range.Masked()
		if in.Bits() < p.Key.Prefix.Bits() || !p.Key.Prefix.Contains(in.Addr()) {
			return refused(cluster.OutOfRange, "the range %s is not inside pool %s: choose an --ip-range inside of the --subnet", c.Range, p.Key)
		}
	}
	if why := d.unheard(p.Key); why != nil {
		return cluster.Result{Refused: why}
	}
	width := in.Addr().BitLen()
	whole := spanOf(in)
	taken, useless := d.covered(p.Key, nil), unusable(p)
	for k := min(blockSize(p, c.Want), width-in.Bits()); k >= 0; k-- {
		at, ok := nextFit(whole, p.Cursor, k, taken, useless)
		if !ok {
			continue
		}
		l := cluster.Lease{ID: d.Index, Pool: p.Key, Block: at.prefix(width, k), Holder: host}
		d.leases()[l.ID] = l
		if next, ok := at.last.after(); ok && spanOf(p.Key.Prefix).contains(next) {
			p.Cursor = next.addr(width)
		} else {
			p.Cursor = p.Key.Prefix.Addr()
		}
		d.pools()[p.Key] = p
		return cluster.Result{Pool: p, Lease: l}
	}
	return d.full(p, whole, in)
}

// blockSize turns a wish into a power of two that leaves the other holders of
// the pool their share.
func blockSize(p cluster.Pool, want int) int {
	k := defaultBlock
	if want > 0 {
		k = min(bits.Len(uint(want-1)), maxBlock)
	}
	size := p.Key.Prefix.Addr().BitLen() - p.Key.Prefix.Bits()
	share := size - bits.Len(uint(2*max(1, len(p.Holders))-1)) // log2(size / (2 * holders)), rounded down
	return max(0, min(k, share))
}

// full refuses a grant, counting who holds what in the range asked for.
func (d *draft) full(p cluster.Pool, in span, asked netip.Prefix) cluster.Result {
	useless := unusable(p)
	held := map[cluster.HostID]int{}
	total := 0
	for _, l := range d.Leases {
		if l.Pool != p.Key {
			continue
		}
		if n := useful(pieces(l), in, useless); n > 0 {
			held[l.Holder] += n
			total += n
		}
	}
	where := "pool " + p.Key.String()
	if asked != p.Key.Prefix {
		where = fmt.Sprintf("range %s of pool %s", asked, p.Key)
	}
	if total == 0 {
		return refused(cluster.Full, "%s has no address for containers at all: use a larger --subnet or --ip-range", where)
	}
	ids := slices.Sorted(maps.Keys(held))
	var counts []string
	for _, id := range ids {
		counts = append(counts, fmt.Sprintf("%s %d", d.called(id), held[id]))
	}
	slices.Sort(counts)
	res := refused(cluster.Full, "%s has no free address left: all %d are leased (%s): stop containers there, or use a larger --subnet%s",
		where, total, strings.Join(counts, ", "), d.remedies(ids))
	res.Refused.Holders = ids
	return res
}

func (d *draft) grantExact(host cluster.HostID, c cluster.GrantExact) cluster.Result {
	p, ok := d.Pools[masked(c.Pool)]
	if !ok {
		return unknownPool(c.Pool)
	}
	if why := d.assignable(p, c.Addr, host); why != nil {
		return cluster.Result{Refused: why}
	}
	l, ok := d.covering(p.Key, c.Addr)
	if !ok {
		if why := d.unheard(p.Key); why != nil {
			return cluster.Result{Refused: why}
		}
		l = cluster.Lease{ID: d.Index, Pool: p.Key, Block: netip.PrefixFrom(c.Addr, c.Addr.BitLen()), Holder: host}
		d.leases()[l.ID] = l
	}
	return cluster.Result{Pool: p, Lease: l}
}

func (d *draft) release(host cluster.HostID, c cluster.Release) cluster.Result {
	l, ok := d.Leases[c.Lease]
	if !ok {
		return cluster.Result{}
	}
	if l.Holder != host {
		res := refused(cluster.NotHeld, "the block %s of pool %s belongs to host %s: only that host can give it back", l.Block, l.Pool, d.called(l.Holder))
		res.Refused.Holders = []cluster.HostID{l.Holder}
		return res
	}
	if c.Addr.IsValid() {
		return d.carve(l, c.Addr)
	}
	delete(d.leases(), l.ID)
	d.sweep(l.Pool)
	return cluster.Result{Lease: l}
}

// carve takes one address out of a lease. A lease that is good for nothing any
// more ends.
func (d *draft) carve(l cluster.Lease, a netip.Addr) cluster.Result {
	if !l.Block.Contains(a) {
		return refused(cluster.OutOfRange, "address %s is not in the block %s of pool %s: only an address of the block can be given back", a, l.Block, l.Pool)
	}
	if !l.Covers(a) {
		return cluster.Result{Lease: l}
	}
	l = without(l, a)
	d.keep(l)
	d.sweep(l.Pool)
	return cluster.Result{Lease: l}
}

// without is a lease without some of its addresses.
func without(l cluster.Lease, gone ...netip.Addr) cluster.Lease {
	l.Without = slices.Clone(l.Without)
	for _, a := range gone {
		if at, found := slices.BinarySearchFunc(l.Without, a, netip.Addr.Compare); !found {
			l.Without = slices.Insert(l.Without, at, a)
		}
	}
	return l
}

// keep enters a lease that got smaller, if it is still good for anything.
func (d *draft) keep(l cluster.Lease) {
	if useful(pieces(l), spanOf(l.Block), unusable(d.Pools[l.Pool])) == 0 {
		delete(d.leases(), l.ID)
	} else {
		d.leases()[l.ID] = l
	}
}
