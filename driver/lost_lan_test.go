package driver

import (
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// lanModes are the ways to be known in a sandbox: by a MAC, and by the alias of
// an interface that has its parent's.
var lanModes = [][]string{{"mode=macvlan", "host_access=on"}, {"mode=macvlan", "parent=eth1.50"}, {"mode=ipvlan", "host_access=on"}, {"mode=macvlan", "macvlan_mode=passthru"}}

// inside returns a container's interface, which must be there.
func (h *host) inside(id string) (down bool, routes int) {
	h.t.Helper()
	in, ok := h.kernel.Interface("/s/"+id, "eth0")
	h.check(ok, "the interface of "+id+" is gone")
	return in.Link.Down, len(in.Routes)
}

func (h *host) down(id string) bool { down, _ := h.inside(id); return down }

// TestLostAddressInALAN: the endpoint is muted in its sandbox, over a restart
// too, and the host has no route to it; all reverts, with the routes that an
// interface loses as it goes down.
func TestLostAddressInALAN(t *testing.T) {
	for _, options := range lanModes {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			h.lan(options...)
			h.run("web", "lan", "10.1.0.2/16 fd01::2/64")
			alone := strings.Contains(at(options), "passthru")
			if !alone {
				h.run("bystander", "lan", "10.1.0.5/16")
			}
			h.ok(h.Sync(anyContext, 0))
			before := h.kernel.String()
			h.kernel.ResetLog()
			for _, restart := range []bool{false, true} {
				h.addresses.lose("10.1.0.0/16", "10.1.0.2", "web.1")
				h.await("it is cut off", func() bool { return h.down("web") })
				h.ok(h.Sync(anyContext, 0))
				h.lacks("fib 10.1.0.2/32")
				h.lacks("fib fd01::2/128")
				h.check(alone || !h.down("bystander"), "the bystander is cut off")
				h.check(!strings.Contains(h.heard.told(), "10.1.0.2"), "it is told of: "+h.heard.told())
				h.await("it is a problem", h.problem("address 10.1.0.2 of container web.1 here (endpoint web) is cut off"))
				h.check(slices.ContainsFunc(h.Endpoints(), func(e EndpointStatus) bool { return e.IPv4.String() == "10.1.0.2" && e.State == "cut off" }), "status does not say so")
				if restart {
					h.restart(hasty)
					h.ok(h.Sync(anyContext, 0))
					h.check(h.down("web"), "let in by a restart")
				}
				h.addresses.lose("", "", "")
				h.await("all is as before", func() bool { return h.kernel.String() == before })
				h.await("it is told again", func() bool { return strings.Contains(h.heard.told(), "10.1.0.2") })
				h.await("all is well", func() bool { return len(h.Status().Problems) == 0 })
			}
			for _, line := range h.kernel.Log() {
				h.check(!strings.HasPrefix(line, "mend") && !strings.HasPrefix(line, "hand"), "made anew: "+line)
			}
			h.ends("web")
			if !alone {
				h.ends("bystander")
			}
			h.ok(h.delete("lan"))
			h.clean()
		})
	}
}

// TestLostStrangerInALAN: the same of a container that the plugin's state, set
// back, does not know; its mark outlives a restart.
func TestLostStrangerInALAN(t *testing.T) {
	for _, options := range lanModes {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			h.lan(options...)
			h.run("web", "lan", "10.1.0.2/16")
			h.stop()
			forgetEndpoint(h)
			h.start(hasty)
			h.await("it is found", func() bool { return len(h.view().Strangers) == 1 })
			h.addresses.lose("10.1.0.0/16", "10.1.0.2", "")
			h.await("it is cut off", func() bool { return h.down("web") })
			h.await("it is a problem", h.problem("address 10.1.0.2 of container in sandbox /s/web here"))
			h.stop()
			h.addresses.lose("", "", "")
			h.start(hasty)
			h.await("it is let in again", func() bool { down, routes := h.inside("web"); return !down && routes == 1 })
		})
	}
}

// TestLostAndMadeAnew: what died while it was cut off is made again only when it
// may be on the network, and then at once.
func TestLostAndMadeAnew(t *testing.T) {
	for _, options := range append([][]string{{"mode=vxlan"}, {"mode=vxlan", "attach=bridge"}}, lanModes...) {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			slow := hasty
			slow.sandbox = 1 << 40 // no periodic look will help
			device := func() {
				h.kernel.RemoveDevice("eth1")
				h.kernel.SetDevice(nic("eth1"))
			}
			if options[0] == "mode=vxlan" {
				h.ok(h.create("lan", []string{"10.1.0.0/16", "fd01::/64"}, options...))
				device = func() { h.kernel.Delete(kernel.Link{Name: "is-v4097"}.Key(), kernel.Link{Name: "is-b4097"}.Key()) }
			} else {
				h.lan(options...)
			}
			h.run("web", "lan", "10.1.0.2/16")
			h.restart(slow)
			h.ok(h.Sync(anyContext, 0))
			before := h.kernel.String()
			h.addresses.lose("10.1.0.0/16", "10.1.0.2", "web.1")
			h.await("it is cut off", func() bool { return strings.Contains(h.kernel.String(), " down") })
			device()
			for range 3 {
				h.ok(h.Sync(anyContext, 0))
			}
			if in, ok := h.kernel.Interface("/s/web", "eth0"); ok && at(options) != "mode=vxlan attach=bridge" {
				t.Fatalf("made while it has no address: %v", in)
			}
			h.addresses.lose("", "", "")
			h.await("all is as before", func() bool { return h.kernel.String() == before })
			h.ok(h.Leave(anyContext, &network.LeaveRequest{EndpointID: "web"}))
		})
	}
}
