package gossip

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
)

// sim is many hosts in one bubble of virtual time.
type sim struct {
	testing.TB
	*memNet
	dir   string
	key   []byte
	hosts map[int]*simHost
}

type simHost struct {
	*Cluster
	node *memNode
	db   *bbolt.DB
	stop context.CancelFunc
	done chan error
}

const simCluster = "00000000000000c1"

// simulate runs fn in a bubble, and ends all hosts after it.
func simulate(t *testing.T, fn func(s *sim)) {
	t.Helper()
	if raceEnabled {
		t.Skip("synctest bubbles crash under the race detector before Go 1.27; TestThreeHostsOnLoopback covers it")
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { runSim(t, dir, fn) })
}

func runSim(tb testing.TB, dir string, fn func(s *sim)) {
	s := &sim{TB: tb, memNet: newMemNet(1, time.Millisecond), dir: dir, key: make([]byte, 32), hosts: map[int]*simHost{}}
	defer func() {
		for n := range s.hosts {
			s.kill(n)
		}
		// memberlist's own goroutines end a probe late, and a bubble has no
		// time after its main goroutine.
		time.Sleep(30 * time.Second)
	}()
	fn(s)
}

func addrOf(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2 + byte(n>>8), byte(n)}), 7950)
}

type simOption func(*simConfig)

type simConfig struct {
	Config
	at netip.AddrPort
}

func inCluster(id func() cluster.ID) simOption {
	return func(c *simConfig) {
		c.Cluster = func(context.Context) (cluster.ID, error) { return id(), nil }
	}
}

