package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// order asks keepLog to put another log in the place of the one on this host.
type order struct {
	change func(dir string) error
	done   chan error
}

// replaceLog ends the voter on this host, if there is one, lets change do what
// it likes with the directory of its log, and starts a voter on what is there
// then, if anything is. It returns when change did. Run must be running.
func (l *Ledger) replaceLog(ctx context.Context, change func(dir string) error) error {
	o := order{change, make(chan error, 1)}
	select {
	case l.orders <- o:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin makes this host the only voter of a fresh log that begins with first.
func (l *Ledger) begin(ctx context.Context, first cluster.Command) error {
	gen := uint64(1)
	if first.Rebuild != nil {
		gen = first.Rebuild.Registry.Gen
	}
	return l.replaceLog(ctx, func(dir string) error { return writeLog(dir, l.cfg.Host, gen, &first) })
}

// keepLog runs a voter on this host while it has a log, until ctx ends. A log
// that must not be used any more is deleted: the host is a client then, until
// the leader enlists it again.
func (l *Ledger) keepLog(ctx context.Context) error {
	for {
		running, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- l.vote(running) }()
		var lost error
		select {
		case <-ctx.Done():
			stop()
			<-ended
			return ctx.Err()
		case o := <-l.orders:
			stop()
			<-ended
			o.done <- o.change(l.cfg.Dir)
			l.touch()
			continue
		case lost = <-ended:
			stop()
		}
		if lost != nil {
			l.log.WithField("cause", lost).Warn("this host gives up its log, and takes part as a client")
			if err := wipeLog(l.cfg.Dir); err != nil {
				l.log.WithError(err).Error("cannot delete the log")
				if !l.wait(ctx, nil, pause()) {
					return ctx.Err()
				}
			}
			l.touch()
			continue
		}
		select { // there is no log
		case <-ctx.Done():
			return ctx.Err()
		case o := <-l.orders:
			o.done <- o.change(l.cfg.Dir)
		}
	}
}

// touch wakes those who wait for the log on this host to be there, or gone.
func (l *Ledger) touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notify()
}

// vote runs the log on this host, if there is one, until ctx ends. It returns
// why the log must not be used any more, or nil.
func (l *Ledger) vote(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	moved := make(chan struct{}, 1)
	r := l.openLog(ctx, func(why error) { end(lostLog{why}) }, moved)
	if r == nil {
		return nil
	}
	l.mu.Lock()
	l.replica, l.office, l.doubt = r, false, nil
	l.waiting, l.reachable = "the log on this host is starting", false
	l.notify()
	l.mu.Unlock()
	var parts sync.WaitGroup
	parts.Go(func() { r.run(ctx, l.leadership) })
	parts.Go(func() { l.govern(ctx, r) })
	parts.Go(func() { l.exchange(ctx, r) })
	parts.Go(func() { l.watchLeader(ctx, r, moved) })
	l.serveOffice(ctx, r)
	if err := r.close(); err != nil && !errors.Is(err, os.ErrClosed) {
		l.log.WithError(err).Warn("cannot close the log")
	}
	parts.Wait()
	l.mu.Lock()
	l.replica, l.office, l.reachable = nil, false, false
	l.notify()
	l.mu.Unlock()
	if why := (lostLog{}); errors.As(context.Cause(ctx), &why) {
		return why.error
	}
	return nil
}

// lostLog says why a log must not be used any more.
type lostLog struct{ error }

// openLog opens the log on this host until that succeeds; nil when there is
// none, or ctx ended. That of a clone stays closed.
func (l *Ledger) openLog(ctx context.Context, lost func(error), moved chan struct{}) *replica {
	for hasLog(l.cfg.Dir) {
		err := finishLog(l.cfg.Dir)
		if err == nil {
			// What the copy of a voter takes in, the original would lack.
			if why := l.impostor(ctx, l.Registry()); why != nil {
				l.noteRefused(why)
				err = why
			}
		}
		if err == nil {
			var r *replica
			r, err = openReplica(replicaConfig{
				dir: l.cfg.Dir, listener: l.cfg.Transport.Listener(transport.Raft), dial: l.dialRaft, admit: l.knowsServer,
				witness: l.witness, election: l.cfg.Timing.Election,
				applied: l.mirror.advance, changed: func() { signal(moved) }, lost: lost, log: l.log,
			})
			if err == nil {
				return r
			}
		}
		l.note(err.Error())
		if !l.wait(ctx, nil, pause()) {
			return nil
		}
	}
	return nil
}

