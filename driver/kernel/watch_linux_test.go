//go:build kernel

package kernel_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestLinuxUnderlay(t *testing.T) {
	t.Parallel()
	a, b := newSpace(t), newSpace(t)
	k := a.open()
	ctx := context.Background()
	if _, err := k.Underlay(ctx, netip.Addr{}); err == nil || !strings.Contains(err.Error(), "ADVERTISE") {
		t.Errorf("without a default route: %v", err)
	}
	join(a, b, "192.0.2.1/24", "192.0.2.2/24")
	a.sh(`ip link set u0 mtu 1400 address 02:00:00:00:00:0a
		ip addr add fd00::1/64 dev u0 nodad
		ip link add u1 type veth peer name u2; ip link set u1 up; ip link set u2 up; ip addr add 198.51.100.1/24 dev u1
		ip route add default via 192.0.2.2 metric 50
		ip route add default via 198.51.100.2 metric 100
		ip route add 203.0.113.0/24 via 192.0.2.2 mtu 1300`)
	for _, c := range []struct {
		to, name, addr string
		mtu            int
	}{
		{"", "u0", "192.0.2.1", 1400},
		{"192.0.2.2", "u0", "192.0.2.1", 1400},
		{"192.0.2.1", "u0", "192.0.2.1", 1400},
		{"198.51.100.1", "u1", "198.51.100.1", 1500},
		{"203.0.113.9", "u0", "192.0.2.1", 1300},
		{"fd00::2", "u0", "fd00::1", 1400},
	} {
		var to netip.Addr
		if c.to != "" {
			to = addr(c.to)
		}
		u, err := k.Underlay(ctx, to)
		if err != nil {
			t.Errorf("%s: %v", c.to, err)
			continue
		}
		if u.Name != c.name || u.Addr != addr(c.addr) || u.MTU != c.mtu || u.Name == "u0" && u.MAC != "02:00:00:00:00:0a" {
			t.Errorf("%s: %+v", c.to, u)
		}
	}
	a.sh("ip route del default; ip route del default; ip -6 route add default via fd00::2")
	if u, err := k.Underlay(ctx, netip.Addr{}); err != nil || u.Addr != addr("fd00::1") {
		t.Errorf("IPv6 default route: %+v, %v", u, err)
	}
	routes, err := k.Routes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"127.0.0.0/8", "192.0.2.0/24", "192.0.2.1/32", "198.51.100.0/24", "203.0.113.0/24", "fd00::/64", "fd00::1/128", "::1/128"} {
		if !slices.Contains(routes, netip.MustParsePrefix(p)) {
			t.Errorf("lacks %s in %s", p, routes)
		}
	}
	for _, p := range routes {
		if p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			t.Errorf("%s is not a route to avoid", p)
		}
	}
}

func TestLinuxWatch(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := networks("192.0.2.1", "192.0.2.9")
	s.sh(`ip link add u1 type veth peer name u2; ip link add other type bridge; ip link set other up
		nft add table inet other; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER`)
	apply(t, k, want)
	w := watch(t, s, k)
	for _, command := range []string{
		"bridge fdb del 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9 self",
		"ip neigh del 10.0.0.9 dev is-v1",
		"ip -6 neigh del fd02::9 dev is-v1",
		"ip link set is-v1 mtu 1300",
		"ip link set is-v1 down",
		"ip link del is-v1",
		"nft flush chain inet isthmus prerouting",
		"nft delete element arp isthmus drop_links '{ is-v1 }'",
		"nft delete table inet isthmus",
		"iptables -F DOCKER-USER",
		"nft flush ruleset",
		"ip link set u1 mtu 1400",
		"ip addr add 198.51.100.1/24 dev u1; ip link set u1 up; ip link set u2 up",
		"ip route add default via 198.51.100.2",
	} {
		apply(t, k, want)
		w.wakes(command)
	}
	apply(t, k, want)
	s.sh("nft add table inet other")
	for _, command := range []string{
		"ip link add u3 type veth peer name u4; ip link set u3 up; ip link set u4 up; ip link set u3 master other; bridge fdb add 02:00:00:00:00:01 dev u3 master; ip link del u3",
		"nft add chain inet other c; nft delete chain inet other c",
		"ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:01 dev u1; ip neigh del 10.9.9.9 dev u1",
		"ip route add 10.99.0.0/16 dev u1; ip route del 10.99.0.0/16 dev u1",
	} {
		w.ignores(command)
	}
}
