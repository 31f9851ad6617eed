package ledger

import (
	"context"
	"fmt"
	"net/netip"
)

// Sync waits until the copy includes everything that the cluster agreed before
// the call: Registry is then as new as if it had been read from the leader. It
// takes at most five seconds, and returns an *Unreachable when no leader
// answers.
func (l *Ledger) Sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	id, err := l.Cluster(ctx)
	if err != nil {
		return l.unreachable(err)
	}
	var reply latestReply
	err = l.persist(ctx, func() error {
		return l.atLeader(ctx, id, func(*replica) error {
			reply, err = l.serveLatest(ctx, l.cfg.Host, latestRequest{id})
			return err
		}, func(ctx context.Context, at netip.AddrPort) (_ netip.AddrPort, err error) {
			reply, err = call[latestRequest, latestReply](ctx, l, at, latestMethod, latestRequest{id})
			return netip.AddrPort{}, err
		})
	})
	if err != nil {
		return err
	}
	return l.Await(ctx, reply.Index)
}

// Await blocks until the copy includes an index of the log, as Result.Index and
// Lease.ID give it, or ctx ends. A copy of a registry that was rebuilt since
// counts: its index is higher, and it says what became of what was there.
func (l *Ledger) Await(ctx context.Context, index uint64) error {
	if l.Registry().Index >= index {
		return nil
	}
	changed := l.mirror.subscribe()
	defer l.mirror.unsubscribe(changed)
	for l.Registry().Index < index {
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow the log up to %d, while this host's copy ends at %d: %w", index, l.Registry().Index, ctx.Err())
		case <-changed:
		}
	}
	return nil
}
