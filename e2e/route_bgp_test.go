//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestRouteBGP: routers are told of the blocks, so that hosts on two sides of one
// reach each other's containers natively.
func TestRouteBGP(t *testing.T) {
	t.Parallel()
	s := &site{Lab: lab.New(t, lab.Config{Hosts: 3})}
	router, err := s.Station(t.Context(), "router", netip.MustParsePrefix(outside+"/24"))
	if err != nil {
		t.Fatal(err)
	}
	must := lab.Must(t)
	conf := "router bgp 65000\n bgp router-id " + outside + "\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n"
	for _, h := range s.Hosts() {
		conf += fmt.Sprintf(" neighbor %[1]s remote-as 65001\n neighbor %[1]s password correct-horse\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 3\n", h.IP())
	}
	conf += " address-family ipv4 unicast\n"
	for _, h := range s.Hosts() {
		conf += fmt.Sprintf("  neighbor %s activate\n", h.IP())
	}
	must(router.Exec(t.Context(), "sh", "-ec", `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
		mkdir -p /run/frr /tmp/frr; chown frr /run/frr /tmp/frr
		printf '%s' "$1" >/tmp/frr/bgpd.conf; : >/tmp/frr/zebra.conf
		/usr/lib/frr/zebra -d -P 0 -z /run/frr/zserv.api --vty_socket /run/frr -f /tmp/frr/zebra.conf -i /run/frr/zebra.pid
		/usr/lib/frr/bgpd -d -P 0 -z /run/frr/zserv.api --vty_socket /run/frr -f /tmp/frr/bgpd.conf -i /run/frr/bgpd.pid`, "sh", conf))

	if s.ref, err = s.PushPlugin(t.Context(), pluginDir(t)); err != nil {
		t.Fatal(err)
	}
	each(t, s.Hosts(), func(h *lab.Host) error {
		if err := h.WriteFile("/etc/isthmus.bgp", "correct-horse\n", 0o600); err != nil {
			return err
		}
		return s.install(t.Context(), h, "bgp.source=/etc/isthmus.bgp", "BGP_AS=65001", "BGP_PEERS="+outside+" as=65000")
	})
	s.awaitMembers(t, len(s.Hosts()))
	for name, args := range map[string]string{"gw": "--subnet 10.60.0.0/16 -o mode=host-gw -o bgp=on", "rt": "--subnet 10.62.0.0/16 -o mode=routed -o bgp=on"} {
		s.createNetwork(t, name, strings.Fields(args))
	}
	boxes := map[string][]*box{"gw": s.oneOnEach(t, "gw"), "rt": s.oneOnEach(t, "rt")}

	learnt := func(want int) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			out, err := router.Exec(t.Context(), "ip", "route", "show", "proto", "bgp")
			if err == nil && strings.Count(out, "via 10.99.0.") != want {
				err = fmt.Errorf("the router has %d routes, want %d:\n%s", strings.Count(out, "via 10.99.0."), want, out)
			}
			return err
		})
	}
	learnt(6)
	if out, err := isthmus(t.Context(), s.Host(1), "status"); err != nil || !strings.Contains(out, "established") || !strings.Contains(out, "Announced by AS 65001: 10.60.") {
		t.Errorf("status: %v\n%s", err, out)
	}

	third := s.Host(3)
	for _, h := range s.Hosts()[:2] {
		for _, pair := range [][2]*lab.Host{{h, third}, {third, h}} {
			must(pair[0].Exec(t.Context(), "ip", "route", "add", pair[1].IP().String()+"/32", "via", outside))
		}
	}
	for i := 1; i <= 2; i++ {
		if err := s.Cut(i, 3); err != nil {
			t.Fatal(err)
		}
	}
	for name, list := range boxes {
		eventually(t, 15*time.Second, func() error {
			out, err := isthmus(t.Context(), s.Host(1), "networks")
			if err == nil && strings.Count(out, "on host3: native via "+outside) != 2 {
				err = fmt.Errorf("host3 is not reached by way of the router:\n%s", out)
			}
			if err == nil {
				_, err = list[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", list[2].ip4)
			}
			return err
		})
		tunnel, err := s.Host(1).Capture(t.Context(), "eth0", "udp port 8475")
		if err != nil {
			t.Fatal(err)
		}
		list[0].must(t, "box", "tcp", list[2].ip4, "--size", "1000000")
		if seen, err := tunnel.Stop(t.Context()); err != nil || len(seen) != 0 {
			t.Errorf("%s: packets in a tunnel: %v %v", name, err, seen)
		}
	}

	// A plugin that is killed is no loss of routes: the router keeps them for the next.
	watch := router.Command(t.Context(), "sh", "-c", `i=0; while [ $i -lt 100 ]; do ip route show proto bgp | grep -c "via 10.99.0.1 "; i=$((i+1)); sleep 0.1; done | sort -u`)
	var lines strings.Builder
	watch.Stdout = &lines
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	kill(t, s.Host(1))
	if err := watch.Wait(); err != nil || strings.TrimSpace(lines.String()) != "2" {
		t.Errorf("routes to host1 at the router over a kill of its plugin: %q %v, want 2 at all times", lines.String(), err)
	}

	// What a host holds no more is led there no more.
	removeBoxes(t, boxes["rt"][1])
	s.removeNetwork(t, "rt", s.Host(2))
	learnt(5)
}
