package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// loop makes the kernel as Plan says, again and again. It is the only place
// that does, and the only part of the driver that waits for the kernel, but
// for Join.
type loop struct {
	d       *Driver
	kick    chan struct{} // somebody waits for a pass
	changed chan struct{} // the kernel told of a change
	// kernel is held by a pass from Plan to its end and by whoever makes an
	// interface for Docker: no pass that began before the endpoint was stored
	// may find the interface, and prune it.
	kernel chan struct{}

	mu     sync.Mutex
	asked  uint64 // newest ticket, see Sync
	last   result
	passed chan struct{} // closed when last changes

	// Of the goroutine in run alone:
	failures int               // passes in a row
	said     string            // the newest error that was logged
	devices  map[string]uint32 // cluster network by link, of this pass and the one before
	mender
	speaker
	silent  map[string]silence // interfaces that are cut off, by identity
	alarmed map[string]bool    // problems of the pass before that were logged
	looked  time.Time          // of the last look for strangers
	unseen  string             // why it was not a whole one
}

// result is what a pass came to.
type result struct {
	upTo     uint64 // tickets that it served
	err      error
	general  error            // what failed all networks
	errs     map[uint32]error // by cluster network: its links and guards
	problems []Problem
}

func newLoop(d *Driver) *loop {
	return &loop{
		d: d, kick: make(chan struct{}, 1), changed: make(chan struct{}, 1), kernel: make(chan struct{}, 1),
		passed: make(chan struct{}), devices: map[string]uint32{}, mender: newMender(), speaker: newSpeaker(), silent: map[string]silence{},
	}
}

// wake asks for a pass.
func (l *loop) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Sync waits for a pass that began after the call, and so includes every edit
// made before. It returns what that pass could not make of the network's links
// and guards; network 0 means every error of every network. Entries for other
// hosts' endpoints do not count: they are tried again, and no container's
// start should fail for them.
func (d *Driver) Sync(ctx context.Context, network uint32) error {
	l := d.loop
	l.mu.Lock()
	l.asked++
	ticket := l.asked
	l.mu.Unlock()
	l.wake()
	for {
		l.mu.Lock()
		r, passed := l.last, l.passed
		l.mu.Unlock()
		if r.upTo >= ticket {
			if network == 0 {
				return r.err
			}
			return errors.Join(r.general, r.errs[network])
		}
		select {
		case <-passed:
		case <-ctx.Done():
			return fmt.Errorf("apply network: the kernel did not answer in time: %w", ctx.Err())
		}
	}
}

// lock takes the kernel for oneself.
func (l *loop) lock(ctx context.Context) error {
	select {
	case l.kernel <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the kernel: %w", ctx.Err())
	}
}

func (l *loop) unlock() { <-l.kernel }

// watch lets the kernel's own notifications wake the loop.
func (l *loop) watch(ctx context.Context) error {
	for {
		err := l.d.cfg.Kernel.Watch(ctx, l.changed)
		if ctx.Err() != nil {
			return nil
		}
		l.d.log.WithError(err).Warn("watching the kernel failed; looking at it periodically instead")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(l.d.pace.audit):
		}
	}
}

func (l *loop) run(ctx context.Context) error {
	news, agreed, blocks := l.d.cfg.Heard.Subscribe(), l.d.cfg.Ledger.Subscribe(), l.d.cfg.Addresses.Subscribe()
	timer := time.NewTimer(0) // the first pass needs no reason
	defer timer.Stop()
	var due, rested time.Time // of the next pass; of the earliest one that nobody waits for
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
			due = time.Time{}
		case <-l.changed:
			due = earlier(due, rested)
		case <-news:
			due = earlier(due, rested)
		case <-agreed:
			due = earlier(due, rested)
		case <-blocks:
			due = earlier(due, rested)
		case <-timer.C:
		}
		if now := time.Now(); !now.Before(due) {
			r := l.pass(ctx)
			if ctx.Err() != nil {
				return nil
			}
			l.judge(r)
			end := time.Now()
			rested, due = end.Add(l.rest(end.Sub(now))), end.Add(l.patience())
			l.finish(r)
		}
		next := due
		if at := l.speak(ctx, time.Now()); !at.IsZero() {
			next = earlier(next, at)
		}
		timer.Reset(time.Until(next))
	}
}

