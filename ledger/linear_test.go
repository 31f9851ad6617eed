package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// The registry under faults, against a model of what it promises. An operation
// is on one of three kinds of things, each of which is checked on its own:
//
//   - an address that is leased and released by itself,
//   - a network that hosts hold and let go,
//   - all blocks of one pool together: no two that overlap are held at a time.
//
// A read is Sync, and then the copy. An operation without an answer may have
// been done at any time after its call, or not at all.
type input struct {
	thing string
	op    string
	host  cluster.HostID
	id    uint64       // of the lease or network that is given back
	block netip.Prefix // that is given back
}

type output struct {
	unknown bool
	id      uint64
	block   netip.Prefix
	holders string // of a network, or of an address
	refused bool
}

// thing is the state of an address (id: its lease) or a network. An id of 0
// with holders is one that nobody was told yet.
type thing struct {
	id      uint64
	holders string
	blocks  string
}

const (
	take = "take"
	give = "give"
	look = "look"
)

var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			name := op.Input.(input).thing
			by[name] = append(by[name], op)
		}
		return slices.Collect(maps.Values(by))
	},
	Init: func() any { return thing{} },
	Step: func(state, in, out any) (bool, any) {
		s, i, o := state.(thing), in.(input), out.(output)
		switch {
		case strings.HasPrefix(i.thing, "block"):
			return s.stepBlock(i, o)
		case strings.HasPrefix(i.thing, "address"):
			return s.stepAddress(i, o)
		default:
			return s.stepNetwork(i, o)
		}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// known reports whether an answer fits what is known of the id, and takes it in.
func (s thing) known(id uint64) (bool, thing) {
	if s.id == 0 {
		s.id = id
	}
	return s.id == id, s
}

func (s thing) stepAddress(i input, o output) (bool, thing) {
	free := s.holders == ""
	switch i.op {
	case take:
		switch {
		case free && o.unknown:
			return true, thing{holders: string(i.host)}
		case free:
			return !o.refused, thing{id: o.id, holders: string(i.host)}
		case o.unknown:
			return true, s
		case s.holders != string(i.host):
			return o.refused && o.holders == s.holders, s
		case o.refused:
			return false, s
		}
		return s.known(o.id)
	case give:
		if !free && s.id == i.id {
			s = thing{}
		}
		return !o.refused, s
	default:
		if free || o.holders == "" {
			return free && o.holders == "", s
		}
		ok, next := s.known(o.id)
		return ok && o.holders == s.holders, next
	}
}

func (s thing) stepNetwork(i input, o output) (bool, thing) {
	hosts := strings.Fields(s.holders)
	switch i.op {
	case take:
		if len(hosts) == 0 {
			return o.unknown || !o.refused, thing{id: o.id, holders: string(i.host)}
		}
		if !slices.Contains(hosts, string(i.host)) {
			hosts = append(hosts, string(i.host))
			slices.Sort(hosts)
		}
		s.holders = strings.Join(hosts, " ")
		if o.unknown {
			return true, s
		}
		return s.known(o.id)
	case give:
		if s.id != i.id {
			return !o.refused, s // it was another network on these pools
		}
		hosts = slices.DeleteFunc(hosts, func(h string) bool { return h == string(i.host) })
		if s.holders = strings.Join(hosts, " "); len(hosts) == 0 {
			s = thing{}
		}
		return !o.refused, s
	default:
		if len(hosts) == 0 || o.holders == "" {
			return len(hosts) == 0 && o.holders == "", s
		}
		ok, next := s.known(o.id)
		return ok && o.holders == s.holders, next
	}
}

func (s thing) stepBlock(i input, o output) (bool, thing) {
	held := strings.Fields(s.blocks)
	switch {
	case i.op == take && !o.unknown: // a block that nobody heard of is in nobody's way
		for _, h := range held {
			if netip.MustParsePrefix(h).Overlaps(o.block) {
				return false, s
			}
		}
		held = append(held, o.block.String())
		slices.Sort(held)
	case i.op == give:
		held = slices.DeleteFunc(held, func(h string) bool { return h == i.block.String() })
	}
	s.blocks = strings.Join(held, " ")
	return true, s
}

// history is what happened, by one clock.
type history struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
}

// note writes down an operation. One that is not known to have ended may have
// been done at any time.
func (h *history) note(client int, in input, do func() (output, error)) output {
	call := time.Since(h.began)
	out, err := do()
	end := time.Since(h.began)
	if err != nil {
		if in.op == look {
			return out // it tells nothing
		}
		out, end = output{unknown: true}, math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: int64(call), Output: out, Return: int64(end)})
	return out
}

// seat is a host that may be stopped and started under its clients.
type seat struct {
	mu   sync.RWMutex
	node *node
	join []string
}

func (s *seat) restart(ctx context.Context, meanwhile func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node.kill()
	meanwhile()
	s.node.startHasty(s.join...)
}

func (s *seat) leads() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.node.leads()
}

