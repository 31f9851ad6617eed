package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// A pool made with --ipam-opt dhcp=on has its addresses from the server of the
// LAN. Each is leased twice: by that server, which chooses it, and then from
// the cluster, as if the user had asked for it with --ip. So all that holds of
// addresses holds of these as well, and nothing is leased ahead.

// Endpoint says for whom the LAN's server is asked.
type Endpoint struct {
	Name string     // container, where the engine tells it: the same name gets the same address again
	MAC  string     // where the engine tells it
	Want netip.Addr // a wish, or zero
}

// DHCP gets addresses from the LAN's own server. Its methods are called without
// any lock of this package held that other calls wait for.
type DHCP interface {
	// Obtain gets an address for an endpoint of a network on the pool, and keeps
	// it over restarts, until Release or Decline.
	Obtain(ctx context.Context, pool cluster.PoolKey, e Endpoint) (netip.Addr, error)
	// Held lists what is kept.
	Held() map[cluster.PoolKey][]netip.Addr
	// Release gives an address back. One that is not kept is a success.
	Release(ctx context.Context, pool cluster.PoolKey, a netip.Addr) error
	// Decline gives an address back so that the server chooses another one.
	Decline(ctx context.Context, pool cluster.PoolKey, a netip.Addr, why string) error
}

// endpointMAC is the key of the options that names an endpoint's MAC.
const endpointMAC = "com.docker.network.endpoint.macaddress"

// dhcpTries is how many addresses the server may choose that cannot be had
// from the cluster.
const dhcpTries = 3

// checkDHCP says whether a request for a pool with dhcp=on can be met.
func (i *IPAM) checkDHCP(r poolRequest) error {
	switch {
	case i.cfg.DHCP == nil:
		return fmt.Errorf("--ipam-opt dhcp=on: this host cannot ask DHCP servers")
	case !r.prefix.IsValid():
		return fmt.Errorf("--ipam-opt dhcp=on: needs the LAN's --subnet")
	case r.within.IsValid():
		return fmt.Errorf("--ip-range %s: with --ipam-opt dhcp=on the LAN's server chooses the addresses; set the range there", r.within)
	}
	return nil
}

// takeDHCP hands out the address that the LAN's server chooses.
func (i *IPAM) takeDHCP(ctx context.Context, p *pool, asked netip.Addr, options map[string]string) (netip.Prefix, error) {
	if i.cfg.DHCP == nil {
		return netip.Prefix{}, fmt.Errorf("subnet %s: this host cannot ask DHCP servers", p.key)
	}
	if err := i.trusted(ctx); err != nil {
		return netip.Prefix{}, err
	}
	// What is obtained has no user for a moment: surrender must wait.
	i.obtaining.RLock()
	defer i.obtaining.RUnlock()
	e := Endpoint{Name: options[endpointName], MAC: options[endpointMAC], Want: asked}
	if !asked.IsValid() {
		e.Want = i.lastOf(p, e.Name)
	}
	for try := 1; ; try++ {
		a, err := i.cfg.DHCP.Obtain(ctx, p.key, e)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("subnet %s: %w", p.key, err)
		}
		switch {
		case !p.key.Prefix.Contains(a):
			err = fmt.Errorf("the DHCP server of the LAN gives %s, which is not part of --subnet %s: create the network on the LAN's own subnet", a, p.key.Prefix)
		case asked.IsValid() && a != asked:
			err = fmt.Errorf("address %s: the DHCP server of the LAN gives %s instead; reserve %s there, or leave --ip out", asked, a, asked)
		default:
			if err = i.takeExact(ctx, p, a, e.Name); err == nil {
				return netip.PrefixFrom(a, p.key.Prefix.Bits()), nil
			}
		}
		i.mu.Lock()
		_, used := p.Used[a] // by whoever it was given to before
		i.mu.Unlock()
		if used {
			return netip.Prefix{}, err
		}
		if asked.IsValid() || try == dhcpTries || !p.key.Prefix.Contains(a) {
			i.wake() // surrender gives it back
			return netip.Prefix{}, err
		}
		if derr := i.cfg.DHCP.Decline(ctx, p.key, a, "not free in the cluster"); derr != nil {
			return netip.Prefix{}, derr
		}
		i.cfg.Log.WithFields(map[string]any{"pool": p.key.String(), "address": a.String()}).WithError(err).Warn("address of the DHCP server declined")
	}
}

// lastOf returns the address that a container of that name had last, or none.
func (i *IPAM) lastOf(p *pool, name string) (last netip.Addr) {
	if name == "" {
		return last
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for a, f := range p.Freed {
		if f.Name == name && (!last.IsValid() || f.At.After(p.Freed[last].At) || f.At.Equal(p.Freed[last].At) && a.Less(last)) {
			last = a
		}
	}
	return last
}

// surrender gives back to the LAN's server what no endpoint uses: after an
// address was freed, or a crash between its lease and its use. An address that
// cannot be given back now waits for the next time.
func (i *IPAM) surrender(ctx context.Context) {
	if i.cfg.DHCP == nil || !i.obtaining.TryLock() {
		return
	}
	defer i.obtaining.Unlock()
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	held := i.cfg.DHCP.Held()
	i.mu.Lock()
	for key, addrs := range held {
		if p, ok := i.pools[key]; ok {
			held[key] = slices.DeleteFunc(slices.Clone(addrs), p.inUse)
		}
	}
	i.mu.Unlock()
	for key, addrs := range held {
		for _, a := range addrs {
			if err := i.cfg.DHCP.Release(ctx, key, a); err != nil {
				i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "address": a.String()}).WithError(err).Warn("address is not given back to the DHCP server")
			}
		}
	}
}

func (p *pool) inUse(a netip.Addr) bool {
	_, used := p.Used[a]
	return used || p.Busy(a)
}
