package ipam

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
)

// default4 is what the cluster cuts IPv4 pools from when the user names none:
// a part of 10/8 that neither Docker's default pools nor its Swarm's use.
var default4 = netip.MustParsePrefix("10.64.0.0/10")

// default6 is the unique local prefix (RFC 4193) of a cluster: fd00::/8 and 40
// bits that follow from its id.
func default6(id cluster.ID) netip.Prefix {
	sum := sha256.Sum256([]byte("isthmus pool " + id))
	b := [16]byte{0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// GetCapabilities asks Docker for nothing: MAC addresses come from the network
// driver, and requests are remembered here, so that none need be replayed.
func (i *IPAM) GetCapabilities(context.Context) (*docker.CapabilitiesResponse, error) {
	return &docker.CapabilitiesResponse{}, nil
}

func (i *IPAM) GetDefaultAddressSpaces(context.Context) (*docker.AddressSpacesResponse, error) {
	return &docker.AddressSpacesResponse{LocalDefaultAddressSpace: AddressSpace, GlobalDefaultAddressSpace: AddressSpace}, nil
}

// RequestPool attaches this host to a pool for one Docker network. A pool that
// the host holds, or keeps parked, is answered from the local copy.
func (i *IPAM) RequestPool(ctx context.Context, req *docker.RequestPoolRequest) (*docker.RequestPoolResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	ask, err := parsePoolRequest(req)
	if err != nil {
		return nil, err
	}
	var id poolID
	if ask.prefix.IsValid() {
		id = poolID{key: cluster.PoolKey{Space: ask.space, Prefix: ask.prefix}, within: ask.within}
		err = i.requestNamed(ctx, id, ask.name)
	} else {
		id, err = i.requestAny(ctx, ask)
	}
	if err != nil {
		return nil, err
	}
	return &docker.RequestPoolResponse{PoolID: id.String(), Pool: id.key.Prefix.String(), Data: map[string]string{}}, nil
}

func (i *IPAM) requestNamed(ctx context.Context, id poolID, name string) error {
	i.mu.Lock()
	p := i.pool(id.key)
	ok, err := i.reuse(p, id)
	i.mu.Unlock()
	if ok || err != nil {
		return err
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	i.mu.Lock()
	ok, err = i.reuse(p, id)
	i.mu.Unlock()
	if ok || err != nil {
		return err
	}
	res, err := i.attach(ctx, cluster.AttachPool{Space: id.key.Space, Prefix: id.key.Prefix, Name: name, V6: id.key.Prefix.Addr().Is6()})
	if err != nil {
		return err
	}
	return i.attached(id, res, false)
}

// reuse counts one more Docker network on a pool that the host is attached
// to. The caller holds i.mu.
func (i *IPAM) reuse(p *pool, id poolID) (bool, error) {
	if p.rec == nil || p.leaving {
		return false, nil
	}
	rec := *p.rec
	rec.Uses = maps.Clone(rec.Uses)
	if rec.Uses == nil {
		rec.Uses = map[string]int{}
	}
	rec.Uses[id.String()]++
	if err := i.record(p, rec); err != nil {
		return false, err
	}
	p.opening++
	p.opened = i.cfg.Now()
	return true, nil
}

// attached stores that the host was attached to a pool for the network id.
// The caller has the pool's turn.
func (i *IPAM) attached(id poolID, res cluster.Result, auto bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pool(id.key)
	if p.rec == nil {
		if err := i.record(p, record{Pool: res.Pool, Index: res.Index, Auto: auto}); err != nil {
			return err
		}
	} else if err := i.learn(p, res); err != nil {
		return err
	}
	_, err := i.reuse(p, id)
	return err
}

// requestAny attaches to a pool that has the asked name, or to any other that
// suits.
func (i *IPAM) requestAny(ctx context.Context, ask poolRequest) (poolID, error) {
	avoid, err := i.avoid(ctx, ask)
	if err != nil {
		return poolID{}, err
	}
	if id, ok, err := i.reuseAny(ask, avoid); ok || err != nil {
		return id, err
	}
	from := default4
	if ask.v6 {
		id, err := i.awaitCluster(ctx)
		if err != nil {
			return poolID{}, err
		}
		from = default6(id)
	}
	i.mu.Lock()
	i.attaching++
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		i.attaching--
		i.mu.Unlock()
	}()
	res, err := i.propose(ctx, cluster.Command{AttachPool: &cluster.AttachPool{
		Space: ask.space, Name: ask.name, V6: ask.v6, From: []netip.Prefix{from}, Bits: ask.bits, Avoid: avoid,
	}})
	if err != nil {
		return poolID{}, err
	}
	id := poolID{key: res.Pool.Key}
	i.mu.Lock()
	p := i.pool(id.key)
	i.mu.Unlock()
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return poolID{}, err
	}
	defer unlock()
	return id, i.attached(id, res, ask.name == "")
}

// avoid lists what a picked pool must not overlap: the routes of this host,
// and the pools that it has in other address spaces.
func (i *IPAM) avoid(ctx context.Context, ask poolRequest) ([]netip.Prefix, error) {
	var out []netip.Prefix
	if i.cfg.Routes != nil {
		routes, err := i.cfg.Routes(ctx)
		if err != nil {
			return nil, fmt.Errorf("list routes of this host, which a new subnet must avoid: %w", err)
		}
		for _, r := range routes {
			if r.IsValid() && r.Addr().Is6() == ask.v6 {
				out = append(out, r.Masked())
			}
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for key, p := range i.pools {
		if p.rec != nil && key.Space != ask.space && key.Prefix.Addr().Is6() == ask.v6 {
			out = append(out, key.Prefix)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return slices.Compact(out), nil
}

// reuseAny finds a pool in the local copy: the one that has the asked name,
// or one that the cluster picked for this host earlier, that is parked here
// and that nobody else holds. So `compose down` and `up` need no other host.
func (i *IPAM) reuseAny(ask poolRequest, avoid []netip.Prefix) (poolID, bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, key := range slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools) {
		p := i.pools[key]
		if p.rec == nil || key.Space != ask.space || key.Prefix.Addr().Is6() != ask.v6 {
			continue
		}
		suits := false
		if ask.name != "" {
			suits = i.definition(p).Name == ask.name
		} else {
			holders := i.definition(p).Holders
			suits = p.rec.Auto && p.parked() && key.Prefix.Bits() == ask.bits &&
				len(holders) == 1 && holders[0] == i.cfg.Host &&
				!slices.ContainsFunc(avoid, key.Prefix.Overlaps)
		}
		if !suits {
			continue
		}
		id := poolID{key: key}
		if ok, err := i.reuse(p, id); ok || err != nil {
			return id, ok, err
		}
	}
	return poolID{}, false, nil
}

// attach proposes to attach the host to a named pool. When another pool is in
// the way that its holders only keep parked, they are asked to give it up.
func (i *IPAM) attach(ctx context.Context, a cluster.AttachPool) (cluster.Result, error) {
	c := cluster.Command{AttachPool: &a}
	res, err := i.propose(ctx, c)
	if _, ok := refused(err, cluster.Overlap); !ok || !i.makeRoom(ctx, a.Space, a.Prefix) {
		return res, err
	}
	return i.propose(ctx, c)
}

// makeRoom tries to free the pools that overlap a prefix, and reports whether
// any of it may have worked.
func (i *IPAM) makeRoom(ctx context.Context, space string, prefix netip.Prefix) bool {
	r := i.cfg.Ledger.Registry()
	moved := false
	for key := range r.Pools {
		if key.Space != space || key.Prefix == prefix || !key.Prefix.Overlaps(prefix) || networked(r, key) {
			continue
		}
		if p, ok := i.find(key); ok && i.giveUp(ctx, p) == nil {
			moved = true
		}
		if i.recall(ctx, key, holders(r, key)) {
			moved = true
		}
	}
	return moved
}

// networked reports whether some host has a network on the pool, by the copy.
func networked(r *cluster.Registry, key cluster.PoolKey) bool {
	for _, n := range r.Networks {
		if len(n.Holders) > 0 && slices.Contains(n.Pools, key) {
			return true
		}
	}
	return false
}

// holders lists the hosts that keep a pool alive, by the copy.
func holders(r *cluster.Registry, key cluster.PoolKey) []cluster.HostID {
	out := slices.Clone(r.Pools[key].Holders)
	for _, l := range r.LeasesOf(key, "") {
		out = append(out, l.Holder)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

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
		starting := i.starting(p.used[u.Addr])
		i.mu.Unlock()
		if !starting && !i.live(p, u.Addr) {
			errs = append(errs, i.Free(ctx, p.key, u.Addr))
		}
	}
	return errors.Join(errs...)
}

var errInUse = errors.New("in use")

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
	i.mu.Lock()
	held := p.rec != nil && !p.parked()
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
	case len(p.used) > 0 || len(p.pinned) > 0:
		err := fmt.Errorf("give up pool %s: %s: %w", p.key, i.userList(p), errInUse)
		i.mu.Unlock()
		return err
	}
	if err := i.drain(p, p.sorted()); err != nil {
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
	ops := []op{del(poolBucket, poolKey(p.key))}
	for a := range p.freed {
		ops = append(ops, del(freedBucket, addrKey(p.key, a)))
	}
	if err := i.store.commit(ops...); err != nil {
		return err
	}
	p.rec, p.problem = nil, ""
	clear(p.freed)
	return nil
}

// userList names up to three users of a pool's addresses. The caller holds i.mu.
func (i *IPAM) userList(p *pool) string {
	s := ""
	for n, a := range slices.SortedFunc(maps.Keys(p.used), netip.Addr.Compare) {
		if n == 3 {
			return s + " and others are in use"
		}
		if n > 0 {
			s += ", "
		}
		s += a.String()
		if name := p.used[a].Name; name != "" {
			s += " (" + name + ")"
		}
	}
	return s + " in use"
}
