package rules

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

func (d *draft) attachPool(host cluster.HostID, c cluster.AttachPool) cluster.Result {
	if c.Prefix.IsValid() {
		return d.attachExplicit(host, cluster.PoolKey{Space: c.Space, Prefix: c.Prefix.Masked()}, c.Name)
	}
	if p, ok := named(d.Registry, c.Space, c.Name, c.V6); ok {
		return d.hold(p, host)
	}
	var taken []span
	for key := range d.Pools {
		if key.Space == c.Space && key.Prefix.Addr().Is6() == c.V6 {
			taken = append(taken, spanOf(key.Prefix))
		}
	}
	for _, p := range c.Avoid {
		if p.IsValid() && p.Addr().Is6() == c.V6 {
			taken = append(taken, spanOf(p))
		}
	}
	taken = disjoint(taken)
	for _, from := range c.From {
		width := from.Addr().BitLen()
		in := spanOf(from)
		if at, ok := in.firstFree(in.first, width-c.Bits, taken); ok {
			key := cluster.PoolKey{Space: c.Space, Prefix: at.prefix(width, width-c.Bits)}
			return d.hold(cluster.Pool{Key: key, Name: c.Name}, host)
		}
	}
	return refused(cluster.Full, "no free subnet of length /%d is left to choose from (%d pools exist): name one with --subnet, or remove a network", c.Bits, len(d.Pools))
}

func (d *draft) attachExplicit(host cluster.HostID, key cluster.PoolKey, name string) cluster.Result {
	if p, ok := d.Pools[key]; ok {
		// One that nobody holds lives on for its leases; it may have lost its
		// name with a registry.
		if _, used := named(d.Registry, key.Space, name, key.Prefix.Addr().Is6()); p.Name == "" && len(p.Holders) == 0 && !used {
			p.Name = name
		}
		return d.hold(p, host)
	}
	// A network of several subnets names only the first of them.
	if p, ok := named(d.Registry, key.Space, name, key.Prefix.Addr().Is6()); ok {
		if !slices.Contains(p.Holders, host) {
			res := refused(cluster.Contradiction, "the network name %s stands for the pool %s, created on %s, not for %s: leave --subnet out, or use that subnet",
				name, p.Key, d.names(p.Holders), key.Prefix)
			res.Refused.Holders = p.Holders
			return res
		}
		name = ""
	}
	var idle []cluster.PoolKey
	var why *cluster.Refusal
	for _, other := range poolsByKey(d.Registry) {
		if other.Space != key.Space || !other.Prefix.Overlaps(key.Prefix) {
			continue
		}
		if d.idle(other) {
			idle = append(idle, other)
			continue
		}
		held := d.holdersOf(other)
		if why == nil {
			why = cluster.Refuse(cluster.Overlap, "%s overlaps the pool %s, which %s %s: use exactly %s to share its network, choose another --subnet, or remove the network there%s",
				key, other, d.names(held), verb(held, "holds", "hold"), other.Prefix, d.remedies(held))
		}
		for _, id := range held {
			why.Holders = with(why.Holders, id)
		}
	}
	if why != nil {
		return cluster.Result{Refused: why}
	}
	for _, other := range idle {
		delete(d.pools(), other)
	}
	return d.hold(cluster.Pool{Key: key, Name: name}, host)
}

// named finds the pool of this family that hosts share by a name.
func named(r *cluster.Registry, space, name string, v6 bool) (cluster.Pool, bool) {
	if name == "" {
		return cluster.Pool{}, false
	}
	for _, key := range poolsByKey(r) {
		if p := r.Pools[key]; key.Space == space && p.Name == name && key.Prefix.Addr().Is6() == v6 {
			return p, true
		}
	}
	return cluster.Pool{}, false
}

// hold enters the host as a holder of the pool.
func (d *draft) hold(p cluster.Pool, host cluster.HostID) cluster.Result {
	p.Holders = with(p.Holders, host)
	d.pools()[p.Key] = p
	return cluster.Result{Pool: p}
}

