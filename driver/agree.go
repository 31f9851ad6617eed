package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// agreement keeps the cluster's registry as this host's intent requires: it
// holds the networks that it uses, and no others. No call waits for it, so a
// network can be removed, and made again, while nobody answers.
type agreement struct {
	d    *Driver
	kick chan struct{}

	mu       sync.Mutex
	creating map[cluster.PoolKey]int // of networks on their way into intent
	settling *settling               // what run proposes just now; nil for nothing
	index    uint64                  // of the newest answer; older copies of the registry do not count
	problems map[uint32]string       // by cluster network, why the cluster refuses it
}

func newAgreement(d *Driver) *agreement {
	return &agreement{d: d, kick: make(chan struct{}, 1), creating: map[cluster.PoolKey]int{}, problems: map[uint32]string{}}
}

// settling is one network or pool that run is proposing something for.
type settling struct {
	pools  []cluster.PoolKey
	cancel context.CancelFunc
	ended  chan struct{}
}

// create keeps run away from a network that is about to be stored: what it
// proposes for these pools just now is broken off first, since it would land
// in the middle. The returned function ends that.
func (a *agreement) create(pools []cluster.PoolKey) (done func()) {
	a.mu.Lock()
	for _, p := range pools {
		a.creating[p]++
	}
	s := a.settling
	a.mu.Unlock()
	if s != nil && slices.ContainsFunc(s.pools, func(p cluster.PoolKey) bool { return slices.Contains(pools, p) }) {
		s.cancel()
		<-s.ended
	}
	return func() {
		a.mu.Lock()
		for _, p := range pools {
			if a.creating[p]--; a.creating[p] == 0 {
				delete(a.creating, p)
			}
		}
		a.mu.Unlock()
		a.wake()
	}
}

// settle proposes something for pools in the background, unless a call is at
// them, or intent does not need it any more: then it does nothing.
func (a *agreement) settle(ctx context.Context, pools []cluster.PoolKey, needed func(*Intent) bool, propose func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &settling{pools, cancel, make(chan struct{})}
	a.mu.Lock()
	if slices.ContainsFunc(pools, func(p cluster.PoolKey) bool { return a.creating[p] > 0 }) || !needed(a.d.store.intent()) {
		a.mu.Unlock()
		return nil
	}
	a.settling = s
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.settling = nil
		a.mu.Unlock()
		close(s.ended)
	}()
	return propose(ctx)
}

func (a *agreement) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

func (a *agreement) run(ctx context.Context) error {
	agreed := a.d.cfg.Ledger.Subscribe()
	const most = 30 * time.Second
	retry := a.d.pace.retry
	for {
		wait := most
		if err := a.step(ctx); err == nil {
			retry = a.d.pace.retry
		} else if ctx.Err() == nil {
			wait, retry = retry, min(retry*2, most)
			a.d.log.WithError(err).WithField("again", wait.String()).Info("the cluster does not know yet which networks this host holds")
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.kick:
		case <-agreed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// step compares the registry with intent once and proposes what is missing.
func (a *agreement) step(ctx context.Context) error {
	d := a.d
	reg := d.cfg.Ledger.Registry()
	a.mu.Lock()
	stale := reg.Index < a.index
	a.mu.Unlock()
	if stale {
		return nil // the change is on its way and will wake us
	}
	in := d.store.intent()
	var errs []error
	for _, h := range in.held() {
		errs = append(errs, a.settle(ctx, h.Pools, func(in *Intent) bool { return in.defines(h.Pools, h.Def) }, func(ctx context.Context) error {
			n, ok := reg.NetworkOf(h.Pools)
			var err error
			if !ok || !slices.Contains(n.Holders, d.cfg.Host) {
				n, err = a.attach(ctx, h.Network, h.Def, d.definition(h.Options))
			}
			a.note(h.Cluster, err)
			if err != nil {
				return err
			}
			return a.adopt(n)
		}))
	}
	a.leases(in)
	for _, id := range slices.Sorted(maps.Keys(reg.Networks)) {
		n := reg.Networks[id]
		if slices.Contains(n.Holders, d.cfg.Host) && !d.housed(id) {
			errs = append(errs, a.settle(ctx, n.Pools, func(in *Intent) bool { return !in.uses(n.Pools) }, func(ctx context.Context) error {
				return a.detach(ctx, cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: id}})
			}))
		}
	}
	for pool := range in.Parting {
		errs = append(errs, a.settle(ctx, []cluster.PoolKey{pool}, func(in *Intent) bool { _, ok := in.Parting[pool]; return ok }, func(ctx context.Context) error {
			if !d.store.intent().networked(pool) {
				if err := a.detach(ctx, cluster.Command{DetachPool: &cluster.DetachPool{Pool: pool}}); err != nil {
					return err
				}
			}
			return d.store.edit(func(in *Intent) error { delete(in.Parting, pool); return nil })
		}))
	}
	return errors.Join(errs...)
}

// attach has the cluster know that this host holds the network, by the first
// of the definitions that it does not refuse.
func (a *agreement) attach(ctx context.Context, n Network, defs ...cluster.Definition) (cluster.Network, error) {
	if n.Options.Foreign {
		for _, pool := range n.Pools {
			if _, err := a.propose(ctx, cluster.Command{AttachPool: &cluster.AttachPool{Space: pool.Space, Prefix: pool.Prefix}}); err != nil {
				return cluster.Network{}, fmt.Errorf("attach pool %s: %w", pool, err)
			}
		}
	}
	var first error
	for _, def := range defs {
		res, err := a.propose(ctx, cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: n.Pools, Def: def}})
		if err == nil {
			return res.Network, nil
		}
		if first == nil {
			first = err
		}
		if _, refused := errors.AsType[*cluster.Refusal](err); !refused {
			break
		}
	}
	return cluster.Network{}, fmt.Errorf("attach network %s: %w", poolNames(n.Pools), first)
}