// start begins host n, or begins it again with the state that it had. It joins
// the hosts named, and does not publish.
func (s *sim) start(n int, join []int, opts ...simOption) *simHost {
	s.Helper()
	db, err := bbolt.Open(filepath.Join(s.dir, fmt.Sprint(n)), 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true})
	if err != nil {
		s.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	cfg := simConfig{at: addrOf(n), Config: Config{
		ID: hostID(n), Identity: identity(n), DB: db, Port: 7950, Log: log.WithField("host", n),
		Info:    cluster.HostInfo{Name: fmt.Sprintf("host%03d", n), VTEP: addrOf(n).Addr(), MTU: 1500},
		Cluster: func(context.Context) (cluster.ID, error) { return simCluster, nil },
	}}
	for _, m := range join {
		cfg.Join = append(cfg.Join, addrOf(m).String())
	}
	for _, o := range opts {
		o(&cfg)
	}
	node := s.node(cfg.ID, cfg.at, s.key)
	c, err := open(cfg.Config, node, uint64(n))
	if err != nil {
		s.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &simHost{Cluster: c, node: node, db: db, stop: stop, done: make(chan error, 1)}
	go func() { h.done <- c.Run(ctx) }()
	s.hosts[n] = h
	return h
}

// startAll begins hosts 0 to n-1; all join host 0 and publish a record.
func (s *sim) startAll(n int) {
	s.Helper()
	for i := range n {
		s.start(i, []int{0}).Publish(recordsOf(1, i, i+1))
	}
	s.await(time.Minute, "all hosts hear all", func() bool { return s.agree(all(n)) })
}

// kill ends a host without a good-bye; its state stays.
func (s *sim) kill(n int) {
	h := s.hosts[n]
	h.node.unplug()
	h.stop()
	if err := <-h.done; err != nil {
		s.Errorf("host %d: %v", n, err)
	}
	if err := h.db.Close(); err != nil {
		s.Error(err)
	}
	delete(s.hosts, n)
}

// await waits in virtual time, and returns how long.
func (s *sim) await(limit time.Duration, what string, cond func() bool) time.Duration {
	s.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			s.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

func all(n int) []int { return indices(n) }

// agree reports whether these hosts hold one another alive and hold the same
// streams, at the versions of their owners.
func (s *sim) agree(hosts []int) bool {
	root := locked{s.hosts[hosts[0]].Cluster}.root()
	for _, n := range hosts {
		if (locked{s.hosts[n].Cluster}).root() != root {
			return false
		}
	}
	for _, n := range hosts {
		alive := map[cluster.HostID]bool{}
		for _, m := range s.hosts[n].Members() {
			alive[m.ID] = m.State == cluster.Alive
		}
		for _, m := range hosts {
			if !alive[hostID(m)] {
				return false
			}
		}
	}
	return true
}

// state is what a host believes of host n.
func (h *simHost) state(n int) cluster.MemberState {
	for _, m := range h.Members() {
		if m.ID == hostID(n) {
			return m.State
		}
	}
	return ""
}

// holds reports whether a host knows a record of host n.
func (h *simHost) holds(n int, r cluster.Record) bool {
	for _, s := range h.Streams() {
		if s.Owner == hostID(n) {
			_, ok := s.Records[r.Key()]
			return ok
		}
	}
	return false
}

func TestManyHostsConverge(t *testing.T) {
	for _, loss := range []float64{0, 0.2} {
		t.Run(fmt.Sprintf("loss %v", loss), func(t *testing.T) {
			simulate(t, func(s *sim) {
				s.setLoss(loss)
				const n = 40
				s.startAll(n)
				for i, h := range s.hosts {
					if !h.Settled() {
						s.Errorf("host %d has not settled", i)
					}
					if got := h.Members(); len(got) != n || got[3].Info.Name != "host003" || got[3].Address != addrOf(3) {
						s.Errorf("host %d: members %v", i, got)
					}
				}
			})
		})
	}
}

// The promise to users is 1 s from a container's start to the entry on every
// other host; gossip may use a third of it.
func TestNewEndpointIsHeardAtOnce(t *testing.T) {
	simulate(t, func(s *sim) {
		const n = 20
		s.startAll(n)
		for round := range 20 {
			time.Sleep(730 * time.Millisecond)
			owner := round % n
			r := record(2, round)
			s.hosts[owner].Publish([]cluster.Record{r})
			s.await(50*time.Millisecond, "endpoint heard", func() bool {
				for m, h := range s.hosts {
					if m != owner && !h.holds(owner, r) {
						return false
					}
				}
				return true
			})
		}
	})
}

func TestNewEndpointIsHeardDespiteLoss(t *testing.T) {
	simulate(t, func(s *sim) {
		const n = 20
		s.startAll(n)
		s.setLoss(0.1)
		var took []time.Duration
		for round := range 40 {
			time.Sleep(730 * time.Millisecond)
			r := record(2, round)
			s.hosts[round%n].Publish([]cluster.Record{r})
			took = append(took, s.await(3*time.Second, "endpoint heard", func() bool {
				for m, h := range s.hosts {
					if m != round%n && !h.holds(round%n, r) {
						return false
					}
				}
				return true
			}))
		}
		slices.Sort(took)
		if p90 := took[len(took)*9/10]; p90 > time.Second {
			s.Errorf("at 10%% loss 9 of 10 endpoints are known everywhere after %v, want 1s (%v)", p90, took)
		}
	})
}

// A change too large for a hint is fetched, and the hosts fetch from one
// another.
func TestLargeChangeIsFetched(t *testing.T) {
	simulate(t, func(s *sim) {
		const n = 20
		s.startAll(n)
		s.hosts[4].Publish(recordsOf(1, 0, 2000))
		took := s.await(5*time.Second, "2000 records heard", func() bool { return s.agree(all(n)) })
		s.Logf("2000 records of one host on %d hosts after %v", n, took)
		if took > 2*time.Second {
			s.Errorf("took %v, want at most 2s", took)
		}
	})
}

// sides cuts hosts below n from the others.
func sides(n int) func(a, b netip.AddrPort) bool {
	side := func(a netip.AddrPort) bool { return a.Addr().Less(addrOf(n).Addr()) }
	return func(a, b netip.AddrPort) bool { return side(a) != side(b) }
}

func TestPartitionHeals(t *testing.T) {
	for _, test := range []struct{ hosts, cut int }{{2, 1}, {3, 1}, {20, 10}, {20, 1}} {
		t.Run(fmt.Sprintf("%d of %d", test.cut, test.hosts), func(t *testing.T) {
			for round, lasts := range []time.Duration{20 * time.Second, time.Minute, 5 * time.Minute} {
				simulate(t, func(s *sim) {
					s.rand = rand.New(rand.NewPCG(uint64(round), 0))
					s.startAll(test.hosts)
					s.setCut(sides(test.cut))
					time.Sleep(lasts)
					// (One host that is cut off takes minutes to doubt all others.)
					if got := s.hosts[test.hosts-1].state(0); lasts >= time.Minute && got != cluster.Failed {
						s.Fatalf("in the partition the other side is %s", got)
					}
					// Both sides change, and keep what they know of the other.
					s.hosts[0].Publish(recordsOf(1, 500, 510))
					s.hosts[test.hosts-1].Publish(recordsOf(1, 600, 610))
					if !s.hosts[0].holds(test.hosts-1, record(1, test.hosts-1)) {
						s.Fatal("records of the other side were dropped")
					}
					time.Sleep(time.Second)
					s.setCut(nil)
					took := s.await(15*time.Second, "partition heals", func() bool { return s.agree(all(test.hosts)) })
					s.Logf("cut for %v, healed after %v", lasts, took)
				})
			}
		})
	}
}

// Packets pass one way only: the hosts never lose one another's records, and
// find together afterwards.
func TestOneWayCutHeals(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(5)
		s.setCut(func(from, to netip.AddrPort) bool { return from == addrOf(1) && to == addrOf(2) })
		time.Sleep(2 * time.Minute)
		r := record(9, 1)
		s.hosts[1].Publish([]cluster.Record{r})
		s.await(5*time.Second, "records pass by way of others", func() bool { return s.hosts[2].holds(1, r) })
		s.setCut(nil)
		s.await(15*time.Second, "cut heals", func() bool { return s.agree(all(5)) })
	})
}