func (d *draft) detachPool(host cluster.HostID, c cluster.DetachPool) cluster.Result {
	p, ok := d.Pools[masked(c.Pool)]
	if !ok {
		return cluster.Result{}
	}
	p.Holders = less(p.Holders, host)
	d.pools()[p.Key] = p
	d.sweep(p.Key)
	return cluster.Result{Pool: p}
}

// sweep drops the networks of these pools, and then the pools, that nobody
// needs any more.
func (d *draft) sweep(keys ...cluster.PoolKey) {
	for id, n := range d.Networks {
		if len(n.Holders) == 0 && slices.ContainsFunc(n.Pools, func(k cluster.PoolKey) bool { return slices.Contains(keys, k) }) &&
			!slices.ContainsFunc(n.Pools, d.leased) {
			delete(d.networks(), id)
			keys = append(keys, n.Pools...)
		}
	}
	for _, key := range keys {
		if d.idle(key) {
			delete(d.pools(), key)
		}
	}
}

// idle reports a pool without holder, lease and network.
func (d *draft) idle(key cluster.PoolKey) bool {
	return len(d.Pools[key].Holders) == 0 && !d.leased(key) && !d.networked(key)
}

func (d *draft) leased(key cluster.PoolKey) bool {
	for _, l := range d.Leases {
		if l.Pool == key {
			return true
		}
	}
	return false
}

func (d *draft) networked(key cluster.PoolKey) bool {
	for _, n := range d.Networks {
		if slices.Contains(n.Pools, key) {
			return true
		}
	}
	return false
}

// holdersOf lists the hosts by which a pool is kept: those that hold it, have
// leases in it or hold a network on it.
func (d *draft) holdersOf(key cluster.PoolKey) []cluster.HostID {
	set := d.Pools[key].Holders
	for _, l := range d.Leases {
		if l.Pool == key {
			set = with(set, l.Holder)
		}
	}
	for _, n := range d.Networks {
		if slices.Contains(n.Pools, key) {
			for _, id := range n.Holders {
				set = with(set, id)
			}
		}
	}
	return set
}

func (d *draft) setGateway(host cluster.HostID, c cluster.SetGateway) cluster.Result {
	p, ok := d.Pools[masked(c.Pool)]
	if !ok {
		return unknownPool(c.Pool)
	}
	if p.Gateway.IsValid() {
		if c.Addr.IsValid() && c.Addr != p.Gateway {
			return refused(cluster.Contradiction, "the gateway of pool %s is %s already, as the first host chose it: use that --gateway, or leave it out, instead of %s", p.Key, p.Gateway, c.Addr)
		}
		return cluster.Result{Pool: p}
	}
	addr := c.Addr
	if !addr.IsValid() {
		if addr, ok = d.firstUsable(p, host); !ok {
			return d.full(p, spanOf(p.Key.Prefix), p.Key.Prefix)
		}
	} else if why := d.assignable(p, addr, host); why != nil {
		return cluster.Result{Refused: why}
	}
	p.Gateway = addr
	d.pools()[p.Key] = p
	return cluster.Result{Pool: p}
}

// firstUsable is the first address of a pool that its shape, its reservations
// and the leases of other hosts leave free.
func (d *draft) firstUsable(p cluster.Pool, host cluster.HostID) (netip.Addr, bool) {
	taken := d.covered(p.Key, func(l cluster.Lease) bool { return l.Holder != host })
	for _, a := range unusable(p) {
		taken = append(taken, span{a, a})
	}
	in := spanOf(p.Key.Prefix)
	at, ok := in.firstFree(in.first, 0, disjoint(taken))
	return at.first.addr(p.Key.Prefix.Addr().BitLen()), ok
}

