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
		if asked, err = parseAddress(p.key.Prefix, req.Address); asked.IsValid() && err != nil {
			for _, q := range i.siblings(p) { // handed out for p when that was full
				if q.key.Prefix.Contains(asked) {
					p, err = q, nil
				}
			}
		}
		if err != nil {
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
	answer := netip.PrefixFrom(asked, p.key.Prefix.Bits())
	switch {
	case req.Options[requestType] == gatewayType:
		asked, err = i.router(ctx, p, id, asked)
		answer = netip.PrefixFrom(asked, p.key.Prefix.Bits())
	case asked.IsValid() && creating && name == "":
		err = i.reserve(ctx, p, asked)
	case id.dhcp:
		answer, err = i.takeDHCP(ctx, p, asked, req.Options)
	case asked.IsValid():
		_, err = i.unheld(ctx, p, asked, func() (netip.Prefix, error) { return answer, i.takeExact(ctx, p, asked, name) })
	default:
		answer, err = i.unheld(ctx, p, asked, func() (netip.Prefix, error) { return i.takeAny(ctx, p, id.within, name) })
	}
	if err != nil {
		return nil, err
	}
	if req.Options[requestType] != gatewayType && i.cfg.Routed != nil && i.cfg.Routed(p.key) {
		answer = netip.PrefixFrom(answer.Addr(), answer.Addr().BitLen())
	}
	return &docker.RequestAddressResponse{Address: answer.String(), Data: map[string]string{}}, nil
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
	if err := i.trusted(ctx); err != nil {
		return netip.Addr{}, err
	}
	if a, ok, err := i.again(p, name); ok || err != nil {
		return a, err
	}
	a, err := i.pick(p, within, name, false)
	if !errors.Is(err, lease.ErrNone) {
		return a, err
	}
	a, err = i.pickNew(ctx, p, within, name)
	if err == nil {
		return a, nil
	}
	// Rather than fail, use what is kept for the return of some --ip.
	if a, kept := i.pick(p, within, name, true); kept == nil {
		return a, nil
	}
	if full := (*fullError)(nil); errors.As(err, &full) {
		return netip.Addr{}, err
	}
	return netip.Addr{}, fmt.Errorf("no free address of subnet %s is left on this host, and none can be leased: %w", p.key, err)
}

// pickNew leases blocks until there is an address in one of them.
func (i *IPAM) pickNew(ctx context.Context, p *pool, within netip.Prefix, name string) (netip.Addr, error) {
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unlock()
	for {
		if a, err := i.pick(p, within, name, false); !errors.Is(err, lease.ErrNone) {
			return a, err
		}
		if err := i.growOrRecall(ctx, p, within); err != nil {
			return netip.Addr{}, err
		}
	}
}

// again finds the address that an endpoint of this name has without being
// alive: Docker lost track of it in an unclean shutdown.
func (i *IPAM) again(p *pool, name string) (netip.Addr, bool, error) {
	if name == "" {
		return netip.Addr{}, false, nil
	}
	old := map[netip.Addr]uint64{}
	i.mu.Lock()
	for a, u := range p.Used {
		if u.Name == name && !i.starting(u) {
			old[a] = u.Turn
		}
	}
	i.mu.Unlock()
	for _, a := range slices.SortedFunc(maps.Keys(old), netip.Addr.Compare) {
		if i.live(p, a) {
			continue
		}
		switch err := i.renew(p, a, old[a], name); {
		case err == nil:
			return a, true, nil
		case !passed(err):
			return a, false, err
		}
	}
	return netip.Addr{}, false, nil
}

// passed reports whether an address changed hands, or is about to.
func passed(err error) bool {
	return errors.Is(err, lease.ErrInUse) || errors.Is(err, lease.ErrUncovered) || errors.Is(err, lease.ErrBusy)
}

// pick chooses an address from the active blocks and stores it as used.
func (i *IPAM) pick(p *pool, within netip.Prefix, name string, exact bool) (netip.Addr, error) {
	i.mu.Lock()
	if p.rec == nil || p.leaving {
		i.mu.Unlock()
		return netip.Addr{}, errGone(p)
	}
	s, a, err := i.m.Allocate(p.key, i.scope(p, within), name, exact, i.cfg.Now())
	if err != nil {
		i.mu.Unlock()
		return a, err
	}
	return a, i.hand(p, a, s)
}

// hand stores an address step that hands out an address, and makes sure that
// the block was not lost meanwhile. The caller holds i.mu, which is released.
func (i *IPAM) hand(p *pool, a netip.Addr, s lease.Step) error {
	w := i.store.enqueue(opsOf(s.Writes)...)
	i.mu.Unlock()
	if err := i.finish(s, w); err != nil {
		return err
	}
	i.mu.Lock()
	b, ok := p.Covering(a)
	i.mu.Unlock()
	if !ok || b.Draining {
		return errors.Join(fmt.Errorf("address %s: the cluster took its block from this host just now; try again", a), i.free(p, a))
	}
	return nil
}