func (s *seat) propose(ctx context.Context, c cluster.Command) (cluster.Result, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return s.node.Propose(ctx, c)
}

func (s *seat) read(ctx context.Context) (*cluster.Registry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.node.Sync(ctx); err != nil {
		return nil, err
	}
	return s.node.Registry(), nil
}

var (
	exactPool = netip.MustParsePrefix("10.1.0.0/24")
	blockPool = netip.MustParsePrefix("10.2.0.0/22")
	netPools  = []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("10.4.0.0/24")}
)

func key(p netip.Prefix) cluster.PoolKey { return cluster.PoolKey{Prefix: p} }

// client does what a host does, in random order, until ctx ends.
func (s *seat) client(ctx context.Context, id int, h *history) {
	host := s.node.id()
	blocks := map[netip.Prefix]uint64{}
	exact := map[netip.Addr]uint64{}
	nets := map[netip.Prefix]uint64{}
	for ctx.Err() == nil {
		switch rand.IntN(6) {
		case 0:
			out := h.note(id, input{thing: "blocks", op: take, host: host}, func() (output, error) {
				res, err := s.propose(ctx, cluster.Command{Grant: &cluster.Grant{Pool: key(blockPool), Want: 8}})
				if why := (*cluster.Refusal)(nil); errors.As(err, &why) {
					return output{refused: true}, err
				}
				return output{id: res.Lease.ID, block: res.Lease.Block}, err
			})
			if !out.unknown {
				blocks[out.block] = out.id
			}
		case 1:
			for block, lease := range blocks {
				delete(blocks, block)
				h.note(id, input{thing: "blocks", op: give, host: host, id: lease, block: block}, func() (output, error) {
					_, err := s.propose(ctx, cluster.Command{Release: &cluster.Release{Lease: lease}})
					return output{}, err
				})
				break
			}
		case 2, 3:
			addr := exactPool.Addr().Next().Next()
			for range rand.IntN(4) {
				addr = addr.Next()
			}
			in := input{thing: "address " + addr.String(), host: host}
			if lease, held := exact[addr]; held {
				delete(exact, addr)
				in.op, in.id = give, lease
				h.note(id, in, func() (output, error) {
					_, err := s.propose(ctx, cluster.Command{Release: &cluster.Release{Lease: lease}})
					return output{}, err
				})
				continue
			}
			in.op = take
			out := h.note(id, in, func() (output, error) {
				res, err := s.propose(ctx, cluster.Command{GrantExact: &cluster.GrantExact{Pool: key(exactPool), Addr: addr}})
				if why := (*cluster.Refusal)(nil); errors.As(err, &why) && why.Code == cluster.Held && len(why.Holders) == 1 {
					return output{refused: true, holders: string(why.Holders[0])}, nil
				}
				return output{id: res.Lease.ID}, err
			})
			if !out.unknown && !out.refused {
				exact[addr] = out.id
			}
		case 4:
			pool := netPools[rand.IntN(len(netPools))]
			in := input{thing: "network " + pool.String(), host: host}
			if n, held := nets[pool]; held {
				delete(nets, pool)
				in.op, in.id = give, n
				h.note(id, in, func() (output, error) {
					_, err := s.propose(ctx, cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: uint32(n)}})
					return output{}, err
				})
				continue
			}
			in.op = take
			out := h.note(id, in, func() (output, error) {
				res, err := s.propose(ctx, cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{key(pool)}}})
				return output{id: uint64(res.Network.ID)}, err
			})
			if !out.unknown {
				nets[pool] = out.id
			}
		case 5:
			s.look(ctx, id, h)
		}
	}
}

// look reads one thing, which a copy of the registry tells.
func (s *seat) look(ctx context.Context, id int, h *history) {
	if rand.IntN(2) == 0 {
		pool := netPools[rand.IntN(len(netPools))]
		h.note(id, input{thing: "network " + pool.String(), op: look}, func() (output, error) {
			r, err := s.read(ctx)
			if err != nil {
				return output{}, err
			}
			n, _ := r.NetworkOf([]cluster.PoolKey{key(pool)})
			var hosts []string
			for _, id := range n.Holders {
				hosts = append(hosts, string(id))
			}
			return output{id: uint64(n.ID), holders: strings.Join(hosts, " ")}, nil
		})
		return
	}
	addr := exactPool.Addr().Next().Next()
	h.note(id, input{thing: "address " + addr.String(), op: look}, func() (output, error) {
		r, err := s.read(ctx)
		if err != nil {
			return output{}, err
		}
		for _, l := range r.LeasesOf(key(exactPool), "") {
			if l.Block.Contains(addr) {
				return output{id: l.ID, holders: string(l.Holder)}, nil
			}
		}
		return output{}, nil
	})
}

// nemesisTime is how long faults last: short in an ordinary run.
func nemesisTime() time.Duration {
	if os.Getenv("ISTHMUS_NIGHTLY") != "" {
		return 3 * time.Minute
	}
	return 10 * time.Second
}