func (d *draft) reserve(host cluster.HostID, c cluster.Reserve) cluster.Result {
	p, ok := d.Pools[masked(c.Pool)]
	if !ok {
		return unknownPool(c.Pool)
	}
	at, found := slices.BinarySearchFunc(p.Reserved, c.Addr, netip.Addr.Compare)
	if found {
		return cluster.Result{Pool: p}
	}
	if why := d.assignable(p, c.Addr, host); why != nil {
		return cluster.Result{Refused: why}
	}
	p.Reserved = slices.Insert(slices.Clone(p.Reserved), at, c.Addr)
	d.pools()[p.Key] = p
	return cluster.Result{Pool: p}
}

// assignable tells why an address of a pool cannot be given a purpose by this
// host: it is outside, has no use, has one already, or belongs to another.
func (d *draft) assignable(p cluster.Pool, a netip.Addr, host cluster.HostID) *cluster.Refusal {
	prefix := p.Key.Prefix
	if !prefix.Contains(a) {
		return cluster.Refuse(cluster.OutOfRange, "address %s is not in pool %s: choose one inside of it", a, p.Key)
	}
	s := spanOf(prefix)
	if a.Is4() && prefix.Bits() < 31 && (numberOf(a) == s.first || numberOf(a) == s.last) {
		return cluster.Refuse(cluster.OutOfRange, "address %s is the network or broadcast address of pool %s: choose another one", a, p.Key)
	}
	if a.Is6() && prefix.Bits() < 127 && numberOf(a) == s.first {
		return cluster.Refuse(cluster.OutOfRange, "address %s stands for any router of pool %s (RFC 4291): choose another one", a, p.Key)
	}
	if a == p.Gateway {
		return cluster.Refuse(cluster.Held, "address %s is the gateway of pool %s: choose another one", a, p.Key)
	}
	if slices.Contains(p.Reserved, a) {
		return cluster.Refuse(cluster.Held, "address %s of pool %s is reserved by --aux-address: choose another one", a, p.Key)
	}
	if l, ok := d.covering(p.Key, a); ok && l.Holder != host {
		why := cluster.Refuse(cluster.Held, "address %s of pool %s is in the block %s of host %s, which may be using it: choose another address, or free it there%s",
			a, p.Key, l.Block, d.called(l.Holder), d.remedies([]cluster.HostID{l.Holder}))
		why.Holders = []cluster.HostID{l.Holder}
		return why
	}
	return nil
}

// unusable lists, in order, the addresses of a pool that no endpoint gets: the
// ends of an IPv4 subnet, the subnet-router anycast address of an IPv6 one
// (RFC 4291 2.6.1, RFC 6164), the gateway and the reserved ones.
func unusable(p cluster.Pool) []number {
	s, bits := spanOf(p.Key.Prefix), p.Key.Prefix.Bits()
	var out []number
	if p.Key.Prefix.Addr().Is4() && bits < 31 {
		out = append(out, s.first, s.last)
	}
	if p.Key.Prefix.Addr().Is6() && bits < 127 {
		out = append(out, s.first)
	}
	if p.Gateway.IsValid() {
		out = append(out, numberOf(p.Gateway))
	}
	for _, a := range p.Reserved {
		out = append(out, numberOf(a))
	}
	slices.SortFunc(out, number.compare)
	return slices.Compact(out)
}

func unknownPool(key cluster.PoolKey) cluster.Result {
	return refused(cluster.UnknownPool, "the cluster knows no pool %s: create the network again, so that it is attached first", key)
}

func masked(k cluster.PoolKey) cluster.PoolKey {
	k.Prefix = k.Prefix.Masked()
	return k
}

func poolsByKey(r *cluster.Registry) []cluster.PoolKey {
	return slices.SortedFunc(maps.Keys(r.Pools), cluster.ComparePools)
}

func verb(hosts []cluster.HostID, one, many string) string {
	if len(hosts) == 1 {
		return one
	}
	return many
}
