package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

const (
	// proposeTime bounds a Propose, so that a driver call that makes one still
	// answers Docker in time.
	proposeTime = 5 * time.Second
	// attemptTime bounds one try, so that an answer that got lost is asked for
	// again.
	attemptTime = 1500 * time.Millisecond
	// catchUp bounds how long Propose waits for the copy to include what was
	// done.
	catchUp = time.Second
	// refusedPause is kept after a Hello that failed.
	refusedPause = 2 * time.Second
)

// Propose asks the cluster for one change and returns its result. It stamps
// the command with host, session and request, and takes at most five seconds.
// A refusal is returned as a *cluster.Refusal. An *Unreachable says that no
// leader answered, through one change of leader at least; the command may be applied later all the same, but never
// after a later one of this host.
//
// Normally the copy includes the change when Propose returns.
func (l *Ledger) Propose(ctx context.Context, c cluster.Command) (cluster.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	c.Host, c.Request = l.cfg.Host, 1
	if why := rules.Validate(c); why != nil {
		return cluster.Result{}, why
	}
	res, err := l.inTurn(ctx, c)
	if err != nil {
		return cluster.Result{}, err
	}
	moment, done := context.WithTimeout(ctx, catchUp)
	defer done()
	_ = l.Await(moment, res.Index) // normally; see above
	if res.Refused != nil {
		return res, res.Refused
	}
	return res, nil
}

func (l *Ledger) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return l.unreachable(ctx.Err())
	}
}

func (l *Ledger) release() { <-l.turn }

func (l *Ledger) inTurn(ctx context.Context, c cluster.Command) (cluster.Result, error) {
	// To enter a cluster needs the turn.
	id, err := l.want(ctx)
	if err != nil {
		return cluster.Result{}, l.unreachable(err)
	}
	if err := l.take(ctx); err != nil {
		return cluster.Result{}, err
	}
	defer l.release()
	l.request++
	c.Request = l.request
	if c.Confirm != nil { // of a host that gets no session any more
		if err := l.keepForgotten(); err != nil {
			return cluster.Result{}, err
		}
		c.Confirm = &cluster.Confirm{Machine: l.cfg.Self.Machine}
		return l.submit(ctx, id, c)
	}
	for {
		if c.Session = l.openSession(); c.Session == 0 {
			if err := l.sayHello(ctx, id); err != nil {
				return cluster.Result{}, err
			}
			continue
		}
		res, err := l.submit(ctx, id, c)
		// That session is over, so this command was not done in it just now.
		// Under the next one it is a new command.
		if err == nil && res.Refused != nil && ctx.Err() == nil &&
			(res.Refused.Code == cluster.StaleSession || res.Refused.Code == cluster.UnknownHost) {
			l.endSession(c.Session)
			continue
		}
		return res, err
	}
}

// submit sends a command until it is answered, always as the same request.
func (l *Ledger) submit(ctx context.Context, id cluster.ID, c cluster.Command) (res cluster.Result, err error) {
	err = l.persist(ctx, func() error {
		return l.atLeader(ctx, id, func(r *replica) (err error) {
			res, err = l.commit(ctx, r, c)
			return err
		}, func(ctx context.Context, at netip.AddrPort) (netip.AddrPort, error) {
			reply, err := call[proposeRequest, proposeReply](ctx, l, at, proposeMethod, proposeRequest{id, c})
			switch {
			case reply.Result != nil:
				res = *reply.Result
			case err == nil && !reply.Other.IsValid():
				err = errors.New("the leader's answer is empty")
			}
			return reply.Other, err
		})
	})
	return res, err
}

// persist does try until it succeeds, is refused, or ctx ends.
func (l *Ledger) persist(ctx context.Context, try func() error) error {
	var last error
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		changed := l.watch()
		err := try()
		if err == nil {
			return nil
		}
		var refusal *cluster.Refusal
		if errors.As(err, &refusal) {
			return refusal
		}
		// A try that the end of the time cut short says less than the one before.
		if last == nil || ctx.Err() == nil && !cutShort(ctx, err) {
			last = err
		}
		if !l.wait(ctx, changed, wait) {
			return l.unreachable(last)
		}
	}
}

// cutShort reports an error that comes of ctx's deadline, which a connection
// may notice a moment before ctx does.
func cutShort(ctx context.Context, err error) bool {
	end, ok := ctx.Deadline()
	return ok && errors.Is(err, context.DeadlineExceeded) && time.Until(end) < 100*time.Millisecond
}

var errElsewhere = errors.New("the leader is changing")

