package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// HostName is the name under which a host itself uses an address. No container
// is called so.
const HostName = "this host"

// HostAddress hands out an address of a pool to the host itself, in the way of
// an endpoint's: out of the --ip-range of a network here, or from the LAN's
// server, on disk before it returns, and the host's until ReleaseHostAddress or
// until Config.Live has said for a minute that nobody has it. One that an
// earlier call handed out, and that is not live, is handed out again. It may be
// one of another pool of the same network, when this one is full.
func (i *IPAM) HostAddress(ctx context.Context, key cluster.PoolKey) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	i.mu.Lock()
	p, ok := i.pools[key]
	if !ok || p.rec == nil || p.leaving || p.parked() {
		i.mu.Unlock()
		return netip.Addr{}, fmt.Errorf("pool %s belongs to no network of this host", key)
	}
	ids := p.networks()
	i.mu.Unlock()
	full := (*fullError)(nil)
	var answer netip.Prefix
	var err error
	for _, id := range ids {
		if id.dhcp {
			answer, err = i.takeDHCP(ctx, p, netip.Addr{}, map[string]string{endpointName: HostName})
		} else {
			answer, err = i.unheld(ctx, p, netip.Addr{}, func() (netip.Prefix, error) { return i.takeAny(ctx, p, id.within, HostName) })
		}
		if err == nil || !errors.As(err, &full) {
			break
		}
	}
	return answer.Addr(), err
}

// ReleaseHostAddress ends the use of an address of the host itself; one that is
// not used so is a success.
func (i *IPAM) ReleaseHostAddress(ctx context.Context, key cluster.PoolKey, a netip.Addr) error {
	i.mu.Lock()
	p, ok := i.pools[key]
	own := ok && p.Used[a].Name == HostName
	i.mu.Unlock()
	if !own {
		return nil
	}
	return i.Free(ctx, key, a)
}

// networks lists what the Docker networks here take addresses of the pool from,
// sorted; none is twice.
func (p *pool) networks() []poolID {
	var out []poolID
	for _, text := range slices.Sorted(maps.Keys(p.rec.Uses)) {
		if id, err := parsePoolID(text); err == nil && p.rec.Uses[text] > 0 {
			out = append(out, id)
		}
	}
	return out
}

// ByDHCP reports whether a Docker network here was made on the pool with
// --ipam-opt dhcp=on. Of an IPv6 pool, which no server serves, it reports what
// was asked for last.
func (i *IPAM) ByDHCP(key cluster.PoolKey) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	p, ok := i.pools[key]
	return ok && (p.wished || p.rec != nil && slices.ContainsFunc(p.networks(), func(id poolID) bool { return id.dhcp }))
}
