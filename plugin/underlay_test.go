package main

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

func TestPickUnderlay(t *testing.T) {
	prefixes := func(s string) (out []netip.Prefix) {
		for _, p := range strings.Fields(s) {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	links := []link{
		{name: "lo", mtu: 65536, loopback: true, addrs: prefixes("127.0.0.1/8 ::1/128")},
		{name: "eth0", mtu: 1500, mac: "02:00:00:00:00:01", addrs: prefixes("fe80::1/64 fd00::1/64 10.0.0.1/24 10.0.0.9/24")},
		{name: "eth1", mtu: 9000, mac: "02:00:00:00:00:02", addrs: prefixes("192.168.7.1/24")},
		{name: "eth2", mtu: 1500, addrs: prefixes("fe80::2/64 fd01::1/64")},
	}
	tests := []struct{ name, advertise, current, want string }{
		{"address", "192.168.7.1", "", "eth1 9000 192.168.7.1"},
		{"IPv6 address", "fd00::1", "", "eth0 1500 fd00::1"},
		{"address within loopback's network", "127.0.0.7", "", "lo 65536 127.0.0.7"},
		{"address of another host", "10.0.0.2", "", "no address of this host fits ADVERTISE=10.0.0.2"},
		{"interface, IPv4 first", "eth0", "", "eth0 1500 10.0.0.1"},
		{"interface, the one in use kept", "eth0", "10.0.0.9", "eth0 1500 10.0.0.9"},
		{"interface, the one in use gone", "eth0", "10.0.0.77", "eth0 1500 10.0.0.1"},
		{"interface with IPv6 only", "eth2", "", "eth2 1500 fd01::1"},
		{"no such interface", "eth9", "", "no address of this host fits ADVERTISE=eth9"},
		{"prefix", "192.168.0.0/16", "", "eth1 9000 192.168.7.1"},
		{"IPv6 prefix", "fd00::/16", "", "eth0 1500 fd00::1"},
		{"prefix of nothing", "172.16.0.0/12", "", "no address of this host fits ADVERTISE=172.16.0.0/12"},
		{"link-local is never picked", "fe80::/10", "", "no address of this host fits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			how, err := parseAdvertise(tt.advertise)
			if err != nil {
				t.Fatal(err)
			}
			current, _ := netip.ParseAddr(tt.current)
			u, err := pickUnderlay(how, links, current)
			got := strings.TrimSpace(strings.Join([]string{u.Name, strconv.Itoa(u.MTU), u.Addr.String()}, " "))
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFindUnderlayOnThisHost(t *testing.T) {
	u, err := findUnderlay(context.Background(), kerneltest.New(), Advertise{Interface: "lo"}, netip.Addr{})
	if err != nil || !u.Addr.IsLoopback() || u.MTU == 0 {
		t.Errorf("got %+v, %v", u, err)
	}
}

// routeless is a host that booted before its network.
type routeless struct{ kernel.Kernel }

func (routeless) Underlay(context.Context, netip.Addr) (kernel.Underlay, error) {
	return kernel.Underlay{}, errors.New("network is unreachable")
}

func TestFindUnderlayWithoutRoute(t *testing.T) {
	_, err := findUnderlay(context.Background(), routeless{}, Advertise{}, netip.Addr{})
	if err == nil || !strings.Contains(err.Error(), "set ADVERTISE") {
		t.Errorf("got %v, want the remedy", err)
	}
}

func TestLastUnderlay(t *testing.T) {
	dir := t.TempDir()
	if _, ok := lastUnderlay(dir); ok {
		t.Error("a new host knows an underlay")
	}
	want := kernel.Underlay{Name: "eth0", MTU: 1500, Addr: netip.MustParseAddr("10.0.0.1"), MAC: "02:00:00:00:00:01"}
	if err := storeUnderlay(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, ok := lastUnderlay(dir); !ok || got != want {
		t.Errorf("got %+v, %t", got, ok)
	}
}
