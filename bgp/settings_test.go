package bgp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

var byValue = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestParse(t *testing.T) {
	plain := func(change func(*Config)) Config {
		c := Config{
			AS: 65001, Peers: []Peer{{Addr: addr("10.0.0.1"), AS: 65000, Port: 179}},
			Hold: 90 * time.Second, Restart: 120 * time.Second, ImportMax: 1000, ReceiveMax: 100_000,
		}
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name string
		in   Settings
		want Config
	}{
		{"nothing", Settings{}, Config{}},
		{"blank", Settings{Peers: " "}, Config{}},
		{"defaults", Settings{AS: "65001", Peers: "10.0.0.1 as=65000"}, plain(func(*Config) {})},
		{"all", Settings{
			AS: "4200000001", RouterID: "10.0.0.7", Listen: "0.0.0.0:179", Hold: "9s", GracefulRestart: "60s",
			Peers:       "10.0.0.1 as=65000 port=1790 source=10.0.0.7, fe80::1%eth1 as=65000,eth2 as=65002, 2001:db8::1 as=4200000001",
			Communities: "65001:100, no-export,4200000001:1:2", Import: "0.0.0.0/0, 10.0.0.0/8+, fd00::/8+", ImportMax: "20",
		}, Config{
			AS: 4200000001, RouterID: addr("10.0.0.7"), Listen: netip.MustParseAddrPort("0.0.0.0:179"),
			Peers: []Peer{
				{Addr: addr("10.0.0.1"), AS: 65000, Port: 1790, Source: addr("10.0.0.7")},
				{Addr: addr("fe80::1%eth1"), AS: 65000, Port: 179},
				{Interface: "eth2", AS: 65002, Port: 179},
				{Addr: addr("2001:db8::1"), AS: 4200000001, Port: 179},
			},
			Communities: []uint32{65001<<16 | 100, 0xffffff01}, Large: []LargeCommunity{{4200000001, 1, 2}},
			Hold: 9 * time.Second, Restart: time.Minute,
			Import:    []Match{{prefix("0.0.0.0/0"), false}, {prefix("10.0.0.0/8"), true}, {prefix("fd00::/8"), true}},
			ImportMax: 20, ReceiveMax: 100_000,
		}},
		{"BFD turns graceful restart off", Settings{AS: "65001", Peers: "10.0.0.1 as=65000", BFD: "on"},
			plain(func(c *Config) { c.BFD, c.Restart = true, 0 })},
		{"both off", Settings{AS: "65001", Peers: "10.0.0.1 as=65000", BFD: "off", GracefulRestart: "off", Listen: "off", TTLSecurity: "off"},
			plain(func(c *Config) { c.Restart = 0 })},
		{"TTL security", Settings{AS: "65001", Peers: "10.0.0.1 as=65000", TTLSecurity: "on"},
			plain(func(c *Config) { c.Peers[0].TTLSecurity = true })},
		{"multihop", Settings{AS: "65001", Peers: "10.0.0.1 as=65000 multihop=3"},
			plain(func(c *Config) { c.Peers[0].Multihop = 3 })},
		{"one password", Settings{AS: "65001", Peers: "10.0.0.1 as=65000", Passwords: "hunter2\n"},
			plain(func(c *Config) { c.Peers[0].Password = "hunter2" })},
		{"a password per router", Settings{AS: "65001", Peers: "10.0.0.1 as=65000, eth1 as=65000", Passwords: "eth1 second\n\n10.0.0.1  first\n"},
			plain(func(c *Config) {
				c.Peers[0].Password = "first"
				c.Peers = append(c.Peers, Peer{Interface: "eth1", AS: 65000, Port: 179, Password: "second"})
			})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, byValue); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	const secret = "correct-horse-battery"
	for _, tt := range []struct {
		name string
		in   Settings
		want []string
	}{
		{"settings without a router", Settings{AS: "65001"}, []string{"BGP_PEERS is empty"}},
		{"no AS", Settings{Peers: "10.0.0.1 as=65000"}, []string{`read BGP_AS: "" is not the number`}},
		{"AS trans", Settings{AS: "23456", Peers: "10.0.0.1 as=0"}, []string{`read BGP_AS: "23456"`, `10.0.0.1: as: "0" is not`}},
		{"no AS of a router", Settings{AS: "1", Peers: "10.0.0.1"}, []string{"10.0.0.1: no AS; write 10.0.0.1 as=NUMBER"}},
		{"two lines at once", Settings{AS: "1", Peers: "10.0.0.1 as=2", Hold: "2s", ImportMax: "0"},
			[]string{`read BGP_HOLD: "2s" is not a time in whole seconds from 3s`, `read BGP_IMPORT_MAX: "0" is not a number from 1 to 10000`}},
		{"odd time", Settings{AS: "1", Peers: "10.0.0.1 as=2", Hold: "3500ms"}, []string{"whole seconds"}},
		{"router twice", Settings{AS: "1", Peers: "10.0.0.1 as=2,10.0.0.1 as=3"}, []string{"10.0.0.1 is named twice"}},
		{"trailing comma", Settings{AS: "1", Peers: "10.0.0.1 as=2,"}, []string{"missing between two commas"}},
		{"space for a comma", Settings{AS: "1", Peers: "10.0.0.1 as=2 10.0.0.2"}, []string{`"10.0.0.2" is not KEY=VALUE; separate routers by commas`}},
		{"empty value", Settings{AS: "1", Peers: "10.0.0.1 as=2 port="}, []string{`"port=" is not KEY=VALUE`}},
		{"unknown key", Settings{AS: "1", Peers: "10.0.0.1 as=2 ttl=3"}, []string{`unknown key "ttl"; there are as, port, source, multihop`}},
		{"port", Settings{AS: "1", Peers: "10.0.0.1 as=2 port=70000"}, []string{`port: "70000" is not a number from 1 to 65535`}},
		{"link-local without a link", Settings{AS: "1", Peers: "fe80::1 as=2"}, []string{"name the interface, as fe80::1%eth0"}},
		{"no router's address", Settings{AS: "1", Peers: "224.0.0.5 as=2"}, []string{"not the address of a router"}},
		{"neither", Settings{AS: "1", Peers: "10.0.0.300 as=2"}, []string{"neither an address nor an interface"}},
		{"multihop and TTL security", Settings{AS: "1", Peers: "10.0.0.1 as=2 multihop=2", TTLSecurity: "on"}, []string{"multihop contradicts BGP_TTL_SECURITY=on"}},
		{"multihop in one AS", Settings{AS: "1", Peers: "10.0.0.1 as=1 multihop=2"}, []string{"routers of another AS"}},
		{"multihop on a link", Settings{AS: "1", Peers: "eth1 as=2 multihop=2"}, []string{"leave multihop out"}},
		{"source on a link", Settings{AS: "1", Peers: "eth1 as=2 source=10.0.0.2"}, []string{"leave source out"}},
		{"source of the other family", Settings{AS: "1", Peers: "10.0.0.1 as=2 source=fd00::1"}, []string{"source fd00::1 is of the other family"}},
		{"router id", Settings{AS: "1", Peers: "10.0.0.1 as=2", RouterID: "fd00::1"}, []string{`read BGP_ROUTER_ID: "fd00::1" is not an IPv4 address`}},
		{"listen", Settings{AS: "1", Peers: "10.0.0.1 as=2", Listen: "on"}, []string{"neither off nor ADDRESS:PORT"}},
		{"switch", Settings{AS: "1", Peers: "10.0.0.1 as=2", BFD: "yes"}, []string{`read BGP_BFD: "yes" is none of off, on`}},
		{"BFD and graceful restart", Settings{AS: "1", Peers: "10.0.0.1 as=2", BFD: "on", GracefulRestart: "120s"}, []string{"choose one of BGP_BFD and BGP_GRACEFUL_RESTART"}},
		{"restart", Settings{AS: "1", Peers: "10.0.0.1 as=2", GracefulRestart: "on"}, []string{"from 1s to 4095s, nor off"}},
		{"community", Settings{AS: "1", Peers: "10.0.0.1 as=2", Communities: "70000:1"}, []string{`"70000:1" is none of`}},
		{"community of four", Settings{AS: "1", Peers: "10.0.0.1 as=2", Communities: "1:2:3:4"}, []string{`"1:2:3:4" is none of`}},
		{"import", Settings{AS: "1", Peers: "10.0.0.1 as=2", Import: "all"}, []string{"for all inside of it"}},
		{"import with host bits", Settings{AS: "1", Peers: "10.0.0.1 as=2", Import: "10.1.0.0/8+"}, []string{"host bits; write 10.0.0.0/8"}},
		{"long password", Settings{AS: "1", Peers: "10.0.0.1 as=2", Passwords: secret + strings.Repeat("x", 80)}, []string{"line 1 has a password of 101 bytes"}},
		{"password of nobody", Settings{AS: "1", Peers: "10.0.0.1 as=2", Passwords: "10.0.0.1 x\n10.0.0.9 " + secret}, []string{"line 2 begins with no router"}},
		{"password with a space", Settings{AS: "1", Peers: "10.0.0.1 as=2", Passwords: "10.0.0.1 " + secret + " x"}, []string{"line 1 is not ROUTER PASSWORD"}},
		{"password left out", Settings{AS: "1", Peers: "10.0.0.1 as=2, 10.0.0.2 as=2", Passwords: "10.0.0.1 " + secret}, []string{"no line for 10.0.0.2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.in)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error %q has the password", err)
			}
		})
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	p := Peer{Addr: addr("10.0.0.1"), Password: "hunter2"}
	js, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(p), fmt.Sprintf("%+v", p), fmt.Sprintf("%#v", p), fmt.Sprintf("%q", p.Password), string(js)} {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%s", text)
		}
	}
}

