package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
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
		i.catchUp()
		i.look(ctx)
		if r, fresh := i.copy(); (r != seen || !settled) && fresh {
			if r != seen {
				seen, retry = r, time.Time{}
			}
			settled = i.reconcile(ctx, r)
		}
		i.announce()
		i.surrender(ctx)
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
			i.sweep()
			i.yield()
			i.rivals(ctx)
		}
	}
}

// catchUp takes note of a copy of a registry that was rebuilt, and has not let
// this host in yet.
func (i *IPAM) catchUp() {
	r, fresh := i.copy()
	if fresh {
		return // to be reconciled with at once
	}
	if err := i.Rebuilt(r.Cluster, r.Gen); err != nil {
		i.cfg.Log.WithError(err).Error("that the registry was rebuilt cannot be stored")
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
// H4): blocks it does not know are taken up, unless another host keeps them,
// and blocks that are gone are dropped. It reports false when some of it must
// be looked at again later.
func (i *IPAM) reconcile(ctx context.Context, r *cluster.Registry) bool {
	networked := map[cluster.PoolKey]bool{}
	for key, def := range r.Pools {
		if slices.Contains(def.Holders, i.cfg.Host) {
			networked[key] = i.networked(key)
		}
	}
	i.mu.Lock()
	outdated, unknown := i.m.Outdated(r), i.m.Unknown(r)
	i.mu.Unlock()
	if outdated {
		return false
	}
	contests := map[uint64]lease.Contest{}
	for _, l := range unknown {
		if c := i.contest(ctx, l); c != nil {
			contests[l.ID] = *c
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	confirmed := i.m.Confirmed
	step, errs := i.m.Reconcile(r, contests)
	errs = slices.DeleteFunc(errs, func(err error) bool { return errors.As(err, new(*lease.Contest)) })
	for _, err := range errs {
		i.cfg.Log.WithError(err).Error("block of this host cannot be taken up")
	}
	if err := i.commit(step); err != nil {
		i.cfg.Log.WithError(err).Error("what the cluster says of this host's blocks cannot be stored")
		return false
	}
	if !confirmed && i.m.Confirmed {
		for _, p := range i.pools {
			clear(p.found)
		}
		i.tell()
	}
	i.trustChanged()
	i.report(r, step, contests)
	return i.adoptPools(r, networked)
}

// report tells what a reconciliation found. The caller holds i.mu.
func (i *IPAM) report(r *cluster.Registry, s lease.Step, contests map[uint64]lease.Contest) {
	for _, b := range s.Taken {
		i.pool(b.Pool)
		i.cfg.Log.WithFields(map[string]any{"pool": b.Pool.String(), "block": b.Prefix.String(), "lease": b.Lease}).Info("block of this host taken up")
	}
	for _, b := range s.Dropped {
		p := i.pool(b.Pool)
		if c, ok := contests[b.Lease]; ok {
			i.contested(p, r.Leases[b.Lease], c)
		} else if !b.Draining && p.rec != nil && !p.parked() && i.useful(p, b) {
			p.problem = "the cluster took block " + b.Prefix.String() + " from this host"
			i.cfg.Log.WithFields(map[string]any{"pool": b.Pool.String(), "block": b.Prefix.String(), "lease": b.Lease}).
				Error("block is no longer held: the cluster took it from this host")
		}
	}
	for _, a := range s.Lost {
		p := i.pool(a.Pool)
		if _, used := p.Used[a.Addr]; !used {
			continue // being handed out: that is refused, see hand
		}
		p.alarm(fmt.Sprintf("address %s is in use here, but the cluster took its block from this host: its endpoint is cut off", a.Addr), i.cfg.Now())
		i.cfg.Log.WithFields(map[string]any{"pool": a.Pool.String(), "address": a.Addr.String()}).Error("address in use belongs to this host no more")
	}
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
		if leased := ok && len(p.Blocks) > 0; !leased {
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
