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
)

// RequestAddress hands out an address: a gateway, an auxiliary address of a
// network in the making, or an endpoint's. It is on disk before this returns.
func (i *IPAM) RequestAddress(ctx context.Context, req *docker.RequestAddressRequest) (*docker.RequestAddressResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	id, err := parsePoolID(req.PoolID)
	if err != nil {
		return nil, err
	}
	p, err := i.requested(id)
	if err != nil {
		return nil, err
	}
	var asked netip.Addr
	if req.Address != "" {
		if asked, err = parseAddress(p.key.Prefix, req.Address); err != nil {
			return nil, err
		}
	}
	name := req.Options[endpointName]
	i.mu.Lock()
	now := i.cfg.Now()
	creating := p.creating(now)
	if creating {
		p.opened = now
	}
	i.mu.Unlock()
	var addr netip.Addr
	switch {
	case req.Options[requestType] == gatewayType:
		addr, err = i.gateway(ctx, p, asked)
	case asked.IsValid() && creating && name == "":
		addr, err = asked, i.reserve(ctx, p, asked)
	case asked.IsValid():
		addr, err = asked, i.takeExact(ctx, p, asked, name)
	default:
		addr, err = i.take(ctx, p, id.within, name)
	}
	if err != nil {
		return nil, err
	}
	return &docker.RequestAddressResponse{
		Address: netip.PrefixFrom(addr, p.key.Prefix.Bits()).String(), Data: map[string]string{},
	}, nil
}

// requested finds the pool of a network that Docker has. A pool that was
// taken for released is in use again.
func (i *IPAM) requested(id poolID) (*pool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p, ok := i.pools[id.key]
	if !ok || p.rec == nil || p.leaving {
		return nil, fmt.Errorf("pool %s is not known on this host: remove the Docker network and create it again", id.key)
	}
	if p.rec.Uses[id.String()] > 0 {
		return p, nil
	}
	rec := *p.rec
	rec.Uses = maps.Clone(rec.Uses)
	if rec.Uses == nil {
		rec.Uses = map[string]int{}
	}
	rec.Uses[id.String()] = 1
	return p, i.record(p, rec)
}

// take hands out any address of a range to an endpoint.
func (i *IPAM) take(ctx context.Context, p *pool, within netip.Prefix, name string) (netip.Addr, error) {
	if a, ok, err := i.again(p, name); ok || err != nil {
		return a, err
	}
	if a, ok, err := i.pick(p, within, name, false); ok || err != nil {
		return a, err
	}
	unlock, err := i.lock(ctx, p)
	for err == nil {
		var a netip.Addr
		var ok bool
		if a, ok, err = i.pick(p, within, name, false); ok || err != nil {
			unlock()
			return a, err
		}
		if err = i.growOrRecall(ctx, p, within); err != nil {
			unlock()
		}
	}
	// Rather than fail, use what is kept for the return of some --ip.
	if a, ok, err := i.pick(p, within, name, true); ok || err != nil {
		return a, err
	}
	if full := (*fullError)(nil); errors.As(err, &full) {
		return netip.Addr{}, err
	}
	return netip.Addr{}, fmt.Errorf("no free address of subnet %s is left on this host, and none can be leased: %w", p.key, err)
}

// again finds the address that an endpoint of this name has without being
// alive: Docker lost track of it in an unclean shutdown.
func (i *IPAM) again(p *pool, name string) (netip.Addr, bool, error) {
	if name == "" {
		return netip.Addr{}, false, nil
	}
	i.mu.Lock()
	var old []netip.Addr
	for a, u := range p.used {
		if b, ok := p.covering(a); ok && !b.Draining && u.Name == name && !i.starting(u) {
			old = append(old, a)
		}
	}
	i.mu.Unlock()
	slices.SortFunc(old, netip.Addr.Compare)
	for _, a := range old {
		i.mu.Lock()
		before := p.used[a]
		i.mu.Unlock()
		if i.live(p, a) {
			continue
		}
		ok, err := i.renewUse(p, a, name, before)
		if ok || err != nil {
			return a, ok, err
		}
	}
	return netip.Addr{}, false, nil
}

