package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/council"
)

const (
	// changeTime bounds how long a change of the configuration waits to be
	// begun, and enlistTime how long a host may take to make a log.
	changeTime = 2 * time.Second
	enlistTime = 5 * time.Second
	// leaveTime is how long the wish to leave holds.
	leaveTime = 30 * time.Second
)

// follower is a host that follows the leader.
type follower struct {
	server  string    // that it runs, "" for none
	since   time.Time // without more than a short break
	ended   time.Time // when its last stream did
	streams int
	shy     time.Time // it could not be enlisted: not to be asked before that
}

// followed notes that a host follows this one; what it returns notes the end.
func (l *Ledger) followed(host cluster.HostID, server string) (ended func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.followers[host]
	if f == nil {
		f = &follower{}
		l.followers[host] = f
	}
	if f.server = server; f.streams == 0 && time.Since(f.ended) > 2*l.cfg.Timing.Position {
		f.since = time.Now()
	}
	f.streams++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if f.streams--; f.streams == 0 {
			f.ended = time.Now()
		}
	}
}

// govern keeps the configuration as the council wants it, while the replica
// leads, until ctx ends.
func (l *Ledger) govern(ctx context.Context, r *replica) {
	var history commits
	for {
		changed := l.watch()
		if l.leads() {
			history.note(time.Now(), r.raft.CommitIndex())
			state := l.survey(r, history.before(time.Now().Add(-5*l.cfg.Timing.Position/2)))
			l.learn(l.servers(r))
			if change := council.Next(state); change.Action != council.None {
				if err := l.change(ctx, r, change); err != nil && ctx.Err() == nil {
					l.log.WithFields(map[string]any{"change": string(change.Action), "host": l.Registry().HostName(change.Host)}).WithError(err).Warn("cannot change the voters")
				} else if err == nil {
					l.learn(l.servers(r))
					continue
				}
			}
			if !l.wait(ctx, nil, l.cfg.Timing.Position/2) {
				return
			}
			continue
		}
		history = nil
		if !l.wait(ctx, changed, time.Minute) {
			return
		}
	}
}

// commits is how far the log was committed when.
type commits []struct {
	at    time.Time
	index uint64
}

func (c *commits) note(at time.Time, index uint64) {
	*c = append(*c, struct {
		at    time.Time
		index uint64
	}{at, index})
}

// before is how far it was then; as far back as is known if that is not known.
func (c *commits) before(t time.Time) uint64 {
	for len(*c) > 1 && !(*c)[1].at.After(t) {
		*c = (*c)[1:]
	}
	return (*c)[0].index
}

// survey is what the council decides by. A server is current when its log
// reaches what was committed a moment ago.
func (l *Ledger) survey(r *replica, committed uint64) council.State {
	now := time.Now()
	registry := r.Registry()
	s := council.State{Leader: string(r.server), Stable: l.cfg.Timing.Stable, Replace: l.cfg.Timing.Replace}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range registry.Hosts {
		host := council.Host{
			ID: h.ID, Healthy: h.ID == l.cfg.Host, For: now.Sub(r.opened),
			// One without an address was replaced by another on its machine.
			Gone: h.Tombstone || !h.Address.IsValid() || now.Sub(l.leaving[h.ID]) < leaveTime,
		}
		if f := l.followers[h.ID]; f != nil {
			host.Healthy, host.For = f.streams > 0 && now.After(f.shy), now.Sub(f.since)
			if f.streams == 0 {
				host.For = now.Sub(f.ended)
			}
		}
		s.Hosts = append(s.Hosts, host)
	}
	for _, srv := range r.members() {
		seen, heard := r.witness.of(string(srv.ID))
		current := srv.ID == r.server || heard && seen.Now.Index >= committed
		healthy, since := r.pulses.feel(srv.ID, current, l.cfg.Timing.Stable)
		f := l.followers[hostOf(srv.ID)]
		s.Servers = append(s.Servers, council.Server{
			ID: string(srv.ID), Host: hostOf(srv.ID), Voter: srv.Suffrage == raft.Voter,
			Healthy: healthy, For: now.Sub(since), Current: current,
			Lost: srv.ID != r.server && r.pulses.silent(srv.ID) && f != nil && f.streams > 0 && f.server != string(srv.ID) && now.Sub(f.since) > l.cfg.Timing.Position,
		})
	}
	return s
}

// change does what the council decided, and returns when that is committed.
func (l *Ledger) change(ctx context.Context, r *replica, c council.Change) error {
	l.log.WithFields(map[string]any{"change": string(c.Action), "host": l.Registry().HostName(c.Host), "cause": c.Why}).Info("changing the voters")
	id := raft.ServerID(c.Server)
	switch c.Action {
	case council.Enlist:
		server, err := l.enlist(ctx, r, c.Host)
		if err == nil {
			err = within(ctx, r.raft.AddNonvoter(server, serverAddress(server), 0, changeTime))
		}
		if err != nil {
			l.mu.Lock()
			if f := l.followers[c.Host]; f != nil {
				f.shy = time.Now().Add(l.cfg.Timing.Stable)
			}
			l.mu.Unlock()
		}
		return err
	case council.Promote:
		return within(ctx, r.raft.AddVoter(id, serverAddress(id), 0, changeTime))
	case council.Remove:
		return within(ctx, r.raft.RemoveServer(id, 0, changeTime))
	case council.Yield:
		return within(ctx, r.raft.LeadershipTransferToServer(id, serverAddress(id)))
	}
	return fmt.Errorf("do %q: unknown", c.Action)
}

