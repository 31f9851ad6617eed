package ledger

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

const (
	// patience is how long one peer may take to answer a small question, and
	// redial the longest pause before the next try: together below 2 s.
	patience = 1400 * time.Millisecond
	redial   = 500 * time.Millisecond
	// gossips is how many hosts, besides those of JOIN, are asked at a time
	// where the voters are.
	gossips = 3
	// lookEvery is how many tries come to one such question: usually the voter
	// is just down.
	lookEvery = 4
)

// pause spreads the tries of many hosts.
func pause() time.Duration { return redial/2 + rand.N(redial/2) }

// keepFollowing holds a stream to the leader, for ever, unless this host leads.
func (l *Ledger) keepFollowing(ctx context.Context) {
	for try := 0; ctx.Err() == nil; try++ {
		changed := l.watch()
		if l.leads() || l.keepsAlone() {
			l.wait(ctx, changed, time.Minute)
			continue
		}
		at, err := l.lookUp(ctx, l.ID())
		if err == nil {
			began := time.Now()
			if err = l.follow(ctx, at); err != nil {
				err = fmt.Errorf("follow the leader at %s: %w", at, plain(err))
			}
			if time.Since(began) > patience {
				try = 0
			}
			l.missed(at)
		}
		if ctx.Err() != nil {
			return
		}
		if try%lookEvery == 0 {
			l.lookAround(ctx)
		}
		if err == nil {
			continue // the leader has changed, or this host's server
		}
		l.note(err.Error())
		l.wait(ctx, l.watch(), pause())
	}
}

// keepsAlone reports whether the only voter is on this host, or may be: its log
// is not open yet.
func (l *Ledger) keepsAlone() bool {
	if r := l.local(); r != nil {
		return r.alone()
	}
	return hasLog(l.cfg.Dir)
}

// follow keeps the copy up to date from the leader until the stream breaks. It
// returns nil when there is another leader, or another server on this host.
func (l *Ledger) follow(ctx context.Context, at netip.AddrPort) error {
	ctx, done, err := l.along(ctx, at)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	server := l.server()
	own := l.Registry()
	moved := false
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		for {
			changed := l.watch()
			if l.leaderAt() != at || l.server() != server || l.leads() {
				moved = true
				cancel()
				return
			}
			if !l.wait(ctx, changed, time.Minute) {
				return
			}
		}
	})
	var r *cluster.Registry
	err = transport.CallStream(ctx, l.cfg.Transport, at, followMethod, followRequest{l.ID(), own.Gen, own.Index, server}, func(u update) error {
		if u.Registry != nil {
			if own := l.Registry(); own.Gen > u.Registry.Gen || own.Gen == u.Registry.Gen && own.Index > max(u.End, u.Registry.Index) {
				return fmt.Errorf("its log ends at %d and this host has seen %d already: the disk there was set back; bring back its newer state", u.End, own.Index)
			}
			// Of several voters none is set back without the others noticing: then it
			// is this host that was, and still claims what it had given back.
			if why := l.disowned(u.Registry); why != "" && l.onlyVoter(u) {
				return l.protest(ctx, at, u.Registry, why)
			}
			r = u.Registry
		}
		for _, e := range u.Entries {
			r, _ = step(r, e)
		}
		if r != nil {
			l.mirror.advance(r)
		}
		if u.Voters != nil {
			l.learn(u.Voters)
		}
		if r != nil {
			l.note("")
		}
		return l.review(r, u)
	})
	cancel()
	watching.Wait()
	if moved {
		return nil
	}
	return err
}

// lookAround asks members where the voters are, for the next try.
func (l *Ledger) lookAround(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers := l.ask(ctx, l.some())
	for _, a := range l.askJoin(ctx) {
		answers = append(answers, a.answer)
	}
	id := l.ID()
	var hints []netip.AddrPort
	for _, a := range answers {
		l.consider(ctx, a)
		if a.err == nil && a.reply.Cluster == id {
			for _, v := range a.reply.Voters {
				hints = append(hints, v.Address)
			}
		}
	}
	slices.SortFunc(hints, netip.AddrPort.Compare)
	hints = slices.Compact(hints)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.hints, hints) {
		l.hints = hints
		l.notify()
	}
}

// onlyVoter reports whether the leader that sent an update is the only voter.
func (l *Ledger) onlyVoter(u update) bool {
	if u.Voters != nil {
		return len(u.Voters) == 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.voters) == 1
}
