package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// wasSetBack is called when a newer copy turns up than the log of this host
// has, although it is the only voter: its disk was set back.
func (l *Ledger) wasSetBack(r *replica, why string) {
	l.distrust(errors.New(why))
	l.note(why)
	select {
	case l.setBack <- r:
	default:
	}
}

// keepWhole rebuilds the log of an only voter that was set back, until ctx
// ends.
func (l *Ledger) keepWhole(ctx context.Context) {
	for {
		var r *replica
		select {
		case <-ctx.Done():
			return
		case r = <-l.setBack:
		}
		for l.local() == r && ctx.Err() == nil {
			report, err := l.rebuild(ctx, rebuildOf{alone: true})
			if err != nil {
				l.log.WithError(err).Error("cannot rebuild the log, which was set back")
				l.wait(ctx, nil, redial)
			}
			for _, c := range report.Refused {
				l.log.WithField("host", c.Name).WithField("block", c.Claim.Block).WithField("cause", c.Why).Error("a host must give up a block")
			}
		}
	}
}

// disowned says why a registry cannot be of the log that this host was leased
// its blocks by, "" if it can. A host stops to claim a block before it gives it
// back; so a log that came by the number of the block, in its own generation,
// and does not have the lease, is one that was set back and went another way.
// Its length does not tell.
func (l *Ledger) disowned(r *cluster.Registry) string {
	if l.cfg.Claims == nil || r.Hosts[l.cfg.Host].Tombstone {
		return ""
	}
	for _, c := range l.cfg.Claims() {
		if lease := r.Leases[c.Lease]; c.Lease > r.Offset && c.Lease <= r.Index && (lease.Holder != l.cfg.Host || lease.Block != c.Block || lease.Pool != c.Pool) {
			return fmt.Sprintf("it ends at %d and does not know the block %s, which it leased to this host as number %d: the disk there was set back", r.Index, c.Block, c.Lease)
		}
	}
	return ""
}

// disownedMethod tells the leader that its log was set back.
const disownedMethod = "ledger.disowned"

type disownedRequest struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`
	Why     string     `json:"why"`
}

// protest tells the leader at an address that its log was set back.
func (l *Ledger) protest(ctx context.Context, at netip.AddrPort, r *cluster.Registry, why string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := call[disownedRequest, struct{}](ctx, l, at, disownedMethod, disownedRequest{r.Cluster, r.Gen, why})
	return errors.Join(errors.New(why), err)
}

func (l *Ledger) serveDisowned(_ context.Context, from cluster.HostID, req disownedRequest) (struct{}, error) {
	r, err := l.serving(req.Cluster)
	if err != nil || !r.alone() || r.gen != req.Gen {
		return struct{}{}, err
	}
	l.wasSetBack(r, fmt.Sprintf("host %s says of the log on this host that %s", l.Registry().HostName(from), req.Why))
	return struct{}{}, nil
}
