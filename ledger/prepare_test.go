package ledger

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// readying is what a host does about a registry that was rebuilt.
type readying struct {
	mu    sync.Mutex
	asked []uint64
	not   error // why it is not ready
}

func (r *readying) prepare(_ context.Context, gen uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, gen)
	return r.not
}

func (r *readying) set(not error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.not = not
}

func (r *readying) told() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Compact(slices.Clone(r.asked))
}

func (n *node) ready(r *readying, join ...string) *node {
	n.t.Helper()
	return n.startWith(func(c *Config) { c.Join, c.Prepare = join, r.prepare })
}

// A host is let in by a registry that was rebuilt once it has prepared for it.
func TestNoHelloBeforeTheHostIsPrepared(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	at := readying{not: errors.New("a container cannot be cut off")}
	nodes[0].start().fresh()
	host := nodes[1].ready(&at, join...).fresh()
	if asked := at.told(); len(asked) != 0 {
		t.Errorf("prepared for %v in a log that is whole", asked)
	}
	nodes[0].kill()
	host.await("the leader is missed", func() bool { return !host.Status().Reachable })
	if _, err := host.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	host.await("it is to prepare", func() bool { return len(at.told()) > 0 })
	host.await("it says why it is not let in", func() bool { return strings.Contains(host.Status().Error, "cannot be cut off") })
	if _, err := host.Propose(t.Context(), attach(pool)); err == nil || !strings.Contains(err.Error(), "cannot be cut off") {
		t.Errorf("propose: %v", err)
	}
	if h := host.Registry().Hosts[host.id()]; h.Session != 0 || host.Fresh() {
		t.Errorf("let in as %+v", h)
	}
	at.set(nil)
	host.gen(2)
	if asked := at.told(); !slices.Equal(asked, []uint64{2}) {
		t.Errorf("prepared for %v", asked)
	}

	// A stored copy is no proof, so each run prepares.
	host.kill()
	again := readying{}
	host.ready(&again, join...).gen(2)
	if asked := again.told(); !slices.Equal(asked, []uint64{2}) {
		t.Errorf("prepared for %v in the next run", asked)
	}

	// Who knows of no generation is told.
	other := readying{}
	nodes[2].ready(&other, join[1]).gen(2)
	if asked := other.told(); !slices.Equal(asked, []uint64{2}) {
		t.Errorf("a new host prepared for %v", asked)
	}
}

func TestAwait(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	next := founder.Registry().Index + 5
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := client.Await(short, next); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	done := make(chan error, 1)
	go func() { done <- client.Await(t.Context(), next) }()
	for founder.Registry().Index < next {
		founder.must(attach(pool))
	}
	if err := <-done; err != nil || client.Registry().Index < next {
		t.Errorf("%v at %d", err, client.Registry().Index)
	}
}
