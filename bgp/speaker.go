package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
)

// Settle is how long a speaker waits for routers to say all before it delivers
// imports without them.
const Settle = 30 * time.Second

const (
	beat       = 500 * time.Millisecond
	cutPause   = time.Minute      // before a router that sent too much is tried again
	findPause  = 2 * time.Second  // between two looks for the neighbour on an interface
	lookAgain  = 30 * time.Second // for a router on an interface that does not answer: it may be another one now
	signPause  = time.Minute      // before a password is tried to be set again
	farewellBy = 5 * time.Second  // for closing the sessions
)

// Speaker announces prefixes to routers. Its methods are safe for concurrent use.
type Speaker struct {
	config   Config
	log      logrus.FieldLogger
	sessions *sessions
	cutPause time.Duration
	ended    atomic.Bool // the library's log lines mean nothing any more
	dirty    atomic.Bool // something that may be imported has changed
	wanted   chan struct{}

	mu        sync.Mutex
	lib       *server.BgpServer // while it runs
	stated    bool              // Announce was called
	want      map[netip.Prefix]Route
	imported  []Route
	leftOut   int
	withdrawn bool
}

// New makes a Speaker. It refuses a Config that Parse did not make whole.
func New(c Config, log logrus.FieldLogger) (*Speaker, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return &Speaker{
		config: c, log: log, sessions: newSessions(c, time.Now), cutPause: cutPause,
		wanted: make(chan struct{}, 1), want: map[netip.Prefix]Route{},
	}, nil
}

// Announce sets the full set of prefixes of this host. It does not wait for
// routers. A set with a route that cannot be announced is refused as a whole.
// After Withdraw it does nothing.
func (s *Speaker) Announce(routes []Route) error {
	want := map[netip.Prefix]Route{}
	var errs []error
	for _, r := range routes {
		if err := r.check(); err != nil {
			errs = append(errs, err)
		} else if o, ok := want[r.Prefix]; ok && o != r {
			errs = append(errs, fmt.Errorf("announce %v: two next hops, %v and %v", r.Prefix, o.NextHop, r.NextHop))
		}
		want[r.Prefix] = r
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.withdrawn {
		s.want, s.stated = want, true
		s.nudge()
	}
	return nil
}

// Withdraw takes back all that was announced, for good: routers hear of it at
// once, and the end of Run is a farewell.
func (s *Speaker) Withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.withdrawn = true
	s.want = map[netip.Prefix]Route{}
	s.nudge()
}

func (s *Speaker) nudge() {
	select {
	case s.wanted <- struct{}{}:
	default:
	}
}

// Run speaks until ctx ends, once per Speaker. It fails when it cannot listen.
func (s *Speaker) Run(ctx context.Context) error {
	lib := server.NewBgpServer(server.LoggerOption(slog.New(newBridge(s.log, &s.ended, s.hear)), &slog.LevelVar{}))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		lib.Serve()
		return nil
	})
	g.Go(func() error {
		err := s.drive(ctx, lib)
		s.mu.Lock()
		s.lib = nil
		farewell := s.withdrawn
		s.mu.Unlock()
		s.ended.Store(true)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellBy)
		defer cancel()
		// The second stop ends BFD; of BGP, which the first one ended with or
		// without a notification, it finds nothing.
		err = errors.Join(err, lib.StopBgp(end, &api.StopBgpRequest{AllowGracefulRestart: !farewell}))
		lib.Stop()
		return err
	})
	return g.Wait()
}

// drive keeps the library at what is wanted, until ctx ends.
func (s *Speaker) drive(ctx context.Context, lib *server.BgpServer) error {
	if err := begin(ctx, lib, s.config); err != nil {
		return err
	}
	if err := lib.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPeerUpdate: s.changed,
		OnBestPath:   func([]*apiutil.Path, time.Time) { s.dirty.Store(true) },
		OnPathEor:    s.saidAll,
	}, server.WatchPeer(), server.WatchBestPath(false), server.WatchEor(false)); err != nil {
		return fmt.Errorf("watch BGP: %w", err)
	}
	s.mu.Lock()
	s.lib = lib
	s.mu.Unlock()

	held := map[netip.Prefix]Route{}
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	settleBy := time.Now().Add(Settle)
	settled, behind := false, false
	s.dirty.Store(true) // the first set may be empty, and is told as well
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wanted:
			behind = true
		case <-ticker.C:
		}
		s.mu.Lock()
		want, stated := s.want, s.stated
		s.mu.Unlock()
		if behind {
			err := s.announce(lib, held, want)
			if behind = err != nil; behind {
				s.log.WithError(err).Error("announcing to routers failed")
			}
		}
		if stated {
			s.tend(ctx, lib)
		}
		settled = settled || s.sessions.settled() || time.Now().After(settleBy)
		if settled && s.dirty.Swap(false) {
			if err := s.importAll(lib); err != nil {
				s.log.WithError(err).Error("importing from routers failed")
			}
		}
	}
}

// announce makes what the library holds what is wanted. What fails is tried
// again with the next beat.
func (s *Speaker) announce(lib *server.BgpServer, held, want map[netip.Prefix]Route) error {
	var errs []error
	for _, prefix := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		route := want[prefix]
		if held[prefix] == route {
			continue
		}
		path, err := s.config.path(route)
		if err == nil {
			_, err = lib.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", prefix, err))
			continue
		}
		held[prefix] = route
	}
	for prefix, route := range held {
		if _, ok := want[prefix]; ok {
			continue
		}
		path, err := s.config.path(route)
		if err == nil {
			path.Withdrawal = true
			err = lib.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{path}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("withdraw %v: %w", prefix, err))
			continue
		}
		delete(held, prefix)
	}
	return errors.Join(errs...)
}

