package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// leavingMethod tells the leader that a host is about to leave, so that
// another keeps the log in its place.
const leavingMethod = "ledger.leaving"

type leavingRequest struct {
	Cluster cluster.ID `json:"cluster"`
}

type leavingReply struct {
	Other netip.AddrPort `json:"other,omitzero"` // who leads
}

// Leave takes this host out of the cluster: first its voter, if it has one,
// then the host. The caller has given all networks back, and deletes the state
// afterwards; until then this host does not come back by itself. It takes until
// another host keeps the log in its place, or ctx ends. A host that belongs to
// no cluster has nothing to leave.
func (l *Ledger) Leave(ctx context.Context) error {
	id := l.ID()
	if id == "" {
		return nil
	}
	r := l.Registry()
	for _, n := range r.Networks {
		if slices.Contains(n.Holders, l.cfg.Host) {
			return fmt.Errorf("leave the cluster: %w", cluster.Refuse(cluster.InUse, "this host still holds the network on %v: remove it here first", n.Pools))
		}
	}
	if err := l.handOver(ctx, id); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	// To leave needs a session, and there will be no other.
	if err := l.renew(ctx); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	l.depart(true)
	if _, err := l.Propose(ctx, cluster.Command{Leave: &cluster.Leave{}}); err != nil {
		l.depart(false)
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return nil
}

// depart keeps this host from saying Hello again.
func (l *Ledger) depart(gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.departed = gone
	l.notify()
}

// handOver returns when this host keeps no log any more. The last host of a
// cluster takes the log with it.
func (l *Ledger) handOver(ctx context.Context, id cluster.ID) error {
	for {
		changed := l.watch()
		l.mu.Lock()
		keeps := !l.reachable || slices.ContainsFunc(l.voters, func(v Server) bool { return v.Host == l.cfg.Host })
		l.mu.Unlock()
		last := true
		for _, h := range l.Registry().Hosts {
			last = last && (h.ID == l.cfg.Host || h.Tombstone || !h.Address.IsValid())
		}
		if last {
			return nil
		}
		if !keeps {
			// The leader took it out; there is nothing more to wait for.
			if l.local() == nil {
				return nil
			}
			if err := l.replaceLog(ctx, wipeLog); err != nil {
				return err
			}
			continue
		}
		err := l.atLeader(ctx, id, func(*replica) error {
			l.letGo(l.cfg.Host)
			return nil
		}, func(ctx context.Context, at netip.AddrPort) (netip.AddrPort, error) {
			reply, err := call[leavingRequest, leavingReply](ctx, l, at, leavingMethod, leavingRequest{id})
			return reply.Other, err
		})
		if !l.wait(ctx, changed, time.Second) {
			if err != nil {
				return l.unreachable(err)
			}
			return errors.New("this host keeps the log, and no other host is in reach that could take it over: start one, and wait until it follows")
		}
	}
}

// letGo has the leader, which is this host, take the server of a host out.
func (l *Ledger) letGo(host cluster.HostID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaving[host] = time.Now()
}

func (l *Ledger) serveLeaving(_ context.Context, from cluster.HostID, req leavingRequest) (leavingReply, error) {
	if _, err := l.serving(req.Cluster); err != nil {
		if at := l.other(); at.IsValid() {
			return leavingReply{Other: at}, nil
		}
		return leavingReply{}, err
	}
	l.letGo(from)
	return leavingReply{}, nil
}
