package driver

import (
	"context"
	"errors"
	"strings"
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
	idle    map[string]time.Time // endpoints without a container, since when
	visited time.Time            // of the last look into all sandboxes
	unseen  bool                 // Docker is about to take an interface
}

func newMender() mender {
	return mender{pending: map[string]bool{}, idle: map[string]time.Time{}}
}

// waiting reports whether an interface is about to be taken.
func (m *mender) waiting() bool { return m.unseen }

// mend looks after all interfaces that need it, and returns the endpoints whose
// container was found to be gone.
func (l *loop) mend(ctx context.Context, want Desired, a applied, r *result) map[cluster.EndpointID]bool {
	now := time.Now()
	all := now.Sub(l.visited) >= l.d.pace.sandbox
	if all {
		l.visited = now
	}
	l.unseen = false
	gone := map[cluster.EndpointID]bool{}
	known := map[string]bool{}
	for _, h := range want.Handovers {
		id, e := h.Endpoint.ID, h.Endpoint
		known[id] = true
		_, below := a.have[kernel.Link{Name: h.Below()}.Key()]
		if all || a.made[h.Below()] || !below {
			l.pending[id] = true
		}
		_, here := a.have[kernel.Link{Name: h.Link.Name}.Key()]
		switch {
		case here && e.Inside == "": // Docker has not taken it yet
			l.unseen = true
		case here: // Docker gave it back, but its Leave did not reach us
			l.edit(e, func(e *Endpoint) { e.Sandbox, e.Inside, e.Gone = "", "", false })
		case e.Gone && !all:
		case e.Inside == "":
			l.observe(ctx, h)
		case l.pending[id]:
			if l.remake(ctx, h, r) {
				gone[cluster.EndpointIDOf(id)] = true
			}
		}
	}
	for id := range l.pending {
		if !known[id] {
			delete(l.pending, id)
		}
	}
	l.forget(now)
	return gone
}

// observe learns the name that Docker gave the interface.
func (l *loop) observe(ctx context.Context, h handover) {
	name, err := l.d.cfg.Kernel.Observe(ctx, h.Sandbox, h.Link.MAC)
	switch {
	case err == nil && name != "" && !strings.HasPrefix(name, kernel.Prefix):
		delete(l.pending, h.Endpoint.ID)
		l.edit(h.Endpoint, func(e *Endpoint) { e.Inside = name })
	case errors.Is(err, kernel.ErrNoSandbox):
		// Engines up to 27 make the sandbox after Join; one that never comes
		// is noticed when Docker takes the endpoint back.
	default:
		l.unseen = true
	}
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
			Cause:  "interface " + h.Name + " of the container of endpoint " + short(h.Endpoint.ID) + " is gone and cannot be made again: " + err.Error(),
			Remedy: "restart the container",
		})
		return false
	}
	delete(l.pending, h.Endpoint.ID)
	if made {
		l.d.log.WithFields(logrus.Fields{"endpoint": short(h.Endpoint.ID), "interface": h.Name}).Info("made a container's interface again")
	}
	if h.Endpoint.Gone {
		l.edit(h.Endpoint, func(e *Endpoint) { e.Gone = false })
	}
	return false
}

// forget drops endpoints that have been without a container for so long that
// Docker must have forgotten them.
func (l *loop) forget(now time.Time) {
	in := l.d.store.intent()
	for id, e := range in.Endpoints {
		if e.Joined() {
			delete(l.idle, id)
			continue
		}
		since, ok := l.idle[id]
		if !ok {
			l.idle[id] = now
			continue
		}
		if now.Sub(since) < l.d.pace.forget {
			continue
		}
		l.d.log.WithField("endpoint", short(id)).Info("drop an endpoint that has no container any more")
		l.edit(e, nil)
	}
	for id := range l.idle {
		if _, ok := in.Endpoints[id]; !ok {
			delete(l.idle, id)
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
