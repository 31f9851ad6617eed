package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// town is a large cluster in which nothing goes wrong.
type town struct {
	tb    testing.TB
	log   *cluster.Registry
	pool  cluster.PoolKey
	hosts []*house
	now   time.Time

	starts, waited, grants, releases int
}

type house struct {
	*town
	identity
	m       *lease.Machine
	session uint64
	used    []netip.Addr
}

func newTown(tb testing.TB, hosts int, pool string) *town {
	w := &town{tb: tb, log: rules.New(), pool: cluster.PoolKey{Prefix: netip.MustParsePrefix(pool)}, now: time.Unix(1e9, 0)}
	w.apply(cluster.Command{Found: &cluster.Found{Cluster: "00000000c0ffee00"}})
	for i := range hosts {
		h := &house{town: w, identity: identityOf(fmt.Sprint("house ", i))}
		vtep := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		h.session = w.apply(cluster.Command{Host: h.id, Hello: &cluster.Hello{
			PublicKey: h.key, Nonce: 1, Name: fmt.Sprint("house-", i), VTEP: vtep, Address: netip.AddrPortFrom(vtep, 7950), Machine: cluster.Machine{ID: fmt.Sprint(i)},
		}}).Index
		h.m = lease.New(h.id)
		h.m.Boot(cluster.Boot{Settled: true})
		w.hosts = append(w.hosts, h)
		h.ask(cluster.Command{AttachPool: &cluster.AttachPool{Prefix: w.pool.Prefix}})
	}
	return w
}

func (w *town) apply(c cluster.Command) cluster.Result {
	next, res := rules.Apply(w.log, c, w.log.Index+1)
	if res.Refused != nil {
		w.tb.Fatalf("%+v: %s", c, res.Refused.Text)
	}
	w.log = next
	return res
}

// ask does a command and takes up the answer, as if both took no time.
func (h *house) ask(c cluster.Command) {
	m := h.m.Ask(c)
	c.Host, c.Session, c.Request = h.id, h.session, m.Request
	s, err := h.m.Answered(m.Request, h.apply(c), nil)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.done(s)
}

func (h *house) done(s lease.Step) {
	h.m.Done(s, nil)
	for _, c := range s.Send {
		h.releases++
		h.ask(c)
	}
}

func (h *house) scope() lease.Scope {
	return lease.Scope{Pool: h.pool.Prefix, Within: h.pool.Prefix}
}

// upkeep is what runs behind the calls: it leases ahead of need, and gives back
// what is not needed.
func (h *house) upkeep() {
	key := h.pool
	p, holders := h.m.Pool(key), len(h.log.Pools[key].Holders)
	p.Peak = p.Peak.Step(h.now, len(p.Used))
	for p.Low(h.scope(), holders, h.now) {
		h.grants++
		h.ask(cluster.Command{Grant: &cluster.Grant{Pool: key, Want: p.Want()}})
	}
	s, err := h.m.Drain(key, p.Surplus([]lease.Scope{h.scope()}, holders, h.now)...)
	if err != nil {
		h.tb.Fatal(err)
	}
	h.done(s)
}

func (h *house) start() {
	h.starts++
	s, a, err := h.m.Allocate(h.pool, h.scope(), "", true, h.now)
	if err != nil { // nothing at hand: this start waits for the cluster
		h.waited++
		h.upkeep()
		if s, a, err = h.m.Allocate(h.pool, h.scope(), "", true, h.now); err != nil {
			h.tb.Fatal(err)
		}
	}
	h.done(s)
	h.used = append(h.used, a)
}

func (h *house) stop(i int) {
	s, ok := h.m.Free(h.pool, h.used[i], h.now)
	if !ok {
		h.tb.Fatalf("cannot free %s", h.used[i])
	}
	h.done(s)
	h.used[i] = h.used[len(h.used)-1]
	h.used = h.used[:len(h.used)-1]
}

