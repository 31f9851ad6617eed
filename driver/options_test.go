package driver

import (
	"testing"
)

func TestParseOptions(t *testing.T) {
	const keys = "mode, mtu, vni, attach, discovery, group, arp, bum, encrypt, encrypted, gateway, host_access, ipam, space, com.docker.network.driver.mtu"
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
		{"mode of later", map[string]string{"mode": "macvlan", "parent": "eth0"}, Options{}, "option mode=macvlan is not built yet in this version"},
		{"ipvlan", map[string]string{"mode": "ipvlan"}, Options{}, "option mode=ipvlan is not built yet in this version"},
		{"host-gw", map[string]string{"mode": "host-gw"}, Options{}, "option mode=host-gw is not built yet in this version"},
		{"routed", map[string]string{"mode": "routed"}, Options{}, "option mode=routed is not built yet in this version"},
		{"key of another mode", map[string]string{"parent": "eth0"}, Options{}, "option parent belongs to mode macvlan or ipvlan (not built yet in this version), not to vxlan, which takes " + keys},
		{"key of another mode by host", map[string]string{"parent.host1": "eth0"}, Options{}, "option parent.host1 belongs to mode macvlan or ipvlan (not built yet in this version), not to vxlan, which takes " + keys},
		{"dotted key", map[string]string{"mtu.host1": "1400"}, Options{}, "option mtu.host1 is unknown: mode vxlan takes " + keys},
		{"fallback", map[string]string{"fallback": "ipip"}, Options{}, "option fallback belongs to mode host-gw (not built yet in this version), not to vxlan, which takes " + keys},
		{"bgp", map[string]string{"bgp": "on"}, Options{}, "option bgp belongs to mode routed or host-gw or ipvlan (not built yet in this version), not to vxlan, which takes " + keys},
		{"discovery=multicast", map[string]string{"discovery": "multicast", "group": "239.1.1.1"}, Options{}, "option discovery=multicast is not built yet in this version"},
		{"group", map[string]string{"group": "239.1.1.1"}, Options{}, "option group=239.1.1.1 is not built yet in this version"},
		{"gateway=distributed", map[string]string{"gateway": "distributed"}, Options{}, "option gateway=distributed is not built yet in this version"},
		{"gateway=host", map[string]string{"gateway": "host:web"}, Options{}, "option gateway=host:web is not built yet in this version"},
		{"encrypt", map[string]string{"encrypt": "wireguard"}, Options{}, "option encrypt=wireguard is not built yet in this version"},
		{"encrypted alone", map[string]string{"encrypted": ""}, Options{}, "option encrypted= is not built yet in this version"},
		{"encrypted=true", map[string]string{"encrypted": "true"}, Options{}, "option encrypted=true is not built yet in this version"},
		{"host_access", map[string]string{"host_access": "on"}, Options{}, "option host_access=on is not built yet in this version"},
		{"bad attach", map[string]string{"attach": "ipvlan"}, Options{}, "option attach=ipvlan is unknown: the values are auto, macvlan, bridge"},
		{"bad arp", map[string]string{"arp": "yes"}, Options{}, "option arp=yes is unknown: the values are suppress, flood"},
		{"bad bum", map[string]string{"bum": ""}, Options{}, "option bum= is unknown: the values are replicate, none"},
		{"bad gateway", map[string]string{"gateway": "10.0.0.1"}, Options{}, "option gateway=10.0.0.1 is unknown: the values are docker, none"},
		{"bad ipam", map[string]string{"ipam": "dhcp"}, Options{}, "option ipam=dhcp is unknown: the values are isthmus, foreign"},
		{"bad mtu", map[string]string{"mtu": "big"}, Options{}, "option mtu=big: need a number from 68 to 65535"},
		{"small mtu", map[string]string{"mtu": "60"}, Options{}, "option mtu=60: need a number from 68 to 65535"},
		{"bad Docker mtu", map[string]string{"com.docker.network.driver.mtu": "0"}, Options{}, "option com.docker.network.driver.mtu=0: need a number from 68 to 65535"},
		{"two mtus", map[string]string{"mtu": "1400", "com.docker.network.driver.mtu": "1450"}, Options{}, "options mtu and com.docker.network.driver.mtu both say the MTU, the second one that of the underlay: use one of them"},
		{"vni 0", map[string]string{"vni": "0"}, Options{}, "option vni=0: need a number from 1 to 16777215"},
		{"vni too large", map[string]string{"vni": "16777216"}, Options{}, "option vni=16777216: need a number from 1 to 16777215"},
		{"two vnis", map[string]string{"vni": "5", "com.docker.network.driver.overlay.vxlanid_list": "6"}, Options{}, "option vni=5: another option says 6"},
		{"bad space", map[string]string{"space": "a|b"}, Options{}, "option space=a|b: need a name of letters, digits, dots, dashes and underscores"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseOptions(c.in)
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
