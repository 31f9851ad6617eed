package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// nic is an interface of the host.
func nic(name string, change ...func(*kernel.Device)) kernel.Device {
	d := kernel.Device{Name: name, Kind: "device", MTU: 1500, MAC: cluster.MAC{2, 0, 0, 0, 9, name[len(name)-1]}, Up: true, Carrier: true}
	for _, c := range change {
		c(&d)
	}
	return d
}

// lan creates a network in the LAN of eth1: cluster network 1.
func (h *host) lan(options ...string) {
	h.t.Helper()
	h.kernel.SetDevice(nic("eth1"))
	r := request("lan", []string{"10.1.0.0/16", "fd01::/64"}, append([]string{"parent=eth1"}, options...)...)
	r.IPv4Data[0].Gateway, r.IPv6Data[0].Gateway = "10.1.0.1/16", "fd01::1/64"
	h.ok(h.CreateNetwork(anyContext, r))
}

// clean fails unless nothing is left of the plugin in the kernel.
func (h *host) clean() {
	h.t.Helper()
	if left := h.kernel.String(); left != "" {
		h.t.Fatalf("left in the kernel:\n%s", left)
	}
}

// at names a test's line of a table.
func at(options []string) string { return strings.Join(options, " ") }

func TestLifeInALAN(t *testing.T) {
	for _, c := range []struct {
		options         []string
		inside          string // the container's interface
		gateway         string
		static, disable bool
		named           bool // it has a MAC of its own
	}{
		{[]string{"mode=macvlan"}, "type macvlan link eth1 address MAC mtu 1500", "10.1.0.1 fd01::1", false, false, true},
		{[]string{"mode=macvlan", "macvlan_mode=private", "bcqueue=3000", "mtu=1400"}, "type macvlan link eth1 mode private bcqueuelen 3000 address MAC mtu 1400", "10.1.0.1 fd01::1", false, false, true},
		{[]string{"mode=macvlan", "macvlan_mode=vepa", "--internal"}, "type macvlan link eth1 mode vepa address MAC mtu 1500", " ", false, true, true},
		{[]string{"mode=macvlan", "macvlan_mode=passthru"}, "type macvlan link eth1 mode passthru mtu 1500", "10.1.0.1 fd01::1", false, false, false},
		{[]string{"mode=macvlan", "macvlan_mode=source", "source=02:00:00:00:00:fe"}, "type macvlan link eth1 mode source sources 02:00:00:00:00:fe address MAC mtu 1500", "10.1.0.1 fd01::1", false, false, true},
		{[]string{"mode=ipvlan"}, "type ipvlan link eth1 mode l2 bridge mtu 1500", "10.1.0.1 fd01::1", false, false, false},
		{[]string{"mode=ipvlan", "ipvlan_flag=private"}, "type ipvlan link eth1 mode l2 private mtu 1500", "10.1.0.1 fd01::1", false, false, false},
		{[]string{"mode=ipvlan", "ipvlan_mode=l3"}, "type ipvlan link eth1 mode l3 bridge mtu 1500", " ", true, true, false},
		{[]string{"mode=ipvlan", "ipvlan_mode=l3s", "ipvlan_flag=vepa"}, "type ipvlan link eth1 mode l3s vepa mtu 1500", " ", true, true, false},
		{[]string{"mode=ipvlan", "ipvlan_mode=l3", "--internal"}, "type ipvlan link eth1 mode l3 bridge mtu 1500", " ", false, true, false},
	} {
		t.Run(at(c.options), func(t *testing.T) {
			h := startHost(t)
			h.lan(c.options...)
			r, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{NetworkID: "lan", EndpointID: "web", Interface: &network.EndpointInterface{Address: "10.1.0.2/16", AddressIPv6: "fd01::2/64"}})
			h.ok(err)
			if named := r.Interface.MacAddress != ""; named != c.named {
				t.Fatalf("answered the MAC %q", r.Interface.MacAddress)
			}
			j, err := h.joins("web")
			h.ok(err)
			if j.Gateway+" "+j.GatewayIPv6 != c.gateway || j.DisableGatewayService != c.disable {
				t.Fatalf("answer %+v", j)
			}
			var static []string
			for _, s := range j.StaticRoutes {
				static = append(static, fmt.Sprint(s.Destination, " ", s.RouteType))
			}
			if want := map[bool]string{true: "0.0.0.0/0 1, ::/0 1"}[c.static]; strings.Join(static, ", ") != want {
				t.Fatalf("routes %q, want %q", static, want)
			}
			h.ok(h.kernel.Take(j.InterfaceName.SrcName, "/s/web", "eth0"))
			h.await("it is seen", func() bool { return h.store.intent().Endpoints["web"].Inside != "" })
			h.contains(strings.ReplaceAll(c.inside, "MAC", h.mac("web")) + " inet 10.1.0.2/16 inet fd01::2/64")
			h.lacks("guard")
			if told := h.heard.told(); told != "net 1, 10.1.0.2" {
				t.Fatalf("published %s", told)
			}
			if p := h.Status().Problems; len(p) > 0 {
				t.Fatalf("problems %v", p)
			}
			if got := fmt.Sprint(h.kernel.Heeded()); got != "[eth1]" {
				t.Fatalf("heeded %s", got)
			}
			if _, err := h.joins("web"); err != nil || h.has(" down") {
				t.Fatalf("a repeated Join: %v\n%s", err, h.kernel)
			}
			h.ends("web")
			h.ok(h.delete("lan"))
			h.clean()
			h.await("the cluster knows", func() bool { return !h.ledger.holds() })
		})
	}
}

