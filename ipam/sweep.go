package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// forgottenTime is how long an address must be without an endpoint until it
// counts as forgotten by Docker.
const forgottenTime = 60 * time.Second

// sweep frees addresses that have had no endpoint for forgottenTime: those of
// pools with a network of ours, where endpoints are known, and of pools that no
// Docker network uses, where there are none. Gateway and auxiliary addresses
// are not in use in this sense, and stay.
func (i *IPAM) sweep() {
	if i.cfg.Networked == nil || i.cfg.Live == nil {
		return
	}
	i.mu.Lock()
	pools := slices.SortedFunc(maps.Values(i.pools), func(a, b *pool) int { return cluster.ComparePools(a.key, b.key) })
	i.mu.Unlock()
	for _, p := range pools {
		networked := i.cfg.Networked(p.key)
		i.mu.Lock()
		swept := networked || p.rec == nil || p.parked()
		used := maps.Clone(p.Used)
		i.mu.Unlock()
		gone := map[netip.Addr]uint64{}
		for a, u := range used {
			if swept && !i.live(p, a) {
				gone[a] = u.Turn
			}
		}
		i.sweepPool(p, gone)
	}
}

// sweepPool frees what was without an endpoint for long enough. gone are the
// uses without one just now, by their turn.
func (i *IPAM) sweepPool(p *pool, gone map[netip.Addr]uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.cfg.Now()
	maps.DeleteFunc(p.dead, func(a netip.Addr, d dead) bool {
		turn, ok := gone[a]
		return !ok || turn != d.turn
	})
	for _, a := range slices.SortedFunc(maps.Keys(gone), netip.Addr.Compare) {
		u, ok := p.Used[a]
		if !ok || u.Turn != gone[a] {
			continue
		}
		d, ok := p.dead[a]
		if !ok {
			p.dead[a] = dead{u.Turn, now}
			continue
		}
		if now.Sub(d.since) < forgottenTime {
			continue
		}
		s, ok := i.m.Free(p.key, a, now)
		if !ok {
			continue
		}
		log := i.cfg.Log.WithFields(map[string]any{"pool": p.key.String(), "address": a.String(), "name": u.Name})
		if err := i.commit(s); err != nil {
			log.WithError(err).Error("forgotten address cannot be freed")
			continue
		}
		log.Info("address freed that had no endpoint for a minute")
		i.wake()
	}
}
