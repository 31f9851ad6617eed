package driver

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// TestBlocksAreToldToRouters: what this host holds of a bgp=on network is announced,
// with its underlay address as next hop, and no more when the network goes.
func TestBlocksAreToldToRouters(t *testing.T) {
	h := newHost(t, t.TempDir())
	h.start(hasty)
	h.refused(h.create("gw", []string{"10.1.0.0/16"}, "mode=routed", "bgp=on"), "create network: option bgp=on: no router is named: set BGP_PEERS and BGP_AS of the plugin on this host")
	h.routers = true
	h.restart(hasty)
	defer func() { h.stop() }()
	h.ok(h.create("gw", []string{"10.1.0.0/16"}, "mode=routed", "bgp=on"))
	h.addresses.claim(cluster.Claim{Pool: pools("10.1.0.0/16")[0], Block: netip.MustParsePrefix("10.1.0.0/29"), Lease: 5})
	announced := func(want ...string) func() bool {
		return func() bool {
			blocks, via, known := h.Announced()
			return known && via == netip.MustParseAddr("192.0.2.1") && slices.Equal(blocks, prefixes(want...))
		}
	}
	h.await("the block is announced", announced("10.1.0.0/29"))
	<-h.Told()
	h.ok(h.delete("gw"))
	h.await("nothing is announced", announced())
	<-h.Told()
}

// TestRoutesOfRouters: where routers lead is led there, as long as this host reaches
// their next hops.
func TestRoutesOfRouters(t *testing.T) {
	h := newHost(t, t.TempDir())
	h.routers = true
	h.start(hasty)
	defer func() { h.stop() }()
	up := nic("eth0", func(d *kernel.Device) { d.Addrs = prefixes("192.0.2.1/24") })
	h.kernel.SetDevice(up)
	h.ok(h.create("gw", []string{"10.1.0.0/16", "fd01::/64"}, "mode=routed", "bgp=on"))
	h.Import(map[netip.Prefix]netip.Addr{
		netip.MustParsePrefix("203.0.113.0/24"):  netip.MustParseAddr("192.0.2.254"),
		netip.MustParsePrefix("2001:db8:5::/48"): netip.MustParseAddr("fe80::1%eth0"),
		netip.MustParsePrefix("198.51.100.0/24"): netip.MustParseAddr("10.9.9.9"),
		netip.MustParsePrefix("10.1.5.0/24"):     netip.MustParseAddr("192.0.2.254"), // the cluster's own
	})
	const four, six = "fib 203.0.113.0/24 via 192.0.2.254 dev eth0", "fib 2001:db8:5::/48 via fe80::1 dev eth0"
	h.awaitHas(four)
	h.awaitHas(six)
	h.lacks("fib 198.51.100.0/24")
	h.lacks("fib 10.1.5.0/24")
	h.await("the one that is left out is said", func() bool {
		return slices.ContainsFunc(h.Status().Problems, func(p Problem) bool {
			return strings.HasPrefix(p.Cause, "routes of BGP routers are left out: their next hop: find the way to 10.9.9.9")
		})
	})

	// The link goes and returns, and no router says a word.
	h.kernel.RemoveDevice("eth0")
	h.awaitNot(four)
	h.awaitNot(six)
	h.kernel.SetDevice(up)
	h.awaitHas(four)
	h.awaitHas(six)

	h.Import(nil)
	h.awaitNot(four)
}
