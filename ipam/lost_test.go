package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// TestLost: what a host turns out to have no right to is named until that ends.
func TestLost(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/24", "", ""))
	key := keyOf(id)
	lost := func(when, want string) {
		t.Helper()
		if got := fmt.Sprint(h1.Lost()[key]); got != want {
			t.Errorf("%s: lost %s, want %s", when, got, want)
		}
	}
	web := must[netip.Addr](t)(h1.start(id, "", "web"))
	lost("all is well", "map[]")

	// Its disk is set back to before a block was given back, which h2 has now;
	// the container of that time is there again with it.
	h1.snapshot()
	h1.stop(id, web)
	h1.remove(id)
	if err := h1.Recalled(t.Context(), key, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	must[string](t)(h2.network("10.0.0.0/24", "", ""))
	db := must[netip.Addr](t)(h2.start(id, web.String(), "db"))
	h1.Reach(false)
	h1.setBack()
	h1.boot = func() cluster.Boot { return cluster.Boot{Settled: true, Suspect: "STRICT_BOOT is on"} }
	h1.reboot()
	h1.setLive(id, web, true)
	h1.setNetworked(key, true)
	lost("nobody said so yet", "map[]")
	if err := h1.Adopt(key, addr("10.0.0.200"), "found"); err != nil {
		t.Fatal(err)
	}
	lost("found, and leased perhaps", "map[]")
	changed := h1.IPAM.Subscribe()
	h1.Reach(true)
	if err := h1.Hello(); err != nil {
		t.Fatal(err)
	}
	h1.reconcile(t.Context(), h1.Registry())
	lost("reconciled", "map[10.0.0.2:web 10.0.0.200:found]")
	if !signalled(changed) {
		t.Error("nobody is told of what was lost")
	}
	h1.work()
	lost("leased if nobody has it", "map[10.0.0.2:web]")
	if !signalled(changed) {
		t.Error("nobody is told of what is leased")
	}

	h1.Reach(false)
	h1.boot = nil
	h1.reboot()
	lost("stored", "map[10.0.0.2:web]")
	h1.Reach(true)
	if err := h1.Hello(); err != nil {
		t.Fatal(err)
	}
	h1.work()
	h2.stop(id, db)
	h2.remove(id)
	if err := h2.Recalled(t.Context(), key, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	l.pass(holdOff)
	h1.work()
	lost("leased again", "map[]")
}

// TestLostWhileHandedOut: an address whose block goes before it is stored is
// not handed out.
func TestLostWhileHandedOut(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	h.reconcile(t.Context(), h.Registry())
	p, _ := h.find(keyOf(id))
	h.IPAM.mu.Lock()
	s, a, err := h.m.Allocate(p.key, h.scope(p, netip.Prefix{}), "web", false, h.cfg.Now())
	if err != nil {
		t.Fatal(err)
	}
	gone := *h.Registry()
	gone.Leases = nil
	taken, errs := h.m.Reconcile(&gone, nil)
	if err := errors.Join(append(errs, h.commit(taken))...); err != nil {
		t.Fatal(err)
	}
	h.report(&gone, taken, nil)
	err = h.hand(p, a, s) // releases the lock
	wantErr(t, err, "address 10.0.0.2: the cluster took its block from this host just now; try again")
	if used, lost := h.Used(p.key), h.Lost(); len(used)+len(lost) > 0 {
		t.Errorf("used %v, lost %v", used, lost)
	}
	if alarms := h.Status()[0].Alarms; len(alarms) > 0 {
		t.Errorf("alarms %q", alarms)
	}
}

// TestRebuilt: after the registry was rebuilt nothing is trusted, whatever
// crashes, until all blocks were held against it.
func TestRebuilt(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	must[netip.Addr](t)(h.start(id, "", "web"))
	h.work()
	changed := h.IPAM.Subscribe()
	doubted := func(when string) {
		t.Helper()
		if why := h.Suspect(); !strings.Contains(why, "rebuilt (generation 2)") {
			t.Errorf("%s: suspect %q", when, why)
		}
		if _, err := h.pick(h.pools[keyOf(id)], netip.Prefix{}, "", false); !errors.As(err, new(*lease.Untrusted)) {
			t.Errorf("%s: handed out: %v", when, err)
		}
	}
	if err := h.Rebuilt(h.cfg.Ledger.Registry().Cluster, 2); err != nil {
		t.Fatal(err)
	}
	doubted("told")
	if !signalled(changed) {
		t.Error("nobody is told")
	}
	h.reconcile(t.Context(), h.Registry()) // a copy of the lost registry, taken before
	doubted("reconciled with the lost registry")
	base := l.log.Registry()
	l.log.Rebuild(base, h.Testimony())
	h.crash()
	h.open()
	doubted("after a crash")
	if err := h.Hello(); err != nil {
		t.Fatal(err)
	}
	h.work()
	if why := h.Suspect(); why != "" {
		t.Errorf("reconciled: suspect %q", why)
	}
	must[netip.Addr](t)(h.start(id, "", ""))
	h.Reach(false)
	h.reboot()
	if why := h.Suspect(); why != "" {
		t.Errorf("started again: suspect %q", why)
	}

	// One whose copy of the rebuilt registry comes before its Hello.
	if err := l.hosts[1].Hello(); err != nil {
		t.Fatal(err)
	}
	l.hosts[1].id = must[string](t)(l.hosts[1].network("10.0.0.0/24", "", ""))
	l.log.Rebuild(l.log.Registry(), l.hosts[1].Testimony())
	l.hosts[1].catchUp()
	if why := l.hosts[1].Suspect(); !strings.Contains(why, "generation 3") {
		t.Errorf("by its copy: suspect %q", why)
	}
}