func TestLinearizable(t *testing.T) {
	nodes, w := assembleIn(t, 5)
	var join []string
	for _, n := range nodes {
		join = append(join, n.addr.String())
	}
	for _, n := range nodes {
		for _, p := range append([]netip.Prefix{exactPool, blockPool}, netPools...) {
			n.must(attach(p.String()))
		}
	}
	h := &history{began: time.Now()}
	ctx, cancel := context.WithTimeout(t.Context(), nemesisTime())
	defer cancel()
	var seats []*seat
	for _, n := range nodes {
		seats = append(seats, &seat{node: n, join: join})
	}
	var wg sync.WaitGroup
	for i, s := range seats {
		wg.Go(func() { s.client(ctx, 2*i, h) })
		wg.Go(func() {
			for ctx.Err() == nil {
				s.look(ctx, 2*i+1, h)
			}
		})
	}
	w.trouble(ctx, nodes, seats)
	wg.Wait()

	// All is mended by itself.
	awaitVoters(t, nodes, 3)
	last := nodes[0].must(attach("10.5.0.0/24"))
	for _, n := range nodes {
		n.fresh()
		n.await("it has all", func() bool { return n.Registry().Index >= last.Index })
		if err := rules.Check(n.Registry()); err != nil {
			t.Error(err)
		}
	}
	h.check(t)
}

func (h *history) check(t *testing.T) {
	t.Helper()
	lost := 0
	for _, op := range h.ops {
		if op.Output.(output).unknown {
			lost++
		}
	}
	t.Logf("%d operations, of %d the answer is not known", len(h.ops), lost)
	if len(h.ops) < 50 {
		t.Errorf("%d operations tell little", len(h.ops))
	}
	slices.SortFunc(h.ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	verdict, info := porcupine.CheckOperationsVerbose(model, h.ops, time.Minute)
	if verdict != porcupine.Ok {
		file, err := os.CreateTemp("", "linearizable-*.html")
		if err == nil {
			err = porcupine.Visualize(model, info, file)
			file.Close()
		}
		t.Errorf("the history is not linearizable (%s): see %s (%v)", verdict, file.Name(), err)
	}
}

// The checker finds what it is there for.
func TestModelRefuses(t *testing.T) {
	a, b := cluster.HostID("a"), cluster.HostID("b")
	at := func(call, end int64, in input, out output) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	block := func(p string) netip.Prefix { return netip.MustParsePrefix(p) }
	for name, test := range map[string]struct {
		ops []porcupine.Operation
		ok  bool
	}{
		"one address, two hosts": {[]porcupine.Operation{
			at(0, 1, input{thing: "address x", op: take, host: a}, output{id: 5}),
			at(2, 3, input{thing: "address x", op: take, host: b}, output{id: 6}),
		}, false},
		"released in between": {[]porcupine.Operation{
			at(0, 1, input{thing: "address x", op: take, host: a}, output{id: 5}),
			at(2, 3, input{thing: "address x", op: give, host: a, id: 5}, output{}),
			at(4, 5, input{thing: "address x", op: take, host: b}, output{id: 6}),
		}, true},
		"an old read": {[]porcupine.Operation{
			at(0, 1, input{thing: "address x", op: take, host: a}, output{id: 5}),
			at(2, 3, input{thing: "address x", op: look}, output{}),
		}, false},
		"an answer that was lost": {[]porcupine.Operation{
			at(0, math.MaxInt64, input{thing: "address x", op: take, host: a}, output{unknown: true}),
			at(2, 3, input{thing: "address x", op: look}, output{}),
			at(4, 5, input{thing: "address x", op: look}, output{id: 7, holders: "a"}),
			at(6, 7, input{thing: "address x", op: look}, output{id: 8, holders: "a"}),
		}, false},
		"blocks overlap": {[]porcupine.Operation{
			at(0, 1, input{thing: "blocks", op: take, host: a}, output{block: block("10.0.0.0/29")}),
			at(0, 1, input{thing: "blocks", op: take, host: b}, output{block: block("10.0.0.0/30")}),
		}, false},
		"two networks on one pool": {[]porcupine.Operation{
			at(0, 1, input{thing: "network x", op: take, host: a}, output{id: 1}),
			at(2, 3, input{thing: "network x", op: take, host: b}, output{id: 2}),
		}, false},
		"a network that was dropped": {[]porcupine.Operation{
			at(0, 1, input{thing: "network x", op: take, host: a}, output{id: 1}),
			at(2, 3, input{thing: "network x", op: give, host: a, id: 1}, output{}),
			at(4, 5, input{thing: "network x", op: take, host: b}, output{id: 2}),
			at(6, 7, input{thing: "network x", op: look}, output{id: 2, holders: "b"}),
		}, true},
	} {
		if got := porcupine.CheckOperations(model, test.ops); got != test.ok {
			t.Errorf("%s: linearizable %v", name, got)
		}
	}
}
