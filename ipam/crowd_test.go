package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/isthmus-net/isthmus/ipam/lease"
)

// bubble runs a test on virtual time, so that no bound of ours depends on the
// load of the machine; not under the race detector, which cannot.
func bubble(t *testing.T, test func(*testing.T)) {
	t.Helper()
	if raceEnabled {
		test(t)
		return
	}
	synctest.Test(t, test)
}

// crowd is a small subnet on many hosts.
type crowd struct {
	subnet string
	hosts  int
}

var crowds = []crowd{{"10.0.0.0/26", 20}, {"10.0.0.0/29", 5}, {"10.0.0.0/28", 7}, {"10.0.0.0/30", 3}, {"10.0.0.0/31", 2}, {"fd00:1::/123", 10}}

func (c crowd) String() string { return fmt.Sprintf("%s on %d hosts", c.subnet, c.hosts) }

// open makes the network on all hosts, and returns how many addresses
// containers can have.
func (c crowd) open(t testing.TB) (l *lab, ids map[*host]string, size int) {
	var names []string
	for n := range c.hosts {
		names = append(names, fmt.Sprint("h", n))
	}
	l = newLab(t, names...)
	ids = map[*host]string{}
	for _, h := range l.hosts {
		ids[h] = must[string](t)(h.network(c.subnet, "", "")) // also where there are more hosts than addresses
	}
	s := lease.Scope{Pool: prefix(c.subnet), Within: prefix(c.subnet), Gateway: l.log.Registry().Pools[keyOf(ids[l.hosts[0]])].Gateway}
	return l, ids, s.Size(s.Pool)
}

func TestEveryLastAddressIsServed(t *testing.T) {
	for _, c := range crowds {
		t.Run(c.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(3, 9))
				l, ids, size := c.open(t)
				any := func() *host { return l.hosts[rng.IntN(len(l.hosts))] }
				owner := map[netip.Addr]*host{}
				var order []netip.Addr
				start := func(h *host) {
					t.Helper()
					a, err := h.start(ids[h], "", "")
					if err != nil {
						t.Fatalf("%d of %d addresses are in use, and %s gets none: %v", len(owner), size, h.name, err)
					}
					if other := owner[a]; other != nil {
						t.Fatalf("%s given to %s and %s", a, other.name, h.name)
					}
					owner[a], order = h, append(order, a)
				}
				for len(owner) < size {
					start(any())
					any().work() // leases ahead, where it can
				}
				for range 3 {
					h := any()
					_, err := h.start(ids[h], "", "")
					if full := (*fullError)(nil); !errors.As(err, &full) {
						t.Errorf("one more than there are: %v", err)
					}
				}
				// The one that is freed anywhere is served anywhere.
				for range 2 * size {
					n := rng.IntN(len(order))
					a := order[n]
					owner[a].stop(ids[owner[a]], a)
					delete(owner, a)
					order = append(order[:n], order[n+1:]...)
					any().work()
					start(any())
				}
				// A container moves with its address.
				for range 2 * size {
					a := order[rng.IntN(len(order))]
					from, to := owner[a], any()
					from.stop(ids[from], a)
					if _, err := to.start(ids[to], a.String(), ""); err != nil {
						t.Fatalf("%s moves from %s to %s: %v", a, from.name, to.name, err)
					}
					owner[a] = to
				}
				for a, h := range owner {
					h.stop(ids[h], a)
				}
				for _, h := range l.hosts {
					h.remove(ids[h])
				}
				for range 2 {
					l.pass(keepTime)
					for _, h := range l.hosts {
						h.work()
					}
				}
				if r := l.log.Registry(); len(r.Leases)+len(r.Pools) > 0 {
					t.Errorf("left at the end: %v %v", r.Leases, r.Pools)
				}
			})
		})
	}
}

// TestCrowdsStartAtOnce: all hosts of a full pool recall one another at the same
// time; none gets an address twice, none waits for ever, and the last address is
// served after it.
func TestCrowdsStartAtOnce(t *testing.T) {
	c := crowd{"10.0.0.0/27", 6}
	bubble(t, func(t *testing.T) {
		l, ids, size := c.open(t)
		var mu sync.Mutex
		owner := map[netip.Addr]string{}
		start := func(h *host) bool {
			a, err := h.start(ids[h], "", "")
			if err != nil {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			if other := owner[a]; other != "" {
				t.Errorf("%s given to %s and %s", a, other, h.name)
			}
			owner[a] = h.name
			return true
		}
		for range 3 {
			var wg sync.WaitGroup
			for _, h := range l.hosts {
				for range 2 {
					wg.Go(func() {
						for range 4 {
							start(h)
						}
					})
				}
			}
			wg.Wait()
			for n, h := range l.hosts {
				for _, u := range h.Used(keyOf(ids[h])) {
					if n%2 == 0 {
						mu.Lock()
						delete(owner, u.Addr)
						mu.Unlock()
						h.stop(ids[h], u.Addr)
					}
				}
			}
		}
		// What a call gave up waiting for shows in the registry, and Run takes it up.
		for _, h := range l.hosts {
			h.work()
		}
		for len(owner) < size {
			if h := l.hosts[len(owner)%len(l.hosts)]; !start(h) {
				_, err := h.start(ids[h], "", "")
				t.Fatalf("%d of %d addresses are in use, and %s gets none: %v", len(owner), size, h.name, err)
			}
		}
	})
}
