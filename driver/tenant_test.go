package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// strange runs a container in the network "app" that the plugin's state, set
// back to what it was before, does not know. forget says what it forgot.
func strange(t *testing.T, attach string, forget func(h *host)) *host {
	t.Helper()
	h := startHost(t)
	if attach == "" {
		attach = "macvlan"
	}
	h.app("attach=" + attach)
	h.run("known", "app", "10.1.0.2/16")
	h.run("web", "app", "10.1.0.3/16 fd01::3/64")
	h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.9", "02:00:00:00:02:09"))
	h.awaitHas("neigh 10.1.0.9")
	h.stop()
	forget(h)
	h.kernel.ResetLog()
	h.start(hasty)
	return h
}

// forgetEndpoint sets the state back to before the container.
func forgetEndpoint(h *host) {
	h.edit(func(in *Intent) { delete(in.Endpoints, "web") })
}

// forgetAll deletes the state.
func forgetAll(h *host) { h.ok(os.Remove(h.path)) }

// edit changes the stored intent while the plugin is down.
func (h *host) edit(change func(in *Intent)) {
	h.t.Helper()
	db := h.open()
	defer db.Close()
	s, err := openStore(db)
	h.ok(err)
	h.ok(s.edit(func(in *Intent) error { change(in); return nil }))
}

func (h *host) problem(text string) func() bool {
	return func() bool {
		for _, p := range h.Status().Problems {
			if strings.Contains(p.String(), text) {
				return true
			}
		}
		return false
	}
}

// TestStrangerInKnownNetwork: it is served like any other, and goes with its
// sandbox.
func TestStrangerInKnownNetwork(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := strange(t, attach, forgetEndpoint)
			h.await("it is published", func() bool { return strings.Contains(h.heard.told(), "10.1.0.3") })
			const cause = "interface eth0 (10.1.0.3, fd01::3) of the container in sandbox /s/web is not known to this plugin"
			h.await("it is a problem", h.problem(cause))
			if log := h.kernel.Log(); len(log) > 0 {
				t.Errorf("changed:\n%s", strings.Join(log, "\n"))
			}
			states := map[string]string{}
			for _, e := range h.Endpoints() {
				states[e.IPv4.String()] = e.State
			}
			if got := fmt.Sprint(states); got != "map[10.1.0.2:joined 10.1.0.3:found 10.1.0.9:alive]" {
				t.Errorf("endpoints %s", got)
			}
			found, err := h.Found(context.Background())
			h.ok(err)
			var lines []string
			for _, f := range found {
				lines = append(lines, fmt.Sprintf("%s %s %s %s", f.Pool, f.Addr, f.Sandbox, f.Name))
			}
			if got := strings.Join(lines, "; "); got != "10.1.0.0/16 10.1.0.2 /s/known eth0; 10.1.0.0/16 10.1.0.3 /s/web eth0; fd01::/64 fd01::3 /s/web eth0" {
				t.Errorf("found %s", got)
			}
			h.check(h.Live(pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.3")), "its address is free")
			h.check(!h.Live(pools("10.2.0.0/16")[0], netip.MustParseAddr("10.1.0.3")), "it is in another pool")
			// Docker stops it: the plugin does not know the endpoint, and says yes.
			h.ends("web")
			h.await("it is gone", func() bool { return h.heard.told() == "net 1, 10.1.0.2" && len(h.Status().Problems) == 0 })
			h.awaitNot("is-p776562")
			h.ends("known")
			h.ok(h.delete("app"))
			if left := h.kernel.String(); left != "" {
				t.Fatalf("left in the kernel:\n%s", left)
			}
		})
	}
}

// TestStrangerInAgreedNetwork: all state is lost, but for the cluster's
// registry. The network lives on, and the cluster does not drop it.
func TestStrangerInAgreedNetwork(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := strange(t, attach, forgetAll)
			h.await("both are published", func() bool {
				return h.heard.told() == "net 1, 10.1.0.2, 10.1.0.3" || h.heard.told() == "net 1, 10.1.0.3, 10.1.0.2"
			})
			h.ok(h.Sync(context.Background(), 0))
			if log := h.kernel.Log(); len(log) > 0 {
				t.Errorf("changed:\n%s", strings.Join(log, "\n"))
			}
			h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "new", "10.1.0.10", "02:00:00:00:02:10"))
			h.awaitHas("neigh 10.1.0.10")
			h.check(h.ledger.holds(), "the network was given back below a container")
			h.SetDetached("its blocks wait")
			h.await("it is cut off", func() bool { return h.heard.told() == "net 1" })
			h.contains("down")
			h.SetDetached("")
			h.awaitHas("neigh 10.1.0.10")
			for _, id := range []string{"web", "known"} {
				if _, ok := h.kernel.Interface("/s/"+id, "eth0"); !ok {
					t.Errorf("%s lost its interface", id)
				}
				h.ends(id)
			}
			h.await("all is gone", func() bool { return h.kernel.String() == "" && h.heard.told() == "" })
			h.await("the cluster was told", func() bool { return !h.ledger.holds() })
		})
	}
}

