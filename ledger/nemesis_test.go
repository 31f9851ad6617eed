package ledger

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// network is what lies between hosts in a test. What one host says to another
// can be cut off in one direction: it is lost in silence then, and the streams
// that the one had opened to the other end.
type network struct {
	mu    sync.Mutex
	links map[link]life
}

type link struct{ from, to netip.AddrPort }

type life struct {
	context.Context
	end context.CancelFunc
}

func newNetwork() *network { return &network{links: map[link]life{}} }

// join puts a host into the network.
func (w *network) join(n *node) {
	n.path = func(to netip.AddrPort) context.Context {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.of(link{n.addr, to}).Context
	}
}

func (w *network) of(l link) life {
	if _, ok := w.links[l]; !ok {
		ctx, end := context.WithCancel(context.Background())
		w.links[l] = life{ctx, end}
	}
	return w.links[l]
}

// cut ends what from says to to.
func (w *network) cut(from, to *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(link{from.addr, to.addr}).end()
}

// isolate ends what a host says and hears.
func (w *network) isolate(n *node, nodes []*node) {
	for _, other := range others(nodes, n) {
		w.cut(n, other)
		w.cut(other, n)
	}
}

// heal mends all links.
func (w *network) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for l, life := range w.links {
		if life.Err() != nil {
			delete(w.links, l)
		}
	}
}

// close ends all links, for those who wait on them.
func (w *network) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, life := range w.links {
		life.end()
	}
}

// The leader is cut off: the others go on, it does not, and when the links are
// mended it has all that they agreed meanwhile.
func TestLeaderIsCutOff(t *testing.T) {
	t.Parallel()
	nodes, w := assembleIn(t, 3)
	lead := leaderOf(t, nodes)
	rest := others(nodes, lead)
	w.isolate(lead, nodes)
	last := rest[0].must(attach("10.1.0.0/16"))
	rest[1].must(grant("10.1.0.0/16"))
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := lead.Propose(short, attach("10.2.0.0/16")); err == nil {
		t.Error("a leader that was cut off agreed with itself")
	}
	if err := lead.Sync(short); err == nil {
		t.Error("a leader that was cut off knows the newest state")
	}
	w.heal()
	lead.await("it has all", func() bool { return lead.Registry().Index >= last.Index })
	awaitVoters(t, nodes, 3)
	lead.must(grant("10.1.0.0/16"))
}

// The leader vanishes in silence, and not much hastier than in production: a
// proposal outlives that, on a voter and on a client.
func TestProposalOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 4)
	w := newNetwork()
	t.Cleanup(w.close)
	for _, n := range nodes {
		w.join(n)
		n.startWith(func(c *Config) {
			c.Join, c.Timing = join, Timing{Election: 700 * time.Millisecond, Position: hasty.Position, Stable: hasty.Stable}
		})
	}
	for _, n := range nodes {
		n.fresh().must(attach("10.1.0.0/16"))
	}
	lead := awaitVoters(t, nodes, 3)
	w.isolate(lead, nodes)
	var wg sync.WaitGroup
	for _, n := range others(nodes, lead) {
		wg.Go(func() {
			began := time.Now()
			if _, err := n.Propose(context.Background(), grant("10.1.0.0/16")); err != nil {
				t.Errorf("%s, a %s: %v", n.name, n.Status().Role, err)
			}
			t.Logf("%s, a %s: %v", n.name, n.Status().Role, time.Since(began))
		})
	}
	wg.Wait()
	w.heal()
}

// One voter does not hear another, which hears it.
func TestOneWay(t *testing.T) {
	t.Parallel()
	nodes, w := assembleIn(t, 3)
	lead := leaderOf(t, nodes)
	rest := others(nodes, lead)
	w.cut(lead, rest[0])
	for _, n := range nodes {
		n.must(attach("10.1.0.0/16"))
	}
	w.heal()
	awaitVoters(t, nodes, 3)
}

// assembleIn makes a cluster whose links can be cut.
func assembleIn(t *testing.T, count int) ([]*node, *network) {
	t.Helper()
	nodes, join := hosts(t, count)
	w := newNetwork()
	t.Cleanup(w.close)
	for _, n := range nodes {
		w.join(n)
		n.startHasty(join...)
	}
	for _, n := range nodes {
		n.fresh()
	}
	voters := 3
	if count >= 7 {
		voters = 5
	}
	awaitVoters(t, nodes, voters)
	return nodes, w
}

// trouble does one bad thing after the other until ctx ends, and mends it all.
func (w *network) trouble(ctx context.Context, nodes []*node, seats []*seat) {
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	for round := rand.IntN(4); ctx.Err() == nil; round++ {
		pick := rand.IntN(len(nodes))
		switch round % 4 {
		case 0: // whoever leads
			for i, n := range nodes {
				if seats[i].leads() {
					w.isolate(n, nodes)
				}
			}
		case 1:
			w.isolate(nodes[pick], nodes)
		case 2:
			w.cut(nodes[pick], nodes[(pick+1)%len(nodes)])
			w.cut(nodes[(pick+1)%len(nodes)], nodes[(pick+2)%len(nodes)])
		case 3:
			seats[pick].restart(ctx, func() { pause(500 * time.Millisecond) })
		}
		pause(time.Second)
		w.heal()
		pause(time.Second)
	}
	w.heal()
}
