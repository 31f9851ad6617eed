package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/isthmus-net/isthmus/cluster"
)

// neighbours lists the other hosts with a lease in a range, by the copy.
func (i *IPAM) neighbours(p *pool, within netip.Prefix) []cluster.HostID {
	if !within.IsValid() {
		within = p.key.Prefix
	}
	var out []cluster.HostID
	for _, l := range i.cfg.Ledger.Registry().LeasesOf(p.key, "") {
		if l.Block.Overlaps(within) {
			out = append(out, l.Holder)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// recall asks other hosts, all at once, to give up what they do not use of a
// pool, and reports whether any of them did.
func (i *IPAM) recall(ctx context.Context, key cluster.PoolKey, hosts []cluster.HostID) bool {
	if i.cfg.Recall == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, recallTime)
	defer cancel()
	var wg sync.WaitGroup
	var moved atomic.Bool
	for _, h := range hosts {
		if h == i.cfg.Host {
			continue
		}
		wg.Go(func() {
			if err := i.cfg.Recall(ctx, h, key); err != nil {
				i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "peer": h.Short()}).WithError(err).Debug("peer keeps what it has of the pool")
				return
			}
			moved.Store(true)
		})
	}
	wg.Wait()
	return moved.Load()
}

// Recalled gives up what this host does not use of a pool, because another
// host needs the space: of a parked pool everything, of one in use the empty
// blocks.
func (i *IPAM) Recalled(ctx context.Context, key cluster.PoolKey) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	p, ok := i.find(key)
	if !ok {
		return nil
	}
	err := i.giveUp(ctx, p)
	if !errors.Is(err, errInUse) {
		return err
	}
	i.mu.Lock()
	empty := slices.DeleteFunc(p.sorted(), func(b block) bool { return !p.empty(b) })
	if len(empty) == 0 {
		i.mu.Unlock()
		return err
	}
	p.quiet = i.cfg.Now().Add(holdOff)
	err = i.drain(p, empty)
	i.mu.Unlock()
	return errors.Join(err, i.releaseDrained(ctx, p))
}
