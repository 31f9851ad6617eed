package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/isthmus-net/isthmus/cluster"
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
	return l.replaceLog(ctx, func(dir string) error {
		return writeLog(dir, l.cfg.Host, l.cfg.Transport.Addr(), &first)
	})
}

// keepLog runs a voter on this host while it has a log, until ctx ends.
func (l *Ledger) keepLog(ctx context.Context) error {
	for {
		running, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			l.vote(running)
		}()
		select {
		case <-ctx.Done():
			stop()
			<-ended
			return ctx.Err()
		case o := <-l.orders:
			stop()
			<-ended
			o.done <- o.change(l.cfg.Dir)
		}
	}
}

// vote runs the log on this host, if there is one, until ctx ends.
func (l *Ledger) vote(ctx context.Context) {
	var r *replica
	for hasLog(l.cfg.Dir) {
		err := finishLog(l.cfg.Dir)
		if err != nil {
			l.note(err.Error())
			if !l.wait(ctx, nil, pause()) {
				return
			}
			continue
		}
		r, err = openReplica(replicaConfig{
			dir: l.cfg.Dir, transport: l.cfg.Transport, admit: l.isVoter, applied: l.mirror.advance, log: l.log,
		})
		if err == nil {
			break
		}
		l.note(err.Error())
		if !l.wait(ctx, nil, pause()) {
			return
		}
	}
	if r == nil {
		return
	}
	l.mu.Lock()
	l.replica, l.office = r, false
	l.waiting, l.reachable = "the log on this host is starting", false
	l.notify()
	l.mu.Unlock()
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		r.run(ctx, l.leadership)
	}()
	l.serveOffice(ctx, r)
	<-ran
	l.mu.Lock()
	l.replica, l.office, l.reachable = nil, false, false
	l.notify()
	l.mu.Unlock()
	if err := r.close(); err != nil && !errors.Is(err, os.ErrClosed) {
		l.log.WithError(err).Warn("cannot close the log")
	}
}

// serveOffice lets the log serve others as soon as it may, and returns when
// ctx ends.
func (l *Ledger) serveOffice(ctx context.Context, r *replica) {
	for ctx.Err() == nil {
		changed := l.watch()
		if id := r.Registry().Cluster; r.ready.Load() && id != "" {
			if err := l.takeOffice(r, id); err != nil {
				l.note(err.Error())
			}
			<-ctx.Done()
			return
		}
		l.wait(ctx, changed, pause())
	}
}

// takeOffice lets the other hosts know that this one serves the log.
func (l *Ledger) takeOffice(r *replica, id cluster.ID) error {
	if own := l.Registry(); newer(own, r.Registry()) {
		return fmt.Errorf("the log on this host ends at %d and its copy at %d: the log was set back; bring back its newer state", r.Registry().Index, own.Index)
	}
	if err := l.belong(id); err != nil {
		return err
	}
	l.learn(l.servers(r))
	l.mu.Lock()
	l.office = true
	l.notify()
	l.mu.Unlock()
	l.note("")
	return nil
}

// leadership is called when the local replica became ready, or ceased to be.
func (l *Ledger) leadership() {
	l.mu.Lock()
	r, office := l.replica, l.office
	l.notify()
	l.mu.Unlock()
	switch {
	case !office:
	case r.ready.Load():
		l.note("")
	default:
		l.note(plain(r.trouble()).Error())
	}
}
