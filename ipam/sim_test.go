package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// sim is a cluster whose hosts start and stop containers, crash between any
// two commits, lose answers and lose touch with the log, and find their disk
// set back. What Docker on each host believes, and the containers, outlive the
// crashes.
type sim struct {
	*lab
	t      *testing.T
	dice   sync.Mutex
	rng    *rand.Rand
	owner  map[string]string // "pool address" in use → host and container
	docker map[*host]*engine
	starts int
	backs  int // disks set back
}

type engine struct {
	networks []*simNetwork
	serial   int
	saved    bool // there is a snapshot of the disk
}

type simNetwork struct {
	id         string
	containers map[netip.Addr]string
}

func (s *sim) chance(percent int) bool {
	s.dice.Lock() // hosts are recalled at the same time
	defer s.dice.Unlock()
	return s.rng.IntN(100) < percent
}

// revive starts the processes again that crashed, their own or by a recall.
func (s *sim) revive() {
	for _, h := range s.hosts {
		if h.down {
			s.boot(h)
		}
	}
}

// boot starts the process of a host on what its disk holds by now. As the
// plugin does, it looks into the containers that run.
func (s *sim) boot(h *host) {
	h.open()
	for _, n := range s.docker[h].networks {
		for a := range n.containers {
			if err := h.Adopt(keyOf(n.id), a, "found in a running container"); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	_ = h.Hello() // may be out of reach
}

// claimed is what gossip would say of a block at its best.
func (s *sim) claimed(me *host) func(cluster.PoolKey, netip.Prefix) (cluster.HostID, cluster.Claim, bool) {
	return func(key cluster.PoolKey, block netip.Prefix) (cluster.HostID, cluster.Claim, bool) {
		ask := cluster.Claim{Pool: key, Block: block}
		for _, h := range s.hosts {
			if h == me || h.down {
				continue
			}
			for _, c := range h.Claims() {
				if c.Overlaps(ask) {
					return h.ID(), c, true
				}
			}
		}
		return "", cluster.Claim{}, false
	}
}

func (s *sim) step() {
	h := s.hosts[s.rng.IntN(len(s.hosts))]
	e := s.docker[h]
	switch n := s.rng.IntN(100); {
	case n < 12 && len(e.networks) < 4:
		s.create(h, e)
	case n < 16 && len(e.networks) > 0:
		s.destroy(h, e, s.rng.IntN(len(e.networks)))
	case n < 55 && len(e.networks) > 0:
		s.run(h, e, e.networks[s.rng.IntN(len(e.networks))])
	case n < 80 && len(e.networks) > 0:
		s.end(h, e.networks[s.rng.IntN(len(e.networks))])
	case n < 82:
		h.crash()
		s.boot(h)
	case n == 82 && !e.saved:
		h.snapshot()
		e.saved = true
	case n == 82:
		h.setBack()
		e.saved = false
		s.backs++
		s.boot(h)
	case n < 86:
		h.Reach(false)
	case n < 90:
		h.Reach(true)
		if !h.Fresh() {
			if err := h.Hello(); err != nil {
				s.t.Fatal(err)
			}
		}
	case n < 92:
		h.LoseAnswers(1)
	case n < 94:
		s.pass(time.Duration(s.rng.IntN(100)) * time.Second)
	case n < 95:
		s.pass(keepTime)
	default:
		if h.cfg.Ledger.Fresh() {
			h.reconcile(s.t.Context(), h.cfg.Ledger.Registry())
			_ = h.maintain(s.t.Context()) // refused, out of reach or crashed: it tries again
		}
		if !h.down {
			h.sweep()
		}
	}
}

var simPools = []string{"10.0.0.0/27", "10.0.0.0/28", "10.1.0.0/24", "fd00:1::/120", "fd00:2::/64", ""}

func (s *sim) create(h *host, e *engine) {
	subnet, ipRange, gateway := simPools[s.rng.IntN(len(simPools))], "", ""
	if subnet == "10.1.0.0/24" && s.chance(50) {
		ipRange = "10.1.0.64/26"
	}
	if subnet == "10.0.0.0/27" && s.chance(50) {
		gateway = []string{"10.0.0.1", "10.0.0.30"}[s.rng.IntN(2)]
	}
	var aux []string
	if subnet == "10.1.0.0/24" && s.chance(30) {
		aux = []string{"10.1.0.70"}
	}
	id, err := h.network(subnet, ipRange, gateway, aux...)
	if h.down || err != nil {
		return
	}
	e.networks = append(e.networks, &simNetwork{id: id, containers: map[netip.Addr]string{}})
}

func (s *sim) destroy(h *host, e *engine, at int) {
	n := e.networks[at]
	for a := range n.containers {
		s.stopOne(h, n, a)
	}
	e.networks = slices.Delete(e.networks, at, at+1)
	h.remove(n.id)
	h.setNetworked(keyOf(n.id), slices.ContainsFunc(e.networks, func(m *simNetwork) bool { return keyOf(m.id) == keyOf(n.id) }))
}

func (s *sim) run(h *host, e *engine, n *simNetwork) {
	asked, name := "", ""
	if s.chance(25) {
		asked = offset(keyOf(n.id).Prefix, s.rng.IntN(34)).String()
	}
	if s.chance(50) {
		name = fmt.Sprint("c", s.rng.IntN(6))
	}
	var o options
	if name != "" {
		o = options{endpointName: name}
	}
	a, err := h.requestAddress(n.id, asked, o)
	if h.down || err != nil {
		return
	}
	if s.chance(5) {
		h.crash() // and the answer does not reach Docker
		s.boot(h)
		return
	}
	key := keyOf(n.id).String() + " " + a.String()
	e.serial++
	who := fmt.Sprintf("%s container %d", h.name, e.serial)
	if other, used := s.owner[key]; used {
		s.t.Fatalf("%s given to %s, while %s has it", key, who, other)
	}
	r := s.log.Registry()
	if p := r.Pools[keyOf(n.id)]; a == p.Gateway || slices.Contains(p.Reserved, a) || lease.Edge(p.Key.Prefix, a) && p.Key.Prefix.IsValid() {
		s.t.Fatalf("%s given to %s is not for endpoints: %+v", a, who, p)
	}
	s.owner[key] = who
	n.containers[a] = who
	h.setLive(n.id, a, true)
	s.starts++
}

func (s *sim) end(h *host, n *simNetwork) {
	addrs := make([]netip.Addr, 0, len(n.containers))
	for a := range n.containers {
		addrs = append(addrs, a)
	}
	if len(addrs) == 0 {
		return
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	s.stopOne(h, n, addrs[s.rng.IntN(len(addrs))])
}

func (s *sim) stopOne(h *host, n *simNetwork, a netip.Addr) {
	delete(s.owner, keyOf(n.id).String()+" "+a.String())
	delete(n.containers, a)
	h.setLive(n.id, a, false)
	if s.chance(90) { // Docker forgets some, in unclean shutdowns
		h.free(n.id, a)
	}
}

// check holds what every host believes against the log.
func (s *sim) check() {
	r := s.log.Registry()
	for _, h := range s.hosts {
		if h.Suspect() != "" {
			continue // uses nothing of what it remembers
		}
		for _, c := range h.Claims() {
			l, ok := r.Leases[c.Lease]
			if !ok || l.Holder != h.ID() || l.Block != c.Block {
				s.t.Fatalf("%s uses block %s of lease %d, which the log has as %+v", h.name, c.Block, c.Lease, l)
			}
			for _, a := range l.Without {
				if c.Covers(a) {
					s.t.Fatalf("%s uses address %s of lease %d, which it had given back", h.name, a, c.Lease)
				}
			}
		}
	}
}

func TestSimulation(t *testing.T) {
	seeds, steps := 12, 600
	if testing.Short() || raceEnabled {
		seeds = 4
	}
	total, backs := 0, 0
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 7))
			var names []string
			for n := range 3 + rng.IntN(5) {
				names = append(names, fmt.Sprint("h", n))
			}
			s := &sim{lab: newLab(t, names...), t: t, rng: rng, owner: map[string]string{}, docker: map[*host]*engine{}}
			for _, h := range s.hosts {
				s.docker[h] = &engine{}
				h.cut = func(cluster.Command) (bool, bool) { return s.chance(2), s.chance(2) }
				h.lag = func() bool { return s.chance(80) }
				h.boot = func() cluster.Boot { return cluster.Boot{Settled: true, Witness: s.witness(h)} }
				h.foreign = s.claimed(h)
			}
			for range steps {
				s.step()
				s.revive()
				s.check()
			}
			s.settle()
			total, backs = total+s.starts, backs+s.backs
		})
	}
	t.Logf("%d starts, %d disks set back", total, backs)
	if total < seeds*steps/20 || backs < seeds/4 {
		t.Errorf("only %d starts and %d disks set back: the simulation tries too little", total, backs)
	}
}

// settle ends all faults and all containers; nothing may be left then.
func (s *sim) settle() {
	for _, h := range s.hosts {
		h.cut, h.lag = nil, nil
		h.LoseAnswers(0)
		h.Reach(true)
		if !h.Fresh() {
			if err := h.Hello(); err != nil {
				s.t.Fatal(err)
			}
		}
		for len(s.docker[h].networks) > 0 {
			s.destroy(h, s.docker[h], 0)
		}
		for _, p := range h.Status() {
			if p.Uses > 0 { // Docker's answer was lost with a crash: `networks forget`
				h.setNetworked(p.Pool, false)
				if err := h.Forget(s.t.Context(), p.Pool); err != nil {
					s.t.Fatal(err)
				}
			}
		}
	}
	for range 4 {
		for _, h := range s.hosts {
			h.sweep()
			h.work()
		}
		s.pass(keepTime)
	}
	s.check()
	if r := s.log.Registry(); len(r.Leases)+len(r.Pools) != 0 {
		s.t.Errorf("left at the end: pools %v, leases %v", r.Pools, r.Leases)
	}
	for _, h := range s.hosts {
		for _, p := range h.Status() {
			s.t.Errorf("left on %s: %+v", h.name, p)
		}
	}
}