func TestHostReturnsAfterTenMinutes(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(4)
		s.setCut(func(a, b netip.AddrPort) bool { return (a == addrOf(3)) != (b == addrOf(3)) })
		time.Sleep(10 * time.Minute)
		s.setCut(nil)
		s.await(15*time.Second, "host 3 is talked to again", func() bool { return s.agree(all(4)) })
	})
}

// All hosts but one were restarted while it was away, and it lost its power:
// only the address book knows it, and only the others are left to dial.
func TestAddressBookOutlivesRestarts(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		time.Sleep(2 * time.Second) // the address book is written once a second
		s.kill(2)
		time.Sleep(time.Minute)
		for n := range 2 {
			s.kill(n)
			s.start(n, nil).Publish(recordsOf(1, n, n+1))
		}
		s.await(15*time.Second, "the two find each other", func() bool { return s.hosts[0].state(1) == cluster.Alive })
		if got := s.hosts[0].state(2); got != cluster.Failed {
			s.Fatalf("the third one is %q", got)
		}
		time.Sleep(10 * time.Minute)
		h := s.start(2, nil)
		clear(h.book.hosts) // it does not look for them
		h.Publish(recordsOf(1, 2, 3))
		s.await(15*time.Second, "host 2 is found", func() bool { return s.agree(all(3)) })
	})
}

func TestRecordsOfFailedHostAreSuspended(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(4)
		r := record(1, 3)
		s.kill(3)
		s.await(30*time.Second, "failure is noticed", func() bool { return s.hosts[0].state(3) == cluster.Failed })
		time.Sleep(time.Hour)
		// A host that restarts meanwhile learns them from the others.
		s.kill(1)
		s.start(1, []int{0}).Publish(nil)
		s.await(15*time.Second, "restarted host knows the failed one's records", func() bool {
			return s.hosts[1].holds(3, r) && s.hosts[1].Settled()
		})
		for n, h := range s.hosts {
			if !h.holds(3, r) {
				s.Errorf("host %d dropped the records", n)
			}
		}
		// The failed host comes back. Until it speaks, its old records hold.
		h := s.start(3, []int{0})
		s.await(15*time.Second, "it is alive again", func() bool { return s.hosts[0].state(3) == cluster.Alive })
		time.Sleep(5 * time.Second)
		if !s.hosts[0].holds(3, r) {
			s.Fatal("records were dropped before the host published")
		}
		h.Publish(recordsOf(1, 70, 71))
		s.await(time.Second, "new records replace them", func() bool {
			return s.hosts[0].holds(3, record(1, 70)) && !s.hosts[0].holds(3, r)
		})
	})
}

func TestRestartBeginsNewEpoch(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		for epoch := uint32(2); epoch < 5; epoch++ {
			s.kill(1)
			s.start(1, []int{0}).Publish(recordsOf(1, 10, 11))
			s.await(5*time.Second, "records of the new run", func() bool {
				return slices.ContainsFunc(s.hosts[0].Streams(), func(st cluster.Stream) bool {
					return st.Owner == hostID(1) && st.Epoch == epoch && len(st.Records) == 1
				})
			})
			if got := s.hosts[0].state(1); got != cluster.Alive {
				s.Errorf("a quick restart was noticed as %s", got)
			}
		}
	})
}

