package ipam

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// forgottenTime is how long an address must be without an endpoint until it
// counts as forgotten by Docker.
const forgottenTime = 60 * time.Second

// sweep frees addresses that have had no endpoint for forgottenTime: those of
// pools with a network of ours, where endpoints are known, and of parked
// pools, where there are none. Gateway and auxiliary addresses are not in use
// in this sense, and stay.
func (i *IPAM) sweep(ctx context.Context) {
	if i.cfg.Networked == nil || i.cfg.Live == nil {
		return
	}
	i.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools)
	i.mu.Unlock()
	for _, key := range keys {
		p, ok := i.find(key)
		if !ok {
			continue
		}
		networked := i.cfg.Networked(key)
		i.mu.Lock()
		swept := networked || p.rec == nil || p.parked()
		used := maps.Clone(p.used)
		i.mu.Unlock()
		for a, u := range used {
			alive := !swept || i.live(p, a)
			i.mu.Lock()
			now := i.cfg.Now()
			current, ok := p.used[a]
			if !ok || current.turn != u.turn {
				i.mu.Unlock()
				continue
			}
			switch {
			case alive:
				current.dead = time.Time{}
			case current.dead.IsZero():
				current.dead = now
			}
			p.used[a] = current
			forgotten := !alive && now.Sub(current.dead) >= forgottenTime
			i.mu.Unlock()
			if !forgotten {
				continue
			}
			log := i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "address": a.String(), "name": u.Name})
			if err := i.Free(ctx, key, a); err != nil {
				log.WithError(err).Error("forgotten address cannot be freed")
				continue
			}
			log.Info("address freed that had no endpoint for a minute")
		}
	}
}