func TestRouteCheck(t *testing.T) {
	for _, tt := range []struct {
		route Route
		want  string
	}{
		{Route{prefix("10.0.0.0/24"), addr("192.0.2.1")}, ""},
		{Route{prefix("10.0.0.0/24"), addr("2001:db8::1")}, ""},
		{Route{prefix("fd00::/64"), addr("2001:db8::1")}, ""},
		{Route{prefix("fd00::/64"), addr("192.0.2.1")}, "not an IPv6 address"},
		{Route{prefix("10.0.0.1/24"), addr("192.0.2.1")}, "without host bits"},
		{Route{netip.Prefix{}, addr("192.0.2.1")}, "without host bits"},
		{Route{prefix("10.0.0.0/24"), netip.Addr{}}, "not an address that routers can use"},
		{Route{prefix("10.0.0.0/24"), addr("fe80::1%eth0")}, "not an address that routers can use"},
	} {
		err := tt.route.check()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v: %v, want %q", tt.route, err, tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []Route{
		{prefix("10.2.0.0/16"), addr("192.0.2.1")}, {prefix("0.0.0.0/0"), addr("192.0.2.1")},
		{prefix("10.1.0.0/16"), addr("192.0.2.1")}, {prefix("10.0.0.0/24"), addr("192.0.2.1")},
	}
	for _, tt := range []struct {
		max, left int
		want      []string
	}{
		{1, 3, []string{"0.0.0.0/0"}},
		{3, 1, []string{"0.0.0.0/0", "10.1.0.0/16", "10.2.0.0/16"}},
		{9, 0, []string{"0.0.0.0/0", "10.0.0.0/24", "10.1.0.0/16", "10.2.0.0/16"}},
	} {
		kept, left := choose(append([]Route{}, all...), tt.max)
		var got []string
		for _, r := range kept {
			got = append(got, r.Prefix.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || left != tt.left {
			t.Errorf("at most %d: %d left out, %s", tt.max, left, diff)
		}
	}
	if kept, left := choose(nil, 3); kept == nil || left != 0 {
		t.Errorf("of nothing: %v, %d", kept, left)
	}
}
