package driver

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

func planned(state kernel.State) string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(state), kernel.CompareKeys) {
		b.WriteString(state[k].String() + "\n")
	}
	return b.String()
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, text := range list {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestPlanEgress(t *testing.T) {
	web := kernel.Publish{Proto: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:80"), To: netip.MustParseAddrPort("10.1.0.2:80")}
	hidden := kernel.Publish{Proto: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:81"), To: netip.MustParseAddrPort("10.2.0.2:80")}
	here := []routed{
		{Cluster: 1, Pools: prefixes("10.1.0.0/16", "fd01::/64"), NAT: true, Gateways: []string{"is-b1"}, Ports: []kernel.Publish{web}},
		{Cluster: 2, Pools: prefixes("10.2.0.0/16"), NAT: true, Internal: true, Gateways: []string{"is-p7"},
			Sources: map[string][]netip.Addr{"is-p7": {netip.MustParseAddr("10.2.0.7")}}, Ports: []kernel.Publish{hidden}},
	}
	registry := &cluster.Registry{Networks: map[uint32]cluster.Network{
		1: {ID: 1, Pools: []cluster.PoolKey{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}},
		3: {ID: 3, Pools: []cluster.PoolKey{{Prefix: netip.MustParsePrefix("10.3.0.0/16")}, {Space: "other", Prefix: netip.MustParsePrefix("10.1.0.0/16")}}},
	}}
	links := []kernel.Device{{Name: "eth0", Kind: "device", Up: true, Addrs: prefixes("192.0.2.1/24", "2001:db8::1/64")}}
	state := kernel.State{}
	View{Registry: registry, Links: links}.planEgress(here, [][2]uint32{{3, 1}, {1, 9}, {2, 2}}, state)
	want := `gateway dev is-b1 ipv6
gateway dev is-p7
guard accept-forward dev eth0 out is-+
guard accept-forward dev is-+ out eth0
guard accept-forward dev is-+ out is-+
passage 1 3
pool 10.1.0.0/16 network 1 nat
pool 10.2.0.0/16 network 2 internal
pool 10.3.0.0/16 network 3
pool fd01::/64 network 1 nat
publish tcp 0.0.0.0:80 to 10.1.0.2:80
source 10.2.0.7 dev is-p7
uplink dev eth0 ipv6
`
	if got := planned(state); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// A link by which the host is in a LAN is no way through it.
	shim := kernel.Link{Name: "is-h12345678", Kind: kernel.Macvlan, Parent: "eth0"}
	state = kernel.State{shim.Key(): shim}
	View{Registry: registry, Links: links}.planEgress(here, nil, state)
	delete(state, shim.Key())
	fine := `guard accept-forward dev eth0 out is-b+
guard accept-forward dev eth0 out is-p+
guard accept-forward dev is-b+ out eth0
guard accept-forward dev is-b+ out is-b+
guard accept-forward dev is-b+ out is-p+
guard accept-forward dev is-p+ out eth0
guard accept-forward dev is-p+ out is-b+
guard accept-forward dev is-p+ out is-p+
`
	if got := planned(state); !strings.Contains(got, "gateway dev is-p7\n"+fine+"pool") {
		t.Errorf("with %s: got\n%swant\n%s", shim, got, fine)
	}
	state = kernel.State{}
	View{Registry: registry, Links: links}.planEgress(nil, nil, state)
	if len(state) > 0 {
		t.Errorf("a host that routes for no network has\n%s", planned(state))
	}
}

func TestUplinks(t *testing.T) {
	some := prefixes("192.0.2.1/24")
	links := []kernel.Device{
		{Name: "bond0", Kind: "bond", Up: true, Addrs: some},
		{Name: "br-1234567890ab", Kind: kernel.Bridge, Up: true, Addrs: prefixes("172.18.0.1/16")},
		{Name: "br0", Kind: kernel.Bridge, Up: true, Addrs: some},
		{Name: "br1", Kind: kernel.Bridge, Up: true, Addrs: prefixes("198.51.100.1/24")},
		{Name: "docker0", Kind: kernel.Bridge, Up: true, Addrs: prefixes("172.17.0.1/16")},
		{Name: "eth0", Kind: "device", Up: true, Master: "br0", Addrs: some},
		{Name: "eth1", Kind: "device", Addrs: some},
		{Name: "eth2", Kind: "device", Up: true, Addrs: prefixes("fe80::1/64")},
		{Name: "eth3", Kind: "device", Up: true, Addrs: some},
		{Name: "is-b1", Kind: kernel.Bridge, Up: true, Ours: true, Addrs: some},
		{Name: "lo", Kind: "device", Loopback: true, Up: true, Addrs: prefixes("127.0.0.1/8")},
		{Name: "veth1", Kind: kernel.Veth, Up: true, Master: "docker0"},
		{Name: "veth2", Kind: kernel.Veth, Up: true, Master: "br1"},
		{Name: "wg0", Kind: "wireguard", Up: true, Addrs: some},
	}
	var got []string
	for _, l := range uplinks(links, netip.MustParseAddr("198.51.100.1")) {
		got = append(got, l.Name)
	}
	if want := []string{"bond0", "br0", "br1", "eth3", "wg0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
