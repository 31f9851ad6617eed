package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/transport"
)

// The methods that one host serves to another.
const (
	whereMethod   = "ledger.where"   // any host: which cluster, and where its voters are
	proposeMethod = "ledger.propose" // voters: one command
	followMethod  = "ledger.follow"  // voters: the registry, and then every command
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
	Run    uint64   `json:"run"`           // the nonce of this run
	Gen    uint64   `json:"gen,omitempty"` // of the registry
	Voters []Server `json:"voters,omitempty"`
	// Dissolved is the cluster that took the place of the one that asks.
	Dissolved cluster.ID `json:"dissolved,omitempty"`
}

type proposeRequest struct {
	Cluster cluster.ID      `json:"cluster"`
	Command cluster.Command `json:"command"`
}

type followRequest struct {
	Cluster cluster.ID `json:"cluster"`
}

// update is one message to a follower. Entries come after the registry.
type update struct {
	Voters   []Server          `json:"voters,omitempty"`
	Registry *cluster.Registry `json:"registry,omitempty"`
	Entries  []entry           `json:"entries,omitempty"`
}

func (l *Ledger) serve() {
	transport.Handle(l.cfg.Transport, whereMethod, l.serveWhere)
	transport.Handle(l.cfg.Transport, witnessMethod, l.serveWitness)
	transport.Handle(l.cfg.Transport, foundMethod, l.serveFound)
	transport.Handle(l.cfg.Transport, recordMethod, l.serveRecord)
	transport.Handle(l.cfg.Transport, proposeMethod, l.servePropose)
	transport.HandleStream(l.cfg.Transport, followMethod, l.serveFollow)
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
		Run:    l.nonce, Gen: registry.Gen, Dissolved: l.former[of],
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
	return reply, nil
}

// introduction is what this host says when it asks where others belong.
func (l *Ledger) introduction() whereRequest {
	empty := l.Registry().Empty()
	l.mu.Lock()
	defer l.mu.Unlock()
	return whereRequest{Cluster: l.id, Empty: empty, Name: l.cfg.Self.Name, At: l.cfg.Self.Address}
}

func (l *Ledger) servePropose(ctx context.Context, from cluster.HostID, req proposeRequest) (cluster.Result, error) {
	r, err := l.voter(req.Cluster)
	if err != nil {
		return cluster.Result{}, err
	}
	if req.Command.Host != from || req.Command.Found != nil {
		return cluster.Result{}, cluster.Refuse(cluster.Invalid, "host %s may not speak for host %s, nor found a cluster here", from.Short(), req.Command.Host.Short())
	}
	if why := l.alive(ctx, req.Command); why != nil {
		return cluster.Result{Refused: why}, nil
	}
	return r.Propose(ctx, req.Command)
}

// voter returns the replica if this host can serve the log of that cluster.
func (l *Ledger) voter(id cluster.ID) (*replica, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.id != id:
		return nil, fmt.Errorf("this host belongs to cluster %q, not to %q: run `isthmus reset` on the one that should join the other", l.id, id)
	case l.replica == nil:
		return nil, errors.New("this host is no voter")
	case !l.office:
		return nil, errors.New(l.waiting)
	case !l.replica.ready.Load():
		return nil, l.replica.trouble()
	}
	return l.replica, nil
}

func (l *Ledger) serveFollow(ctx context.Context, _ cluster.HostID, req followRequest, send func(any) error) error {
	r, err := l.voter(req.Cluster)
	if err != nil {
		return err
	}
	f := r.follow()
	defer r.unfollow(f)
	var told []Server
	for {
		changed := l.watch()
		l.mu.Lock()
		voters := l.voters
		l.mu.Unlock()
		var u update
		if !slices.Equal(told, voters) {
			u.Voters, told = voters, voters
		}
		u.Registry, u.Entries = f.take()
		if u.Voters != nil || u.Registry != nil || u.Entries != nil {
			if err := send(u); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.wake:
		case <-changed:
			if !r.ready.Load() {
				return r.trouble()
			}
		}
	}
}

// servers describes the voters of the local replica.
func (l *Ledger) servers(r *replica) []Server {
	registry := l.Registry()
	var out []Server
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range r.voters() {
		s := Server{Host: id, Name: registry.Hosts[id].Name, Address: registry.Hosts[id].Address}
		if id == l.cfg.Host {
			s.Name, s.Address = l.cfg.Self.Name, l.cfg.Self.Address
		}
		out = append(out, s)
	}
	return out
}

// candidates lists where to look for a voter, likeliest first.
func (l *Ledger) candidates() []netip.AddrPort {
	registry := l.Registry()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && a != l.cfg.Self.Address && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, v := range l.voters {
		if v.Host != l.cfg.Host {
			add(l.addresses[v.Host])
			add(v.Address)
			add(registry.Hosts[v.Host].Address)
		}
	}
	for _, a := range l.hints {
		add(a)
	}
	return out
}

func (l *Ledger) isVoter(id cluster.HostID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.voters, func(v Server) bool { return v.Host == id })
}
