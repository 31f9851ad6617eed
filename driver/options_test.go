package driver

import (
	"testing"
)

func TestParseOptions(t *testing.T) {
	const keys = "mode, mtu, vni, attach, discovery, group, arp, bum, encrypt, encrypted, gateway, host_access, nat, route_to, ipam, space, com.docker.network.driver.mtu"
	for _, c := range []struct {
		name string
		in   map[string]string
		want Options
		err  string
	}{
		{"nothing", nil, Options{Mode: "vxlan"}, ""},
		{"all of vxlan", map[string]string{"mode": "vxlan", "mtu": "1400", "vni": "7", "attach": "bridge", "discovery": "gossip", "arp": "flood", "bum": "none", "encrypt": "off", "gateway": "none", "host_access": "off", "ipam": "foreign", "space": "blue"},
			Options{Mode: "vxlan", MTU: 1400, VNI: 7, Attach: "bridge", ARP: "flood", BUM: "none", Gateway: "none", Foreign: true, Space: "blue"}, ""},
		{"defaults said", map[string]string{"attach": "auto", "arp": "suppress", "bum": "replicate", "gateway": "docker", "ipam": "isthmus", "encrypted": "false"},
			Options{Mode: "vxlan", Attach: "auto", ARP: "suppress", BUM: "replicate", Gateway: "docker"}, ""},
		{"Docker's own keys", map[string]string{"com.docker.network.driver.mtu": "1450", "com.docker.network.driver.overlay.vxlanid_list": "4100", "com.docker.network.bridge.name": "br7"},
			Options{Mode: "vxlan", Underlay: 1450, VNI: 4100}, ""},

		{"unknown key", map[string]string{"colour": "red"}, Options{}, "option colour is unknown: mode vxlan takes " + keys},
		{"unknown key beside known", map[string]string{"attach": "bridge", "Attach": "bridge"}, Options{}, "option Attach is unknown: mode vxlan takes " + keys},
		{"unknown mode", map[string]string{"mode": "geneve"}, Options{}, "option mode=geneve is unknown: the modes are vxlan, macvlan, ipvlan, host-gw, routed"},
		{"host-gw", map[string]string{"mode": "host-gw", "fallback": "gre", "nat": "off"}, Options{Mode: "host-gw", Fallback: "gre", NoNAT: true}, ""},
		{"routed", map[string]string{"mode": "routed", "host_access": "on"}, Options{Mode: "routed", HostAccess: true}, ""},
		{"foreign addresses", map[string]string{"mode": "routed", "ipam": "foreign"}, Options{}, "option ipam=foreign does not work with mode routed: hosts route the blocks of addresses that isthmus leases to them: use isthmus as --ipam-driver"},
		{"key of another mode", map[string]string{"parent": "eth0"}, Options{}, "option parent belongs to mode macvlan or ipvlan, not to vxlan, which takes " + keys},
		{"key of another mode by host", map[string]string{"parent.host1": "eth0"}, Options{}, "option parent.host1 belongs to mode macvlan or ipvlan, not to vxlan, which takes " + keys},
		{"dotted key", map[string]string{"mtu.host1": "1400"}, Options{}, "option mtu.host1 is unknown: mode vxlan takes " + keys},
		{"fallback", map[string]string{"fallback": "ipip"}, Options{}, "option fallback belongs to mode host-gw, not to vxlan, which takes " + keys},
		{"bgp", map[string]string{"bgp": "on"}, Options{}, "option bgp belongs to mode routed or host-gw or ipvlan, not to vxlan, which takes " + keys},
		{"discovery=multicast", map[string]string{"discovery": "multicast", "group": "239.1.1.1"}, Options{}, "option discovery=multicast is not built yet in this version"},
		{"group", map[string]string{"group": "239.1.1.1"}, Options{}, "option group=239.1.1.1 is not built yet in this version"},
		{"gateway=distributed", map[string]string{"gateway": "distributed", "nat": "off", "route_to": "10.2.0.0/16, fd02::/64,10.1.0.1/16"},
			Options{Mode: "vxlan", Gateway: "distributed", NoNAT: true, RouteTo: "10.1.0.0/16,10.2.0.0/16,fd02::/64"}, ""},
		{"gateway=host", map[string]string{"gateway": "host:web"}, Options{Mode: "vxlan", Gateway: "host:web"}, ""},
		{"gateway of nobody", map[string]string{"gateway": "host:"}, Options{}, "option gateway=host:: the values are docker, distributed, host:NAME, none"},
		{"gateway and flood", map[string]string{"gateway": "distributed", "arp": "flood"}, Options{}, "option gateway=distributed does not work with arp=flood, by which all hosts would answer for the gateway: leave arp out"},
		{"gateway and macvlan", map[string]string{"gateway": "host:web", "attach": "macvlan"}, Options{}, "option gateway=host:web does not work with attach=macvlan, since the gateway meets containers at a bridge: leave attach out"},
		{"gateway and foreign", map[string]string{"gateway": "distributed", "ipam": "foreign"}, Options{}, "option ipam=foreign does not work with gateway=distributed, whose address all hosts must agree on: use isthmus as --ipam-driver"},
		{"nat without a gateway", map[string]string{"nat": "off"}, Options{}, "options nat and route_to are for networks that hosts route for: add -o gateway=distributed"},
		{"route_to without a gateway", map[string]string{"route_to": "10.2.0.0/16"}, Options{}, "options nat and route_to are for networks that hosts route for: add -o gateway=distributed"},
		{"route_to a name", map[string]string{"gateway": "distributed", "route_to": "10.2.0.0/16,web"}, Options{}, "option route_to=10.2.0.0/16,web: need subnets of other networks, joined by commas, and not \"web\""},
		{"encrypt", map[string]string{"encrypt": "wireguard"}, Options{}, "option encrypt=wireguard is not built yet in this version"},
		{"encrypted alone", map[string]string{"encrypted": ""}, Options{}, "option encrypted= is not built yet in this version"},
		{"encrypted=true", map[string]string{"encrypted": "true"}, Options{}, "option encrypted=true is not built yet in this version"},
		{"host_access", map[string]string{"host_access": "on"}, Options{}, "option host_access=on is not built yet in this version for mode vxlan"},
		{"bad attach", map[string]string{"attach": "ipvlan"}, Options{}, "option attach=ipvlan is unknown: the values are auto, macvlan, bridge"},
		{"bad arp", map[string]string{"arp": "yes"}, Options{}, "option arp=yes is unknown: the values are suppress, flood"},
		{"bad bum", map[string]string{"bum": ""}, Options{}, "option bum= is unknown: the values are replicate, none"},
		{"bad gateway", map[string]string{"gateway": "10.0.0.1"}, Options{}, "option gateway=10.0.0.1: the values are docker, distributed, host:NAME, none"},
		{"bad ipam", map[string]string{"ipam": "dhcp"}, Options{}, "option ipam=dhcp is unknown: the values are isthmus, foreign"},
		{"bad mtu", map[string]string{"mtu": "big"}, Options{}, "option mtu=big: need a number from 68 to 65535"},
		{"small mtu", map[string]string{"mtu": "60"}, Options{}, "option mtu=60: need a number from 68 to 65535"},
		{"bad Docker mtu", map[string]string{"com.docker.network.driver.mtu": "0"}, Options{}, "option com.docker.network.driver.mtu=0: need a number from 68 to 65535"},
		{"macvlan", map[string]string{"mode": "macvlan", "parent": "eth0"}, Options{Mode: "macvlan", Parent: "eth0"}, ""},
		{"all of macvlan", map[string]string{"mode": "macvlan", "parent": "eth0.50", "vlan_protocol": "802.1ad", "macvlan_mode": "source", "source": "02:00:00:00:00:0B, 02:00:00:00:00:0a", "bcqueue": "5000", "mtu": "1400", "host_access": "off"},
			Options{Mode: "macvlan", Parent: "eth0.50", VLANProtocol: "802.1ad", MacvlanMode: "source", Source: "02:00:00:00:00:0a,02:00:00:00:00:0b", BCQueue: 5000, MTU: 1400}, ""},
		{"all of ipvlan", map[string]string{"mode": "ipvlan", "parent": "eth0", "ipvlan_mode": "l3s", "ipvlan_flag": "private", "host_access": "on"},
			Options{Mode: "ipvlan", Parent: "eth0", IPvlanMode: "l3s", IPvlanFlag: "private", HostAccess: true}, ""},
		{"parent of this host", map[string]string{"mode": "ipvlan", "parent": "eth0", "parent.host1": "eth1", "parent.host2": "eth2"}, Options{Mode: "ipvlan", Parent: "eth1"}, ""},
		{"parent of all others", map[string]string{"mode": "ipvlan", "parent": "eth0", "parent.host2": "eth2"}, Options{Mode: "ipvlan", Parent: "eth0"}, ""},
		{"no parent for this host", map[string]string{"mode": "ipvlan", "parent.host2": "eth2"}, Options{}, "option parent: none is for this host: add -o parent.host1=INTERFACE, or -o parent=INTERFACE for all others"},
		{"empty parent", map[string]string{"mode": "macvlan", "parent": ""}, Options{}, "option parent=: need the name of an interface; leave the option out, with --internal, for a network of this host alone"},
		{"long parent", map[string]string{"mode": "macvlan", "parent": "enp129s0f0np0.4094"}, Options{}, "option parent=enp129s0f0np0.4094: an interface name has at most 15 letters: make the VLAN device under a shorter name, and name that"},
		{"bad parent", map[string]string{"mode": "macvlan", "parent": "a/b"}, Options{}, "option parent=a/b: need the name of an interface"},
		{"bad macvlan_mode", map[string]string{"mode": "macvlan", "macvlan_mode": "l2"}, Options{}, "option macvlan_mode=l2 is unknown: the values are bridge, private, vepa, passthru, source"},
		{"bad ipvlan_mode", map[string]string{"mode": "ipvlan", "ipvlan_mode": "bridge"}, Options{}, "option ipvlan_mode=bridge is unknown: the values are l2, l3, l3s"},
		{"bad ipvlan_flag", map[string]string{"mode": "ipvlan", "ipvlan_flag": "l2"}, Options{}, "option ipvlan_flag=l2 is unknown: the values are bridge, private, vepa"},
		{"bad source", map[string]string{"mode": "macvlan", "macvlan_mode": "source", "source": "x"}, Options{}, `option source=x: parse MAC address "x": need six hexadecimal pairs`},
		{"source of many", map[string]string{"mode": "macvlan", "macvlan_mode": "source", "source": "01:00:5e:00:00:01"}, Options{}, "option source=01:00:5e:00:00:01: 01:00:5e:00:00:01 is not the MAC address of a single host"},
		{"source of another mode", map[string]string{"mode": "macvlan", "source": "02:00:00:00:00:0a"}, Options{}, "option source belongs to -o macvlan_mode=source"},
		{"bad bcqueue", map[string]string{"mode": "macvlan", "bcqueue": "0"}, Options{}, "option bcqueue=0: need a number from 1 to 1000000"},
		{"vxlan's in macvlan", map[string]string{"mode": "macvlan", "vni": "7"}, Options{}, "option vni belongs to mode vxlan, not to macvlan, which takes mode, mtu, parent, vlan_protocol, macvlan_mode, source, bcqueue, host_access, ipam, space, com.docker.network.driver.mtu"},
		{"macvlan's in ipvlan", map[string]string{"mode": "ipvlan", "macvlan_mode": "vepa"}, Options{}, "option macvlan_mode belongs to mode macvlan, not to ipvlan, which takes mode, mtu, parent, vlan_protocol, ipvlan_mode, ipvlan_flag, host_access, bgp, ipam, space, com.docker.network.driver.mtu"},
		{"bgp of ipvlan", map[string]string{"mode": "ipvlan", "bgp": "on"}, Options{}, "option bgp=on does not work with ipvlan_mode=l2: there the LAN has its containers: use ipvlan_mode=l3 or l3s"},
		{"two mtus", map[string]string{"mtu": "1400", "com.docker.network.driver.mtu": "1450"}, Options{}, "options mtu and com.docker.network.driver.mtu both say the MTU, the second one that of the underlay: use one of them"},
		{"vni 0", map[string]string{"vni": "0"}, Options{}, "option vni=0: need a number from 1 to 16777215"},
		{"vni too large", map[string]string{"vni": "16777216"}, Options{}, "option vni=16777216: need a number from 1 to 16777215"},
		{"two vnis", map[string]string{"vni": "5", "com.docker.network.driver.overlay.vxlanid_list": "6"}, Options{}, "option vni=5: another option says 6"},
		{"bad space", map[string]string{"space": "a|b"}, Options{}, "option space=a|b: need a name of letters, digits, dots, dashes and underscores"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseOptions(c.in, "host1")
			if text := errorText(err); text != c.err {
				t.Fatalf("error:\n got %q\nwant %q", text, c.err)
			}
			if err == nil && got != c.want {
				t.Fatalf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestIfname(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{"vpn0", "vpn", ""},
		{"eth", "eth", ""},
		{"7", "", `interface name "7": need a letter and at most 11 letters, digits, dots, dashes or underscores, and a number`},
		{"is-v1", "", `interface name "is-v1": need a letter and at most 11 letters, digits, dots, dashes or underscores, and a number`},
		{"averyverylongname0", "", `interface name "averyverylongname0": need a letter and at most 11 letters, digits, dots, dashes or underscores, and a number`},
	} {
		got, err := ifname(c.in)
		if got != c.want || errorText(err) != c.err {
			t.Errorf("ifname(%q) = %q, %q; want %q, %q", c.in, got, errorText(err), c.want, c.err)
		}
	}
}
