package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
)

// censusTime bounds how long hosts are asked for all that they know.
const censusTime = 3 * time.Second

// censusMethod asks any host of the cluster for its copy and its claims.
const censusMethod = "ledger.census"

type censusRequest struct {
	Cluster cluster.ID `json:"cluster"`
}

// census is what one host knows.
type census struct {
	Host cluster.Host `json:"host"`
	// Registry is the newest copy: all in it was committed.
	Registry *cluster.Registry `json:"registry"`
	// Tail is what follows in the log of a voter. It may have been committed,
	// without this voter having heard so. Term is that of its last entry.
	Tail   []entry         `json:"tail,omitempty"`
	Term   uint64          `json:"term,omitempty"`
	Claims []cluster.Claim `json:"claims,omitempty"`
	// Leader is who serves the log to that host now; zero when nobody does.
	Leader Server `json:"leader,omitzero"`
}

func (l *Ledger) serveCensus(_ context.Context, _ cluster.HostID, req censusRequest) (census, error) {
	if id := l.ID(); id != req.Cluster || id == "" {
		return census{}, fmt.Errorf("this host belongs to cluster %q, not to %q", id, req.Cluster)
	}
	return l.census()
}

// census says what this host knows.
func (l *Ledger) census() (census, error) {
	out := census{Registry: l.Registry()}
	if r := l.local(); r != nil {
		if own := r.Registry(); newer(own, out.Registry) {
			out.Registry = own
		}
		var err error
		if out.Tail, out.Term, err = r.store.tail(out.Registry); err != nil {
			return census{}, fmt.Errorf("read the end of the log: %w", err)
		}
	}
	if l.cfg.Claims != nil {
		out.Claims = l.cfg.Claims()
	}
	self := l.cfg.Self
	out.Host = cluster.Host{ID: l.cfg.Host, Name: self.Name, PublicKey: self.PublicKey, VTEP: self.VTEP, Address: self.Address, Machine: self.Machine}
	if h, ok := out.Registry.Hosts[l.cfg.Host]; ok {
		out.Host = h
	}
	out.Leader = l.leader()
	return out, nil
}

// leader is who serves the log to this host now, zero when nobody does.
func (l *Ledger) leader() Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reachable {
		return Server{}
	}
	for _, v := range l.voters {
		if v.Leader {
			return v
		}
	}
	return Server{Name: "a leader", Host: "unknown"}
}

// tail lists the commands of the log that are not in a registry.
func (s *store) tail(r *cluster.Registry) ([]entry, uint64, error) {
	last, err := s.LastIndex()
	if err != nil || last == 0 {
		return nil, 0, err
	}
	first, err := s.FirstIndex()
	if err != nil {
		return nil, 0, err
	}
	var out []entry
	var log raft.Log
	for i := max(first, r.Index-r.Offset+1); i <= last; i++ {
		if err := s.GetLog(i, &log); err != nil {
			return nil, 0, err
		}
		if log.Type == raft.LogCommand {
			out = append(out, entry{i, log.Data})
		}
	}
	if err := s.GetLog(last, &log); err != nil {
		return nil, 0, err
	}
	return out, log.Term, nil
}

// takeCensus asks all hosts that it can think of. This host's own comes first.
func (l *Ledger) takeCensus(ctx context.Context, id cluster.ID, more *cluster.Registry) ([]census, error) {
	own, err := l.census()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, censusTime)
	defer cancel()
	at := map[netip.AddrPort]bool{}
	for _, r := range []*cluster.Registry{own.Registry, more} {
		for _, places := range l.others(r) {
			for _, a := range places {
				at[a] = true
			}
		}
	}
	asking, cancelJoin := context.WithTimeout(ctx, patience)
	for _, a := range l.askJoin(asking) {
		if a.err == nil && !a.self && a.at.IsValid() {
			at[a.at] = true
		}
	}
	cancelJoin()
	var mu sync.Mutex
	var wg sync.WaitGroup
	heard := map[cluster.HostID]census{l.cfg.Host: own}
	for a := range at {
		wg.Go(func() {
			c, err := call[censusRequest, census](ctx, l, a, censusMethod, censusRequest{id})
			if err != nil || c.Registry == nil || c.Host.ID == l.cfg.Host {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			heard[c.Host.ID] = c
		})
	}
	wg.Wait()
	out := []census{own}
	for _, host := range slices.Sorted(maps.Keys(heard)) {
		if host != l.cfg.Host {
			out = append(out, heard[host])
		}
	}
	return out, nil
}

// highest finds the newest copy, and goes on from it with the log of a voter
// that has more, as far as that is a continuation of it. It says whose they
// were.
func highest(all []census) (*cluster.Registry, string) {
	best := all[0]
	for _, c := range all[1:] {
		if newer(c.Registry, best.Registry) {
			best = c
		}
	}
	var tail []entry
	var from census
	for _, c := range all {
		rest, ok := continues(best.Registry, c)
		if !ok || len(rest) == 0 {
			continue
		}
		if len(tail) == 0 || c.Term > from.Term || c.Term == from.Term && rest[len(rest)-1].Index > tail[len(tail)-1].Index {
			tail, from = rest, c
		}
	}
	base, whose := best.Registry, best.Host.Name
	for _, e := range tail {
		base, _ = step(base, e)
	}
	if len(tail) > 0 && from.Host.ID != best.Host.ID {
		whose += " and the log of " + from.Host.Name
	}
	return base, whose
}

// continues returns what a voter's log has after a committed registry; false
// when the log went another way.
func continues(base *cluster.Registry, c census) ([]entry, bool) {
	if c.Registry.Gen != base.Gen {
		return nil, false
	}
	r, rest := c.Registry, c.Tail
	for r.Index < base.Index && len(rest) > 0 {
		r, _ = step(r, rest[0])
		rest = rest[1:]
	}
	if r.Index != base.Index {
		return nil, false
	}
	a, e1 := json.Marshal(r)
	b, e2 := json.Marshal(base)
	return rest, e1 == nil && e2 == nil && string(a) == string(b)
}
