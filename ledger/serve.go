package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/transport"
)

// The methods that one host serves to another.
const (
	whereMethod    = "ledger.where"    // any host: which cluster, and where its voters are
	proposeMethod  = "ledger.propose"  // the leader: one command
	followMethod   = "ledger.follow"   // the leader: the registry, and then every command
	latestMethod   = "ledger.latest"   // the leader: the index of the newest registry
	enlistMethod   = "ledger.enlist"   // any host, asked by the leader: make a log
	positionMethod = "ledger.position" // servers: how far their logs are
)

// whereRequest says who asks, so that clusters that meet know of each other
// whoever asks first.
type whereRequest struct {
	Cluster cluster.ID     `json:"cluster,omitempty"`
	Empty   bool           `json:"empty,omitempty"` // that cluster has no pools
	Name    string         `json:"name"`
	At      netip.AddrPort `json:"at"`
}

type whereReply struct {
	founding.Answer
	Run     uint64         `json:"run"`             // the nonce of this run
	Gen     uint64         `json:"gen,omitempty"`   // of the host's copy
	Index   uint64         `json:"index,omitempty"` // of the host's copy
	Voters  []Server       `json:"voters,omitempty"`
	Leads   bool           `json:"leads,omitempty"`   // it serves the log
	Leader  cluster.HostID `json:"leader,omitempty"`  // whom its own server follows
	Term    uint64         `json:"term,omitempty"`    // of its own server
	Trouble string         `json:"trouble,omitempty"` // why its own server, the only voter, does not serve
	// Dissolved is the cluster that took the place of the one that asks.
	Dissolved cluster.ID `json:"dissolved,omitempty"`
}

type proposeRequest struct {
	Cluster cluster.ID      `json:"cluster"`
	Command cluster.Command `json:"command"`
}

// proposeReply has no result when another host leads.
type proposeReply struct {
	Result *cluster.Result `json:"result,omitempty"`
	Other  netip.AddrPort  `json:"other,omitzero"`
}

