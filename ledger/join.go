package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/transport"
)

// JoinState is a member of JOIN, as a host without a cluster sees it.
type JoinState = founding.Member

// search is what is to be seen of a host's search for a cluster.
type search struct {
	on      bool
	founds  cluster.ID
	promise founding.Promise
	first   cluster.HostID // who is to found, when it is not this host
	text    string
	stuck   bool
	members []JoinState
}

// persuadeTime bounds how long another host is asked to found a cluster.
const persuadeTime = proposeTime - 500*time.Millisecond

// settle returns when this host belongs to a cluster.
func (l *Ledger) settle(ctx context.Context) error {
	if l.ID() != "" {
		return nil
	}
	if hasLog(l.cfg.Dir) {
		_, err := l.Cluster(ctx)
		return err
	}
	return l.seek(ctx)
}

// want waits until this host belongs to a cluster, and asks for one meanwhile.
func (l *Ledger) want(ctx context.Context) (cluster.ID, error) {
	count := func(n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wants += n
		l.notify()
	}
	if id := l.ID(); id != "" {
		return id, nil
	}
	count(1)
	defer count(-1)
	return l.Cluster(ctx)
}

// seeker is the shell around the machine of package founding.
type seeker struct {
	*Ledger
	m       *founding.Machine
	tasks   errgroup.Group
	replies map[string]whereReply // the newest of each peer
	unkept  bool                  // the last promise could not be written
}

// seek runs until this host belongs to a cluster.
func (l *Ledger) seek(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	config := founding.Config{Host: l.cfg.Host, Join: l.cfg.Join, Force: l.cfg.Force}
	if err := errors.Join(l.read(promiseKey, &config.Promise), l.read(knownKey, &config.Known)); err != nil {
		cancel()
		return err
	}
	s := &seeker{Ledger: l, m: founding.New(config), replies: map[string]whereReply{}}
	defer func() {
		cancel()
		s.tasks.Wait()
	}()
	tick := time.NewTimer(0)
	defer tick.Stop()
	s.publish()
	for ctx.Err() == nil {
		changed := l.watch()
		l.mu.Lock()
		id, wanted, held := l.id, l.wants > 0, l.held > 0
		l.mu.Unlock()
		var e founding.Event
		switch {
		case id != "":
			return nil
		case held:
			l.wait(ctx, changed, time.Minute)
			continue
		case wanted && !s.m.Wanted():
			e = founding.Want{}
		case !wanted && s.m.Wanted():
			e = founding.Sated{}
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
				continue
			case e = <-l.events:
			case <-tick.C:
				tick.Reset(pause())
				e = founding.Tick{Fresh: cluster.ID(random())}
			}
		}
		if h, ok := e.(heard); ok {
			s.replies[h.peer], e = h.reply, h.Event
		}
		for _, effect := range s.m.Step(e) {
			s.do(ctx, effect)
		}
		s.publish()
	}
	return ctx.Err()
}

// heard is an event with all that the peer said.
type heard struct {
	founding.Event
	peer  string
	reply whereReply
}

