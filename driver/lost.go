package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// An endpoint of this host on an address that the host has no right to (see
// Addresses.Lost) is cut off, by itself: its interface is down, others are told
// nothing of it, and what other hosts have at the address is reached. It comes
// back when the address is leased to this host again.
//
// A veth is cut off at its host end, by the plan. A macvlan or ipvlan has no end
// here: it is muted inside its sandbox, and carries a mark there, which outlives
// the plugin and its state. In the same way all endpoints in a LAN are cut off
// while this host must not take part (SetDetached): others may have been given
// their addresses, and no tunnel's end can be taken down instead.

// lost lists the endpoints of a network that are cut off, and reports those in
// containers.
func (v View) lost(n held, agreed holdings, d *Desired) map[string]bool {
	out := map[string]bool{}
	if n.Options.Foreign || len(v.Lost) == 0 {
		return out
	}
	for _, e := range n.endpoints {
		for _, a := range e.Addrs() {
			pool, _ := n.covers(a.Addr())
			name, is := v.Lost[pool][a.Addr()]
			if !is {
				continue
			}
			out[e.ID] = true
			if !e.Joined() {
				continue
			}
			holder := agreed.holder(pool, a.Addr())
			text := "this host has no lease of it any more"
			if holder != "" && holder != v.Host {
				text = "it is leased to " + v.holderName(holder)
			}
			d.Problems = append(d.Problems, Problem{
				Network: poolNames(n.Pools),
				Cause: fmt.Sprintf("address %s of container %s here (endpoint %s) is cut off: %s",
					a.Addr(), cmp.Or(name, "in sandbox "+e.Sandbox), short(e.ID), text),
				Remedy: "restart that container, so that it gets another address",
				alarm:  true,
			})
		}
	}
	return out
}

// entitled refuses an endpoint that would be cut off at once.
func (d *Driver) entitled(n Network, e Endpoint) error {
	if n.Options.Foreign {
		return nil
	}
	lost := d.cfg.Addresses.Lost()
	for _, a := range e.Addrs() {
		pool, _ := n.covers(a.Addr())
		if _, is := lost[pool][a.Addr()]; is {
			return fmt.Errorf("address %s is not leased to this host any more: start the container again, so that it gets another one", a.Addr())
		}
	}
	return nil
}

// world is the view with what address management knows. No lock may be held:
// whoever is asked may be asking us.
func (d *Driver) world() View {
	v := d.view()
	v.Claims, v.Lost = d.cfg.Addresses.Claims(), d.cfg.Addresses.Lost()
	return v
}

// mute cuts off the interfaces that shall be, inside their sandboxes, and lets
// those in again that need not be any more.
func (l *loop) mute(ctx context.Context, want Desired, r *result) {
	d := l.d
	log := func(e Endpoint) logrus.FieldLogger {
		return d.log.WithFields(logrus.Fields{"endpoint": short(e.ID), "sandbox": e.Sandbox})
	}
	cut, now := map[string]bool{}, time.Now()
	for _, h := range want.Muted {
		e, who := h.Endpoint, identity(h.Link.MAC, h.Link.Name)
		cut[who] = true
		if at, ok := l.silent[who]; ok && at.sandbox == e.Sandbox && now.Sub(at.seen) < d.pace.audit {
			continue // each look is a visit to the sandbox
		}
		switch changed, err := d.cfg.Kernel.Mute(ctx, h.Handover); {
		case errors.Is(err, kernel.ErrNoSandbox):
		case err != nil:
			r.err = errors.Join(r.err, err)
			r.problems = append(r.problems, Problem{
				Cause:  "container of endpoint " + short(e.ID) + " cannot be cut off although another host may have its address: " + err.Error(),
				Remedy: "stop the container",
			})
		default:
			d.noteMuted(h, true)
			if e.Inside != "" { // else Docker may be at it, and it is not cut off yet
				l.silent[who] = silence{e.Sandbox, now}
			}
			if changed {
				log(e).Warn("cut a container off: this host has no right to its address any more")
			}
		}
	}
	maps.DeleteFunc(l.silent, func(who string, _ silence) bool { return !cut[who] })
	for _, who := range d.mutedNow() {
		if cut[who] {
			continue
		}
		h, ok := want.rightful(who, d.cfg.Addresses)
		if !ok {
			continue
		}
		changed, err := d.cfg.Kernel.Unmute(ctx, h.Handover)
		if err != nil && !errors.Is(err, kernel.ErrNoSandbox) {
			r.err = errors.Join(r.err, err)
			continue
		}
		d.noteMuted(h, false)
		if changed {
			log(h.Endpoint).Info("let a container in again: its address is leased to this host")
		}
	}
}

// silence is when an interface was last seen to be cut off, and where.
type silence struct {
	sandbox string
	seen    time.Time
}

// rightful finds the interface of an identity, if all of its addresses are
// leased to this host.
func (d *Desired) rightful(who string, addresses Addresses) (handover, bool) {
	for _, s := range d.Segments {
		for _, e := range s.endpoints {
			h := d.ends[e.ID]
			if e.Sandbox == "" || identity(h.Link.MAC, h.Link.Name) != who {
				continue
			}
			return h, !slices.ContainsFunc(e.Addrs(), func(a netip.Prefix) bool {
				pool, ok := s.covers(a.Addr())
				return !s.Options.Foreign && (!ok || addresses.LeaseOf(pool, a.Addr()) == 0)
			})
		}
	}
	return handover{}, false
}

func (d *Driver) noteMuted(h handover, muted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if who := identity(h.Link.MAC, h.Link.Name); muted {
		d.muted[who] = true
	} else {
		delete(d.muted, who)
	}
}

// mutedNow lists the interfaces that may be muted: by this run, or as the newest
// look into the sandboxes found them.
func (d *Driver) mutedNow() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.muted))
}
