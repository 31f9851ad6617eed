package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// drawJoins makes up the JOIN lists of some hosts: the same list everywhere,
// or, up to the five entries that agree to a founding, in an order of each
// host's own.
func drawJoins(rng *rand.Rand) [][]int {
	hosts := 2 + rng.IntN(5)
	list := rng.Perm(hosts)
	joins := make([][]int, hosts)
	for i := range joins {
		joins[i] = list
		if hosts <= 5 && rng.IntN(2) == 0 {
			joins[i] = rng.Perm(hosts)
		}
	}
	return joins
}

const foundingLife = 250

// The hosts of one JOIN list never found two clusters, whatever their order of
// start, the network's, and however many want one at once.
func TestOneClusterOfOneList(t *testing.T) {
	steps, founded := 0, 0
	for seed := uint64(0); steps < budget()/2; seed++ {
		rng := rand.New(rand.NewPCG(seed, 4))
		joins := drawJoins(rng)
		w := newNursery(joins, "")
		trace, broken := walk(w, rng, foundingLife)
		steps += len(trace)
		founded += len(w.logs)
		if broken != "" {
			report(t, fmt.Sprintf("seed %d, JOIN %v", seed, joins), func() world { return newNursery(joins, "") }, trace, broken)
			return
		}
	}
	t.Logf("%d steps, %d clusters", steps, founded)
	if founded < steps/foundingLife/4 {
		t.Errorf("%d clusters in %d steps: too little happens", founded, steps)
	}
}

// Hosts whose lists begin with different entries may found several clusters.
// Those never merge: one without networks dissolves, the others stay apart; and
// in the end, when all is quiet, the hosts of one that dissolved are in another.
func TestClustersThatMeet(t *testing.T) {
	steps, several, dissolved := 0, 0, 0
	for seed := uint64(0); steps < budget()/4; seed++ {
		rng := rand.New(rand.NewPCG(seed, 5))
		hosts := 2 + rng.IntN(4)
		joins := make([][]int, hosts)
		for i := range joins {
			if joins[i] = []int{i}; rng.IntN(2) == 0 {
				joins[i] = []int{i / 2 * 2}
			}
		}
		fresh := func() world {
			n := newNursery(joins, "")
			n.many = true
			return n
		}
		w := fresh().(*nursery)
		trace, broken := walk(w, rng, foundingLife)
		steps += len(trace)
		if len(w.logs) > 1 {
			several++
		}
		for _, b := range w.logs {
			if b.log.Dissolved != "" {
				dissolved++
			}
		}
		if broken == "" {
			broken = w.quiet()
		}
		if broken != "" {
			report(t, fmt.Sprintf("seed %d, JOIN %v", seed, joins), fresh, trace, broken)
			return
		}
	}
	t.Logf("%d steps, %d times several clusters, %d dissolved", steps, several, dissolved)
	if several == 0 || dissolved == 0 {
		t.Error("too little happens")
	}
}