// judge counts failures, and logs what is new about them.
func (l *loop) judge(r result) {
	if r.err == nil {
		if l.failures > 0 {
			l.d.log.WithField("attempts", l.failures+1).Info("kernel is as it should be again")
		}
		l.failures, l.said = 0, ""
		return
	}
	l.failures++
	if text := r.err.Error(); text != l.said {
		l.said = text
		l.d.log.WithError(r.err).Warn("kernel is not as it should be; trying again")
	}
}

// rest is how long news wait after a pass that took so long: they are not
// worth more than half of a processor, and less when passes fail.
func (l *loop) rest(took time.Duration) time.Duration {
	return min(max(took, 5*time.Millisecond, l.backoff()), time.Second)
}

// patience is how long the next pass may wait if nothing happens.
func (l *loop) patience() time.Duration {
	wait := l.d.pace.audit
	if l.failures > 0 {
		wait = min(wait, l.backoff())
	}
	if l.waiting(time.Now(), l.d.pace) {
		wait = min(wait, l.d.pace.unseen)
	}
	return wait
}

// backoff doubles with every failure; 0 without one.
func (l *loop) backoff() time.Duration {
	if l.failures == 0 {
		return 0
	}
	return l.d.pace.retry << min(l.failures-1, 16)
}

func (l *loop) finish(r result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = r
	close(l.passed)
	l.passed = make(chan struct{})
}

// pass makes everything as it should be once.
func (l *loop) pass(ctx context.Context) result {
	if err := l.lock(ctx); err != nil {
		return result{err: err}
	}
	defer l.unlock()
	l.mu.Lock()
	r := result{upTo: l.asked, errs: map[uint32]error{}}
	l.mu.Unlock()

	d := l.d
	l.lookAgain(ctx, time.Now())
	if err := d.lookAtLinks(ctx, d.pace.sandbox); err != nil {
		r.err, r.general = err, err
		return r
	}
	r.problems = d.resolve(ctx)
	settled := d.cfg.Heard.Settled() // before the view: by what it lacks after, nothing is known to be gone
	lost, problems := d.keepPorts()
	r.problems = append(r.problems, problems...)
	want := Plan(d.store.intent().unpublish(lost), d.world())
	d.mu.Lock()
	want.blind = !d.looked
	d.mu.Unlock()
	d.cfg.Kernel.Heed(want.Heed...)
	for dev, s := range want.Devices {
		l.devices[dev] = s.Cluster
	}
	d.announce(want.Announced)
	l.alarm(append(want.Problems, r.problems...))
	a := l.apply(ctx, want, settled, &r)
	maps.DeleteFunc(l.devices, func(dev string, _ uint32) bool { return r.err == nil && want.Devices[dev] == nil })
	if a.have != nil {
		gone := l.mend(ctx, want, a, &r)
		d.cfg.Heard.Publish(slices.DeleteFunc(want.Records, func(rec cluster.Record) bool { return gone[rec.Endpoint] }))
		l.listen(want, a.first, time.Now())
	}
	l.mute(ctx, want, &r)
	return r
}

// alarm logs what is new of the problems that are worth it.
func (l *loop) alarm(problems []Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		if text := p.String(); p.alarm {
			if now[text] = true; !l.alarmed[text] {
				l.d.log.Warn(text)
			}
		}
	}
	l.alarmed = now
}

// applied is what apply saw and did.
type applied struct {
	first kernel.State    // before anything was done; nil when it cannot be known
	have  kernel.State    // after links were made, before the rest
	made  map[string]bool // links that were created or changed
}

