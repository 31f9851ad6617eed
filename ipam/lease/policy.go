package lease

import (
	"net/netip"
	"slices"
	"time"
)

const (
	firstBlock = 8  // addresses in the first block of a pool on a host
	largeBlock = 64 // the size that doubling ends with
	spare      = 4  // free addresses that a host keeps at hand at least
)

// KeepTime is how long a block that was leased for one --ip is kept for its
// return.
const KeepTime = 24 * time.Hour

// BlockSize is how many addresses to ask for next, by the blocks held: small
// at first, since most networks stay small, then fewer and larger requests.
func BlockSize(held int) int { return min(firstBlock<<min(held, 8), largeBlock) }

// LowWater is the number of cool free addresses below which a host leases the
// next block ahead of need (rule H6): a quarter of the recent peak, at least
// spare, but never more than its fair share of a small pool.
func LowWater(peak, share int) int {
	return max(1, min(max(spare, (peak+3)/4), share))
}

// FairShare is half of what each holder could have.
func FairShare(size, holders int) int { return size / (2 * max(1, holders)) }

// Peak remembers the highest use of the last half to one hour.
type Peak struct {
	since     time.Time
	now, last int
}

const peakPeriod = 30 * time.Minute

// Step takes note of the use at one time and returns the new peak.
func (p Peak) Step(at time.Time, used int) Peak {
	switch age := at.Sub(p.since); {
	case age >= 2*peakPeriod || age < 0:
		return Peak{since: at, now: used}
	case age >= peakPeriod:
		return Peak{since: at, now: used, last: p.now}
	}
	p.now = max(p.now, used)
	return p
}

// Value is the peak.
func (p Peak) Value() int { return max(p.now, p.last) }

// Active lists the blocks that addresses may be chosen from, by address; those
// leased for one --ip only when exact is set.
func (p *Pool) Active(exact bool) []Block {
	return slices.DeleteFunc(p.Sorted(), func(b Block) bool { return !p.Usable(b) || b.Exact && !exact })
}

// Want is how many addresses to lease next.
func (p *Pool) Want() int { return BlockSize(len(p.Active(false))) }

// water returns the number of cool free addresses to keep in a scope.
func (p *Pool) water(s Scope, holders int) int {
	return LowWater(p.Peak.Value(), FairShare(s.Size(s.Within), holders))
}

// Low reports whether too few cool addresses are free in a scope of a pool
// with that many holders: time to lease the next block, before anybody waits.
func (p *Pool) Low(s Scope, holders int, now time.Time) bool {
	_, cool := p.Count(s, now)
	return cool < p.water(s, holders)
}

// Count returns how many addresses of a scope are free in blocks that are not
// kept for some --ip, and how many of those have cooled.
func (p *Pool) Count(s Scope, now time.Time) (free, cool int) {
	return count(s, p.Active(false), p.Taken, p.Freed, now)
}

// CountIn is Count for a single block of any kind.
func (p *Pool) CountIn(b Block, s Scope, now time.Time) (free, cool int) {
	if b.Draining {
		return 0, 0
	}
	return count(s, []Block{b}, p.Taken, p.Freed, now)
}

// Surplus lists blocks to give back (rule H3), by number: empty, cool, and not
// needed to have twice the spare addresses in every scope of use. What was
// leased for one --ip is kept for it longer.
func (p *Pool) Surplus(scopes []Scope, holders int, now time.Time) []uint64 {
	var out []uint64
	keep := p.Active(false)
	for _, b := range slices.Backward(p.Sorted()) {
		if !p.Usable(b) || !p.Empty(b) {
			continue
		}
		patience := CoolDown
		if b.Exact {
			patience = KeepTime
		}
		if !p.cold(b, patience, now) {
			continue
		}
		if b.Exact {
			out = append(out, b.Lease)
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(keep), func(x Block) bool { return x.Lease == b.Lease })
		enough := len(rest) > 0
		for _, s := range scopes {
			_, cool := count(s, rest, p.Taken, p.Freed, now)
			enough = enough && cool >= 2*p.water(s, holders)
		}
		if enough {
			out = append(out, b.Lease)
			keep = rest
		}
	}
	return out
}

// cold reports whether nothing of a block was freed lately.
func (p *Pool) cold(b Block, patience time.Duration, now time.Time) bool {
	for a := range b.addrs() {
		if f, had := p.Freed[a]; had && now.Sub(f.At) < patience {
			return false
		}
	}
	return true
}

// Spare finds the address that this host misses least, for another host that
// has none: free, usable, one that nobody had before one that was freed long
// ago, and what is kept for some --ip last.
func (p *Pool) Spare(s Scope) (netip.Addr, bool) {
	for _, exact := range []bool{false, true} {
		if a, ok := choose(s, p.Active(exact), p.Taken, p.Freed, ""); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}
