package driver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestLostAddress: the endpoint on it is cut off and nothing is told of it, who
// has the address now is reached, and a person is told what to do; all reverts.
func TestLostAddress(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.run("web", "app", "10.1.0.2/16 fd01::2/64")
			h.run("bystander", "app", "10.1.0.9/16")
			h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.2", "02:00:00:00:02:02"))
			h.ok(h.Sync(context.Background(), 0))
			h.lacks("neigh 10.1.0.2")
			cut := func() bool {
				state, err := h.kernel.Dump(context.Background())
				h.ok(err)
				down := false
				for _, o := range state {
					l, ok := o.(kernel.Link)
					down = down || ok && l.Kind == kernel.Veth && l.Down
				}
				web, ok := h.kernel.Interface("/s/web", "eth0")
				bystander, there := h.kernel.Interface("/s/bystander", "eth0")
				if !ok || !there || bystander.Link.Down {
					t.Fatalf("interfaces: %v %v, the bystander %+v", ok, there, bystander)
				}
				return web.Link.Down || down
			}
			before := h.kernel.String()
			for round, restart := range []bool{false, true} {
				h.kernel.ResetLog()
				h.addresses.lose("10.1.0.0/16", "10.1.0.2", "web.1")
				h.await("it is cut off", cut)
				h.awaitHas("neigh 10.1.0.2 dev is-v4097 lladdr 02:00:00:00:02:02")
				h.await("nothing is told of it", func() bool { return h.heard.told() == "net 1, 10.1.0.9" })
				const want = "network 10.1.0.0/16 + fd01::/64: address 10.1.0.2 of container web.1 here (endpoint web) is cut off: this host has no lease of it any more: restart that container, so that it gets another address"
				problems := h.Status().Problems
				if len(problems) != 1 || problems[0].String() != want {
					t.Errorf("problems %v", problems)
				}
				if i := slices.IndexFunc(h.Endpoints(), func(e EndpointStatus) bool { return e.IPv4.String() == "10.1.0.2" && e.State == "cut off" }); i < 0 {
					t.Errorf("endpoints %+v", h.Endpoints())
				}
				h.refused(h.endpoint("late", "app", "10.1.0.2/16"), "create endpoint: address 10.1.0.2 is not leased to this host any more: start the container again, so that it gets another one")
				_, err := h.joins("web")
				h.refused(err, "join: address 10.1.0.2 is not leased to this host any more: start the container again, so that it gets another one")
				if restart { // what was cut off stays so, and is known
					h.stop()
					h.start(hasty)
					h.ok(h.Sync(context.Background(), 0))
					if !cut() {
						t.Error("let in by a restart")
					}
				}
				h.addresses.lose("", "", "")
				h.await("it is let in again", func() bool { return !cut() })
				h.await("it is told again", func() bool {
					return h.heard.told() == "net 1, 10.1.0.2, 10.1.0.9" || h.heard.told() == "net 1, 10.1.0.9, 10.1.0.2"
				})
				h.await("all is as before", func() bool { return h.kernel.String() == before })
				for _, line := range h.kernel.Log() {
					if strings.HasPrefix(line, "mend") || strings.HasPrefix(line, "add link") {
						t.Errorf("round %d: made anew: %s", round, line)
					}
				}
			}
		})
	}
}

// TestLostAddressOfAStranger: a container of which the plugin's state, set back,
// knows nothing is cut off too. Its mark outlives a restart after which the
// address is leased again.
func TestLostAddressOfAStranger(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.stop()
	h.start(hasty)
	h.ok(h.store.edit(func(in *Intent) error { delete(in.Endpoints, "web"); return nil }))
	h.await("it is found", func() bool { return len(h.view().Strangers) == 1 })
	down := func() bool { in, _ := h.kernel.Interface("/s/web", "eth0"); return in.Link.Down }
	h.addresses.lose("10.1.0.0/16", "10.1.0.2", "")
	h.await("it is cut off", down)
	found := false
	for _, p := range h.Status().Problems {
		found = found || strings.Contains(p.Cause, "address 10.1.0.2 of container in sandbox /s/web here")
	}
	if !found {
		t.Errorf("problems %v", h.Status().Problems)
	}
	h.stop()
	h.addresses.lose("", "", "")
	h.start(hasty)
	h.await("it is let in again", func() bool { return !down() })
}

// TestLostAddressCannotBeCutOff: that is loud, and tried again.
func TestLostAddressCannotBeCutOff(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.kernel.Fail(-1, "mute ", errors.New("operation not permitted"))
	h.addresses.lose("10.1.0.0/16", "10.1.0.2", "web.1")
	h.await("it is a problem", func() bool {
		return slices.ContainsFunc(h.Status().Problems, func(p Problem) bool {
			return p.Cause == "container of endpoint web cannot be cut off although another host may have its address: operation not permitted" && p.Remedy == "stop the container"
		})
	})
	h.kernel.Heal()
	h.await("it is cut off", func() bool { in, _ := h.kernel.Interface("/s/web", "eth0"); return in.Link.Down })
	h.ok(h.Leave(context.Background(), &network.LeaveRequest{EndpointID: "web"}))
	h.ok(h.kernel.GiveBack("/s/web", "eth0"))
	h.ok(h.DeleteEndpoint(context.Background(), &network.DeleteEndpointRequest{EndpointID: "web"}))
	h.lacks("is-e")
}