// watchLeader lets this host follow whom its server follows.
func (l *Ledger) watchLeader(ctx context.Context, r *replica, moved <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-moved:
		}
		if at := l.other(); at.IsValid() {
			l.ledAt(at)
		}
	}
}

// serveOffice lets the log serve others whenever this host leads, and returns
// when ctx ends.
func (l *Ledger) serveOffice(ctx context.Context, r *replica) {
	for ctx.Err() == nil {
		changed := l.watch()
		rest := time.Minute
		l.mu.Lock()
		office := l.office
		l.mu.Unlock()
		switch id := r.Registry().Cluster; {
		case !r.ready.Load() && office:
			l.mu.Lock()
			l.office = false
			l.notify()
			l.mu.Unlock()
		case r.ready.Load() && !office && id == "":
			rest = pause() // its first command is being applied
		case r.ready.Load() && !office:
			if err := l.takeOffice(ctx, r, id); err != nil {
				l.note(err.Error())
				rest = refusedPause
			}
		}
		l.wait(ctx, changed, rest)
	}
}

// takeOffice lets the other hosts know that this one serves the log.
func (l *Ledger) takeOffice(ctx context.Context, r *replica, id cluster.ID) error {
	if own, log := l.Registry(), r.Registry(); newer(own, log) {
		if own.Gen > r.gen && l.keptElsewhere() {
			err := fmt.Errorf("the log on this host is of generation %d, and went on in generation %d", r.gen, own.Gen)
			r.lost(err)
			return err
		}
		return l.reportSetBack(r, own.Gen, own.Index)
	}
	if r.alone() {
		// Nobody else keeps the log, but others may have seen more of it.
		if !l.awaitWitnesses(ctx) {
			return ctx.Err()
		}
		w := l.Boot().Witness
		if why := l.impostor(ctx, r.Registry(), w.Host.Address); why != nil {
			l.noteRefused(why)
			return why
		}
		switch own := r.Registry(); {
		case w.Gen > own.Gen:
			return fmt.Errorf("the log on this host is of generation %d, and went on in generation %d", own.Gen, w.Gen) // see outdated
		case w.Gen == own.Gen && w.Index > own.Index:
			return l.reportSetBack(r, w.Gen, w.Index)
		}
	}
	l.mu.Lock()
	doubt := l.doubt
	l.mu.Unlock()
	if doubt != nil {
		return doubt
	}
	// Who hears of the cluster is to hear of its voters, too.
	l.learn(l.servers(r))
	if err := l.belong(id); err != nil {
		return err
	}
	l.mu.Lock()
	l.office, l.answered = true, nil
	l.led = netip.AddrPort{}
	l.notify()
	l.mu.Unlock()
	l.note("")
	return nil
}

// reportSetBack has the log rebuilt, if no other voter can fill it again.
func (l *Ledger) reportSetBack(r *replica, gen, index uint64) error {
	why := setBackText(r.Registry(), gen, index)
	if r.alone() {
		l.wasSetBack(r, why)
	}
	return errors.New(why)
}

// keptElsewhere reports whether another host is known to keep the log.
func (l *Ledger) keptElsewhere() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.voters, func(v Server) bool { return v.Host != l.cfg.Host })
}

func setBackText(own *cluster.Registry, gen, index uint64) string {
	return fmt.Sprintf("the log on this host ends at %d (generation %d), and a copy at %d (generation %d): its disk was set back, and the log is rebuilt from the copies and the claims of all hosts in reach", own.Index, own.Gen, index, gen)
}

// distrust ends this host's office for good: others have seen more than its log
// holds. Only another log ends this.
func (l *Ledger) distrust(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.doubt == nil {
		l.doubt, l.office = why, false
		l.log.WithField("cause", why).Error("the log on this host was set back")
		l.notify()
	}
}

// leadership is called when the local replica became ready, or ceased to be.
func (l *Ledger) leadership() {
	l.mu.Lock()
	r, office := l.replica, l.office
	l.notify()
	l.mu.Unlock()
	switch {
	case r == nil || !office:
	case r.ready.Load():
		l.note("")
	case r.alone():
		l.note(plain(r.trouble()).Error())
	default:
		l.note("this voter leads no more: the voters choose a leader")
	}
}

// server is the ID of the server on this host, "" when it has none.
func (l *Ledger) server() string {
	if r := l.local(); r != nil {
		return string(r.server)
	}
	return ""
}
