package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
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
	if raceEnabled { // one goroutine: nothing to find there
		return 100_000
	}
	return 200_000
}

var prefixes = map[int]netip.Prefix{
	32: netip.MustParsePrefix("10.0.0.0/32"), 31: netip.MustParsePrefix("10.0.0.0/31"), 30: netip.MustParsePrefix("10.0.0.0/30"), 29: netip.MustParsePrefix("10.0.0.0/29"), 28: netip.MustParsePrefix("10.0.0.0/28"), 27: netip.MustParsePrefix("10.0.0.0/27"),
}

// drawConfig makes up a cluster and what is to happen to it.
func drawConfig(rng *rand.Rand) config {
	c := config{hosts: 3 + rng.IntN(5)}
	mode := func() string { return []string{"vxlan", "vxlan", "macvlan"}[rng.IntN(3)] }
	c.pools = append(c.pools, ground{prefixes[27+rng.IntN(4)], mode()})
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
		// else rests. Claims that were heard make up for it, as long as it does not
		// forget who belongs to it as well.
		c.faults = []string{"crash", "cut", "amnesia", "gossip"}
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
	steps, seed, tally := 0, uint64(0), map[string]int{}
	begin := time.Now()
	for ; steps < budget(); seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := drawConfig(rng)
		w := newSite(c)
		var begin []event
		if seed%2 == 1 {
			begin = joined(c.hosts)
		}
		begin, broken := replay(w, begin)
		trace := begin
		if broken == "" {
			trace, broken = walk(w, rng, life)
			trace = slices.Concat(begin, trace)
		}
		steps += len(trace)
		for what, n := range w.tally {
			tally[what] += n
		}
		for _, e := range trace {
			tally[e.op]++
		}
		if broken != "" {
			report(t, fmt.Sprintf("seed %d, %v", seed, c.keys()), func() world { return newSite(c) }, trace, broken)
			return
		}
	}
	took := time.Since(begin)
	t.Logf("%d steps of %d clusters in %v: %.0f a second", steps, seed, took.Round(time.Millisecond), float64(steps)/took.Seconds())
	t.Log(tally)
	for _, what := range []string{
		"container", "lost", "doubt", "contest", "grant", "exact", "release", "carve", "forget", "confirm", "leave", "rebuild", "amnesia", "restore", "set-back",
		"grant refused: full", "grant refused: stale-session", "hello refused: clone", "hello refused: alive", "hello refused: forgotten", "exact refused: held",
	} {
		if tally[what] == 0 {
			t.Errorf("%q never came about in %d steps: the world tries too little", what, steps)
		}
	}
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