// The state of a host is deleted but for its identity, as a restored backup
// would: it begins at epoch 1 again, and is believed all the same.
func TestRolledBackHostIsBelieved(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		for range 3 {
			s.kill(1)
			s.start(1, []int{0}).Publish(recordsOf(1, 10, 20))
		}
		s.await(10*time.Second, "settled", func() bool { return s.agree(all(3)) })
		s.kill(1)
		s.start(1, []int{0}, func(c *simConfig) {
			if err := c.DB.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketGossip) }); err != nil {
				s.Fatal(err)
			}
		}).Publish(recordsOf(1, 30, 31))
		s.await(10*time.Second, "records of the rolled back host", func() bool {
			return s.agree(all(3)) && s.hosts[0].holds(1, record(1, 30)) && !s.hosts[0].holds(1, record(1, 10))
		})
	})
}

func TestClustersDoNotMix(t *testing.T) {
	simulate(t, func(s *sim) {
		other := inCluster(func() cluster.ID { return "00000000000000c2" })
		s.start(0, nil).Publish(recordsOf(1, 0, 1))
		s.start(1, []int{0}).Publish(recordsOf(1, 1, 2))
		s.start(2, []int{0}, other).Publish(recordsOf(1, 2, 3))
		time.Sleep(2 * time.Minute)
		if !s.agree([]int{0, 1}) {
			s.Error("the hosts of one cluster do not agree")
		}
		if got := s.hosts[0].state(2); got != "" {
			s.Errorf("a host of another cluster is %s here", got)
		}
		if got := s.hosts[2].Members(); len(got) != 1 {
			s.Errorf("the lone host has members %v", got)
		}
		if s.hosts[2].Settled() {
			s.Error("a host that nobody answers has settled")
		}
	})
}

func TestHostMovesToAnotherCluster(t *testing.T) {
	simulate(t, func(s *sim) {
		s.start(0, nil).Publish(recordsOf(1, 0, 1))
		id := cluster.ID("00000000000000c2")
		s.start(1, []int{0}, inCluster(func() cluster.ID { return id })).Publish(recordsOf(1, 1, 2))
		time.Sleep(20 * time.Second)
		id = simCluster
		s.await(30*time.Second, "host is in the other cluster", func() bool { return s.agree(all(2)) })
		// Its earlier company is not missed, after a restart neither.
		time.Sleep(2 * time.Second)
		s.kill(0)
		time.Sleep(time.Minute)
		s.kill(1)
		id = "00000000000000c3"
		s.start(1, nil, inCluster(func() cluster.ID { return id })).Publish(nil)
		s.await(2*time.Second, "a lone host settles", s.hosts[1].Settled)
		if got := s.hosts[1].Members(); len(got) != 1 {
			s.Errorf("in a new cluster it has members %v", got)
		}
	})
}

func TestWrongKeyIsNotHeard(t *testing.T) {
	simulate(t, func(s *sim) {
		s.start(0, nil).Publish(nil)
		s.key = append([]byte{1}, s.key[1:]...)
		s.start(1, []int{0}).Publish(nil)
		time.Sleep(time.Minute)
		if got := s.hosts[0].state(1); got != "" {
			s.Errorf("a host with another key is %s", got)
		}
	})
}

func TestSettled(t *testing.T) {
	simulate(t, func(s *sim) {
		// Nobody is known.
		s.start(0, nil)
		s.await(time.Second, "a founder settles", s.hosts[0].Settled)
		s.hosts[0].Publish(nil)
		// JOIN names only this host.
		s.start(1, []int{1})
		s.await(time.Second, "a host that joins itself settles", s.hosts[1].Settled)
		s.kill(1)
		// JOIN names one that does not answer.
		s.start(2, []int{9})
		time.Sleep(5 * time.Minute)
		if s.hosts[2].Settled() {
			s.Error("settled although nobody answered")
		}
		if err := s.hosts[2].Trouble(); err == nil || !strings.Contains(err.Error(), "connection refused") {
			s.Errorf("trouble: %v, want the reason of the dial", err)
		}
		s.kill(2)
		// It answers.
		h := s.start(3, []int{0})
		sub := h.Subscribe()
		s.await(2*time.Second, "a joiner settles", h.Settled)
		if err := h.Trouble(); err != nil {
			s.Errorf("trouble of a member: %v", err)
		}
		<-sub
		if len(h.Streams()) != 1 {
			s.Errorf("settled with %d streams", len(h.Streams()))
		}
	})
}