// check holds all hosts against each other and against the registry.
func (w *town) check() (used, leased int) {
	if err := rules.Check(w.log); err != nil {
		w.tb.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, h := range w.hosts {
		for _, a := range h.used {
			if seen[a] {
				w.tb.Fatalf("%s is used twice", a)
			}
			seen[a] = true
		}
	}
	for _, l := range w.log.Leases {
		leased += 1<<(32-l.Block.Bits()) - len(l.Without)
	}
	return len(seen), leased
}

func (w *town) report(what string) (unused float64) {
	used, leased := w.check()
	unused = 1 - float64(used)/float64(leased)
	w.tb.Logf("%s: %d starts, %.4f grants a start, %d starts waited, %d blocks given back; %d in use, %d leased in %d blocks, %.1f %% of that unused",
		what, w.starts, float64(w.grants)/float64(max(1, w.starts)), w.waited, w.releases, used, leased, len(w.log.Leases), 100*unused)
	return unused
}

// 200 hosts with 200 endpoints each in one /16: what it takes from the
// cluster, and what lies idle. The bounds are not far above what is measured.
func TestTwoHundredHosts(t *testing.T) {
	hosts, endpoints, pool := 200, 200, "10.0.0.0/16"
	if raceEnabled { // one goroutine: nothing to find there
		hosts, pool = 20, "10.0.0.0/19"
	}
	w := newTown(t, hosts, pool)
	rng := rand.New(rand.NewPCG(1, 7))
	for _, h := range w.hosts {
		h.upkeep() // the first block comes with the network
	}
	for range endpoints {
		for _, i := range rng.Perm(hosts) {
			w.hosts[i].start()
			w.hosts[i].upkeep()
		}
		w.now = w.now.Add(time.Second)
	}
	filled := w.report("filled")
	if w.waited > 0 {
		t.Errorf("%d starts waited for the cluster", w.waited)
	}
	if perStart := float64(w.grants) / float64(w.starts); perStart > 0.04 || filled > 0.4 {
		t.Errorf("%.4f grants a start, %.3f unused", perStart, filled)
	}

	// Containers come and go: a tenth of them every twenty minutes, for an hour.
	w.starts, w.grants, w.releases = 0, 0, 0
	for range 3 {
		for _, h := range w.hosts {
			for range endpoints / 10 {
				h.stop(rng.IntN(len(h.used)))
			}
			h.upkeep()
			for range endpoints / 10 {
				h.start()
				h.upkeep()
			}
		}
		w.now = w.now.Add(20 * time.Minute)
	}
	w.report("an hour later")
	if perStart := float64(w.grants) / float64(w.starts); perStart > 0.05 || w.waited > 0 {
		t.Errorf("%.4f grants a start, %d waited", perStart, w.waited)
	}

	// Nine in ten end for good.
	for _, h := range w.hosts {
		for len(h.used) > endpoints/10 {
			h.stop(rng.IntN(len(h.used)))
		}
	}
	for range 25 {
		w.now = w.now.Add(5 * time.Minute)
		for _, h := range w.hosts {
			h.upkeep()
		}
	}
	w.report("nine in ten ended")
	for _, h := range w.hosts {
		for len(h.used) > 0 {
			h.stop(0)
		}
	}
	w.now = w.now.Add(2 * time.Hour)
	for range 5 {
		w.now = w.now.Add(time.Hour)
		for _, h := range w.hosts {
			h.upkeep()
		}
	}
	if used, leased := w.check(); used != 0 || leased > hosts*20 {
		t.Errorf("%d used and %d leased when all ended", used, leased)
	}
}

// BenchmarkTwoHundredHosts is the time of one start with its upkeep, the log's
// part included, when the /16 is filled as above.
func BenchmarkTwoHundredHosts(b *testing.B) {
	w := newTown(b, 200, "10.0.0.0/16")
	i := 0
	for b.Loop() {
		h := w.hosts[i%len(w.hosts)]
		if len(h.used) >= 200 {
			h.stop(i % 200)
		}
		h.start()
		h.upkeep()
		i++
	}
	b.ReportMetric(float64(w.grants)/float64(w.starts), "grants/op")
}