// pick chooses an address from the active blocks and stores it as used.
func (i *IPAM) pick(p *pool, within netip.Prefix, name string, exact bool) (netip.Addr, bool, error) {
	i.mu.Lock()
	if p.rec == nil || p.leaving {
		i.mu.Unlock()
		return netip.Addr{}, false, errGone(p)
	}
	a, ok := choose(i.scope(p, within), p.active(exact), p.taken, p.freed, name)
	if !ok {
		i.mu.Unlock()
		return a, false, nil
	}
	u, w := i.mark(p, a, name)
	i.mu.Unlock()
	return a, true, i.marked(p, a, u, w)
}

// mark sets an address as used and queues that for the disk. The caller holds
// i.mu, releases it, and waits for the write.
func (i *IPAM) mark(p *pool, a netip.Addr, name string) (use, *write) {
	i.turn++
	u := use{Name: name, Since: i.cfg.Now(), turn: i.turn}
	p.used[a] = u
	return u, i.store.enqueue(put(usedBucket, addrKey(p.key, a), u), del(freedBucket, addrKey(p.key, a)))
}

// marked waits until a mark is on disk. If it cannot be, the address is free
// again.
func (i *IPAM) marked(p *pool, a netip.Addr, u use, w *write) error {
	err := i.store.wait(w)
	i.mu.Lock()
	if p.used[a].turn == u.turn {
		if err == nil {
			delete(p.freed, a)
		} else {
			delete(p.used, a)
		}
	}
	i.mu.Unlock()
	i.wake()
	return err
}

// starting reports whether an address was handed out in this run so lately
// that its endpoint need not be known yet. The caller holds i.mu.
func (i *IPAM) starting(u use) bool {
	return u.turn != 0 && i.cfg.Now().Sub(u.Since) < startTime
}

// renewUse hands an address that is in use to its next user, unless it
// changed hands since it was seen as before.
func (i *IPAM) renewUse(p *pool, a netip.Addr, name string, before use) (bool, error) {
	i.mu.Lock()
	u, ok := p.used[a]
	if !ok || u.turn != before.turn {
		i.mu.Unlock()
		return false, nil
	}
	_, w := i.mark(p, a, name)
	i.mu.Unlock()
	if err := i.store.wait(w); err != nil {
		return false, err // it stays in use, by the one before
	}
	return true, nil
}