// After a power failure nobody has settled, so nobody may vouch for anything.
func TestWholeClusterRestarts(t *testing.T) {
	simulate(t, func(s *sim) {
		const n = 4
		s.startAll(n)
		time.Sleep(2 * time.Second)
		for i := range n {
			s.kill(i)
		}
		for i := range n - 1 {
			s.start(i, []int{0})
		}
		time.Sleep(10 * time.Second)
		for i := range n - 1 {
			if s.hosts[i].Settled() {
				s.Errorf("host %d settled while hosts that it knows said nothing", i)
			}
			s.hosts[i].Publish(recordsOf(1, i, i+1))
		}
		s.start(n-1, []int{0}).Publish(recordsOf(1, n-1, n))
		s.await(15*time.Second, "settled once all have spoken", func() bool {
			return s.agree(all(n)) && !slices.ContainsFunc(all(n), func(i int) bool { return !s.hosts[i].Settled() })
		})
		// The same with one that never comes back: time decides.
		for i := range n {
			s.kill(i)
		}
		for i := range n - 1 {
			s.start(i, []int{0}).Publish(recordsOf(1, i, i+1))
		}
		s.await(settleAfter+15*time.Second, "settled without the lost host", func() bool {
			return !slices.ContainsFunc(all(n-1), func(i int) bool { return !s.hosts[i].Settled() })
		})
	})
}

// gate is the answer of one host's Admit.
type gate struct {
	mu      sync.Mutex
	refused map[cluster.HostID]error
}

func (g *gate) refuse(n int, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused = map[cluster.HostID]error{hostID(n): why}
}

func (g *gate) admit(id cluster.HostID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused[id]
}

// TestAdmit: host 2 was removed from the cluster. Host 3 has not heard of that
// yet, and goes on talking of it.
func TestAdmit(t *testing.T) {
	simulate(t, func(s *sim) {
		gates := []*gate{{}, {}}
		guarded := func(n int) simOption { return func(c *simConfig) { c.Admit = gates[n].admit } }
		s.start(0, []int{0}, guarded(0)).Publish(recordsOf(1, 0, 1))
		s.start(1, []int{0}, guarded(1)).Publish(recordsOf(1, 1, 2))
		s.start(2, []int{0}).Publish(recordsOf(1, 2, 3))
		s.start(3, []int{0}).Publish(recordsOf(1, 3, 4))
		s.await(time.Minute, "all hosts hear all", func() bool { return s.agree(all(4)) })
		gone := func(n int) bool { return s.hosts[n].state(2) == "" && len(s.hosts[n].Streams()) == 2 }

		news := s.hosts[0].Subscribe()
		for _, g := range gates {
			g.refuse(2, errors.New("it was removed from the cluster: reset it"))
		}
		if !gone(0) || !gone(1) {
			s.Fatal("a refused host is served")
		}
		s.await(2*time.Second, "the change is told", func() bool { return len(news) > 0 })
		if _, ok := s.hosts[0].table.streams[hostID(2)]; ok {
			s.Fatal("what a refused host said is kept")
		}
		// It is still running, and goes on talking, and others pass it on.
		for i := range 60 {
			time.Sleep(time.Second)
			s.hosts[2].Publish(recordsOf(1, 100, 101+i))
			if !gone(0) || !gone(1) {
				s.Fatal("a refused host is back")
			}
		}
		s.await(10*time.Second, "a host that admits it hears it", func() bool { return s.hosts[3].holds(2, record(1, 159)) })
		for n := range 2 {
			s.await(5*time.Minute, "trouble tells why", func() bool {
				err := s.hosts[n].Trouble()
				return err != nil && strings.Contains(err.Error(), "host host002 ("+hostID(2).Short()+") is refused: it was removed from the cluster: reset it")
			})
		}
		s.kill(0)
		s.start(0, []int{1, 2, 3}, guarded(0)).Publish(nil)
		s.await(time.Minute, "it settles", s.hosts[0].Settled)
		time.Sleep(time.Minute)
		if !gone(0) {
			s.Fatal("a refused host is back after a restart")
		}
		// Nothing but the answer of Admit keeps it out.
		for _, g := range gates {
			g.refuse(2, nil)
		}
		s.await(time.Minute, "all hosts hear all", func() bool { return s.agree(all(4)) })
		time.Sleep(2 * knockedFor)
		for n := range 4 {
			if err := s.hosts[n].Trouble(); err != nil {
				s.Errorf("host %d: trouble is %v", n, err)
			}
		}
	})
}

