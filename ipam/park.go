package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// ReleasePool ends one Docker network's use of a pool. After the last one the
// pool is parked: definition and leases stay, so that the network can return
// while no other host is in reach, until another one needs the space or
// keepTime has passed. An unknown pool is a success.
func (i *IPAM) ReleasePool(_ context.Context, req *docker.ReleasePoolRequest) error {
	id, err := parsePoolID(req.PoolID)
	if err != nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	p, ok := i.pools[id.key]
	if !ok || p.rec == nil || p.rec.Uses[id.String()] == 0 {
		return nil
	}
	rec := *p.rec
	rec.Uses = maps.Clone(rec.Uses)
	if rec.Uses[id.String()]--; rec.Uses[id.String()] == 0 {
		delete(rec.Uses, id.String())
	}
	if rec.uses() == 0 {
		rec.Parked = i.cfg.Now()
	}
	if err := i.record(p, rec); err != nil {
		return err
	}
	p.opening = max(0, p.opening-1)
	if p.parked() {
		p.opening = 0
	}
	i.wake()
	return nil
}

// Parked lists the pools that no Docker network of this host uses any more, and
// that are kept for the return of one.
func (i *IPAM) Parked() []cluster.PoolKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []cluster.PoolKey
	for key, p := range i.pools {
		if p.parked() {
			out = append(out, key)
		}
	}
	slices.SortFunc(out, cluster.ComparePools)
	return out
}

// Forget drops all uses of a pool on this host, as if Docker had released
// them, and gives it up as soon as the cluster can be told. Addresses of live
// endpoints stay.
func (i *IPAM) Forget(ctx context.Context, key cluster.PoolKey) error {
	p, ok := i.find(key)
	if !ok {
		return nil
	}
	i.mu.Lock()
	if p.rec != nil {
		rec := *p.rec
		rec.Uses, rec.Parked = nil, i.cfg.Now().Add(-keepTime)
		if err := i.record(p, rec); err != nil {
			i.mu.Unlock()
			return err
		}
		p.opening = 0
	}
	i.mu.Unlock()
	err := i.freeDead(ctx, p)
	i.wake()
	return err
}

// freeDead frees what is recorded as used without an endpoint.
func (i *IPAM) freeDead(ctx context.Context, p *pool) error {
	if i.cfg.Live == nil {
		return nil
	}
	var errs []error
	for _, u := range i.Used(p.key) {
		i.mu.Lock()
		starting := i.starting(p.Used[u.Addr])
		i.mu.Unlock()
		if !starting && !i.live(p, u.Addr) {
			errs = append(errs, i.Free(ctx, p.key, u.Addr))
		}
	}
	return errors.Join(errs...)
}

var errInUse = lease.ErrInUse

// giveUp returns a parked pool to the cluster: its leases, and the attachment.
// Pools that belonged to the same network, and that nobody else has a network
// on, go with it, since the cluster drops a network's pools only together.
func (i *IPAM) giveUp(ctx context.Context, p *pool) error {
	errs := []error{i.giveUpOne(ctx, p)}
	r := i.cfg.Ledger.Registry()
	for _, n := range r.Networks {
		if len(n.Holders) > 0 || !slices.Contains(n.Pools, p.key) {
			continue
		}
		for _, key := range n.Pools {
			if q, ok := i.find(key); ok && q != p {
				if err := i.giveUpOne(ctx, q); !errors.Is(err, errInUse) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

func (i *IPAM) giveUpOne(ctx context.Context, p *pool) error {
	// Asked before the turn is taken: on a pool in use it may belong to a
	// request that waits for the very host that recalls.
	// A parked pool without blocks and with a network has another IPAM.
	networked := i.networked(p.key)
	i.mu.Lock()
	held := p.rec != nil && (!p.parked() || networked && len(p.Blocks) == 0)
	i.mu.Unlock()
	if held {
		return fmt.Errorf("give up pool %s: a network of this host is on it: %w", p.key, errInUse)
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	return i.leave(ctx, p, 0)
}

// leave drains and releases all blocks of a pool that has that many uses and
// no address in use, and detaches from it. The caller has the pool's turn.
func (i *IPAM) leave(ctx context.Context, p *pool, uses int) error {
	if err := i.freeDead(ctx, p); err != nil {
		return err
	}
	i.mu.Lock()
	switch {
	case p.rec == nil:
		i.mu.Unlock()
		return nil
	case p.rec.uses() > uses:
		i.mu.Unlock()
		return fmt.Errorf("give up pool %s: a network of this host is on it: %w", p.key, errInUse)
	case len(p.Used) > 0 || len(p.Pinned) > 0:
		err := fmt.Errorf("give up pool %s: %s: %w", p.key, i.userList(p), errInUse)
		i.mu.Unlock()
		return err
	}
	if err := i.drain(p, slices.Collect(maps.Keys(p.Blocks))); err != nil {
		i.mu.Unlock()
		return err
	}
	p.leaving = true
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		p.leaving = false
		i.mu.Unlock()
	}()
	if err := i.releaseDrained(ctx, p); err != nil {
		return err
	}
	res, err := i.propose(ctx, cluster.Command{DetachPool: &cluster.DetachPool{Pool: p.key}})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	p.left = res.Index
	if p.rec == nil || p.rec.uses() > uses {
		return nil // requested again at the last moment: Run attaches it anew
	}
	return i.unrecord(p)
}

// unrecord forgets that the host is attached. The caller holds i.mu.
func (i *IPAM) unrecord(p *pool) error {
	if err := i.commit(i.m.Unremember(p.key), del(poolBucket, poolKey(p.key))); err != nil {
		return err
	}
	p.rec, p.problem = nil, ""
	clear(p.alarms)
	return nil
}

// userList names up to three users of a pool's addresses. The caller holds i.mu.
func (i *IPAM) userList(p *pool) string {
	s := ""
	for n, a := range slices.SortedFunc(maps.Keys(p.Used), netip.Addr.Compare) {
		if n == 3 {
			return s + " and others are in use"
		}
		if n > 0 {
			s += ", "
		}
		s += a.String()
		if name := p.Used[a].Name; name != "" {
			s += " (" + name + ")"
		}
	}
	return s + " in use"
}