// followRequest says what the follower has: its copy, and its server.
type followRequest struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`
	Index   uint64     `json:"index"`
	Server  string     `json:"server,omitempty"`
}

// update is one message to a follower. Entries come after the registry. Voters
// is the configuration as it was committed when the leader of that term had
// committed that entry.
type update struct {
	Voters    []Server          `json:"voters,omitempty"`
	Committed place             `json:"committed"`
	End       uint64            `json:"end"` // last index of the leader's log, as the registry counts
	Registry  *cluster.Registry `json:"registry,omitempty"`
	Entries   []entry           `json:"entries,omitempty"`
}

type latestRequest struct {
	Cluster cluster.ID `json:"cluster"`
}

type latestReply struct {
	Index uint64 `json:"index"`
}

func (l *Ledger) serve() {
	transport.Handle(l.cfg.Transport, whereMethod, l.serveWhere)
	transport.Handle(l.cfg.Transport, witnessMethod, l.serveWitness)
	transport.Handle(l.cfg.Transport, censusMethod, l.serveCensus)
	transport.Handle(l.cfg.Transport, rebuiltMethod, l.serveRebuilt)
	transport.Handle(l.cfg.Transport, leavingMethod, l.serveLeaving)
	transport.Handle(l.cfg.Transport, disownedMethod, l.serveDisowned)
	transport.Handle(l.cfg.Transport, foundMethod, l.serveFound)
	transport.Handle(l.cfg.Transport, recordMethod, l.serveRecord)
	transport.Handle(l.cfg.Transport, proposeMethod, l.servePropose)
	transport.HandleStream(l.cfg.Transport, followMethod, l.serveFollow)
	transport.Handle(l.cfg.Transport, latestMethod, l.serveLatest)
	transport.Handle(l.cfg.Transport, enlistMethod, l.serveEnlist)
	transport.Handle(l.cfg.Transport, positionMethod, l.servePosition)
}

func (l *Ledger) serveWhere(ctx context.Context, _ cluster.HostID, req whereRequest) (whereReply, error) {
	reply, err := l.where(req.Cluster)
	if err == nil {
		l.askedBy(ctx, req)
	}
	return reply, err
}

// where says where this host belongs, to a host of the cluster of.
func (l *Ledger) where(of cluster.ID) (whereReply, error) {
	registry := l.Registry()
	l.mu.Lock()
	defer l.mu.Unlock()
	reply := whereReply{
		Answer: founding.Answer{Host: l.cfg.Host, Name: l.cfg.Self.Name, Cluster: l.id},
		Run:    l.nonce, Gen: registry.Gen, Index: registry.Index, Dissolved: l.former[of],
	}
	switch {
	case l.id != "":
		reply.Empty, reply.Voters = registry.Empty(), slices.Clone(l.voters)
	case l.search.on:
		reply.Founds, reply.Promise = l.search.founds, l.search.promise
	default:
		return whereReply{}, errors.New("the host is starting")
	}
	for i, v := range reply.Voters {
		if at, ok := l.addresses[v.Host]; ok {
			reply.Voters[i].Address = at
		}
	}
	if r := l.replica; r != nil {
		reply.Leads = l.office && r.ready.Load()
		reply.Leader, reply.Term = r.leader(), r.raft.CurrentTerm()
		if !reply.Leads && r.alone() {
			reply.Trouble = l.waiting
		}
	}
	return reply, nil
}

// introduction is what this host says when it asks where others belong.
func (l *Ledger) introduction() whereRequest {
	empty := l.Registry().Empty()
	l.mu.Lock()
	defer l.mu.Unlock()
	return whereRequest{Cluster: l.id, Empty: empty, Name: l.cfg.Self.Name, At: l.cfg.Self.Address}
}

// servePropose answers with where the leader is when this host is another
// voter.
func (l *Ledger) servePropose(ctx context.Context, from cluster.HostID, req proposeRequest) (proposeReply, error) {
	r, err := l.serving(req.Cluster)
	if err != nil {
		if at := l.other(); at.IsValid() {
			return proposeReply{Other: at}, nil
		}
		return proposeReply{}, err
	}
	if req.Command.Host != from || req.Command.Found != nil || req.Command.Rebuild != nil {
		return proposeReply{}, cluster.Refuse(cluster.Invalid, "host %s may not speak for host %s, nor found a cluster here", from.Short(), req.Command.Host.Short())
	}
	res, err := l.commit(ctx, r, req.Command)
	if err != nil {
		return proposeReply{}, err
	}
	return proposeReply{Result: &res}, nil
}

// commit proposes to the local replica. A leader that is to be forgotten hands
// the log over first: nobody would be left to take its server out.
func (l *Ledger) commit(ctx context.Context, r *replica, c cluster.Command) (cluster.Result, error) {
	if c.Forget != nil && c.Forget.Host == l.cfg.Host {
		l.mu.Lock()
		l.leaving[l.cfg.Host] = time.Now()
		l.notify()
		l.mu.Unlock()
		return cluster.Result{}, fmt.Errorf("host %s leads the log, and hands it over now: try again in a few seconds (is no other host up, run `isthmus recover` on one that is to stay)", l.Registry().HostName(l.cfg.Host))
	}
	if why := l.alive(ctx, c); why != nil {
		return cluster.Result{Refused: why}, nil
	}
	return r.Propose(ctx, c)
}

// other is where the leader is, when it is not this host and a local server
// knows it.
func (l *Ledger) other() netip.AddrPort {
	l.mu.Lock()
	r := l.replica
	l.mu.Unlock()
	if r == nil {
		return netip.AddrPort{}
	}
	host := r.leader()
	if host == "" || host == l.cfg.Host {
		return netip.AddrPort{}
	}
	if at := l.addressesOf(host); len(at) > 0 {
		return at[0]
	}
	return netip.AddrPort{}
}

// serving returns the replica if this host leads the log of that cluster, and
// serves it.
func (l *Ledger) serving(id cluster.ID) (*replica, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.id != id:
		return nil, fmt.Errorf("this host belongs to cluster %q, not to %q: run `isthmus reset` on the one that should join the other", l.id, id)
	case l.replica == nil:
		return nil, errors.New("this host is no voter")
	case !l.replica.ready.Load() && l.replica.alone():
		return nil, l.replica.trouble()
	case !l.replica.ready.Load():
		return nil, errors.New("this voter does not lead")
	case !l.office:
		return nil, errors.New(l.waiting)
	}
	return l.replica, nil
}

func (l *Ledger) serveFollow(ctx context.Context, from cluster.HostID, req followRequest, send func(any) error) error {
	r, err := l.serving(req.Cluster)
	if err != nil {
		return err
	}
	if err := l.overtaken(r, from, req); err != nil {
		return err
	}
	defer l.followed(from, req.Server)()
	f := r.follow()
	defer r.unfollow(f)
	var told []Server
	for {
		changed := l.watch()
		l.mu.Lock()
		voters := l.voters
		l.mu.Unlock()
		u := update{Committed: place{r.raft.CurrentTerm(), r.raft.CommitIndex()}}
		if !slices.Equal(told, voters) {
			u.Voters, told = voters, voters
		}
		u.Registry, u.Entries = f.take()
		if u.Voters != nil || u.Registry != nil || u.Entries != nil {
			u.End = r.Registry().Offset + r.raft.LastIndex()
			if err := send(u); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		case <-changed:
			if _, err := l.serving(req.Cluster); err != nil {
				return err
			}
		}
	}
}

// overtaken reports that a follower has seen more than this log holds: the log
// was set back, or another one took its place.
func (l *Ledger) overtaken(r *replica, from cluster.HostID, req followRequest) error {
	own := r.Registry()
	switch {
	case req.Gen > own.Gen:
		err := fmt.Errorf("the registry on host %s is of generation %d, and the log here of %d: another one took its place", l.Registry().HostName(from), req.Gen, own.Gen)
		if r.alone() {
			l.distrust(err) // it may be the only voter of that one too; see outdated
		} else {
			r.lost(err)
		}
		return err
	case req.Gen == own.Gen && req.Index > own.Offset+r.raft.LastIndex():
		err := fmt.Errorf("its log ends at %d and host %s has seen %d already: the disk there was set back; bring back its newer state",
			own.Offset+r.raft.LastIndex(), l.Registry().HostName(from), req.Index)
		l.distrust(err)
		if r.alone() {
			l.wasSetBack(r, setBackText(own, req.Gen, req.Index))
		}
		return err
	}
	return nil
}

// serveLatest answers once everything that was agreed before is in the copy
// here.
func (l *Ledger) serveLatest(ctx context.Context, _ cluster.HostID, req latestRequest) (latestReply, error) {
	r, err := l.serving(req.Cluster)
	if err != nil {
		return latestReply{}, err
	}
	index, err := r.latest(ctx)
	return latestReply{index}, err
}

// servers describes the committed configuration of the local replica, as its
// leader sees it.
func (l *Ledger) servers(r *replica) []Server {
	registry := l.Registry()
	leads := r.ready.Load()
	var out []Server
	for _, srv := range r.members() {
		host := hostOf(srv.ID)
		s := Server{
			ID: string(srv.ID), Host: host, Name: registry.Hosts[host].Name, Address: registry.Hosts[host].Address,
			Leader: leads && srv.ID == r.server, Healthy: srv.ID == r.server || r.pulses.healthy(srv.ID), Suffrage: Voting,
		}
		if srv.Suffrage != raft.Voter {
			s.Suffrage = Nonvoting
		}
		l.mu.Lock()
		if at, ok := l.addresses[host]; ok {
			s.Address = at
		}
		if host == l.cfg.Host {
			s.Name, s.Address = l.cfg.Self.Name, l.cfg.Self.Address
		}
		l.mu.Unlock()
		out = append(out, s)
	}
	return out
}

// knowsServer reports whether a server is one of those that the leader told
// about.
func (l *Ledger) knowsServer(id raft.ServerID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.voters, func(v Server) bool { return v.ID == string(id) })
}