// renew hands an address that is in use to its next user, unless it changed
// hands since it was seen in use turn.
func (i *IPAM) renew(p *pool, a netip.Addr, turn uint64, name string) error {
	i.mu.Lock()
	s, err := i.m.Renew(p.key, a, turn, name, i.cfg.Now())
	if err != nil {
		i.mu.Unlock()
		return err
	}
	return i.hand(p, a, s)
}

// starting reports whether an address was handed out in this run so lately
// that its endpoint need not be known yet. The caller holds i.mu.
func (i *IPAM) starting(u lease.Use) bool {
	return u.Turn != 0 && i.cfg.Now().Sub(u.Since) < startTime
}

// takeOwn hands out an address if an active block of this host covers it; the
// error is lease.ErrUncovered when none does.
func (i *IPAM) takeOwn(p *pool, a netip.Addr, name string) error {
	for {
		i.mu.Lock()
		if p.rec == nil || p.leaving {
			i.mu.Unlock()
			return errGone(p)
		}
		if err := i.assignable(p, a); err != nil {
			i.mu.Unlock()
			return err
		}
		s, err := i.m.Take(p.key, a, name, i.cfg.Now())
		if err == nil {
			return i.hand(p, a, s)
		}
		if errors.Is(err, lease.ErrBusy) {
			i.idle.Wait()
			i.mu.Unlock()
			continue
		}
		seen, used := p.Used[a]
		starting := i.starting(seen)
		i.mu.Unlock()
		if !errors.Is(err, lease.ErrInUse) {
			return err
		}
		if !used || i.live(p, a) || starting && name != "" && seen.Name != "" && name != seen.Name {
			return i.inUse(p, a, seen.Name)
		}
		// Asked again, or left over by an unclean shutdown.
		if err := i.renew(p, a, seen.Turn, name); !passed(err) {
			return err
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
	case lease.Edge(p.key.Prefix, a):
		return fmt.Errorf("address %s: is the network or broadcast address of subnet %s; choose another one", a, p.key)
	case a == def.Gateway:
		return fmt.Errorf("address %s: is the gateway of subnet %s; choose another one", a, p.key)
	case slices.Contains(def.Reserved, a):
		return fmt.Errorf("address %s: is reserved by --aux-address of subnet %s; choose another one", a, p.key)
	case p.Pinned[a]:
		return fmt.Errorf("address %s: is about to be reserved in subnet %s; choose another one", a, p.key)
	}
	return nil
}

// inUse says who uses an address: as gossip heard, else this host.
func (i *IPAM) inUse(p *pool, a netip.Addr, name string) error {
	who := i.whoHolds(p, a)
	if who == "" {
		if who = "this host"; name != "" {
			who = name + " on this host"
		}
	}
	return usedBy(p, a, who)
}

func usedBy(p *pool, a netip.Addr, who string) error {
	return fmt.Errorf("address %s of subnet %s is in use by %s; choose another one, or free it there", a, p.key, who)
}

func (i *IPAM) whoHolds(p *pool, a netip.Addr) string {
	if i.cfg.WhoHolds == nil {
		return ""
	}
	return i.cfg.WhoHolds(p.key, a)
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
	a = a.Unmap().WithZone("")
	return i.Free(ctx, i.poolOf(id.key, a), a)
}

// Free ends the use of an address; one not in use is a success. It is off the
// disk before this returns, and before it can be handed out again.
func (i *IPAM) Free(_ context.Context, key cluster.PoolKey, a netip.Addr) error {
	i.mu.Lock()
	p, ok := i.pools[key]
	i.mu.Unlock()
	if !ok {
		return nil
	}
	return i.free(p, a)
}

func (i *IPAM) free(p *pool, a netip.Addr) error {
	i.mu.Lock()
	for p.Busy(a) {
		i.idle.Wait()
	}
	s, ok := i.m.Free(p.key, a, i.cfg.Now())
	if !ok {
		i.mu.Unlock()
		return nil
	}
	w := i.store.enqueue(opsOf(s.Writes)...)
	i.mu.Unlock()
	return i.finish(s, w)
}

// Adopt takes an address as used that was found in use here, in a running
// container, although nothing is known of it: after this host's disk was set
// back. name is for people. When no block of this host covers it, it is leased
// as soon as that can be, and an alarm is raised meanwhile.
func (i *IPAM) Adopt(key cluster.PoolKey, a netip.Addr, name string) error {
	if !key.Prefix.Contains(a) {
		return fmt.Errorf("adopt address %s: is not part of subnet %s", a, key)
	}
	i.mu.Lock()
	p := i.pool(key)
	if p.Busy(a) {
		i.mu.Unlock()
		return nil // it is known
	}
	s, ok := i.m.Adopt(key, a, name, i.cfg.Now())
	if !ok {
		i.mu.Unlock()
		return nil
	}
	p.found[a] = !i.m.Confirmed
	b, covered := p.Covering(a)
	p.alarm(fmt.Sprintf("address %s was found in a running container, and not in what this host remembers: taken as used", a), i.cfg.Now())
	i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "address": a.String(), "name": name, "covered": covered && !b.Draining}).
		Error("address found in a running container that this host does not remember")
	w := i.store.enqueue(opsOf(s.Writes)...)
	i.mu.Unlock()
	return i.finish(s, w)
}
