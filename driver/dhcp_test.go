package driver

import (
	"net/netip"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
)

// fakeDHCP serves the pools that are in it, with one set of terms for all.
type fakeDHCP struct {
	pools map[string]bool
	terms Terms
	borne cluster.MAC
}

func (f *fakeDHCP) Serves(p cluster.PoolKey) bool { return f.pools[p.Prefix.String()] }
func (f *fakeDHCP) Terms(p cluster.PoolKey, a netip.Addr) (Terms, bool) {
	return f.terms, f.Serves(p) && a.Is4()
}

func (f *fakeDHCP) Bears(_ cluster.PoolKey, _ netip.Addr, mac cluster.MAC) { f.borne = mac }

// TestDHCPAndMACAddress: the server is told of a MAC that the user chose.
func TestDHCPAndMACAddress(t *testing.T) {
	h := newHost(t, t.TempDir())
	f := &fakeDHCP{pools: map[string]bool{"10.1.0.0/16": true}, terms: Terms{MAC: cluster.MAC{2, 1}}}
	h.dhcp = f
	h.start(hasty)
	defer func() { h.stop() }()
	h.kernel.SetDevice(nic("eth1"))
	h.ok(h.create("lan", []string{"10.1.0.0/16"}, "mode=macvlan", "parent=eth1"))
	_, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{
		NetworkID: "lan", EndpointID: "web", Interface: &network.EndpointInterface{Address: "10.1.0.5/16", MacAddress: "02:00:00:00:00:77"},
	})
	h.ok(err)
	h.check(f.borne == cluster.MAC{2, 0, 0, 0, 0, 0x77} && h.mac("web") == "02:00:00:00:00:77", "the server was told of "+f.borne.String())
}

// TestDHCPIsRefused: networks that reach no server are refused when they are
// made, with what to use instead.
func TestDHCPIsRefused(t *testing.T) {
	h := newHost(t, t.TempDir())
	h.dhcp = &fakeDHCP{pools: map[string]bool{"10.1.0.0/16": true, "fd01::/64": true}}
	h.start(hasty)
	defer func() { h.stop() }()
	h.kernel.SetDevice(nic("eth1"))
	for _, c := range []struct {
		pools   []string
		options []string
		want    string
	}{
		{[]string{"10.1.0.0/16"}, nil, "--ipam-opt dhcp=on does not work with mode vxlan, which reaches no DHCP server of a LAN: use -o mode=macvlan or -o mode=ipvlan, with -o parent=, or leave it out"},
		{[]string{"10.1.0.0/16"}, []string{"mode=ipvlan", "ipvlan_mode=l3s", "parent=eth1"}, "--ipam-opt dhcp=on does not work with ipvlan_mode=l3s, whose containers are not in the LAN but behind this host: use ipvlan_mode=l2, or leave it out"},
		{[]string{"10.1.0.0/16"}, []string{"mode=macvlan", "--internal"}, "--ipam-opt dhcp=on needs a LAN with a server in it: add -o parent=, or leave it out"},
		{[]string{"fd01::/64"}, []string{"mode=macvlan", "parent=eth1"}, "--ipam-opt dhcp=on is for IPv4, and the network has IPv6 only: leave it out, isthmus hands out the addresses then"},
	} {
		h.refused(h.create("lan", c.pools, c.options...), "create network: "+c.want)
	}
	h.clean()
	h.ok(h.create("lan", []string{"10.1.0.0/16", "fd01::/64"}, "mode=ipvlan", "parent=eth1"))
	h.check(h.Networks()[0].Gateway == "dhcp", "the gateway is "+h.Networks()[0].Gateway)
}

// TestDHCPTerms: what the server says of an address is its endpoint's: the
// router where the user named none, an MTU that is lower, the MAC.
func TestDHCPTerms(t *testing.T) {
	for _, c := range []struct {
		name             string
		options          []string
		given            string // --gateway, as Docker passes it
		terms            Terms
		gateway, mac, is string
	}{
		{"as the server says", nil, "10.1.0.0/16", Terms{Router: netip.MustParseAddr("10.1.0.254"), MTU: 1400, MAC: cluster.MAC{2, 1}}, "10.1.0.254", "02:01:00:00:00:00", "mtu 1400"},
		{"--gateway goes before", nil, "10.1.0.1/16", Terms{Router: netip.MustParseAddr("10.1.0.254")}, "10.1.0.1", "", "mtu 1500"},
		{"no router", nil, "10.1.0.0/16", Terms{MTU: 9000}, "", "", "mtu 1500"},
		{"a router out of reach", nil, "10.1.0.0/16", Terms{Router: netip.MustParseAddr("10.2.0.1")}, "", "", "mtu 1500"},
		{"--internal", []string{"--internal"}, "10.1.0.0/16", Terms{Router: netip.MustParseAddr("10.1.0.254")}, "", "", "mtu 1500"},
		{"ipvlan has no MAC of its own", []string{"mode=ipvlan"}, "10.1.0.0/16", Terms{Router: netip.MustParseAddr("10.1.0.254"), MAC: cluster.MAC{2, 1}}, "10.1.0.254", "00:00:00:00:00:00", "mtu 1500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, t.TempDir())
			h.dhcp = &fakeDHCP{pools: map[string]bool{"10.1.0.0/16": true}, terms: c.terms}
			h.start(hasty)
			defer func() { h.stop() }()
			h.kernel.SetDevice(nic("eth1"))
			r := request("lan", []string{"10.1.0.0/16"}, append([]string{"mode=macvlan", "parent=eth1"}, c.options...)...)
			r.IPv4Data[0].Gateway = c.given
			h.ok(h.CreateNetwork(anyContext, r))
			h.ok(h.endpoint("web", "lan", "10.1.0.5/16"))
			var joined *network.JoinResponse
			joined, err := h.joins("web")
			h.ok(err)
			h.check(joined.Gateway == c.gateway, "the gateway is "+joined.Gateway)
			h.contains(c.is)
			h.check(c.mac == "" || h.mac("web") == c.mac, "the MAC is "+h.mac("web"))
			// A restart asks nobody.
			h.dhcp = nil
			h.restart(hasty)
			joined, err = h.joins("web")
			h.ok(err)
			h.check(joined.Gateway == c.gateway, "the gateway is "+joined.Gateway+" after a restart")
			h.contains(c.is)
		})
	}
}
