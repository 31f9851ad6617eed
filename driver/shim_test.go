package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

func TestHostAccess(t *testing.T) {
	for _, mode := range []string{"mode=macvlan", "mode=ipvlan", "mode=ipvlan ipvlan_mode=l3"} {
		t.Run(mode, func(t *testing.T) {
			h := startHost(t)
			options := append(strings.Fields(mode), "host_access=on")
			h.lan(options...)
			shim := shimDevice(pools("10.1.0.0/16", "fd01::/64"))
			h.contains("link " + shim + " type ")
			h.contains("addr 10.1.0.9/32 dev " + shim)
			h.contains("addr fd01::9/128 dev " + shim)
			pool, mine := pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.9")
			h.check(h.Live(pool, mine), "its address is free")
			h.check(!h.Live(pools("10.2.0.0/16")[0], mine), "it is in another pool")
			h.run("web", "lan", "10.1.0.2/16")
			h.awaitHas("fib 10.1.0.2/32 dev " + shim + " src 10.1.0.9")
			if n := h.Networks()[0]; fmt.Sprint(n.Host) != "[10.1.0.9 fd01::9]" {
				t.Fatalf("status %+v", n)
			}
			// A restart asks nobody, and what is deleted by hand comes back.
			asked := h.hosts.asked
			h.hosts.fail(errors.New("no answer"))
			h.restart(hasty)
			h.kernel.Delete(kernel.Link{Name: shim}.Key())
			h.awaitHas("fib 10.1.0.2/32 dev " + shim + " src 10.1.0.9")
			h.check(h.hosts.asked == asked, "it asked again")
			h.hosts.fail(nil)
			// Another Docker network that is the same has the same address.
			h.ok(h.create("same", []string{"10.1.0.0/16", "fd01::/64"}, append([]string{"parent=eth1"}, options...)...))
			h.check(h.hosts.asked == asked, "it asked for a second address")
			h.ends("web")
			h.lacks("fib ")
			h.ok(h.delete("lan"))
			h.contains("addr 10.1.0.9/32")
			h.check(h.hosts.held() == 2, "the address was given back")
			h.ok(h.delete("same"))
			h.clean()
			h.check(h.hosts.held() == 0, "the address was not given back")
			h.check(!h.Live(pool, mine), "its address is still live")
		})
	}
}

func TestHostAccessIsGivenBackAnyhow(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "host_access=on")
	h.hosts.fail(errors.New("no answer"))
	h.ok(h.delete("lan"))
	h.check(!h.Live(pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.9")), "it is still live")
	h.hosts.fail(nil)
	h.lan("mode=macvlan", "host_access=on")
	_, err := h.Forget(anyContext, "10.1.0.0/16")
	h.ok(err)
	h.check(h.hosts.held() == 0, "it was not given back")
	h.clean()
	h.lan("mode=macvlan", "host_access=on", "parent=eth1.5")
	h.ok(h.Reset(anyContext))
	h.clean()
}

// TestHostAccessIsProbed: the LAN can be asked before the host gets an address,
// in a VLAN that was made for the network too; and the host gets it after a crash.
func TestHostAccessIsProbed(t *testing.T) {
	h := startHost(t)
	var lan LAN
	h.hosts.ask = func(p cluster.PoolKey) { lan, _ = h.LAN(p) }
	h.lan("mode=macvlan", "parent=eth1.50", "host_access=on")
	h.check(lan.Link == "eth1.50", "asked in the LAN of "+lan.Link)
	h.stop()
	h.edit(func(in *Intent) {
		n := in.Networks["lan"]
		n.HostAddrs = nil
		in.Networks["lan"] = n
	})
	h.start(hasty)
	h.await("it is a problem", h.problem("this host has no address in it"))
	h.lan("mode=macvlan", "parent=eth1.50", "host_access=on") // Docker tries again
	h.contains("addr 10.1.0.9/32")
	h.check(len(h.Status().Problems) == 0, "it still is a problem")
}

// TestHostLosesItsAddress: the host is not heard at an address that another one
// may have.
func TestHostLosesItsAddress(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "host_access=on")
	h.run("web", "lan", "10.1.0.2/16 fd01::2/64")
	h.awaitHas("fib 10.1.0.2/32")
	before := h.kernel.String()
	h.addresses.lose("10.1.0.0/16", "10.1.0.9", "")
	h.awaitNot("addr 10.1.0.9/32")
	h.ok(h.Sync(anyContext, 0))
	h.lacks("fib 10.1.0.2/32")
	h.contains("fib fd01::2/128")
	h.await("it is a problem", h.problem("address 10.1.0.9 of the host itself is cut off: this host has no lease of it any more"))
	h.addresses.lose("", "", "")
	h.await("all is as before", func() bool { return h.kernel.String() == before && len(h.Status().Problems) == 0 })
}

// TestHostReachesOneOfTwo: the host has one table of routes, and says so where two
// networks need more.
func TestHostReachesOneOfTwo(t *testing.T) {
	h := startHost(t)
	h.kernel.SetDevice(nic("eth1"))
	in := func(id, space string) *network.CreateNetworkRequest {
		r := request(id, []string{"10.1.0.0/16"}, "mode=macvlan", "parent=eth1", "host_access=on")
		if space != "" {
			r.Options[genericKey].(map[string]any)["space"] = space
			h.addresses.spaces = append(h.addresses.spaces, space)
		}
		return r
	}
	h.ok(h.CreateNetwork(anyContext, in("a", "")))
	h.ok(h.CreateNetwork(anyContext, in("b", "other")))
	h.run("web", "a", "10.1.0.2/16")
	h.run("db", "b", "10.1.0.2/16")
	h.await("it is a problem", h.problem("another network of this host routes 10.1.0.2/32 elsewhere"))
	h.contains("fib 10.1.0.2/32 dev " + shimDevice(pools("10.1.0.0/16")))
}