// tend adds routers that are due, and removes those that must not stay. Only
// this goroutine adds and removes.
func (s *Speaker) tend(ctx context.Context, lib *server.BgpServer) {
	now := time.Now()
	for _, x := range s.sessions.all {
		s.sessions.mu.Lock()
		flooded, due := x.flooded, !x.added && !now.Before(x.until)
		replaced := x.peer.Interface != "" && x.added && x.state == Connecting && now.Sub(x.since) > lookAgain
		s.sessions.mu.Unlock()
		switch {
		case flooded:
			s.cut(ctx, lib, x)
		case replaced:
			s.forget(ctx, lib, x)
		case due:
			s.add(ctx, lib, x)
		}
	}
}

// cut removes a router that sent too much, and with it what it sent.
func (s *Speaker) cut(ctx context.Context, lib *server.BgpServer, x *session) {
	err := s.remove(ctx, lib, x)
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if err != nil {
		x.lastError = err.Error()
		return // tried again with the next beat
	}
	x.flooded, x.until = false, time.Now().Add(s.cutPause)
	x.lastError = fmt.Sprintf("%s offers more than %d routes of one family: the session was cut, so that they do not fill this host's memory; filter what it sends to this host", x.peer.Name(), s.config.ReceiveMax)
	s.sessions.enter(x, Cut)
	s.log.WithField("router", x.peer.Name()).Error(x.lastError)
}

// add makes the library open a session; with a password, only one that is
// signed in both directions.
func (s *Speaker) add(ctx context.Context, lib *server.BgpServer, x *session) {
	s.sessions.mu.Lock()
	x.added = true // before the first event comes
	s.sessions.mu.Unlock()
	err := lib.AddPeer(ctx, &api.AddPeerRequest{Peer: s.config.neighbor(x.peer)})
	addr := x.peer.Addr
	if err == nil && x.peer.Interface != "" {
		addr, err = found(ctx, lib, x.peer.Interface)
	}
	s.sessions.mu.Lock()
	unsigned := x.unsigned
	x.unsigned = false
	switch {
	case err != nil && x.peer.Interface != "":
		x.added, x.until = false, time.Now().Add(findPause)
		x.lastError = fmt.Sprintf("find the router on %s: %v; it must be the only one there, and send router advertisements", x.peer.Interface, err)
	case err != nil:
		x.added, x.until = false, time.Now().Add(findPause)
		x.lastError = fmt.Sprintf("add %s: %v", x.peer.Name(), err)
	default:
		x.addr = addr
		s.sessions.enter(x, Connecting)
	}
	s.sessions.mu.Unlock()
	if err != nil || !unsigned {
		return
	}
	if err := s.remove(ctx, lib, x); err != nil {
		s.log.WithError(err).Error("a session without its password could not be closed")
		return
	}
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	x.until = time.Now().Add(signPause)
	s.sessions.enter(x, Waiting)
}

// forget makes the next beat look for another router on an interface.
func (s *Speaker) forget(ctx context.Context, lib *server.BgpServer, x *session) {
	if err := s.remove(ctx, lib, x); err != nil {
		s.log.WithError(err).Error("looking again for a router failed")
		return
	}
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	s.sessions.enter(x, Waiting)
}

// remove makes the library forget a router.
func (s *Speaker) remove(ctx context.Context, lib *server.BgpServer, x *session) error {
	s.sessions.mu.Lock()
	addr := x.addr
	x.added = false // its last events mean nothing any more
	s.sessions.mu.Unlock()
	err := lib.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()})
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if err != nil {
		x.added = true
		return fmt.Errorf("close the session with %s: %w", x.peer.Name(), err)
	}
	x.accepted = 0
	return nil
}

// importAll delivers the routes that were let in, if they changed.
func (s *Speaker) importAll(lib *server.BgpServer) error {
	var routes []Route
	accepted := map[netip.Addr]int{}
	if err := heard(lib, func(r Route, router netip.Addr, best bool) {
		accepted[router]++
		if best {
			routes = append(routes, r)
		}
	}); err != nil {
		s.dirty.Store(true)
		return err
	}
	kept, left := choose(routes, s.config.ImportMax)
	s.sessions.mu.Lock()
	for _, x := range s.sessions.all {
		x.accepted = accepted[x.addr]
	}
	s.sessions.mu.Unlock()

	s.mu.Lock()
	same := s.imported != nil && slices.Equal(s.imported, kept)
	grown := left > 0 && s.leftOut == 0
	s.imported, s.leftOut = kept, left
	s.mu.Unlock()
	if grown {
		s.log.WithField("routes", left).Warn("routers send more routes than BGP_IMPORT_MAX; the rest is left out")
	}
	if !same && s.config.Imported != nil {
		s.config.Imported(slices.Clone(kept))
	}
	return nil
}

// choose keeps at most max routes, the shortest prefixes first, and sorts them.
// It is never nil.
func choose(routes []Route, max int) (kept []Route, left int) {
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.compare(b))
	})
	left = len(routes) - min(len(routes), max)
	kept = append([]Route{}, routes[:len(routes)-left]...)
	slices.SortFunc(kept, Route.compare)
	return kept, left
}
