package gossip

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// dice is the randomness of a Cluster: seeded by tests, safe for concurrent
// use.
type dice struct {
	mu   sync.Mutex
	rand *rand.Rand
}

func newDice(seed uint64) *dice { return &dice{rand: rand.New(rand.NewPCG(seed, seed))} }

func (d *dice) shuffle(n int, swap func(i, j int)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rand.Shuffle(n, swap)
}

// of picks one of a list; false when it is empty.
func of[T any](d *dice, list []T) (T, bool) {
	if len(list) == 0 {
		var none T
		return none, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return list[d.rand.IntN(len(list))], true
}

// around returns a duration within a quarter of t, so that hosts that started
// together do not act together.
func (d *dice) around(t time.Duration) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return t*3/4 + time.Duration(d.rand.Int64N(int64(t)/2))
}

// sleep waits; false when ctx ended first.
func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
