package ipam

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestBlocksDoubleUpTo64(t *testing.T) {
	for held, want := range []int{8, 16, 32, 64, 64, 64} {
		if got := blockSize(held); got != want {
			t.Errorf("blockSize(%d) = %d, want %d", held, got, want)
		}
	}
	if got := blockSize(1000); got != 64 {
		t.Errorf("blockSize(1000) = %d", got)
	}
}

func TestLowWater(t *testing.T) {
	for _, c := range []struct{ peak, share, want int }{
		{0, 100, 4}, {16, 100, 4}, {17, 100, 5}, {100, 1000, 25}, // a quarter of the peak, at least 4
		{0, 2, 2}, {100, 3, 3}, {0, 0, 1}, // in a small pool the fair share
	} {
		if got := lowWater(c.peak, c.share); got != c.want {
			t.Errorf("lowWater(%d, %d) = %d, want %d", c.peak, c.share, got, c.want)
		}
	}
}

func TestPeakFades(t *testing.T) {
	at := time.Unix(1e9, 0)
	p := peak{}.step(at, 40)
	for _, c := range []struct {
		after time.Duration
		used  int
		want  int
	}{
		{time.Minute, 10, 40},
		{29 * time.Minute, 10, 40},
		{31 * time.Minute, 10, 40}, // last period
		{62 * time.Minute, 10, 10},
		{10 * time.Hour, 3, 3},
	} {
		if p = p.step(at.Add(c.after), c.used); p.value() != c.want {
			t.Errorf("after %s with %d used: peak %d, want %d", c.after, c.used, p.value(), c.want)
		}
	}
}

// TestCompareNeedsNoOrder plays a history of grants and releases of one host,
// and compares at any time with a copy of any age.
func TestCompareNeedsNoOrder(t *testing.T) {
	const me, other = cluster.HostID("me"), cluster.HostID("other")
	rapid.Check(t, func(t *rapid.T) {
		now := &cluster.Registry{Leases: map[uint64]cluster.Lease{}}
		copies := []*cluster.Registry{now}
		known, returned := map[uint64]block{}, map[uint64]bool{}
		for index := range uint64(rapid.IntRange(0, 30).Draw(t, "steps")) {
			next := &cluster.Registry{Index: index + 1, Leases: map[uint64]cluster.Lease{}}
			for id, l := range now.Leases {
				next.Leases[id] = l
			}
			switch holder := rapid.SampledFrom([]cluster.HostID{me, other}).Draw(t, "holder"); rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				next.Leases[next.Index] = cluster.Lease{ID: next.Index, Holder: holder}
				if holder == me && rapid.Bool().Draw(t, "answered") {
					known[next.Index] = block{Lease: next.Index}
				}
			case 1:
				for id := range known {
					delete(next.Leases, id)
					delete(known, id)
					returned[id] = true
					break
				}
			}
			now = next
			copies = append(copies, now)
		}
		held := map[uint64]bool{}
		for id, l := range now.Leases {
			held[id] = l.Holder == me
		}
		old := rapid.SampledFrom(copies).Draw(t, "copy")
		diff := compare(me, old, known, returned)
		for _, l := range diff.adopt {
			if !held[l.ID] {
				t.Fatalf("lease %d taken up from the copy at %d, but it is not held", l.ID, old.Index)
			}
		}
		for _, b := range diff.drop {
			t.Fatalf("lease %d dropped by the copy at %d, although it is held", b.Lease, old.Index)
		}
		for _, l := range compare(me, now, known, returned).adopt {
			known[l.ID] = block{Lease: l.ID}
		}
		for id, mine := range held {
			if _, ok := known[id]; mine && !ok {
				t.Fatalf("lease %d is not taken up from the newest copy", id)
			}
		}
		taken := &cluster.Registry{Index: now.Index + 1, Leases: map[uint64]cluster.Lease{}}
		if diff := compare(me, taken, known, returned); len(diff.drop) != len(known) {
			t.Fatalf("%d of %d leases dropped when all were taken away", len(diff.drop), len(known))
		}
	})
}