// apply dumps, compares and does; when links were touched it looks again,
// since the kernel drops neighbours with them. What others are not heard to have
// is removed only when the news had settled.
func (l *loop) apply(ctx context.Context, want Desired, settled bool, r *result) applied {
	a := applied{made: map[string]bool{}}
	rules := kernel.Options{KeepRemote: !settled, Leave: l.leave(want)}
	var failed error
	for attempt := 0; attempt < 2; attempt++ {
		have, err := l.d.cfg.Kernel.Dump(ctx)
		if err != nil {
			r.err = fmt.Errorf("read the kernel's state: %w", err)
			r.general = r.err
			return a
		}
		if a.first == nil {
			a.first = have
		}
		a.have = have
		rules.Stale = want.stale(have)
		ops := kernel.Diff(have, want.State, rules)
		if len(ops) == 0 {
			return a
		}
		for _, op := range ops {
			l.d.log.WithField("op", op.String()).Debug("change kernel")
		}
		failed = l.d.cfg.Kernel.Do(ctx, ops)
		for _, op := range ops {
			if o, ok := op.Object.(kernel.Link); ok && op.Action != kernel.Remove {
				a.made[o.Name] = true
			}
		}
		if failed == nil && !touchesLinks(ops) {
			return a
		}
	}
	if failed != nil {
		l.blame(ctx, want, rules, failed, r)
	}
	return a
}

func touchesLinks(ops []kernel.Op) bool {
	return slices.ContainsFunc(ops, func(op kernel.Op) bool { return op.Object.Key().Type == "link" })
}

// blame sorts an error of Do by network: a network failed when a link or guard
// of its is not as it should be. The kernel itself is asked which those are;
// the error only says why.
func (l *loop) blame(ctx context.Context, want Desired, rules kernel.Options, failed error, r *result) {
	r.err = failed
	have, err := l.d.cfg.Kernel.Dump(ctx)
	if err != nil {
		r.general = failed
		return
	}
	rules.Stale = want.stale(have)
	for _, op := range kernel.Diff(have, want.State, rules) {
		key := op.Object.Key()
		network, ok := l.devices[key.Dev]
		if !ok || key.Type != "link" && key.Type != "guard" {
			continue
		}
		cause := fmt.Errorf("%s: %w", op, failed)
		for _, one := range leaves(failed) {
			if strings.Contains(one.Error()+" ", " "+key.Dev+" ") || strings.Contains(one.Error(), " "+key.Dev+":") {
				cause = one
				break
			}
		}
		r.errs[network] = errors.Join(r.errs[network], cause)
	}
}

// leaves takes apart what errors.Join put together.
func leaves(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, leaves(e)...)
	}
	return out
}

// stale tells the entries that are wrong whatever other hosts say: those for
// addresses of this host's own endpoints, those that lead to hosts that are not
// admitted, and routes of networks that this host has no more.
func (d *Desired) stale(have kernel.State) func(kernel.Object) bool {
	refused := map[kernel.Key]bool{} // addresses that lead there
	for _, o := range have {
		if f, ok := o.(kernel.FDB); ok && d.Refused[f.Dst] {
			refused[f.Key()] = true
		}
	}
	return func(o kernel.Object) bool {
		s := d.Devices[o.Key().Dev]
		switch o := o.(type) {
		case kernel.Neigh:
			return s != nil && s.ownIP[o.IP] != nil || refused[kernel.FDB{Dev: o.Dev, MAC: o.MAC}.Key()]
		case kernel.FDB:
			return s != nil && s.ownMAC[o.MAC] != nil || d.Refused[o.Dst]
		case kernel.Guard:
			return d.Refused[o.Peer]
		case kernel.FIB:
			return d.Refused[o.Via] || !d.blind && !d.routes(o.Dst)
		}
		return false
	}
}

// routes reports whether a destination may be one that a network of this host, or a
// router that such a network listens to, has a route to.
func (d *Desired) routes(dst netip.Prefix) bool {
	return slices.ContainsFunc(d.Segments, func(s *segment) bool {
		return s.Options.BGP || slices.ContainsFunc(s.prefixes(), dst.Overlaps)
	})
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
