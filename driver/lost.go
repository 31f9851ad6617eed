package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// An endpoint of this host on an address that the host has no right to (see
// Addresses.Lost) is cut off, by itself: its interface is down, others are told
// nothing of it, and what other hosts have at the address is reached. It comes
// back when the address is leased to this host again.
//
// A veth is cut off at its host end, by the plan. A macvlan has no end here: it
// is muted inside its sandbox, and carries a mark there, which outlives the
// plugin and its state.

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

// mute cuts off the macvlan interfaces that shall be, inside their sandboxes,
// and lets those in again that need not be any more.
func (l *loop) mute(ctx context.Context, want Desired, r *result) {
	d := l.d
	log := func(e Endpoint) logrus.FieldLogger {
		return d.log.WithFields(logrus.Fields{"endpoint": short(e.ID), "sandbox": e.Sandbox})
	}
	cut := map[cluster.MAC]bool{}
	for _, e := range want.Muted {
		cut[e.MAC] = true
		switch changed, err := d.cfg.Kernel.Mute(ctx, e.Sandbox, e.MAC); {
		case errors.Is(err, kernel.ErrNoSandbox):
		case err != nil:
			r.err = errors.Join(r.err, err)
			r.problems = append(r.problems, Problem{
				Cause:  "container of endpoint " + short(e.ID) + " cannot be cut off although another host may have its address: " + err.Error(),
				Remedy: "stop the container",
			})
		default:
			d.noteMuted(e.MAC, true)
			if changed {
				log(e).Warn("cut a container off: this host has no right to its address any more")
			}
		}
	}
	for _, mac := range d.mutedNow() {
		e, ok := want.rightful(mac, d.cfg.Addresses)
		if cut[mac] || !ok {
			continue
		}
		changed, err := d.cfg.Kernel.Unmute(ctx, e.Sandbox, mac, e.Addrs())
		if err != nil && !errors.Is(err, kernel.ErrNoSandbox) {
			r.err = errors.Join(r.err, err)
			continue
		}
		d.noteMuted(mac, false)
		if changed {
			log(e).Info("let a container in again: its address is leased to this host")
		}
	}
}

// rightful finds the endpoint with a MAC, if all of its addresses are leased to
// this host.
func (d *Desired) rightful(mac cluster.MAC, addresses Addresses) (Endpoint, bool) {
	for _, s := range d.Segments {
		for _, e := range s.endpoints {
			if e.MAC != mac || e.Sandbox == "" {
				continue
			}
			return e, !slices.ContainsFunc(e.Addrs(), func(a netip.Prefix) bool {
				pool, ok := s.covers(a.Addr())
				return !s.Options.Foreign && (!ok || addresses.LeaseOf(pool, a.Addr()) == 0)
			})
		}
	}
	return Endpoint{}, false
}

func (d *Driver) noteMuted(mac cluster.MAC, muted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if muted {
		d.muted[mac] = true
	} else {
		delete(d.muted, mac)
	}
}

// mutedNow lists the interfaces that may be muted: by this run, or as the newest
// look into the sandboxes found them.
func (d *Driver) mutedNow() []cluster.MAC {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.muted), func(a, b cluster.MAC) int { return strings.Compare(a.String(), b.String()) })
}
