package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// world is what a walk goes through.
type world interface {
	// draw proposes an event; it may turn out to be impossible.
	draw(rng *rand.Rand) event
	// do lets an event happen, and reports false, with nothing changed, when
	// it is not possible now.
	do(event) bool
	// broken says which invariant does not hold, "" when all do.
	broken() string
	// String is the whole state, for people and for comparison.
	String() string
}

// walk draws steps events that happen, and stops where an invariant breaks.
func walk(w world, rng *rand.Rand, steps int) (trace []event, broken string) {
	trace = make([]event, 0, steps)
	for idle := 0; len(trace) < steps && idle < 10_000; {
		e := w.draw(rng)
		if !w.do(e) {
			idle++
			continue
		}
		idle = 0
		trace = append(trace, e)
		if broken = w.broken(); broken != "" {
			return trace, broken
		}
	}
	return trace, ""
}

// replay lets the events happen that can, and stops where an invariant breaks.
func replay(w world, events []event) (done []event, broken string) {
	for _, e := range events {
		if !w.do(e) {
			continue
		}
		done = append(done, e)
		if broken = w.broken(); broken != "" {
			return done, broken
		}
	}
	return done, ""
}

// shrink leaves out events as long as the rest still breaks an invariant of
// the same kind, and returns the shortest list it finds.
func shrink(fresh func() world, events []event, broken string) []event {
	best := events
	try := func(events []event) bool {
		done, why := replay(fresh(), events)
		if why == "" || kindOf(why) != kindOf(broken) || len(done) >= len(best) {
			return false
		}
		best = done
		return true
	}
	for again := true; again; {
		again = false
		for size := max(1, len(best)/2); size >= 1; size /= 2 {
			for at := max(0, len(best)-size); ; at -= size {
				at = min(at, len(best))
				if try(slices.Concat(best[:at], best[min(at+size, len(best)):])) {
					again = true
				}
				if at <= 0 {
					break
				}
				at = max(at, size) // the first piece may be shorter
			}
		}
		// Pairs that only go together: a cut and its end, a message and its delivery.
		if len(best) <= 80 && !again {
		pairs:
			for i := range best {
				for j := i + 1; j < len(best); j++ {
					if try(slices.Concat(best[:i], best[i+1:j], best[j+1:])) {
						again = true
						break pairs
					}
				}
			}
		}
	}
	return best
}

// kindOf is the name of the invariant that a message begins with.
func kindOf(broken string) string {
	kind, _, _ := strings.Cut(broken, ":")
	return kind
}

// report fails the test with everything that is needed to see the failure
// again.
func report(t *testing.T, what string, fresh func() world, trace []event, broken string) {
	t.Helper()
	short := shrink(fresh, trace, broken)
	w := fresh()
	done, why := replay(w, short)
	t.Errorf("%s\n%s\nafter %d events, %d of them needed (%s):\n%s\nthe state then:\n%s", what, broken, len(trace), len(done), why, script(done), w)
}

func script(events []event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}
