package ledger

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
)

// exchange tells the other servers how far the log on this host is, whenever
// that changed, and hears the same of theirs, until ctx ends.
func (l *Ledger) exchange(ctx context.Context, r *replica) {
	for l.wait(ctx, nil, l.cfg.Timing.Position) {
		var servers []string
		var wg sync.WaitGroup
		now := r.position().Now
		for _, s := range r.configuration() {
			servers = append(servers, string(s.ID))
			if s.ID != r.server && !r.knows(s.ID, now) {
				wg.Go(func() { l.tell(ctx, r, s.ID) })
			}
		}
		wg.Wait()
		if !r.includes(r.server) && time.Since(r.opened) > leaveTime {
			r.lost(errors.New("no leader has taken it up"))
		}
		if err := r.witness.save(servers); err != nil {
			l.log.WithError(err).Warn("cannot remember the positions of the other voters over a restart")
		}
	}
}

// knows reports whether a server was told of a place.
func (r *replica) knows(server raft.ServerID, at place) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told[string(server)] == at
}

// tell exchanges positions with one server.
func (l *Ledger) tell(ctx context.Context, r *replica, to raft.ServerID) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, at := range l.addressesOf(hostOf(to)) {
		ours := r.greet(string(to))
		reply, err := call[greeting, greeting](ctx, l, at, positionMethod, ours)
		if err == nil && reply.Here.Server == string(to) {
			r.heard(ours)
			_ = r.meet(reply) // raft's streams act on what it says
			return
		}
	}
}

func (l *Ledger) servePosition(_ context.Context, from cluster.HostID, g greeting) (greeting, error) {
	r := l.local()
	if r == nil || g.To != string(r.server) {
		return greeting{}, errors.New("the log of server " + g.To + " does not exist here any more")
	}
	if id := raft.ServerID(g.Here.Server); hostOf(id) != from {
		return greeting{}, errors.New("server " + g.Here.Server + " runs on another host")
	}
	ours := r.greet(g.Here.Server)
	r.heard(ours) // or it asks again
	_ = r.meet(g)
	return ours, nil
}