// atLeader does something once, here when this host leads, else at the leader:
// remote may return where the leader is instead.
func (l *Ledger) atLeader(ctx context.Context, id cluster.ID, local func(*replica) error, remote func(context.Context, netip.AddrPort) (netip.AddrPort, error)) error {
	r, err := l.serving(id)
	if err == nil {
		return local(r)
	}
	if r := l.local(); r != nil && r.alone() {
		return err
	}
	at, err := l.lookUp(ctx, id)
	if err != nil {
		return err
	}
	trying, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	other, err := remote(trying, at)
	switch {
	case err != nil:
		if refusal := (*cluster.Refusal)(nil); !errors.As(err, &refusal) {
			l.wonder()
		}
		return err
	case other.IsValid():
		l.ledAt(other)
		return errElsewhere
	}
	return nil
}

// unreachable names the voters that gave no answer.
func (l *Ledger) unreachable(cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := &Unreachable{Cause: plain(cause), last: plain(cause)}
	if l.id != "" {
		for _, v := range l.voters {
			if v.Suffrage == Nonvoting {
				continue
			}
			u.Voters = append(u.Voters, v)
			if l.answered != nil && !l.answered[v.Host] {
				u.Missing = append(u.Missing, v)
			}
		}
	}
	if l.waiting != "" && (len(u.Voters) == 0 || errors.Is(cause, context.DeadlineExceeded)) {
		u.Cause = errors.New(l.waiting)
	}
	return u
}

// openSession returns the session to speak in, 0 when a Hello is due first.
func (l *Ledger) openSession() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

func (l *Ledger) endSession(session uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == session {
		l.session = 0
		l.notify()
	}
}

// sayHello opens a session. The caller holds the turn. All Hellos of a run have
// one nonce, so that a Hello whose answer was lost opens one session.
func (l *Ledger) sayHello(ctx context.Context, id cluster.ID) error {
	l.mu.Lock()
	departed := l.departed
	l.mu.Unlock()
	if departed {
		return errors.New("this host left the cluster, or is about to: it joins again when it is started anew")
	}
	for {
		if err := l.prepare(ctx); err != nil {
			return err
		}
		res, err := l.greet(ctx, id)
		if err != nil {
			return err
		}
		why := res.Refused
		if why != nil && why.Code == cluster.OtherGen && why.Gen > l.prepared {
			l.told = max(l.told, why.Gen)
			continue
		}
		l.mu.Lock()
		if l.session = res.Index; why != nil {
			l.session = 0
		}
		l.notify()
		l.mu.Unlock()
		l.noteRefused(why)
		if why == nil {
			return nil
		}
		if why.Code == cluster.Forgotten {
			if err := l.keepForgotten(); err != nil {
				l.log.WithError(err).Error("the next start will ask the cluster again")
			}
		}
		return why
	}
}

// prepare gets this host ready for the newest registry that it knows of, if
// that was rebuilt. The caller holds the turn.
func (l *Ledger) prepare(ctx context.Context) error {
	gen := max(1, l.prepared, l.told, l.Registry().Gen)
	if gen == max(1, l.prepared) || l.cfg.Prepare == nil {
		l.prepared = gen
		return nil
	}
	err := l.cfg.Prepare(ctx, gen)
	if err != nil {
		err = fmt.Errorf("prepare for the registry that was rebuilt (generation %d): %w", gen, err)
	} else {
		l.prepared = gen
	}
	l.noteUnready(err)
	return err
}

// greet says hello once. The caller holds the turn.
func (l *Ledger) greet(ctx context.Context, id cluster.ID) (cluster.Result, error) {
	hello := l.cfg.Self
	hello.Nonce, hello.Gen = l.nonce, l.prepared
	if l.cfg.Claims != nil {
		hello.Claims = l.cfg.Claims()
	}
	l.keepStanding(0)
	res, err := l.submit(ctx, id, cluster.Command{Host: l.cfg.Host, Hello: &hello})
	if err == nil && res.Refused == nil {
		l.keepStanding(res.Index)
	}
	return res, err
}

// keepSession says hello when there is no session, and when the copy shows that
// another run of this host took over, or that the registry was rebuilt.
func (l *Ledger) keepSession(ctx context.Context) {
	changed := l.mirror.subscribe()
	defer l.mirror.unsubscribe(changed)
	for ctx.Err() == nil {
		registry := l.Registry()
		session := l.openSession()
		if at := registry.Hosts[l.cfg.Host].Session; session != 0 && at != session && registry.Index >= session {
			l.endSession(session)
			session = 0
		}
		if session != 0 {
			if !l.wait(ctx, changed, time.Minute) {
				return
			}
			continue
		}
		// A Hello is an entry in the log: one that is refused, or that two
		// clones of a host say in turn, must not fill it.
		if l.renew(ctx) == nil {
			l.wait(ctx, nil, time.Second)
		} else {
			l.wait(ctx, nil, refusedPause)
		}
	}
}

func (l *Ledger) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	if l.openSession() != 0 {
		return nil
	}
	return l.sayHello(ctx, l.ID())
}