// TestLANRefusals: what cannot work is refused when the network is created, with
// what is wrong, who is in the way, and what to do.
func TestLANRefusals(t *testing.T) {
	child := func(c kernel.Child) func(h *host) {
		return func(h *host) {
			h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.Children = []kernel.Child{c} }))
		}
	}
	with := func(change func(*kernel.Device)) func(h *host) {
		return func(h *host) { h.kernel.SetDevice(nic("eth1", change)) }
	}
	first := func(options ...string) func(h *host) {
		return func(h *host) {
			h.ok(h.create("first", []string{"10.9.0.0/16"}, append([]string{"parent=eth1"}, options...)...))
		}
	}
	lacking := func(setup func(h *host), kinds ...kernel.Kind) func(h *host) {
		return func(h *host) {
			if setup != nil {
				setup(h)
			}
			h.kernel.Lack(kinds...)
		}
	}
	elsewhere := func(def cluster.Definition) func(h *host) { return func(h *host) { h.elsewhere(def) } }
	const p4 = "10.1.0.0/16"
	for _, c := range []struct {
		name  string
		setup func(h *host)
		pool  string
		opts  []string
		err   string
	}{
		{"no parent", nil, p4, []string{"mode=macvlan"}, "mode macvlan needs a parent: add -o parent= with one of eth0, eth1, or --internal for a network of this host alone"},
		{"missing", nil, p4, []string{"mode=macvlan", "parent=eth7"}, "parent eth7 does not exist on this host: use one of eth0, eth1, and -o parent.HOST= where hosts differ"},
		{"missing below a VLAN", nil, p4, []string{"mode=ipvlan", "parent=eth7.50"}, "parent eth7.50 does not exist on this host, and neither does eth7: use a VLAN of one of eth0, eth1, and -o parent.HOST= where hosts differ"},
		{"VLAN 0", nil, p4, []string{"mode=macvlan", "parent=eth1.0"}, "parent eth1.0 does not exist on this host, and 0 is no VLAN that could be made on eth1: a VLAN is a number from 1 to 4094"},
		{"VLAN 4095", nil, p4, []string{"mode=macvlan", "parent=eth1.4095"}, "parent eth1.4095 does not exist on this host, and 4095 is no VLAN that could be made on eth1: a VLAN is a number from 1 to 4094"},
		{"not a VLAN", nil, p4, []string{"mode=macvlan", "parent=eth1.x"}, "parent eth1.x does not exist on this host: use one of eth0, eth1, and -o parent.HOST= where hosts differ"},
		{"loopback", func(h *host) {
			h.kernel.SetDevice(kernel.Device{Name: "lo", Kind: "device", MTU: 65536, MAC: cluster.MAC{}, Loopback: true, Up: true})
		}, p4, []string{"mode=ipvlan", "parent=lo"}, "parent lo is the loopback interface, which leads to no LAN: use an Ethernet interface"},
		{"no Ethernet", with(func(d *kernel.Device) { d.MAC = cluster.MAC{} }), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 is no Ethernet interface: use an Ethernet interface"},
		{"VLAN on no Ethernet", with(func(d *kernel.Device) { d.MAC = cluster.MAC{} }), p4, []string{"mode=macvlan", "parent=eth1.5"}, "parent eth1 is no Ethernet interface: use an Ethernet interface"},
		{"a macvlan itself", func(h *host) {
			h.kernel.SetDevice(nic("mv0", func(d *kernel.Device) { d.Kind, d.Parent = kernel.Macvlan, "eth1" }))
		}, p4, []string{"mode=macvlan", "parent=mv0"}, "parent mv0 stands on another parent itself, as its macvlan link: use -o parent=eth1"},
		{"a link of isthmus", func(h *host) { h.ok(h.create("first", []string{"10.9.0.0/16"})) }, p4, []string{"mode=macvlan", "parent=is-v4097"}, "parent is-v4097 is a link that isthmus made for itself: use one of eth0, eth1"},
		{"bridge port", with(func(d *kernel.Device) { d.Master, d.MasterKind = "br0", kernel.Bridge }), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 is a port of bridge br0, which takes all its frames: use -o parent=br0"},
		{"bond port", with(func(d *kernel.Device) { d.Master, d.MasterKind = "bond0", "bond" }), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 is a port of bond bond0, which takes all its frames: use -o parent=bond0"},
		{"VLAN of a bond port", with(func(d *kernel.Device) { d.Master, d.MasterKind = "bond0", "bond" }), p4, []string{"mode=ipvlan", "parent=eth1.50"}, "parent eth1 is a port of bond bond0, which takes all its frames: use -o parent=bond0.50"},
		{"bridge port without the mode", lacking(with(func(d *kernel.Device) { d.Master, d.MasterKind = "br0", kernel.Bridge }), kernel.IPvlan), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 is a port of bridge br0, which takes all its frames: use -o parent=br0"},
		{"macvlan on ipvlan", first("mode=ipvlan"), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 serves ipvlan for network 10.9.0.0/16, and cannot serve macvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"ipvlan on macvlan", first("mode=macvlan"), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves macvlan for network 10.9.0.0/16, and cannot serve ipvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"ipvlan on macvlan without ipvlan", lacking(first("mode=macvlan"), kernel.IPvlan), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves macvlan for network 10.9.0.0/16, and cannot serve ipvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"macvlan on a stranger's ipvlan", child(kernel.Child{Name: "ipv0", Kind: kernel.IPvlan, Mode: "l2", Flag: "bridge"}), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 serves ipvlan for link ipv0 of this host, and cannot serve macvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"ipvlan on a container's macvlan", child(kernel.Child{Name: "eth0", Kind: kernel.Macvlan, Mode: "bridge", Sandbox: "/s/x"}), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves macvlan for a container (interface eth0 in /s/x), and cannot serve ipvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"another ipvlan_mode", first("mode=ipvlan", "ipvlan_mode=l3"), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves ipvlan in mode l3 for network 10.9.0.0/16, and a parent has one mode: ipvlan in mode l2 would change it there: use -o ipvlan_mode=l3, or another parent"},
		{"another ipvlan_flag", first("mode=ipvlan", "ipvlan_flag=vepa"), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves ipvlan in mode l2, flag vepa for network 10.9.0.0/16, and a parent has one mode: ipvlan in mode l2 would change it there: use -o ipvlan_mode=l2 -o ipvlan_flag=vepa, or another parent"},
		{"a stranger's ipvlan_mode", child(kernel.Child{Name: "eth0", Kind: kernel.IPvlan, Mode: "l3s", Flag: "bridge", Sandbox: "/s/x"}), p4, []string{"mode=ipvlan", "parent=eth1"}, "parent eth1 serves ipvlan in mode l3s for a container (interface eth0 in /s/x), and a parent has one mode: ipvlan in mode l2 would change it there: use -o ipvlan_mode=l3s, or another parent"},
		{"passthru beside another", first("mode=macvlan"), p4, []string{"mode=macvlan", "macvlan_mode=passthru", "parent=eth1"}, "macvlan_mode=passthru admits one interface on its parent, and eth1 serves network 10.9.0.0/16 already: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"beside passthru", first("mode=macvlan", "macvlan_mode=passthru"), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 serves network 10.9.0.0/16 alone, in macvlan_mode=passthru: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"passthru beside a stranger", child(kernel.Child{Name: "mv0", Kind: kernel.Macvlan, Mode: "bridge"}), p4, []string{"mode=macvlan", "macvlan_mode=passthru", "parent=eth1"}, "macvlan_mode=passthru admits one interface on its parent, and eth1 serves link mv0 of this host already: use another parent, or a VLAN of it, such as -o parent=eth1.50"},
		{"passthru of the underlay", nil, p4, []string{"mode=macvlan", "macvlan_mode=passthru", "parent=eth0"}, "macvlan_mode=passthru takes all frames of parent eth0, by which this host talks to the others (192.0.2.1): use an interface that the container may have for itself"},
		{"wireless", with(func(d *kernel.Device) { d.Wireless = true }), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 is wireless, and an access point takes the frames of one MAC from each station: use -o mode=ipvlan, whose containers have the MAC of the host, or mode vxlan"},
		{"Amazon", with(func(d *kernel.Device) { d.Driver = "ena" }), p4, []string{"mode=macvlan", "parent=eth1"}, "parent eth1 is an interface of Amazon's cloud (driver ena), which drops the frames of all MACs that it did not assign: use -o mode=ipvlan, whose containers have the MAC of the host, or mode vxlan, which needs no addresses of the cloud's network"},
		{"Google", with(func(d *kernel.Device) { d.Driver = "gve" }), p4, []string{"mode=macvlan", "parent=eth1.5"}, "parent eth1.5 is an interface of Google's cloud (driver gve), which drops the frames of all MACs that it did not assign: use -o mode=ipvlan, whose containers have the MAC of the host, or mode vxlan, which needs no addresses of the cloud's network"},
		{"VLAN protocol", first("mode=macvlan", "parent=eth1.50"), p4, []string{"mode=macvlan", "parent=eth1.50.7", "vlan_protocol=802.1ad"}, "VLAN device eth1.50 is of the other protocol in network 10.9.0.0/16: use the same -o vlan_protocol"},
		{"no macvlan", lacking(nil, kernel.Macvlan), p4, []string{"mode=macvlan", "parent=eth1"}, "kernel lacks macvlan: load the module macvlan (modprobe macvlan), or boot a kernel that has it"},
		{"no ipvlan", lacking(nil, kernel.IPvlan), p4, []string{"mode=ipvlan", "parent=eth1"}, "kernel lacks ipvlan: load the module ipvlan (modprobe ipvlan), or boot a kernel that has it"},
		{"no VLANs", lacking(nil, kernel.VLAN), p4, []string{"mode=macvlan", "parent=eth1.5"}, "kernel lacks vlan: load the module 8021q (modprobe 8021q), or boot a kernel that has it"},
		{"mtu", nil, p4, []string{"mode=macvlan", "parent=eth1", "mtu=9000"}, "mtu=9000 is more than parent eth1 carries, which is 1500: use -o mtu=1500 or less, or leave it out"},
		{"mtu of another host", elsewhere(cluster.Definition{Mode: "macvlan", MTU: 9000}), p4, []string{"mode=macvlan", "parent=eth1"}, "mtu=9000 is more than parent eth1 carries, which is 1500: use -o mtu=1500 or less, or leave it out"},
		{"mtu too small for IPv6", nil, "fd01::/64", []string{"mode=ipvlan", "parent=eth1", "mtu=1200"}, "mtu=1200 is too small for IPv6, which needs 1280: use -o mtu=1280 or more, or no IPv6 subnet"},
		{"host_access and private", nil, p4, []string{"mode=macvlan", "parent=eth1", "macvlan_mode=private", "host_access=on"}, "option host_access=on does not work with macvlan_mode=private: that keeps containers from all others of their parent, the host among them: use macvlan_mode=bridge"},
		{"host_access and vepa", nil, p4, []string{"mode=macvlan", "parent=eth1", "macvlan_mode=vepa", "host_access=on"}, "option host_access=on does not work with macvlan_mode=vepa: that sends all frames to the switch, and not to the host: use macvlan_mode=bridge"},
		{"host_access and source", nil, p4, []string{"mode=macvlan", "parent=eth1", "macvlan_mode=source", "host_access=on"}, "option host_access=on does not work with macvlan_mode=source: that sends all frames to the switch, and not to the host: use macvlan_mode=bridge"},
		{"host_access and passthru", nil, p4, []string{"mode=macvlan", "parent=eth1", "macvlan_mode=passthru", "host_access=on"}, "option host_access=on does not work with macvlan_mode=passthru: that leaves no place for the host on the parent: use macvlan_mode=bridge"},
		{"host_access and flag private", nil, p4, []string{"mode=ipvlan", "parent=eth1", "ipvlan_flag=private", "host_access=on"}, "option host_access=on does not work with ipvlan_flag=private: that keeps containers from all others of their parent, the host among them: use ipvlan_flag=bridge"},
		{"host_access and flag vepa", nil, p4, []string{"mode=ipvlan", "parent=eth1", "ipvlan_flag=vepa", "host_access=on"}, "option host_access=on does not work with ipvlan_flag=vepa: that sends all packets to the switch, and not to the host: use ipvlan_flag=bridge"},
		{"host_access and foreign addresses", nil, "LocalDefault|" + p4, []string{"mode=macvlan", "parent=eth1", "ipam=foreign", "host_access=on"}, "option host_access=on does not work with ipam=foreign: the host needs an address that no other has: use isthmus as --ipam-driver"},
		{"no address for the host", func(h *host) { h.hosts.fail(errors.New("pool is full")) }, p4, []string{"mode=macvlan", "parent=eth1", "host_access=on"}, "take an address of 10.1.0.0/16 for the host: pool is full"},
		{"another macvlan_mode", elsewhere(cluster.Definition{Mode: "macvlan", Submode: "private"}), p4, []string{"mode=macvlan", "parent=eth1", "macvlan_mode=bridge"}, "attach network 10.1.0.0/16: REFUSED"},
		{"another VLAN", elsewhere(cluster.Definition{Mode: "macvlan", Submode: "bridge", VLAN: "50"}), p4, []string{"mode=macvlan", "parent=eth1.60"}, "attach network 10.1.0.0/16: REFUSED"},
		{"links unreadable", func(h *host) { h.kernel.Fail(-1, "links", errors.New("no netlink")) }, p4, []string{"mode=macvlan", "parent=eth1"}, "no netlink"},
		{"bad gateway", nil, p4, []string{"mode=macvlan", "parent=eth1", "GATEWAY=x"}, `parse gateway: ParseAddr("x"): unable to parse IP`},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := startHost(t)
			h.kernel.SetDevice(nic("eth1"))
			if c.setup != nil {
				c.setup(h)
			}
			before := h.kernel.String()
			opts := slices.DeleteFunc(slices.Clone(c.opts), func(o string) bool { return strings.HasPrefix(o, "GATEWAY=") })
			r := request("n", []string{c.pool}, opts...)
			for _, data := range r.IPv4Data {
				if len(opts) < len(c.opts) {
					data.Gateway = "x"
				}
			}
			err := h.CreateNetwork(anyContext, r)
			if strings.HasSuffix(c.err, "REFUSED") { // in the ledger's words
				c.err = errorText(err)
				h.check(strings.HasPrefix(c.err, "create network: attach network 10.1.0.0/16: network 10.1.0.0/16 is {Mode:macvlan "), "error: "+c.err)
				c.err = strings.TrimPrefix(c.err, "create network: ")
			}
			h.refused(err, "create network: "+c.err)
			h.kernel.Heal()
			h.hosts.fail(nil)
			h.await("nothing is left of it", func() bool { return h.kernel.String() == before && h.hosts.held() == 0 })
			if _, ok := h.store.intent().Networks["n"]; ok {
				t.Fatal("it is stored")
			}
		})
	}
}

// TestLANMismatch: a ledger that knows nothing of what macvlan and ipvlan are has
// no word against it, and the driver has.
func TestLANMismatch(t *testing.T) {
	for _, c := range []struct {
		have, asked cluster.Definition
		err         string
	}{
		{cluster.Definition{Mode: "macvlan", Submode: "private"}, cluster.Definition{Mode: "macvlan"}, ""},
		{cluster.Definition{Mode: "macvlan", Submode: "private"}, cluster.Definition{Mode: "macvlan", Submode: "bridge"}, "network 10.1.0.0/16 was created on host2 with macvlan_mode=private, and this one asks for macvlan_mode=bridge: leave -o macvlan_mode out, or use the same"},
		{cluster.Definition{Mode: "ipvlan"}, cluster.Definition{Mode: "ipvlan", Submode: "l3"}, "network 10.1.0.0/16 was created on host2 with ipvlan_mode=l2, and this one asks for ipvlan_mode=l3: leave -o ipvlan_mode out, or use the same"},
		{cluster.Definition{Mode: "ipvlan", Flag: "vepa"}, cluster.Definition{Mode: "ipvlan", Flag: "bridge"}, "network 10.1.0.0/16 was created on host2 with ipvlan_flag=vepa, and this one asks for ipvlan_flag=bridge: leave -o ipvlan_flag out, or use the same"},
		{cluster.Definition{Mode: "ipvlan"}, cluster.Definition{Mode: "macvlan"}, "network 10.1.0.0/16 was created on host2 with mode=ipvlan, and this one asks for mode=macvlan: leave -o mode out, or use the same"},
		{cluster.Definition{Mode: "macvlan", VLAN: "50"}, cluster.Definition{Mode: "macvlan", VLAN: "60"}, "network 10.1.0.0/16 is in VLAN 50, as created on host2, and parent eth1.60 of this host is in VLAN 60: use a parent in VLAN 50 here"},
		{cluster.Definition{Mode: "macvlan", VLAN: "50"}, cluster.Definition{Mode: "macvlan"}, ""},
		{cluster.Definition{Mode: "macvlan"}, cluster.Definition{Mode: "macvlan", VLAN: "60"}, ""},
	} {
		err := mismatch(Network{Pools: pools("10.1.0.0/16"), Def: c.have, Options: Options{Parent: "eth1.60"}}, c.asked, "host2")
		if errorText(err) != c.err {
			t.Errorf("have %+v, asked %+v: %q, want %q", c.have, c.asked, errorText(err), c.err)
		}
		if contradicts(c.asked, c.have) != (err != nil) {
			t.Errorf("have %+v, asked %+v: contradicts says %v", c.have, c.asked, err == nil)
		}
	}
}

// TestLANAgrees: what one host says goes for those that say nothing.
func TestLANAgrees(t *testing.T) {
	h := startHost(t)
	h.elsewhere(cluster.Definition{Mode: "macvlan", Submode: "private", Underlay: "ipv6", Encrypt: "off", MTU: 1400})
	h.kernel.SetDevice(nic("eth1"))
	h.ok(h.create("n", []string{"10.1.0.0/16"}, "mode=macvlan", "parent.host1=eth1", "parent=eth7"))
	h.run("web", "n", "10.1.0.2/16")
	h.contains("link eth1 mode private address " + h.mac("web") + " mtu 1400")
	if def := h.ledger.Registry().Networks[1].Def; def.VNI != 0 {
		t.Fatalf("definition %+v", def)
	}
	h.ok(h.create("mine", []string{"10.2.0.0/16"}, "mode=ipvlan", "parent=eth0.50"))
	if def := h.ledger.Registry().Networks[2].Def; def != (cluster.Definition{Mode: "ipvlan", Submode: "l2", Flag: "bridge", VLAN: "50", Encrypt: "off", Underlay: "ipv4"}) {
		t.Fatalf("definition %+v", def)
	}
	h.ok(h.delete("mine"))
	h.ok(h.create("mine", []string{"10.2.0.0/16"}, "mode=ipvlan", "parent=eth0", "ipvlan_mode=l3"))
	if def := h.ledger.Registry().Networks[3].Def; def.Submode != "l3" {
		t.Fatalf("redefined as %+v", h.ledger.Registry().Networks)
	}
}

func TestLANContradictionOnOneHost(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan")
	for _, c := range []struct{ option, err string }{
		{"parent=eth0", "the first has parent=eth1, the second parent=eth0"},
		{"bcqueue=5", "the first has bcqueue=1000, the second bcqueue=5"},
		{"host_access=on", "the first has host_access=off, the second host_access=on"},
		{"vlan_protocol=802.1ad", "the first has vlan_protocol=802.1q, the second vlan_protocol=802.1ad"},
	} {
		h.refused(h.create("other", []string{"10.1.0.0/16", "fd01::/64"}, "mode=macvlan", "parent=eth1", c.option),
			"create network: networks lan and other of this host have the same subnets (10.1.0.0/16 + fd01::/64) and so are one network, but "+c.err+": use the same, or other subnets")
	}
	h.ok(h.create("same", []string{"10.1.0.0/16", "fd01::/64"}, "mode=macvlan", "parent=eth1"))
	h.run("web", "same", "10.1.0.2/16")
	h.lan("mode=macvlan") // repeated
}

func TestLANMACs(t *testing.T) {
	for _, c := range []struct{ options, mac, err string }{
		{"mode=macvlan", "02:00:00:00:00:09", ""},
		{"mode=ipvlan", "02:00:00:00:00:09", "create endpoint: MAC address 02:00:00:00:00:09: all containers of an ipvlan network have the MAC address of its parent eth1: leave --mac-address out, or use mode macvlan"},
		{"mode=macvlan macvlan_mode=passthru", "02:00:00:00:00:09", "create endpoint: MAC address 02:00:00:00:00:09: macvlan_mode=passthru gives the container the MAC address of parent eth1 (02:00:00:00:09:31): leave --mac-address out"},
		{"mode=macvlan macvlan_mode=passthru", "02:00:00:00:09:31", ""},
	} {
		t.Run(c.options+" "+c.mac, func(t *testing.T) {
			h := startHost(t)
			h.lan(strings.Fields(c.options)...)
			r, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{NetworkID: "lan", EndpointID: "web", Interface: &network.EndpointInterface{Address: "10.1.0.2/16", MacAddress: c.mac}})
			h.refused(err, c.err)
			if err == nil && *r.Interface != (network.EndpointInterface{}) {
				t.Fatalf("answered %+v", r.Interface)
			}
		})
	}
}

// TestAnonymousNeighbours: containers without a MAC of their own are not taken
// for one another.
func TestAnonymousNeighbours(t *testing.T) {
	h := startHost(t)
	h.lan("mode=ipvlan")
	h.run("web", "lan", "10.1.0.2/16")
	h.run("db", "lan", "10.1.0.3/16")
	h.heard.say("host2", cluster.Record{Network: 1, Endpoint: cluster.EndpointIDOf("x"), IPv4: netip.MustParseAddr("10.1.0.4")}, cluster.Record{Network: 1, Endpoint: cluster.EndpointIDOf("y"), IPv4: netip.MustParseAddr("10.1.0.5")})
	h.await("both are seen", func() bool { return h.Networks()[0].Remote == 2 })
	if p := h.Status().Problems; len(p) > 0 {
		t.Fatalf("problems %v", p)
	}
	h.refused(h.endpoint("again", "lan", "10.1.0.3/16"), "create endpoint: address 10.1.0.3 is in use by another container of this host (endpoint db)")
}

func TestPassthruAdmitsOne(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "macvlan_mode=passthru")
	h.run("0123456789abcdef", "lan", "10.1.0.2/16")
	h.refused(h.endpoint("db", "lan", "10.1.0.3/16"), "create endpoint: macvlan_mode=passthru admits one container on parent eth1, and endpoint 0123456789ab is there: stop that one first, or use another mode")
	h.ends("0123456789abcdef")
	h.ok(h.endpoint("db", "lan", "10.1.0.3/16"))
}

// TestParentGoesAndReturns: nothing is forgotten, and running containers recover.
// TestParentIsMadeAnew: as by a network manager, faster than anybody looks.
// TestParentGoesDown: and is not brought up, since that is the user's affair.
// TestLowMTU: a parent that came to carry less than was agreed is a problem, and
// the containers get what it carries.
// TestParentRenamed: what runs goes on; new containers wait for the name.
// TestConflictLater: somebody takes the parent for something else after a network
// was created: it is a problem, and no harm is done to either.
// TestBlocksAreRouted: in l3 mode a host leads packets to the others' blocks.
func TestBlocksAreRouted(t *testing.T) {
	h := startHost(t)
	h.heard.say("host2", cluster.Record{Network: 1})
	h.ok(h.create("n", []string{"10.9.0.0/16"}, "mode=ipvlan", "ipvlan_mode=l3", "parent=eth0"))
	block := func(id uint64, holder string, prefix string) cluster.Lease {
		return cluster.Lease{ID: id, Pool: pools("10.9.0.0/16")[0], Block: netip.MustParsePrefix(prefix), Holder: cluster.HostID(holder)}
	}
	h.ledger.lease(50, block(8, "host1", "10.9.0.0/26"), block(9, "host2", "10.9.0.64/26"))
	h.awaitHas("fib 10.9.0.64/26 via 192.0.2.2 dev eth0")
	h.lacks("fib 10.9.0.0/26")
	h.heard.say("host3", cluster.Record{Network: 1})
	h.ledger.lease(51, block(9, "host2", "10.9.0.64/26"), block(10, "host3", "10.9.0.128/26"))
	h.awaitHas("fib 10.9.0.128/26 via 192.0.2.3 dev eth0")
	h.ledger.lease(52, block(10, "host3", "10.9.0.128/26"))
	h.awaitNot("fib 10.9.0.64/26")
	// Somebody deletes one; it comes back.
	h.kernel.Delete(kernel.FIB{Dst: netip.MustParsePrefix("10.9.0.128/26")}.Key())
	h.awaitHas("fib 10.9.0.128/26")
	h.ok(h.delete("n"))
	h.clean()
}

// TestHostAccessIsGivenBackAnyhow: nobody answers when the network is removed, or
// it is forgotten, or the host is reset.
// TestSources: the cluster's endpoints are let in as they come and go, and none
// is shut out while not all are heard.
func TestSources(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "macvlan_mode=source", "source=02:00:00:00:00:fe")
	h.run("web", "lan", "10.1.0.2/16")
	takes := func(list string) func() bool {
		return func() bool { in, _ := h.kernel.Interface("/s/web", "eth0"); return in.Link.Sources == list }
	}
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.await("it is let in", takes("02:00:00:00:00:fe,02:00:00:00:02:03"))
	h.stop()
	h.heard.change(func() { h.heard.settled = false; clear(h.heard.streams) })
	h.start(hasty)
	h.ok(h.Sync(anyContext, 0))
	h.ok(h.Sync(anyContext, 0))
	h.check(takes("02:00:00:00:00:fe,02:00:00:00:02:03")(), "it is shut out before all is heard")
	h.heard.change(func() { h.heard.settled = true })
	h.await("it is shut out", takes("02:00:00:00:00:fe"))
}

// TestStrangerInALAN: state was set back, and containers run on.
// TestStrangerNobodyKnows: the VLAN device below a container stays, although
// neither intent nor the cluster knows its network.
// TestLANOf: where addresses of a pool can be probed for.

// TestBlocksOfTheForgotten: what leads to a host that the cluster forgot goes,
// although not all is heard yet; what leads to others stays.
func TestBlocksOfTheForgotten(t *testing.T) {
	h := startHost(t)
	h.heard.say("host2", cluster.Record{Network: 1})
	h.heard.say("host3", cluster.Record{Network: 1})
	h.ok(h.create("n", []string{"10.9.0.0/16"}, "mode=ipvlan", "ipvlan_mode=l3", "parent=eth0"))
	block := func(id uint64, holder string, prefix string) cluster.Lease {
		return cluster.Lease{ID: id, Pool: pools("10.9.0.0/16")[0], Block: netip.MustParsePrefix(prefix), Holder: cluster.HostID(holder)}
	}
	h.ledger.lease(50, block(9, "host2", "10.9.0.64/26"), block(10, "host3", "10.9.0.128/26"))
	h.awaitHas("fib 10.9.0.64/26")
	h.awaitHas("fib 10.9.0.128/26")
	h.stop()
	h.heard.change(func() { h.heard.settled = false; clear(h.heard.streams) })
	h.ledger.lease(51)
	h.ledger.register(registered(2, 1, true))
	h.start(hasty)
	h.awaitNot("fib 10.9.0.64/26")
	h.ok(h.Sync(anyContext, 0))
	h.contains("fib 10.9.0.128/26")
}
