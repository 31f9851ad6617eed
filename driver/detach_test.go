package driver

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestDetach: the endpoints are cut off and come back without any of them being
// made anew.
func TestDetach(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
			h.run("web", "app", "10.1.0.2/16")
			h.awaitHas("neigh 10.1.0.3")
			block := cluster.Claim{Lease: 7, Pool: pools("10.1.0.0/16")[0], Block: pools("10.1.0.0/29")[0].Prefix}
			h.addresses.claim(block)
			h.await("the claim is published", func() bool { return h.heard.claims() == "10.1.0.0/29" })
			before := h.kernel.String()
			h.kernel.ResetLog()

			h.SetDetached("its blocks wait for the cluster: see isthmus status")
			h.ok(h.Sync(context.Background(), 0))
			h.lacks("fdb ")
			h.lacks("neigh ")
			h.contains("is-v4097 type vxlan id 4097")
			h.await("nothing but the network is published", func() bool { return h.heard.told() == "net 1" && h.heard.claims() == "" })
			s := h.Status()
			if s.Detached != "its blocks wait for the cluster: see isthmus status" || !strings.Contains(s.Problems[0].String(), "containers of this host are cut off from other hosts: its blocks wait") {
				t.Errorf("status %+v", s)
			}
			state, err := h.kernel.Dump(context.Background())
			h.ok(err)
			if l := state[link("is-v4097")].(kernel.Link); !l.Down {
				t.Errorf("still up: %s", l)
			}
			// No container starts, and no call waits for long.
			const no = "this host's containers are cut off from other hosts: its blocks wait for the cluster: see isthmus status"
			h.refused(h.endpoint("late", "app", "10.1.0.9/16"), "create endpoint: "+no)
			_, err = h.joins("web")
			h.refused(err, "join: "+no)
			// What goes, goes.
			h.ok(h.create("other", []string{"10.2.0.0/16"}))
			h.ok(h.delete("other"))

			h.SetDetached("")
			h.await("all is as before", func() bool { return h.kernel.String() == before })
			h.await("all is published again", func() bool { return h.heard.told() == "net 1, 10.1.0.2" && h.heard.claims() == "10.1.0.0/29" })
			for _, line := range h.kernel.Log() {
				if strings.Contains(line, "link is-v4097") && !strings.HasPrefix(line, "set ") || strings.HasPrefix(line, "mend") {
					t.Errorf("made anew: %s", line)
				}
			}
			if s := h.Status(); s.Detached != "" || len(s.Problems) > 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestDetachedForAMoment: what is asked for during a start waits for its end.
func TestDetachedForAMoment(t *testing.T) {
	h := startHost(t)
	h.app()
	patient := hasty
	patient.attach = time.Minute
	h.restart(patient)
	h.SetDetached("its blocks wait for the cluster")
	done := make(chan error, 1)
	go func() { done <- h.endpoint("web", "app", "10.1.0.2/16") }()
	h.ok(h.Sync(context.Background(), 0)) // time enough to begin
	h.SetDetached("")
	h.ok(<-done)
	_, err := h.joins("web")
	h.ok(err)
}

// TestDetachedFromTheStart: a plugin that starts cut off takes the devices down
// and removes nothing that its containers stand on.
func TestDetachedFromTheStart(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.run("web", "app", "10.1.0.2/16")
	h.awaitHas("neigh 10.1.0.3")
	h.heard.change(func() { h.heard.settled = false })
	h.restart(hasty)
	h.SetDetached("not confirmed yet")
	h.ok(h.Sync(context.Background(), 0))
	h.lacks("neigh ")
	if _, ok := h.kernel.Interface("/s/web", "eth0"); !ok {
		t.Fatal("the container lost its interface")
	}
	h.SetDetached("")
	h.awaitHas("neigh 10.1.0.3")
}

// TestDetachedInALAN: while this host must not take part, its containers are off
// the LAN too, since others may have been given their addresses; and so is the
// host. They recover without a restart. What reaches no further than this host
// stays as it is.
func TestDetachedInALAN(t *testing.T) {
	for _, options := range append(lanModes, []string{"mode=macvlan", "macvlan_mode=source", "source=02:00:00:00:00:fe"}, []string{"mode=ipvlan", "ipvlan_mode=l3"}) {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			h.lan(options...)
			h.ok(h.create("alone", []string{"10.9.0.0/16"}, "mode=macvlan", "--internal"))
			h.run("web", "lan", "10.1.0.2/16")
			h.run("hermit", "alone", "10.9.0.2/16")
			h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
			h.await("all is heard", func() bool { return h.Networks()[0].Remote == 1 })
			h.ok(h.Sync(anyContext, 0))
			before := h.kernel.String()
			h.SetDetached("this host was removed: run isthmus reset")
			h.ok(h.Sync(anyContext, 0)) // after which others may be given its addresses
			h.check(h.down("web"), "it is in the LAN")
			h.check(!h.down("hermit"), "it is cut off from itself")
			h.lacks("addr ")
			h.lacks("fib ")
			h.check(h.heard.told() == "net 1, net 2", "told: "+h.heard.told())
			h.await("it is a problem", h.problem("containers of this host are cut off from other hosts: this host was removed: run isthmus reset"))
			h.stop()
			h.start(hasty)
			h.SetDetached("this host was removed: run isthmus reset")
			h.ok(h.Sync(anyContext, 0))
			h.check(h.down("web"), "let in by a restart")
			h.SetDetached("")
			h.await("all is as before", func() bool { return h.kernel.String() == before })
		})
	}
}
