package ipam

import (
	"context"
	"crypto/sha256"
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

// RequestPool attaches this host to a pool for one Docker network. A pool that
// the host holds, or keeps parked, is answered from the local copy.
func (i *IPAM) RequestPool(ctx context.Context, req *docker.RequestPoolRequest) (*docker.RequestPoolResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	ask, err := parsePoolRequest(req)
	if err != nil {
		return nil, err
	}
	if ask.dhcp {
		if err := i.checkDHCP(ask); err != nil {
			return nil, err
		}
	}
	var id poolID
	if ask.prefix.IsValid() {
		id = poolID{key: cluster.PoolKey{Space: ask.space, Prefix: ask.prefix}, within: ask.within, dhcp: ask.dhcp}
		err = i.requestNamed(ctx, id, ask.name)
	} else {
		id, err = i.requestAny(ctx, ask)
	}
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	i.pool(id.key).wished = ask.wished
	i.mu.Unlock()
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
	if ask.bits < from.Bits() {
		return poolID{}, fmt.Errorf("--subnet of length /%d: isthmus picks subnets out of %s; ask for /%d or a longer one, or name the subnet", ask.bits, from, from.Bits())
	}
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
		if i.recallAll(ctx, key, holders(r, key)) {
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
