package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"
)

var stepsFlag = flag.Int("steps", 0, "steps of the simulation; 0: ISTHMUS_STEPS, else 200000")

// budget is how many steps a search takes.
func budget() int {
	if *stepsFlag > 0 {
		return *stepsFlag
	}
	if n, err := strconv.Atoi(os.Getenv("ISTHMUS_STEPS")); err == nil && n > 0 {
		return n
	}
	return 200_000
}

var prefixes = map[int]netip.Prefix{
	32: netip.MustParsePrefix("10.0.0.0/32"), 31: netip.MustParsePrefix("10.0.0.0/31"), 30: netip.MustParsePrefix("10.0.0.0/30"), 29: netip.MustParsePrefix("10.0.0.0/29"), 28: netip.MustParsePrefix("10.0.0.0/28"),
}

// drawConfig makes up a cluster and what is to happen to it.
func drawConfig(rng *rand.Rand) config {
	c := config{hosts: 3 + rng.IntN(5)}
	mode := func() string { return []string{"vxlan", "vxlan", "macvlan"}[rng.IntN(3)] }
	c.pools = append(c.pools, ground{prefixes[28+rng.IntN(3)], mode()})
	if rng.IntN(3) == 0 {
		c.pools = append(c.pools, ground{netip.MustParsePrefix("10.0.1.0/29"), mode()})
	}
	for _, fault := range []string{"crash", "cut", "rollback", "clone", "forget"} {
		if rng.IntN(3) > 0 {
			c.faults = append(c.faults, fault)
		}
	}
	if rng.IntN(6) == 0 {
		c.faults = append(c.faults, "strict")
	}
	switch rng.IntN(6) {
	case 0:
		// A log that forgot what it had committed breaks the promise on which all
		// else rests. Claims that were heard make up for it.
		c.faults = append(c.faults, "amnesia", "gossip")
	case 1:
		c.faults = append(c.faults, "rebuild")
		// Leases of the lost end of a log can be granted again, and their holders
		// are fenced: so this is for networks that fence.
		for i := range c.pools {
			c.pools[i].mode = "vxlan"
		}
	}
	return c
}

// nightly is the number of steps from which on a run is not one of everyday.
const nightly = 10_000_000

// life is how many events one cluster lives through.
const life = 600

func TestNoDuplicates(t *testing.T) {
	steps, seed := 0, uint64(0)
	begin := time.Now()
	for ; steps < budget(); seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := drawConfig(rng)
		w := newSite(c)
		trace, broken := walk(w, rng, life)
		steps += len(trace)
		if broken != "" {
			report(t, fmt.Sprintf("seed %d, %v", seed, c.keys()), func() world { return newSite(c) }, trace, broken)
			return
		}
	}
	took := time.Since(begin)
	t.Logf("%d steps of %d clusters in %v: %.0f a second", steps, seed, took.Round(time.Millisecond), float64(steps)/took.Seconds())
}

// The same seed leads to the same events and the same state.
func TestSeedsRepeat(t *testing.T) {
	for seed := range uint64(20) {
		var traces, states [2]string
		for i := range 2 {
			rng := rand.New(rand.NewPCG(seed, 3))
			w := newSite(drawConfig(rng))
			trace, broken := walk(w, rng, life)
			traces[i], states[i] = script(trace), w.String()+broken
		}
		if traces[0] != traces[1] || states[0] != states[1] {
			t.Fatalf("seed %d: two runs differ:\n%s\n%s", seed, states[0], states[1])
		}
	}
}
