package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
	"github.com/isthmus-net/isthmus/transport"
)

const (
	// proposeTime bounds a Propose, so that a driver call that makes one still
	// answers Docker in time.
	proposeTime = 5 * time.Second
	// attemptTime bounds one try, so that an answer that got lost is asked for
	// again.
	attemptTime = 2 * time.Second
	// catchUp bounds how long Propose waits for the copy to include what was
	// done.
	catchUp = time.Second
	// refusedPause is kept after a Hello that failed.
	refusedPause = 2 * time.Second
)

// Propose asks the cluster for one change and returns its result. It stamps
// the command with host, session and request, and takes at most five seconds.
// A refusal is returned as a *cluster.Refusal. An *Unreachable says that no
// voter answered; the command may be applied later all the same, but never
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
	l.await(ctx, res.Index)
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
func (l *Ledger) submit(ctx context.Context, id cluster.ID, c cluster.Command) (cluster.Result, error) {
	var last error
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		changed := l.watch()
		res, err := l.attempt(ctx, id, c)
		if err == nil {
			return res, nil
		}
		var refusal *cluster.Refusal
		if errors.As(err, &refusal) {
			return cluster.Result{}, refusal
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if !l.wait(ctx, changed, wait) {
			return cluster.Result{}, l.unreachable(last)
		}
	}
}

// attempt asks every place where a voter may be, once.
func (l *Ledger) attempt(ctx context.Context, id cluster.ID, c cluster.Command) (cluster.Result, error) {
	if l.local() != nil {
		r, err := l.voter(id)
		if err != nil {
			return cluster.Result{}, err
		}
		if why := l.alive(ctx, c); why != nil {
			return cluster.Result{Refused: why}, nil
		}
		return r.Propose(ctx, c)
	}
	first := errors.New("nobody in reach knows where it is")
	for i, at := range l.candidates() {
		trying, cancel := context.WithTimeout(ctx, attemptTime)
		res, err := transport.Call[proposeRequest, cluster.Result](trying, l.cfg.Transport, at, proposeMethod, proposeRequest{id, c})
		cancel()
		if err == nil {
			return res, nil
		}
		var refusal *cluster.Refusal
		if errors.As(err, &refusal) {
			return cluster.Result{}, err
		}
		if i == 0 {
			first = err
		}
	}
	return cluster.Result{}, first
}

// unreachable names the voters that gave no answer.
func (l *Ledger) unreachable(cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := &Unreachable{Cause: plain(cause)}
	if l.id != "" {
		u.Voters = append(u.Voters, l.voters...)
	}
	if l.waiting != "" && (len(u.Voters) == 0 || errors.Is(cause, context.DeadlineExceeded)) {
		u.Cause = errors.New(l.waiting)
	}
	return u
}

// await gives the copy a moment to include index.
func (l *Ledger) await(ctx context.Context, index uint64) {
	if l.Registry().Index >= index {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	ch := l.mirror.subscribe()
	defer l.mirror.unsubscribe(ch)
	for l.Registry().Index < index {
		select {
		case <-ctx.Done():
			return
		case <-ch:
		}
	}
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
	hello := l.cfg.Self
	hello.Nonce = l.nonce
	if l.cfg.Claims != nil {
		hello.Claims = l.cfg.Claims()
	}
	l.keepStanding(0)
	res, err := l.submit(ctx, id, cluster.Command{Host: l.cfg.Host, Hello: &hello})
	if err != nil {
		return err
	}
	if res.Refused == nil {
		l.keepStanding(res.Index)
	}
	l.mu.Lock()
	if l.session = res.Index; res.Refused != nil {
		l.session = 0
	}
	l.notify()
	l.mu.Unlock()
	if res.Refused != nil {
		l.noteRefused(res.Refused)
		return res.Refused
	}
	l.noteRefused(nil)
	if r := l.local(); r != nil {
		l.learn(l.servers(r)) // the address may be another one now
	}
	return nil
}

// keepSession says hello when there is no session, when the host's description
// changed, and when the copy shows that another run of this host took over.
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
