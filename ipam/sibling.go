package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Docker asks only the first subnet of a network for an address: that it is
// full is told by an error which does not survive the way from a plugin (moby,
// endpoint.assignAddressVersion). So the other subnets of the network are tried
// here. Docker keeps such an address under the PoolID of the first one.

// siblings lists the other pools of the networks on a pool that serve the same
// family here, in order.
func (i *IPAM) siblings(p *pool) []*pool {
	r := i.cfg.Ledger.Registry()
	var keys []cluster.PoolKey
	for _, n := range r.Networks {
		if slices.Contains(n.Pools, p.key) && slices.Contains(n.Holders, i.cfg.Host) {
			keys = append(keys, n.Pools...)
		}
	}
	var out []*pool
	for _, key := range cluster.PoolSet(keys) {
		if q, ok := i.find(key); ok && q != p && key.Prefix.Addr().Is4() == p.key.Prefix.Addr().Is4() {
			out = append(out, q)
		}
	}
	return out
}

// takeAny hands out an address of a pool, or, when that is full, of a sibling.
func (i *IPAM) takeAny(ctx context.Context, p *pool, within netip.Prefix, name string) (netip.Prefix, error) {
	a, err := i.take(ctx, p, within, name)
	full := (*fullError)(nil)
	if err == nil || !errors.As(err, &full) {
		return netip.PrefixFrom(a, p.key.Prefix.Bits()), err
	}
	text := full.text
	for _, q := range i.siblings(p) {
		i.mu.Lock()
		var ranges []netip.Prefix
		if q.rec != nil {
			ranges = q.ranges()
		}
		i.mu.Unlock()
		for _, within := range ranges {
			a, err := i.take(ctx, q, within, name)
			if err == nil {
				return netip.PrefixFrom(a, q.key.Prefix.Bits()), nil
			}
			if !errors.As(err, &full) {
				return netip.Prefix{}, err
			}
			text += "; " + full.text
		}
	}
	return netip.Prefix{}, &fullError{text, false}
}

// poolOf finds the pool that an address is of which Docker names by the id of
// one of its network's pools. The caller does not hold i.mu.
func (i *IPAM) poolOf(key cluster.PoolKey, a netip.Addr) cluster.PoolKey {
	if key.Prefix.Contains(a) {
		return key
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for other := range i.pools {
		if other.Space == key.Space && other.Prefix.Contains(a) {
			return other
		}
	}
	return key
}
