package ipam

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// neighbours lists the other hosts with a lease in a range, by the copy, the
// one with the most addresses first. Forgotten ones cannot be asked.
func (i *IPAM) neighbours(p *pool, within netip.Prefix) []cluster.HostID {
	r := i.cfg.Ledger.Registry()
	i.mu.Lock()
	s := i.scope(p, within)
	i.mu.Unlock()
	held := map[cluster.HostID]int{}
	for _, l := range r.LeasesOf(p.key, "") {
		if l.Block.Overlaps(s.Within) && l.Holder != i.cfg.Host && !r.Hosts[l.Holder].Tombstone {
			held[l.Holder] += leased(s, l)
		}
	}
	return slices.SortedFunc(maps.Keys(held), func(a, b cluster.HostID) int {
		return cmp.Or(cmp.Compare(held[b], held[a]), strings.Compare(string(a), string(b)))
	})
}

// recallAll asks other hosts, all at once, to give up what they do not use of a
// pool, and reports whether any of them did.
func (i *IPAM) recallAll(ctx context.Context, key cluster.PoolKey, hosts []cluster.HostID) bool {
	if i.cfg.Recall == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, recallTime)
	defer cancel()
	var wg sync.WaitGroup
	var moved atomic.Bool
	for _, h := range hosts {
		if h != i.cfg.Host {
			wg.Go(func() {
				if i.recallOne(ctx, h, key) == nil {
					moved.Store(true)
				}
			})
		}
	}
	wg.Wait()
	return moved.Load()
}

func (i *IPAM) recallOne(ctx context.Context, host cluster.HostID, key cluster.PoolKey) error {
	err := i.cfg.Recall(ctx, host, key, netip.Addr{})
	if err != nil {
		i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "peer": host.Short()}).WithError(err).Debug("peer keeps what it has of the pool")
	}
	return err
}

// recallAny asks other hosts for any address of a full pool until one gives
// something back: the next one is asked when one refuses, and at the latest
// after an even part of the time, so that hosts that are down cost little and
// few blocks are broken up. silent are those that gave no answer.
func (i *IPAM) recallAny(ctx context.Context, key cluster.PoolKey, hosts []cluster.HostID) (moved bool, silent []cluster.HostID) {
	if i.cfg.Recall == nil || len(hosts) == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, recallTime)
	defer cancel()
	type answer struct {
		host cluster.HostID
		err  error
	}
	answers := make(chan answer, len(hosts))
	next := time.NewTicker(recallTime / time.Duration(2*len(hosts)))
	defer next.Stop()
	asked, waiting := 0, map[cluster.HostID]bool{}
	ask := func() {
		if asked < len(hosts) {
			h := hosts[asked]
			asked++
			waiting[h] = true
			go func() { answers <- answer{h, i.recallOne(ctx, h, key)} }()
		}
	}
	for ask(); len(waiting) > 0; {
		select {
		case a := <-answers:
			delete(waiting, a.host)
			if a.err == nil {
				return true, nil
			}
			if !isRefusal(a.err) {
				silent = append(silent, a.host)
			}
			ask()
		case <-next.C:
			ask()
		}
	}
	return false, silent
}

// Recalled gives back what another host needs. Of a pool, when a is the zero
// address: everything if it is parked here, else the empty blocks, else one
// free address. Otherwise the very address a. What is in use stays, and is
// refused with a *cluster.Refusal that names the user.
func (i *IPAM) Recalled(ctx context.Context, key cluster.PoolKey, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := i.trusted(ctx); err != nil {
		return i.keeps("%v", err)
	}
	p, ok := i.find(key)
	if !ok {
		return nil
	}
	if a.IsValid() {
		return i.giveBack(ctx, p, a)
	}
	err := i.giveUp(ctx, p)
	if !errors.Is(err, errInUse) {
		return err
	}
	i.mu.Lock()
	var empty []uint64
	for _, b := range p.Sorted() {
		if p.Empty(b) {
			empty = append(empty, b.Lease)
		}
	}
	spare, some := p.Spare(i.scope(p, netip.Prefix{}))
	if len(empty) == 0 && !some {
		i.mu.Unlock()
		return i.keeps("%v", err)
	}
	p.quiet = i.cfg.Now().Add(holdOff)
	if len(empty) > 0 {
		err = i.drain(p, empty)
	} else {
		err = i.carve(p, spare)
	}
	i.mu.Unlock()
	if err != nil {
		return err
	}
	return i.releaseDrained(ctx, p)
}

// giveBack gives one address back that another host was asked for.
func (i *IPAM) giveBack(ctx context.Context, p *pool, a netip.Addr) error {
	i.mu.Lock()
	u, used := p.Used[a]
	switch b, ok := p.Covering(a); {
	case !ok || b.Draining:
		i.mu.Unlock()
		return i.releaseDrained(ctx, p) // it may wait for that
	case used:
		i.mu.Unlock()
		who := "a container"
		if u.Name != "" {
			who = u.Name
		}
		return i.keeps("%v", usedBy(p, a, who+" on "+i.cfg.Ledger.Registry().HostName(i.cfg.Host)))
	case p.Taken(a):
		i.mu.Unlock()
		return i.keeps("address %s of subnet %s is being given to a container or a gateway on %s just now; choose another one", a, p.key, i.cfg.Ledger.Registry().HostName(i.cfg.Host))
	}
	err := i.carve(p, a)
	i.mu.Unlock()
	if err != nil {
		return err
	}
	return i.releaseDrained(ctx, p)
}

// carve makes a hole of an address. The caller holds i.mu.
func (i *IPAM) carve(p *pool, a netip.Addr) error {
	s, err := i.m.Carve(p.key, i.scope(p, netip.Prefix{}), a)
	if err != nil {
		return err
	}
	return i.commit(s)
}

// keeps is what a host answers that cannot give back what it is asked for.
func (i *IPAM) keeps(format string, args ...any) *cluster.Refusal {
	why := cluster.Refuse(cluster.Held, format, args...)
	why.Holders = []cluster.HostID{i.cfg.Host}
	return why
}
