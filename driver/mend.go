package driver

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// mender looks after interfaces that Docker took into a sandbox. There they
// are out of sight; what can be known is whether the sandbox is there, and
// whether an interface with the endpoint's MAC is in it.
//
// The death of the device below takes the interface along, so it is made again
// when that device was made anew, was missing, or may have been (at the start,
// and in a periodic look into all sandboxes). A sandbox that once was seen and
// is no more means that the container is gone, and that Docker may have
// forgotten to say so.
type mender struct {
	pending map[string]bool      // endpoints to look after, by id
	unnamed map[string]time.Time // joined endpoints not seen in the sandbox yet, since when
	idle    map[string]time.Time // endpoints without a container, since when
	visited time.Time            // of the last look into all sandboxes
	sighted bool                 // sandboxes can be seen from here at all
	mended  map[string]footing   // what interfaces were last found or made like
}

// footing is an interface and, in a LAN, the index of what it stands on.
type footing struct {
	kernel.Link
	on int
}

func newMender() mender {
	return mender{pending: map[string]bool{}, unnamed: map[string]time.Time{}, idle: map[string]time.Time{}, mended: map[string]footing{}}
}

// waiting reports whether Docker is about to take an interface.
func (m *mender) waiting(now time.Time, p pace) bool {
	for _, since := range m.unnamed {
		if now.Sub(since) < 100*p.unseen {
			return true
		}
	}
	return false
}

// mend looks after all interfaces that need it, and returns the endpoints whose
// container was found to be gone.
func (l *loop) mend(ctx context.Context, want Desired, a applied, r *result) map[cluster.EndpointID]bool {
	now := time.Now()
	all := now.Sub(l.visited) >= l.d.pace.sandbox
	if all {
		l.visited = now
	}
	gone := map[cluster.EndpointID]bool{}
	known, unnamed, untaken := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, h := range want.Handovers {
		id, e := h.Endpoint.ID, h.Endpoint
		known[id], unnamed[id] = true, e.Inside == ""
		if all || l.shaken(h, a) {
			l.pending[id] = true
		}
		_, here := a.have[kernel.Link{Name: h.Link.Name}.Key()]
		switch {
		case here && e.Inside == "":
			untaken[id] = true
		case here: // Docker gave it back, but its Leave did not reach us
			l.edit(e, func(e *Endpoint) { e.Sandbox, e.Inside, e.Gone = "", "", false })
		case e.Gone && !all:
		case e.Inside == "" && !l.observe(ctx, h):
			untaken[id] = l.sighted
		case h.blocked != nil || !l.d.cfg.Heard.Settled() && h.partial():
			// It is pending until it can be made, and all is heard that it takes.
		case l.pending[id]:
			if l.remake(ctx, h, r) {
				gone[cluster.EndpointIDOf(id)] = true
			}
		}
	}
	maps.DeleteFunc(l.pending, func(id string, _ bool) bool { return !known[id] })
	maps.DeleteFunc(l.mended, func(id string, _ footing) bool { return !known[id] })
	since(l.unnamed, unnamed, now)
	l.forget(untaken, now)
	return gone
}

// shaken reports whether an interface may have gone, or has to be changed.
func (l *loop) shaken(h handover, a applied) bool {
	if a.made[h.Below()] {
		return true
	}
	was := l.mended[h.Endpoint.ID]
	if h.lan {
		return was != footing{h.Link, h.on}
	}
	if was.Down && !h.Link.Down { // it may be made again only now
		return true
	}
	_, below := a.have[kernel.Link{Name: h.Below()}.Key()]
	return !below
}

// partial reports an interface that is in its place, and that would lose what
// was not heard yet if it was made as planned.
func (h handover) partial() bool { return h.lan && h.seen && h.Link.Mode == "source" }

// observe learns the name that Docker gave the interface, and reports whether
// the sandbox is there. Engines up to 27 make it after Join, so that it is
// missing means nothing yet; and where none can be seen, nothing at all.
func (l *loop) observe(ctx context.Context, h handover) bool {
	id := h.Endpoint.ID
	name, err := l.d.cfg.Kernel.Observe(ctx, h.Handover)
	if errors.Is(err, kernel.ErrNoSandbox) {
		return false
	}
	l.sighted = true
	// Without a name, Docker is at it, or it died before we saw it: Mend knows.
	l.pending[id] = err == nil && name == ""
	if name != "" {
		l.edit(h.Endpoint, func(e *Endpoint) { e.Inside = name })
	}
	return true
}

// remake makes the interface again where it is missing. It reports whether the
// sandbox is gone.
func (l *loop) remake(ctx context.Context, h handover, r *result) (gone bool) {
	made, err := l.d.cfg.Kernel.Mend(ctx, h.Handover)
	switch {
	case errors.Is(err, kernel.ErrNoSandbox):
		delete(l.pending, h.Endpoint.ID)
		l.edit(h.Endpoint, func(e *Endpoint) { e.Gone = true })
		return true
	case err != nil:
		r.err = errors.Join(r.err, err)
		r.problems = append(r.problems, Problem{
			Cause:  "interface " + cmp.Or(h.Name, h.Link.Name) + " of the container of endpoint " + short(h.Endpoint.ID) + " is gone and cannot be made again: " + err.Error(),
			Remedy: "restart the container",
		})
		return false
	}
	delete(l.pending, h.Endpoint.ID)
	l.mended[h.Endpoint.ID] = footing{h.Link, h.on}
	l.sighted = true
	if made {
		l.d.log.WithFields(logrus.Fields{"endpoint": short(h.Endpoint.ID), "interface": h.Name}).Info("made a container's interface again")
	}
	if h.Endpoint.Gone {
		l.edit(h.Endpoint, func(e *Endpoint) { e.Gone = false })
	}
	return false
}

// forget drops endpoints that have been without a container for so long that
// Docker must have forgotten them. What it did not take yet after a Join it may
// still take, if the machine is slow.
func (l *loop) forget(untaken map[string]bool, now time.Time) {
	in := l.d.store.intent()
	idle := map[string]bool{}
	for id, e := range in.Endpoints {
		idle[id] = !e.Joined() || untaken[id]
	}
	since(l.idle, idle, now)
	for id, begin := range l.idle {
		limit := l.d.pace.forget
		if untaken[id] {
			limit *= 5
		}
		if now.Sub(begin) >= limit {
			l.d.log.WithField("endpoint", short(id)).Info("drop an endpoint that has no container any more")
			l.edit(in.Endpoints[id], nil)
		}
	}
}

// since keeps in times when each of a set was first in it.
func since(times map[string]time.Time, set map[string]bool, now time.Time) {
	maps.DeleteFunc(times, func(id string, _ time.Time) bool { return !set[id] })
	for id, in := range set {
		if _, ok := times[id]; in && !ok {
			times[id] = now
		}
	}
}

// edit changes an endpoint, or drops it, unless a call changed it meanwhile.
func (l *loop) edit(seen Endpoint, change func(*Endpoint)) {
	changed := false
	err := l.d.store.edit(func(in *Intent) error {
		e, ok := in.Endpoints[seen.ID]
		switch {
		case !ok || e != seen:
			return nil
		case change == nil:
			delete(in.Endpoints, seen.ID)
		default:
			change(&e)
			in.Endpoints[seen.ID] = e
		}
		changed = in.Endpoints[seen.ID] != seen
		return nil
	})
	if err != nil {
		l.d.log.WithError(err).Error("remember what became of a container's interface")
	} else if changed {
		l.wake()
	}
}
