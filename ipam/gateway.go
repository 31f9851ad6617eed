package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// router answers what Docker is to know as the gateway of a network. Where the
// LAN's server names it, with each address, there is none to know yet unless
// somebody said --gateway: but Docker needs an address, so it gets the one that
// nothing has, that of the subnet itself. The network driver takes that for none.
func (i *IPAM) router(ctx context.Context, p *pool, id poolID, asked netip.Addr) (netip.Addr, error) {
	if _, ok := i.knownGateway(p); id.dhcp && !asked.IsValid() && !ok {
		return p.key.Prefix.Masked().Addr(), nil
	}
	return i.gateway(ctx, p, asked)
}

// gateway returns the gateway of a pool: the same on all hosts, the one that
// the first of them asked for. A known one is answered from the local copy.
func (i *IPAM) gateway(ctx context.Context, p *pool, asked netip.Addr) (netip.Addr, error) {
	if g, ok := i.knownGateway(p); ok && (!asked.IsValid() || asked == g) {
		return g, nil
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unlock()
	if g, ok := i.knownGateway(p); ok {
		if !asked.IsValid() || asked == g {
			return g, nil
		}
		if err := i.restart(ctx, p); err != nil {
			return netip.Addr{}, fmt.Errorf("--gateway %s: subnet %s has the gateway %s on all hosts; use that one, or leave --gateway out (%w)", asked, p.key, g, err)
		}
	}
	return i.setGateway(ctx, p, asked)
}

func (i *IPAM) knownGateway(p *pool) (netip.Addr, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.rec == nil {
		return netip.Addr{}, false
	}
	g := i.definition(p).Gateway
	return g, g.IsValid()
}

// setGateway proposes a gateway for a pool that has none, as far as this host
// knows: the asked one, or the lowest that is free. The caller has the pool's
// turn.
func (i *IPAM) setGateway(ctx context.Context, p *pool, asked netip.Addr) (netip.Addr, error) {
	var tried []netip.Addr
	for {
		addr, err := i.pinGateway(p, asked, tried)
		if err != nil {
			return addr, err
		}
		res, err := i.proposeIn(ctx, p, cluster.Command{SetGateway: &cluster.SetGateway{Pool: p.key, Addr: addr}})
		if !asked.IsValid() {
			if _, ok := refused(err, cluster.Contradiction); ok { // another host was first: ask what it chose
				res, err = i.proposeIn(ctx, p, cluster.Command{SetGateway: &cluster.SetGateway{Pool: p.key}})
			}
		}
		if err = i.unpin(p, addr, res, err); err == nil {
			return res.Pool.Gateway, nil
		}
		if _, ok := refused(err, cluster.Held); !ok || asked.IsValid() || len(tried) == 3 {
			return netip.Addr{}, err
		}
		tried = append(tried, addr) // leased to another host since the copy was made
	}
}

// pinGateway chooses the gateway to propose, and keeps it from endpoints
// until unpin.
func (i *IPAM) pinGateway(p *pool, asked netip.Addr, tried []netip.Addr) (netip.Addr, error) {
	r := i.cfg.Ledger.Registry()
	i.mu.Lock()
	defer i.mu.Unlock()
	if asked.IsValid() {
		if lease.Edge(p.key.Prefix, asked) {
			return asked, fmt.Errorf("--gateway %s: is the network or broadcast address of subnet %s; choose another one", asked, p.key)
		}
		return asked, i.pin(p, asked, "--gateway")
	}
	var foreign []netip.Prefix
	for _, l := range r.LeasesOf(p.key, "") {
		if l.Holder != i.cfg.Host {
			foreign = append(foreign, l.Block)
		}
	}
	addr, ok := i.scope(p, netip.Prefix{}).LowestOutside(foreign, func(a netip.Addr) bool {
		return p.Taken(a) || slices.Contains(tried, a)
	})
	if !ok {
		return addr, fmt.Errorf("subnet %s has no free address for a gateway; free one or create a larger network", p.key)
	}
	return addr, i.pin(p, addr, "--gateway")
}

// pin keeps an address from endpoints while it is proposed for a purpose. The
// caller holds i.mu.
func (i *IPAM) pin(p *pool, a netip.Addr, flag string) error {
	if u, ok := p.Used[a]; ok {
		who := "an endpoint of this host"
		if u.Name != "" {
			who = u.Name + " on this host"
		}
		return fmt.Errorf("%s %s: is in use by %s; choose another one, or free it first", flag, a, who)
	}
	p.Pinned[a] = true
	return nil
}

// unpin ends pin, and stores what the proposal made of the pool.
func (i *IPAM) unpin(p *pool, a netip.Addr, res cluster.Result, err error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer delete(p.Pinned, a)
	switch {
	case err != nil:
		return err
	case p.rec == nil:
		return errGone(p)
	}
	return i.learn(p, res)
}

// reserve keeps an auxiliary address from ever being given to an endpoint of
// any host.
func (i *IPAM) reserve(ctx context.Context, p *pool, a netip.Addr) error {
	if done, err := i.reserved(p, a); done || err != nil {
		return err
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	if done, err := i.reserved(p, a); done || err != nil {
		return err
	}
	i.mu.Lock()
	err = i.pin(p, a, "--aux-address")
	i.mu.Unlock()
	if err != nil {
		return err
	}
	res, err := i.proposeIn(ctx, p, cluster.Command{Reserve: &cluster.Reserve{Pool: p.key, Addr: a}})
	return i.unpin(p, a, res, err)
}

// reserved reports whether an address is an auxiliary one already.
func (i *IPAM) reserved(p *pool, a netip.Addr) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch def := i.definition(p); {
	case p.rec == nil:
		return false, errGone(p)
	case slices.Contains(def.Reserved, a):
		return true, nil
	case a == def.Gateway:
		return false, fmt.Errorf("--aux-address %s: is the gateway of subnet %s; choose another one", a, p.key)
	case lease.Edge(p.key.Prefix, a):
		return true, nil // no endpoint ever gets it
	}
	return false, nil
}

// restart drops what the cluster remembers of a pool that this host parked
// and now requests for another network, so that it can be defined anew. It
// fails while any other host has a network on the pool. The caller has the
// pool's turn.
func (i *IPAM) restart(ctx context.Context, p *pool) error {
	r := i.cfg.Ledger.Registry()
	if networked(r, p.key) {
		return errors.New("a network of some host is on it")
	}
	i.mu.Lock()
	if p.rec == nil || p.opening == 0 {
		i.mu.Unlock()
		return errors.New("a network of this host is on it")
	}
	old := *p.rec
	i.mu.Unlock()
	if err := i.leave(ctx, p, 1); err != nil {
		return err
	}
	for _, n := range r.Networks {
		if slices.Contains(n.Pools, p.key) {
			for _, key := range n.Pools {
				if q, ok := i.find(key); ok && q != p {
					_ = i.giveUpOne(ctx, q) // in use or not: the proposal below decides
				}
			}
		}
	}
	i.recallAll(ctx, p.key, holders(r, p.key))
	res, err := i.attach(ctx, cluster.AttachPool{Space: p.key.Space, Prefix: p.key.Prefix, Name: old.Pool.Name, V6: p.key.Prefix.Addr().Is6()})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.record(p, record{Pool: res.Pool, Index: res.Index, Auto: old.Auto, Uses: old.Uses})
}