// TestClaims: what a host claims reaches hosts that never met it, changes, and
// ends.
func TestClaims(t *testing.T) {
	simulate(t, func(s *sim) {
		claim := func(lease uint64, space, pool, block string) cluster.Record {
			return cluster.Record{Claim: cluster.Claim{Lease: lease, Pool: cluster.PoolKey{Space: space, Prefix: netip.MustParsePrefix(pool)}, Block: netip.MustParsePrefix(block)}}
		}
		old, v6, mine := claim(7, "", "10.1.0.0/16", "10.1.4.0/29"), claim(9, "blue", "fd01::/64", "fd01::8/125"), record(1, 1)
		s.startAll(3)
		s.hosts[1].Publish([]cluster.Record{mine, old, v6})
		said := func(n int, want ...cluster.Record) func() bool {
			return func() bool {
				for _, st := range s.hosts[n].Streams() {
					if st.Owner == hostID(1) {
						return slices.Equal(slices.SortedFunc(maps.Values(st.Records), func(a, b cluster.Record) int { return cmp.Compare(a.Claim.Lease, b.Claim.Lease) }), want)
					}
				}
				return false
			}
		}
		s.await(2*time.Second, "claims are heard", said(2, mine, old, v6))
		s.kill(1)
		s.start(3, []int{2}).Publish(nil)
		s.await(time.Minute, "claims are relayed", said(3, mine, old, v6))
		s.start(1, []int{0}).Publish([]cluster.Record{mine, v6})
		for n := range 4 {
			if n != 1 {
				s.await(time.Minute, "a claim ends", said(n, mine, v6))
			}
		}
	})
}

func TestLeave(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.hosts[2].Leave(ctx); err != nil {
			s.Fatal(err)
		}
		s.kill(2)
		s.await(5*time.Second, "the others know", func() bool {
			return s.hosts[0].state(2) == cluster.Left && s.hosts[1].state(2) == cluster.Left && !s.hosts[1].holds(2, record(1, 2))
		})
		time.Sleep(time.Hour)
		if got := s.hosts[0].state(2); got != cluster.Left {
			s.Errorf("an hour later it is %s", got)
		}
		s.start(2, []int{0}).Publish(recordsOf(1, 2, 3))
		s.await(15*time.Second, "it is welcome again", func() bool { return s.agree(all(3)) })
	})
}

func TestHostChangesItsAddress(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		s.kill(2)
		s.start(2, []int{0}, func(c *simConfig) { c.at = addrOf(7) }).Publish(recordsOf(1, 2, 3))
		// Until the old address is given up, the new one is refused.
		s.await(90*time.Second, "the new address is known", func() bool {
			return s.agree(all(3)) && s.hosts[0].book.hosts[hostID(2)].Addresses[0] == addrOf(7)
		})
	})
}

func TestInfoTravels(t *testing.T) {
	simulate(t, func(s *sim) {
		s.startAll(3)
		sub := s.hosts[1].Subscribe()
		s.hosts[0].SetInfo(cluster.HostInfo{Name: "host000", VTEP: addrOf(0).Addr(), MTU: 9000, Version: "2"})
		s.await(time.Second, "info arrives", func() bool { return s.hosts[1].Members()[0].Info.MTU == 9000 })
		<-sub
	})
}

var burstHosts = flag.Int("hosts", 30, "hosts in TestBurst; 100 for the figure to publish")

// The measure of the design: 100 records of each host, all published at once.
// The network has delay and no other limit, so this is a floor.
func TestBurst(t *testing.T) {
	simulate(t, func(s *sim) {
		n, each := *burstHosts, 100
		for i := range n {
			s.start(i, []int{0, 1, 2}).Publish(nil)
		}
		joined := s.await(2*time.Minute, "all hosts join", func() bool { return s.agree(all(n)) })
		time.Sleep(10 * time.Second)
		s.reset()
		for i, h := range s.hosts {
			h.Publish(recordsOf(1, i*each, (i+1)*each))
		}
		took := s.await(10*time.Second, "all records everywhere", func() bool { return s.agree(all(n)) })
		s.Logf("%d hosts joined after %v; %d records everywhere after %v; per host %d kB in %d datagrams, %d kB in %d streams",
			n, joined, n*each, took, s.datagramBytes/n/1000, s.datagrams/n, s.streamBytes/n/1000, s.streams/n)
		if took > 3*time.Second {
			s.Errorf("took %v, want at most 3s", took)
		}
		time.Sleep(10 * time.Second)
		s.reset()
		time.Sleep(20 * time.Second)
		idle := (s.datagramBytes + s.streamBytes) / n / 20
		s.Logf("idle: %d B/s per host", idle)
		if idle > 2000 {
			s.Errorf("an idle host sends %d B/s, want at most 2000", idle)
		}
	})
}