func (a *agreement) propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error) {
	res, err := a.d.cfg.Ledger.Propose(ctx, cmd)
	if err == nil {
		a.mu.Lock()
		a.index = max(a.index, res.Index)
		a.mu.Unlock()
	}
	return res, err
}

// adopt takes over the cluster's idea of a network where it differs from what
// is stored, as after the registry was rebuilt.
func (a *agreement) adopt(n cluster.Network) error {
	changed := false
	err := a.d.store.edit(func(in *Intent) error {
		for id, mine := range in.Networks {
			if slices.Equal(mine.Pools, n.Pools) && (mine.Cluster != n.ID || mine.Def != n.Def) {
				mine.Cluster, mine.Def, changed = n.ID, n.Def, true
				in.Networks[id] = mine
			}
		}
		return nil
	})
	if changed && err == nil {
		a.d.log.WithField("network", poolNames(n.Pools)).Info("took over the cluster's definition of a network")
		a.d.loop.wake()
	}
	return err
}

// leases follows the leases that cover the endpoints' addresses; their numbers
// change when the registry is rebuilt.
func (a *agreement) leases(in *Intent) {
	for _, e := range in.Endpoints {
		now := a.d.leased(in.Networks[e.Network], e)
		if now.Lease4 != e.Lease4 && now.Lease4 != 0 || now.Lease6 != e.Lease6 && now.Lease6 != 0 {
			a.d.loop.edit(e, func(e *Endpoint) {
				e.Lease4, e.Lease6 = cmp.Or(now.Lease4, e.Lease4), cmp.Or(now.Lease6, e.Lease6)
			})
		}
	}
}

// detach gives back what this host uses no more. What is gone already is fine.
func (a *agreement) detach(ctx context.Context, cmd cluster.Command) error {
	_, err := a.propose(ctx, cmd)
	if r, refused := errors.AsType[*cluster.Refusal](err); refused && (r.Code == cluster.UnknownNet || r.Code == cluster.UnknownPool) {
		return nil
	}
	return err
}

// note remembers why the cluster refuses a network, for status.
func (a *agreement) note(network uint32, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.problems, network)
	} else {
		a.problems[network] = err.Error()
	}
}

// refused lists what the cluster refuses, for networks held now.
func (a *agreement) refused(held []*segment) []Problem {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Problem
	for _, s := range held {
		if cause, ok := a.problems[s.Cluster]; ok {
			out = append(out, Problem{Network: poolNames(s.Pools), Cause: cause, Remedy: "it works on this host meanwhile; see the ledger's status"})
		}
	}
	return out
}
