package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// What is defeated of the rules of founding. Two hosts whose lists have the
// same entries in another order want a cluster each.
var foundingMutations = map[string]string{
	"promise":  "a promise is stored before it is given",
	"majority": "a founder needs a majority of the list, and silence is no consent",
}

func joinsText(joins [][]int) string {
	var out []string
	for _, join := range joins {
		s := ""
		for _, i := range join {
			s += letter(i)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func joinsOf(text string) [][]int {
	var out [][]int
	for _, s := range strings.Fields(text) {
		var join []int
		for _, c := range s {
			join = append(join, int(c-'a'))
		}
		out = append(out, join)
	}
	return out
}

func TestEachRuleOfFoundingIsNeeded(t *testing.T) {
	for _, name := range sortedKeys(foundingMutations) {
		t.Run(name, func(t *testing.T) {
			r := readRecording(t, recordingOf("founding "+name))
			joins := joinsOf(r.keys["join"])
			w := newNursery(joins, r.keys["defeated"])
			done, broken := replay(w, r.events)
			if kindOf(broken) != "two clusters" || len(done) != len(r.events) || r.keys["defeated"] != name {
				t.Errorf("%s: %d of %d events happened and led to %q, not to two clusters; if the rules changed, record it again: go test ./sim -run Search -args -record\n%s",
					foundingMutations[name], len(done), len(r.events), broken, w)
			}
			w = newNursery(joins, "")
			if _, broken := replay(w, r.events); broken != "" {
				t.Errorf("with the rule in force: %s\n%s", broken, w)
			}
		})
	}
}

func TestSearchFindsEachFoundingMutation(t *testing.T) {
	if budget() < nightly && !*record {
		t.Logf("under %d steps only the recordings are done again", nightly)
		return
	}
	for _, name := range sortedKeys(foundingMutations) {
		t.Run(name, func(t *testing.T) {
			seed, steps := uint64(1), 0
			if !*record {
				seed = 1_000_000 // not those that the recordings are from
			}
			for ; steps < nightly; seed++ {
				rng := rand.New(rand.NewPCG(seed, 6))
				joins := drawJoins(rng)
				trace, broken := walk(newNursery(joins, name), rng, foundingLife)
				if steps += len(trace); broken == "" {
					continue
				}
				t.Logf("%s, after %d steps", broken, steps)
				if *record {
					short := shrink(func() world { return newNursery(joins, name) }, trace, broken)
					recording{map[string]string{"join": joinsText(joins), "defeated": name}, short}.write(t, recordingOf("founding "+name),
						fmt.Sprintf("Defeated: %s.\nFound after %d steps from seed %d; ends in %s.", foundingMutations[name], steps, seed, broken))
				}
				return
			}
			t.Fatalf("%s: no two clusters in %d steps", foundingMutations[name], steps)
		})
	}
}