// TestStrangerInUnknownNetwork: nobody knows the network. Its links stay as
// they are, down while this host is cut off, until the container is gone.
func TestStrangerInUnknownNetwork(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := strange(t, attach, func(h *host) {
				forgetAll(h)
				h.ledger = newFakeLedger("host1")
			})
			h.await("it is a problem", h.problem("of the container in sandbox /s/web is not known to this plugin"))
			h.ok(h.Sync(context.Background(), 0))
			h.contains("neigh 10.1.0.9")
			h.contains("guard drop-strangers tunnel 192.0.2.1:8475")
			if log := h.kernel.Log(); len(log) > 0 {
				t.Errorf("changed:\n%s", strings.Join(log, "\n"))
			}
			found, err := h.Found(context.Background())
			h.ok(err)
			if len(found) != 3 || found[2].Pool != pools("fd01::/64")[0] || found[2].Addr != netip.MustParseAddr("fd01::3") {
				t.Errorf("found %+v", found)
			}
			h.SetDetached("its blocks wait")
			h.ok(h.Sync(context.Background(), 0))
			if s := h.kernel.String(); !strings.Contains(s, " down\n") {
				t.Errorf("still up:\n%s", s)
			}
			h.SetDetached("")
			h.ok(h.Sync(context.Background(), 0))
			if s := h.kernel.String(); strings.Contains(s, " down\n") {
				t.Errorf("still down:\n%s", s)
			}
			h.ends("known")
			h.await("one is gone", func() bool { return len(h.Status().Problems) == 1 })
			h.contains("link is-v4097")
			h.ends("web")
			h.await("all is gone", func() bool { return h.kernel.String() == "" })
		})
	}
}

// TestBlindStart: until the sandboxes were seen, nothing is taken from below
// whoever may be in them.
func TestBlindStart(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.3/16")
	h.stop()
	forgetAll(h)
	h.ledger = newFakeLedger("host1")
	h.kernel.Fail(-1, "tenants", errors.New("out of memory"))
	h.start(hasty)
	for range 5 {
		h.ok(h.Sync(context.Background(), 0))
	}
	h.contains("link is-v4097")
	if _, err := h.Found(context.Background()); err == nil {
		t.Error("found nothing, and no error")
	}
	h.ends("web")
	h.kernel.Heal()
	h.await("all is gone", func() bool { return h.kernel.String() == "" })
}

// TestResetTakesStrangers: who resets a host wants it empty.
func TestResetTakesStrangers(t *testing.T) {
	h := strange(t, "bridge", forgetEndpoint)
	h.await("it is a problem", h.problem("is not known to this plugin"))
	h.ok(h.Reset(context.Background()))
	if left := h.kernel.String(); strings.Contains(left, "link is-") && !strings.HasPrefix(left, "sandbox ") {
		t.Fatalf("left in the kernel:\n%s", left)
	}
}

// TestMTUShrinks: running containers follow, in both ways to attach.
func TestMTUShrinks(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.run("web", "app", "10.1.0.3/16")
			inside := func(mtu int) func() bool {
				return func() bool { in, ok := h.kernel.Interface("/s/web", "eth0"); return ok && in.Link.MTU == mtu }
			}
			h.await("it has the MTU of the start", inside(1450))
			h.ok(h.SetUnderlay(netip.Addr{}, 1400))
			h.await("it has the smaller one", inside(1350))
			h.ok(h.SetUnderlay(netip.Addr{}, 1500))
			h.awaitHas("mtu 1450")
			h.ok(h.Sync(context.Background(), 0))
			h.check(inside(1350)(), "it was raised inside a running container")
		})
	}
}
