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
	return l.includes(ctx, reply)
}

// includes waits for the copy.
func (l *Ledger) includes(ctx context.Context, at latestReply) error {
	ch := l.mirror.subscribe()
	defer l.mirror.unsubscribe(ch)
	for {
		if r := l.Registry(); r.Gen > at.Gen || r.Gen == at.Gen && r.Index >= at.Index {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow the log up to %d: %w", at.Index, ctx.Err())
		case <-ch:
		}
	}
}