// post gives an event to the search; false when it is over.
func (l *Ledger) post(ctx context.Context, e founding.Event) bool {
	for {
		changed := l.watch()
		if l.ID() != "" {
			return false
		}
		select {
		case l.events <- e:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *seeker) do(ctx context.Context, e founding.Effect) {
	task := func(d time.Duration, do func(context.Context) founding.Event) {
		s.tasks.Go(func() error {
			bounded, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			s.post(ctx, do(bounded))
			return nil
		})
	}
	switch e := e.(type) {
	case founding.Ask:
		task(patience, func(ctx context.Context) founding.Event {
			a := s.askEntry(ctx, e.Peer)
			return heard{founding.Answered{Peer: e.Peer, At: a.at, Self: a.self, Answer: a.reply.Answer, Err: text(a.err)}, e.Peer, a.reply}
		})
	case founding.Persuade:
		to := s.placeOf(e.Peer)
		task(persuadeTime, func(ctx context.Context) founding.Event {
			reply, err := call[foundRequest, whereReply](transport.Anonymous(ctx), s.Ledger, to, foundMethod, foundRequest{})
			return heard{founding.Persuaded{Peer: e.Peer, Answer: reply.Answer, Err: text(err)}, e.Peer, reply}
		})
	case founding.Record:
		to := s.placeOf(e.Peer)
		s.mu.Lock()
		promise := founding.Promise{Cluster: e.Cluster, Founder: s.cfg.Host, Name: s.cfg.Self.Name, At: s.cfg.Self.Address}
		s.mu.Unlock()
		task(patience, func(ctx context.Context) founding.Event {
			reply, err := call[recordRequest, recordReply](transport.Anonymous(ctx), s.Ledger, to, recordMethod, recordRequest{promise, e.Force})
			return heard{founding.Recorded{Peer: e.Peer, Cluster: e.Cluster, OK: reply.OK, Answer: reply.Host.Answer, Err: text(err)}, e.Peer, reply.Host}
		})
	case founding.Keep:
		err := s.write(promiseKey, e.Promise)
		if s.unkept = err != nil; s.unkept {
			s.log.WithError(err).Error("cannot record the promise to a founder")
		}
	case founding.Reply:
		e.Token.(chan bool) <- e.OK && !s.unkept
	case founding.Found:
		s.tasks.Go(func() error {
			err := s.begin(ctx, cluster.Command{Host: s.cfg.Host, Found: &cluster.Found{Cluster: e.Cluster}})
			if err != nil {
				s.post(ctx, founding.Founded{Err: text(err)})
			}
			return nil // the log itself tells of its cluster
		})
	case founding.Enter:
		var voters []Server
		for _, p := range e.Peers {
			for _, v := range s.replies[p].Voters {
				if !slices.Contains(voters, v) {
					voters = append(voters, v)
				}
			}
		}
		s.tasks.Go(func() error {
			err := s.enter(ctx, e.Cluster, voters)
			if err == nil {
				return nil
			}
			if refusal := (*cluster.Refusal)(nil); errors.As(err, &refusal) {
				s.wait(ctx, nil, refusedPause)
			}
			s.post(ctx, founding.Entered{Err: text(err)})
			return nil
		})
	}
}

// placeOf is where a peer was reached.
func (s *seeker) placeOf(peer string) netip.AddrPort {
	for _, m := range s.m.Members() {
		if m.Entry == peer {
			return m.Address
		}
	}
	return netip.AddrPort{}
}

// publish shows the others, and people, how the search stands.
func (s *seeker) publish() {
	now := search{on: true, founds: s.m.Founds(), promise: s.m.Promise(), first: s.m.First(), members: s.m.Members()}
	now.text, now.stuck = s.m.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.search
	s.search, s.waiting = now, now.text
	if was.text != now.text || was.founds != now.founds || !slices.Equal(was.members, now.members) {
		if entry := s.log.WithField("cause", now.text); was.text != now.text && now.stuck {
			entry.Warn("this host belongs to no cluster yet")
		}
		s.notify()
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return plain(err).Error()
}

// enter says hello to a cluster that others told about.
func (l *Ledger) enter(ctx context.Context, id cluster.ID, voters []Server) error {
	l.mu.Lock()
	l.hints = nil
	for _, v := range voters {
		l.hints = append(l.hints, v.Address)
	}
	self := l.cfg.Self.Address
	l.mu.Unlock()
	if len(voters) > 0 && !slices.ContainsFunc(voters, func(v Server) bool { return v.Address != self }) {
		return fmt.Errorf("the log of cluster %s was on this very host, and is gone: bring its state back, or run `isthmus recover` on another member, which goes on from its copy", id)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	if err := l.sayHello(ctx, id); err != nil {
		if u := (*Unreachable)(nil); errors.As(err, &u) {
			// What this host waits for is this very attempt.
			err = &Unreachable{Voters: voters, Cause: u.last}
		}
		return fmt.Errorf("enter cluster %s: %w", id, err)
	}
	l.learn(voters)
	return l.belong(id)
}

// foundMethod asks a host without a cluster to found one.
const foundMethod = "ledger.found"

type foundRequest struct{}

func (l *Ledger) serveFound(ctx context.Context, from cluster.HostID, _ foundRequest) (whereReply, error) {
	ctx, cancel := context.WithTimeout(ctx, persuadeTime-250*time.Millisecond)
	defer cancel()
	l.mu.Lock()
	first := l.search.first
	l.mu.Unlock()
	if first == from {
		return whereReply{}, errors.New("by its own JOIN it waits for that host in turn: give all hosts one and the same JOIN, or leave it empty on the one that is to found the cluster")
	}
	if _, err := l.want(ctx); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return whereReply{}, errors.New(l.waiting)
	}
	return l.where("")
}

// recordMethod asks a host to record a founder's promise.
const recordMethod = "ledger.record"

type recordRequest struct {
	Promise founding.Promise `json:"promise"`
	Force   bool             `json:"force,omitempty"`
}

type recordReply struct {
	OK   bool       `json:"ok"`
	Host whereReply `json:"host"`
}

func (l *Ledger) serveRecord(ctx context.Context, from cluster.HostID, req recordRequest) (recordReply, error) {
	if req.Promise.Founder != from || req.Promise.Cluster == "" {
		return recordReply{}, cluster.Refuse(cluster.Invalid, "host %s may not speak for host %s", from.Short(), req.Promise.Founder.Short())
	}
	var out recordReply
	token := make(chan bool, 1)
	if l.post(ctx, founding.Asked{Promise: req.Promise, Force: req.Force, Token: token}) {
		select {
		case out.OK = <-token:
		case <-ctx.Done():
			return recordReply{}, ctx.Err()
		}
	}
	var err error
	out.Host, err = l.where("")
	return out, err
}

var (
	promiseKey = []byte("promise") // founding.Promise
	knownKey   = []byte("known")   // []netip.AddrPort: members of the cluster to enter
)

// read and write are for small values that must be on disk before anything
// follows from them.
func (l *Ledger) read(key []byte, into any) error {
	b, err := load(l.cfg.DB, key)
	if err == nil && b != nil {
		err = json.Unmarshal(b, into)
	}
	return err
}

func (l *Ledger) write(key []byte, val any) error {
	b, err := json.Marshal(val)
	if err == nil {
		err = save(l.cfg.DB, key, b)
	}
	return err
}
