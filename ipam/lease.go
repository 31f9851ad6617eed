package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	firstBlock = 8  // addresses in the first block of a pool on a host
	largeBlock = 64 // the size that doubling ends with
	spare      = 4  // free addresses that a host keeps at hand at least
)

// block is one lease as this host keeps it. Blocks are values: a change is a
// new one, stored before it counts.
type block struct {
	Lease    uint64          `json:"-"` // the key it is stored under
	Pool     cluster.PoolKey `json:"pool"`
	Prefix   netip.Prefix    `json:"block"`
	Draining bool            `json:"draining,omitempty"` // being given back, never used again
	Exact    bool            `json:"exact,omitempty"`    // leased for one --ip: kept for it while that can be
}

func compareBlocks(a, b block) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) }

// blockSize is how many addresses to ask for next, by the blocks held: small
// at first, since most networks stay small, then fewer and larger requests.
func blockSize(held int) int { return min(firstBlock<<min(held, 8), largeBlock) }

// lowWater is the number of cool free addresses below which a host leases the
// next block ahead of need: a quarter of the recent peak, at least spare, but
// never more than its fair share of a small pool.
func lowWater(peak, share int) int {
	return max(1, min(max(spare, (peak+3)/4), share))
}

// fairShare is half of what each holder could have.
func fairShare(size, holders int) int { return size / (2 * max(1, holders)) }

// peak remembers the highest use of the last half to one hour.
type peak struct {
	since     time.Time
	now, last int
}

const peakPeriod = 30 * time.Minute

// step takes note of the use at one time and returns the new peak.
func (p peak) step(at time.Time, used int) peak {
	switch age := at.Sub(p.since); {
	case age >= 2*peakPeriod || age < 0:
		return peak{since: at, now: used}
	case age >= peakPeriod:
		return peak{since: at, now: used, last: p.now}
	}
	p.now = max(p.now, used)
	return p
}

func (p peak) value() int { return max(p.now, p.last) }

// compared is the outcome of holding the local blocks against a Registry.
type compared struct {
	adopt []cluster.Lease // held according to the cluster, unknown here
	drop  []block         // known here, no longer held
}

// compare finds what differs between the blocks that a host keeps and the
// leases that a Registry gives it (rule H4). A copy may be older than what the
// host knows: a lease granted after it is not missed, and one that this run
// gave back is not taken up again.
func compare(host cluster.HostID, r *cluster.Registry, known map[uint64]block, returned map[uint64]bool) compared {
	var c compared
	for id, l := range r.Leases {
		if _, ok := known[id]; l.Holder == host && !ok && !returned[id] {
			c.adopt = append(c.adopt, l)
		}
	}
	for id, b := range known {
		if l, ok := r.Leases[id]; r.Index >= id && (!ok || l.Holder != host) {
			c.drop = append(c.drop, b)
		}
	}
	slices.SortFunc(c.adopt, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(c.drop, func(a, b block) int { return cmp.Compare(a.Lease, b.Lease) })
	return c
}
