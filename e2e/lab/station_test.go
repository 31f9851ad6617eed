//go:build e2e

package lab_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// testStation: a machine of the LAN is reached as hosts are, and leaves nothing;
// a second link works as the first; with hairpin a host hears its own macvlan.
func testStation(t *testing.T, l *lab.Lab) {
	ctx, one := t.Context(), l.Host(1)
	must := lab.Must(t)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %t, want %t", what, got, want)
		}
	}
	s, err := l.Station(ctx, "printer", netip.MustParsePrefix("10.99.0.90/24"), netip.MustParsePrefix("fd99::90/64"))
	do(err)
	if _, err := l.Station(ctx, "printer"); err == nil || !strings.Contains(err.Error(), "has that name already") {
		t.Errorf("a second station of one name: %v", err)
	}
	for _, to := range []string{"10.99.0.90", "fd99::90"} {
		expect("host1 reaches "+to, reaches(ctx, one, to), true)
	}
	must(s.Exec(ctx, "ping", "-c1", "-W1", one.IP6().String()))
	must(s.Exec(ctx, "box", "send", "10.99.0.1", "hello"))

	do(l.AddLink(ctx, 1, "eth1"))
	must(one.Exec(ctx, "sh", "-ec", `ip netns add inside
		ip link add lan0 link eth0 netns inside type macvlan mode bridge
		ip -n inside address add 10.99.0.91/24 dev lan0
		ip -n inside link set lan0 up
		ip link set eth1 netns inside
		ip -n inside address add fd99::92/64 dev eth1 nodad
		ip -n inside link set eth1 up`))
	must(s.Exec(ctx, "ping", "-c1", "-W1", "10.99.0.91"))
	must(s.Exec(ctx, "ping", "-c1", "-W1", "fd99::92"))
	for _, on := range []bool{false, true, false} {
		do(l.Hairpin(ctx, 1, on))
		must(one.Exec(ctx, "ip", "neigh", "flush", "dev", "eth0"))
		expect("host1 reaches its own macvlan", reaches(ctx, one, "10.99.0.91"), on)
	}

	must(one.Exec(ctx, "ip", "netns", "del", "inside"))
	do(s.Remove(ctx))
	expect("host1 reaches a station that was removed", reaches(ctx, one, "10.99.0.90"), false)
	s, err = l.Station(ctx, "printer")
	do(err)
	do(s.Remove(ctx))
}