// takeExact hands out the address that the user asked for with --ip.
func (i *IPAM) takeExact(ctx context.Context, p *pool, a netip.Addr, name string) error {
	done, err := i.takeOwn(p, a, name)
	if done || err != nil {
		return err
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	for range 3 {
		if err := i.leaseExact(ctx, p, a); err != nil {
			return err
		}
		if done, err := i.takeOwn(p, a, name); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("address %s: its block is given back faster than it is leased; try again", a)
}

// takeOwn hands out an address if an active block of this host covers it.
func (i *IPAM) takeOwn(p *pool, a netip.Addr, name string) (bool, error) {
	for {
		i.mu.Lock()
		seen, used := p.used[a]
		i.mu.Unlock()
		if used && i.live(p, a) {
			return false, i.inUse(p, a, seen.Name)
		}
		i.mu.Lock()
		if p.rec == nil || p.leaving {
			i.mu.Unlock()
			return false, errGone(p)
		}
		if err := i.assignable(p, a); err != nil {
			i.mu.Unlock()
			return false, err
		}
		b, ok := p.covering(a)
		if !ok || b.Draining {
			i.mu.Unlock()
			return false, nil
		}
		now, ok := p.used[a]
		starting := i.starting(now)
		if !used && !ok {
			u, w := i.mark(p, a, name)
			i.mu.Unlock()
			return true, i.marked(p, a, u, w)
		}
		i.mu.Unlock()
		if ok != used || now.turn != seen.turn {
			continue // it changed hands meanwhile
		}
		if starting && name != "" && seen.Name != "" && name != seen.Name {
			return false, i.inUse(p, a, seen.Name)
		}
		// Asked again, or left over by an unclean shutdown.
		if done, err := i.renewUse(p, a, name, seen); done || err != nil {
			return done, err
		}
	}
}

func errGone(p *pool) error {
	return fmt.Errorf("pool %s was given up meanwhile: create the network again", p.key)
}

// assignable refuses addresses that no endpoint can have. The caller holds i.mu.
func (i *IPAM) assignable(p *pool, a netip.Addr) error {
	def := i.definition(p)
	switch {
	case edge(p.key.Prefix, a):
		return fmt.Errorf("address %s: is the network or broadcast address of subnet %s; choose another one", a, p.key)
	case a == def.Gateway:
		return fmt.Errorf("address %s: is the gateway of subnet %s; choose another one", a, p.key)
	case slices.Contains(def.Reserved, a):
		return fmt.Errorf("address %s: is reserved by --aux-address of subnet %s; choose another one", a, p.key)
	case p.pinned[a]:
		return fmt.Errorf("address %s: is about to be reserved in subnet %s; choose another one", a, p.key)
	}
	return nil
}

func (i *IPAM) inUse(p *pool, a netip.Addr, name string) error {
	who := ""
	if i.cfg.WhoHolds != nil {
		who = i.cfg.WhoHolds(p.key, a)
	}
	if who == "" {
		if who = "this host"; name != "" {
			who = name + " on this host"
		}
	}
	return fmt.Errorf("address %s of subnet %s is in use by %s; choose another one, or free it there", a, p.key, who)
}

// leaseExact leases one address. The caller has the pool's turn.
func (i *IPAM) leaseExact(ctx context.Context, p *pool, a netip.Addr) error {
	if err := i.releaseDrained(ctx, p); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	c := cluster.Command{GrantExact: &cluster.GrantExact{Pool: p.key, Addr: a}}
	res, err := i.proposeIn(ctx, p, c)
	if held, ok := refused(err, cluster.Held); ok && len(held.Holders) > 0 {
		who := ""
		if i.cfg.WhoHolds != nil {
			who = i.cfg.WhoHolds(p.key, a)
		}
		if who != "" {
			return i.inUse(p, a, "")
		}
		if i.recall(ctx, p.key, held.Holders) {
			res, err = i.proposeIn(ctx, p, c)
		}
	}
	if isRefusal(err) {
		return err
	}
	if err != nil {
		return fmt.Errorf("address %s lies in no block of this host, and cannot be leased: %w", a, err)
	}
	return i.keep(p, res, true)
}

// ReleaseAddress frees an address. Gateway and auxiliary addresses belong to
// the pool, on all hosts, and stay. An unknown one is a success.
func (i *IPAM) ReleaseAddress(ctx context.Context, req *docker.ReleaseAddressRequest) error {
	id, err := parsePoolID(req.PoolID)
	if err != nil {
		return nil
	}
	a, err := netip.ParseAddr(req.Address)
	if err != nil {
		return nil
	}
	return i.Free(ctx, id.key, a.Unmap())
}

// Free ends the use of an address; one not in use is a success. It is off the
// disk before this returns, and before it can be handed out again.
func (i *IPAM) Free(_ context.Context, key cluster.PoolKey, a netip.Addr) error {
	i.mu.Lock()
	p, ok := i.pools[key]
	if !ok {
		i.mu.Unlock()
		return nil
	}
	u, ok := p.used[a]
	if !ok {
		i.mu.Unlock()
		return nil
	}
	f := freed{At: i.cfg.Now(), Name: u.Name}
	ops := []op{del(usedBucket, addrKey(key, a))}
	_, covered := p.covering(a)
	if covered {
		ops = append(ops, put(freedBucket, addrKey(key, a), f))
	}
	w := i.store.enqueue(ops...)
	i.mu.Unlock()
	if err := i.store.wait(w); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.used[a].turn == u.turn {
		delete(p.used, a)
		if _, still := p.covering(a); covered && still {
			p.freed[a] = f
		}
	}
	i.wake()
	return nil
}
