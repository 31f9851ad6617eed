package rules

import (
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// The free space of a pool is what no lease covers: the pool without the
// blocks, but with the addresses that were carved out of them.

// pieces lists, in order, the spans of its block that a lease covers.
func pieces(l cluster.Lease) []span {
	block := spanOf(l.Block)
	var out []span
	from, ok := block.first, true
	for _, a := range l.Without {
		n := numberOf(a)
		if from.compare(n) < 0 {
			out = append(out, span{from, n.before()})
		}
		if from, ok = n.after(); !ok {
			return out
		}
	}
	if from.compare(block.last) <= 0 {
		out = append(out, span{from, block.last})
	}
	return out
}

// covered lists the spans of a pool that leases cover, sorted and disjoint:
// all leases, or those that which picks.
func (d *draft) covered(key cluster.PoolKey, which func(cluster.Lease) bool) []span {
	var out []span
	for _, l := range d.Leases {
		if l.Pool == key && (which == nil || which(l)) {
			out = append(out, pieces(l)...)
		}
	}
	return disjoint(out)
}

// covering finds the lease that covers an address.
func (d *draft) covering(key cluster.PoolKey, a netip.Addr) (cluster.Lease, bool) {
	for _, l := range d.Leases {
		if l.Pool == key && l.Covers(a) {
			return l, true
		}
	}
	return cluster.Lease{}, false
}

// useful counts the addresses of spans, within one, that endpoints can have.
// Spans are those of a block, so the count is small.
func useful(spans []span, within span, useless []number) int {
	n := 0
	for _, s := range spans {
		if s = s.within(within); s.first.compare(s.last) > 0 {
			continue
		}
		n += int(s.last.lo-s.first.lo) + 1
		for _, a := range useless {
			if s.contains(a) {
				n--
			}
		}
	}
	return n
}

// touch reports whether two sorted lists of disjoint spans have an address in
// common.
func touch(a, b []span) bool {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i].last.compare(b[j].first) < 0:
			i++
		case b[j].last.compare(a[i].first) < 0:
			j++
		default:
			return true
		}
	}
	return false
}

// nextFit finds a free aligned block from the cursor on, and else from the
// start: a block that was given back is the last to be leased again.
func nextFit(in span, cursor netip.Addr, k int, taken []span, useless []number) (span, bool) {
	starts := []number{in.first}
	if cursor.IsValid() && in.contains(numberOf(cursor)) {
		starts = []number{numberOf(cursor), in.first}
	}
	for _, from := range starts {
		for {
			at, ok := in.firstFree(from, k, taken)
			if !ok {
				break
			}
			if usable(at, k, useless) {
				return at, true
			}
			if from, ok = at.last.after(); !ok {
				break
			}
		}
	}
	return span{}, false
}

// usable reports whether a block of 2^k addresses has one for an endpoint.
func usable(block span, k int, useless []number) bool {
	n := 0
	for _, a := range useless {
		if block.contains(a) {
			n++
		}
	}
	return k >= 16 || n < 1<<k
}