// enlistRequest comes from a leader that wants a host to become a server.
type enlistRequest struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`
	Term    uint64     `json:"term"`
	Servers []Server   `json:"servers"` // the configuration
}

type enlistReply struct {
	Server string `json:"server"`
}

// enlist asks a host to make an empty log, and returns its ID.
func (l *Ledger) enlist(ctx context.Context, r *replica, host cluster.HostID) (raft.ServerID, error) {
	ctx, cancel := context.WithTimeout(ctx, enlistTime)
	defer cancel()
	req := enlistRequest{l.ID(), r.gen, r.raft.CurrentTerm(), l.servers(r)}
	err := errors.New("its address is not known")
	for _, at := range l.addressesOf(host) {
		var reply enlistReply
		if reply, err = call[enlistRequest, enlistReply](ctx, l, at, enlistMethod, req); err != nil {
			err = fmt.Errorf("ask host %s for a log: %w", l.Registry().HostName(host), plain(err))
			continue
		}
		id := raft.ServerID(reply.Server)
		if hostOf(id) != host {
			err = fmt.Errorf("ask host %s for a log: host %s answers at %s", l.Registry().HostName(host), hostOf(id).Short(), at)
			continue
		}
		l.mu.Lock()
		if f := l.followers[host]; f != nil {
			f.server = reply.Server
		}
		l.mu.Unlock()
		return id, nil
	}
	return "", err
}

// serveEnlist makes an empty log on this host, and answers with its ID. A log
// that is here already is another matter: it stays when it is in the
// configuration or as fresh as one could wish, and makes place when the leader
// is newer than all that it knows.
func (l *Ledger) serveEnlist(ctx context.Context, from cluster.HostID, req enlistRequest) (enlistReply, error) {
	if l.ID() != req.Cluster {
		return enlistReply{}, fmt.Errorf("this host belongs to cluster %q, not to %q", l.ID(), req.Cluster)
	}
	named := false
	for _, s := range req.Servers {
		named = named || s.Host == from && s.Leader
	}
	if h := l.Registry().Hosts[from]; !named || h.ID == "" || h.Tombstone {
		return enlistReply{}, fmt.Errorf("host %s does not lead", from.Short())
	}
	l.learn(req.Servers)
	if r := l.local(); r != nil {
		if r.pristine() && r.gen == req.Gen {
			return enlistReply{string(r.server)}, nil
		}
		for _, s := range req.Servers {
			if s.ID == string(r.server) {
				return enlistReply{s.ID}, nil
			}
		}
		if gen, term := r.gen, r.raft.CurrentTerm(); req.Gen < gen || req.Gen == gen && req.Term < term {
			return enlistReply{}, fmt.Errorf("the log here has seen term %d of generation %d, and host %s leads in term %d of generation %d", term, gen, from.Short(), req.Term, req.Gen)
		}
	}
	l.mu.Lock()
	before := l.replica
	l.mu.Unlock()
	if err := l.replaceLog(ctx, func(dir string) error { return writeLog(dir, l.cfg.Host, req.Gen, nil) }); err != nil {
		return enlistReply{}, err
	}
	for {
		changed := l.watch()
		if r := l.local(); r != nil && r != before {
			return enlistReply{string(r.server)}, nil
		}
		if !l.wait(ctx, changed, time.Second) {
			return enlistReply{}, ctx.Err()
		}
	}
}

// pristine reports whether no leader has spoken to this server yet.
func (r *replica) pristine() bool { return len(r.configuration()) == 0 }

// review gives up the local log when the leader's configuration is newer than
// all that this log knows, and has no place for it.
func (l *Ledger) review(registry *cluster.Registry, u update) error {
	l.mu.Lock()
	r, voters := l.replica, l.voters
	l.mu.Unlock()
	if r == nil || registry == nil {
		return nil
	}
	for _, v := range voters {
		if v.ID == string(r.server) {
			return nil
		}
	}
	end := r.end()
	switch {
	case registry.Gen > r.gen:
		r.lost(fmt.Errorf("another log took its place: the registry is of generation %d now", registry.Gen))
	case !r.includes(r.server):
		// It is being added, or never was.
		if time.Since(r.opened) > leaveTime {
			r.lost(errors.New("the leader did not come back to it"))
		}
	case end.Term < u.Committed.Term || end.Term == u.Committed.Term && end.Index <= u.Committed.Index:
		r.lost(errors.New("this host is no voter any more"))
	default:
		return errors.New("this host may be no voter any more: asking again")
	}
	return nil
}
