package ipam

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	period     = 5 * time.Second // of looking after what only time changes
	retryFirst = 2 * time.Second // until the cluster is asked again after it was out of reach
	retryLast  = 30 * time.Second
)

// Run does what no caller waits for: it takes up what the cluster says this
// host holds, leases ahead of need, gives back what is not needed, and frees
// addresses that Docker forgot. It returns when ctx ends.
func (i *IPAM) Run(ctx context.Context) error {
	changed := i.cfg.Ledger.Subscribe()
	tick := time.NewTicker(period)
	defer tick.Stop()
	var seen *cluster.Registry
	settled := false
	var retry time.Time
	wait := retryFirst
	for {
		if r := i.cfg.Ledger.Registry(); (r != seen || !settled) && i.cfg.Ledger.Fresh() {
			if r != seen {
				seen, retry = r, time.Time{}
			}
			settled = i.reconcile(r)
		}
		if now := i.cfg.Now(); !now.Before(retry) {
			if err := i.maintain(ctx); err == nil {
				retry, wait = time.Time{}, retryFirst
			} else if ctx.Err() == nil {
				if wait == retryFirst { // and not again until it was reached
					i.cfg.Log.WithError(err).Warn("address blocks wait for the cluster")
				}
				retry = now.Add(wait)
				wait = min(2*wait, retryLast)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-i.kick:
		case <-changed:
		case <-tick.C:
			i.sweep(ctx)
		}
		i.announce()
	}
}

// awaitCluster waits until this host knows its cluster.
func (i *IPAM) awaitCluster(ctx context.Context) (cluster.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	for {
		i.mu.Lock()
		news := i.news
		i.mu.Unlock()
		if id := i.cfg.Ledger.Registry().Cluster; id != "" {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", errors.New("choose a subnet: this host does not belong to a cluster yet; see isthmus status, or name a --subnet")
		case <-news:
		}
	}
}

// announce lets those go on who wait for a change of the registry.
func (i *IPAM) announce() {
	i.mu.Lock()
	defer i.mu.Unlock()
	close(i.news)
	i.news = make(chan struct{})
}

// reconcile takes over what a fresh registry says that this host holds (rule
// H4): blocks it does not know are taken up, blocks that are gone are dropped.
// It reports false when some of it must be looked at again later.
func (i *IPAM) reconcile(r *cluster.Registry) bool {
	networked := map[cluster.PoolKey]bool{}
	for key, def := range r.Pools {
		if slices.Contains(def.Holders, i.cfg.Host) {
			networked[key] = i.networked(key)
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	known := map[uint64]block{}
	for _, p := range i.pools {
		maps.Copy(known, p.blocks)
	}
	diff := compare(i.cfg.Host, r, known, i.returned)
	for _, b := range diff.drop {
		p := i.pool(b.Pool)
		log := i.cfg.Log.WithFields(map[string]any{"pool": b.Pool.String(), "block": b.Prefix.String(), "lease": b.Lease})
		if err := i.forget(p, b); err != nil {
			log.WithError(err).Error("block is gone, and cannot be forgotten")
			continue
		}
		if !b.Draining && p.rec != nil && !p.parked() {
			p.problem = "the cluster took block " + b.Prefix.String() + " from this host"
			log.Error("block is no longer held: the cluster took it from this host")
		}
	}
	for _, l := range diff.adopt {
		log := i.cfg.Log.WithFields(map[string]any{"pool": l.Pool.String(), "block": l.Block.String(), "lease": l.ID})
		if err := i.keepLocked(i.pool(l.Pool), block{Lease: l.ID, Pool: l.Pool, Prefix: l.Block}); err != nil {
			log.WithError(err).Error("block of this host cannot be taken up")
			continue
		}
		log.Info("block of this host taken up")
	}
	return i.adoptPools(r, networked)
}

// adoptPools records the pools that this host has blocks of, or is attached to
// by the cluster's account, but does not know: an answer was lost. They are
// parked. One without blocks may be in the making, or be attached by the
// network driver for another IPAM, so it must stay unknown for orphanTime. It
// reports false while there are such. The caller holds i.mu.
func (i *IPAM) adoptPools(r *cluster.Registry, networked map[cluster.PoolKey]bool) bool {
	now := i.cfg.Now()
	orphans := map[cluster.PoolKey]time.Time{}
	for key, def := range r.Pools {
		p, ok := i.pools[key]
		if ok && p.rec != nil {
			continue
		}
		if leased := ok && len(p.blocks) > 0; !leased {
			if !slices.Contains(def.Holders, i.cfg.Host) || networked[key] || ok && r.Index < p.left {
				continue
			}
			since, seen := i.orphans[key]
			if !seen {
				since = now
			}
			if now.Sub(since) < orphanTime {
				orphans[key] = since
				continue
			}
		}
		if err := i.record(i.pool(key), record{Pool: def, Index: r.Index, Parked: now}); err != nil {
			i.cfg.Log.WithField("pool", key.String()).WithError(err).Error("pool of this host cannot be taken up")
		}
	}
	i.orphans = orphans
	return len(orphans) == 0
}

// chore is one thing to do for a pool.
type chore struct {
	attach  bool           // the cluster does not list this host
	release bool           // draining blocks wait
	giveUp  bool           // parked for too long
	drop    bool           // parked, and gone from the cluster
	lease   []netip.Prefix // ranges that run low
	want    int            // addresses to lease for each
}

// chores decides what a pool needs; it drains what is surplus. The caller
// holds i.mu.
func (i *IPAM) chores(p *pool, r *cluster.Registry, fresh bool, now time.Time) (chore, error) {
	var c chore
	if p.rec == nil {
		c.release = slices.ContainsFunc(p.sorted(), func(b block) bool { return b.Draining })
		return c, nil
	}
	gone := fresh && r.Index >= p.rec.Index && !slices.Contains(r.Pools[p.key].Holders, i.cfg.Host)
	if p.parked() {
		c.giveUp = now.Sub(p.rec.Parked) >= keepTime
		c.drop = gone && len(p.blocks) == 0
	} else {
		p.peak = p.peak.step(now, len(p.used))
		c.attach = gone
		if !p.creating(now) && !now.Before(p.quiet) {
			c.lease, c.want = i.low(p, now), blockSize(len(p.active(false)))
		}
		if len(c.lease) == 0 {
			if err := i.drain(p, i.surplus(p, now)); err != nil {
				return c, err
			}
		}
	}
	c.release = slices.ContainsFunc(p.sorted(), func(b block) bool { return b.Draining })
	return c, nil
}

// water returns the number of cool free addresses to keep in a scope.
func (i *IPAM) water(p *pool, s scope) int {
	return lowWater(p.peak.value(), fairShare(s.size(s.within), len(i.definition(p).Holders)))
}

// low lists the ranges in which too few cool addresses are free. The caller
// holds i.mu.
func (i *IPAM) low(p *pool, now time.Time) []netip.Prefix {
	var out []netip.Prefix
	for _, within := range p.ranges() {
		s := i.scope(p, within)
		if _, cool := count(s, p.active(false), p.taken, p.freed, now); cool < i.water(p, s) {
			out = append(out, within)
		}
	}
	return out
}

// surplus lists blocks to give back (rule H3): empty, cool, and not needed to
// have twice the spare addresses in every range. What was leased for one --ip
// is kept for it longer. The caller holds i.mu.
func (i *IPAM) surplus(p *pool, now time.Time) []block {
	var out []block
	keep := p.active(false)
	for _, b := range slices.Backward(p.sorted()) {
		if b.Draining || !p.empty(b) {
			continue
		}
		patience := coolDown
		if b.Exact {
			patience = keepTime
		}
		cold := true
		for a, f := range p.freed {
			cold = cold && !(b.Prefix.Contains(a) && now.Sub(f.At) < patience)
		}
		if !cold {
			continue
		}
		if b.Exact {
			out = append(out, b)
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(keep), func(x netip.Prefix) bool { return x == b.Prefix })
		enough := len(rest) > 0
		for _, within := range p.ranges() {
			s := i.scope(p, within)
			_, cool := count(s, rest, p.taken, p.freed, now)
			enough = enough && cool >= 2*i.water(p, s)
		}
		if enough {
			out = append(out, b)
			keep = rest
		}
	}
	return out
}

// maintain does the chores of all pools. It stops at the first sign that the
// cluster is out of reach, and returns it.
func (i *IPAM) maintain(ctx context.Context) error {
	r, fresh := i.cfg.Ledger.Registry(), i.cfg.Ledger.Fresh()
	i.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools)
	i.mu.Unlock()
	var errs []error
	for _, key := range keys {
		i.mu.Lock()
		p := i.pools[key]
		c, err := i.chores(p, r, fresh, i.cfg.Now())
		i.mu.Unlock()
		if err == nil {
			err = i.do(ctx, p, c)
		}
		if errors.Is(err, errInUse) || isRefusal(err) {
			i.note(p, err)
			i.cfg.Log.WithField("pool", key.String()).WithError(err).Debug("chore refused")
			continue
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(errs...)
}

func (i *IPAM) do(ctx context.Context, p *pool, c chore) error {
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	if c.giveUp {
		return i.giveUp(ctx, p)
	}
	if c.release {
		if err := i.releaseDrained(ctx, p); err != nil {
			return err
		}
	}
	if !c.attach && !c.drop && len(c.lease) == 0 {
		return nil
	}
	select {
	case p.hold <- struct{}{}:
		defer func() { <-p.hold }()
	default:
		return nil // somebody proposes for it now, and wakes Run after
	}
	if c.drop {
		i.mu.Lock()
		defer i.mu.Unlock()
		if p.parked() && len(p.blocks) == 0 {
			return i.unrecord(p)
		}
		return nil
	}
	if c.attach {
		if err := i.reattach(ctx, p); err != nil {
			return err
		}
	}
	for _, within := range c.lease {
		err := i.grow(ctx, p, within, c.want)
		if _, full := refused(err, cluster.Full); full {
			i.mu.Lock()
			p.quiet = i.cfg.Now().Add(holdOff)
			p.problem = ""
			i.mu.Unlock()
			return nil // nobody waits for it: no reason to complain
		}
		if err != nil {
			return err
		}
	}
	if len(c.lease) > 0 {
		i.wake() // one block may not be enough
	}
	return nil
}
