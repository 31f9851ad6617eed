//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// fabric is a router between hosts, and what differs with it.
type fabric struct {
	lab      lab.Config
	at       netip.Prefix // the router
	family   string       // of its routes, as ip has it
	protocol string       // of those that it learnt
	block    string       // begins one that is announced
	address  func(*box) string
	start    func(f fabric, hosts []*lab.Host) (script, config string)
}

const bgpPassword = "correct-horse"

var fabrics = map[string]fabric{
	"FRR": {
		lab: lab.Config{Hosts: 3}, at: netip.MustParsePrefix(outside + "/24"), family: "-4", protocol: "bgp", block: "10.60.",
		address: func(b *box) string { return b.ip4 },
		start: func(f fabric, hosts []*lab.Host) (script, config string) {
			config = "router bgp 65000\n bgp router-id " + outside + "\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n"
			for _, h := range hosts {
				config += fmt.Sprintf(" neighbor %[1]s remote-as 65001\n neighbor %[1]s password %[2]s\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 3\n", h.IP(), bgpPassword)
			}
			config += " address-family ipv4 unicast\n"
			for _, h := range hosts {
				config += fmt.Sprintf("  neighbor %s activate\n", h.IP())
			}
			return `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
		mkdir -p /run/frr; chown frr /run/frr "$2"; chmod 755 "$(dirname "$2")"
		printf '%s' "$1" >"$2/bgpd.conf"; : >"$2/zebra.conf"
		/usr/lib/frr/zebra -d -P 0 -z /run/frr/zserv.api --vty_socket /run/frr -f "$2/zebra.conf" -i /run/frr/zebra.pid
		/usr/lib/frr/bgpd -d -P 0 -z /run/frr/zserv.api --vty_socket /run/frr -f "$2/bgpd.conf" -i /run/frr/bgpd.pid`, config
		},
	},
	"BIRD over IPv6": {
		lab: lab.Config{Hosts: 3, IPv6Underlay: true}, at: netip.MustParsePrefix("fd99::c8/64"), family: "-6", protocol: "bird", block: "fd60:",
		address: func(b *box) string { return b.ip6 },
		start: func(f fabric, hosts []*lab.Host) (script, config string) {
			config = "router id 192.0.2.200;\nprotocol device { }\nprotocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }\n"
			for _, h := range hosts {
				config += fmt.Sprintf("protocol bgp %s {\n local %s as 65000;\n neighbor %s as 65001;\n password %q;\n hold time 9;\n connect retry time 3;\n connect delay time 1;\n error wait time 1, 3;\n ipv6 { import all; export where source = RTS_BGP; };\n}\n",
					h.Name, f.at.Addr(), h.IP(), bgpPassword)
			}
			// Nothing but a rule keeps it from telling hosts of a way that is cut.
			return `
		sysctl -qw net.ipv6.conf.all.forwarding=1
		nft 'add table ip6 quiet; add chain ip6 quiet out { type filter hook output priority 0; }; add rule ip6 quiet out icmpv6 type nd-redirect drop'
		printf '%s' "$1" >"$2/bird.conf"
		/usr/sbin/bird -c "$2/bird.conf" -s "$2/bird.ctl"`, config
		},
	},
}

// TestRouteBGP: routers are told of the blocks, so that hosts on two sides of one
// reach each other's containers natively.
func TestRouteBGP(t *testing.T) {
	for name, f := range fabrics {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.test(t)
		})
	}
}

func (f fabric) test(t *testing.T) {
	s := &site{Lab: lab.New(t, f.lab)}
	(&routes{site: s}).forwardIPv6(t)
	router, err := s.Station(t.Context(), "router", f.at)
	if err != nil {
		t.Fatal(err)
	}
	must := lab.Must(t)
	script, config := f.start(f, s.Hosts())
	must(router.Exec(t.Context(), "sh", "-ec", script, "sh", config, t.TempDir())) // a directory of its own: stations share the machine's files

	if s.ref, err = s.PushPlugin(t.Context(), pluginDir(t)); err != nil {
		t.Fatal(err)
	}
	each(t, s.Hosts(), func(h *lab.Host) error {
		if err := h.WriteFile("/etc/isthmus.bgp", bgpPassword+"\n", 0o600); err != nil {
			return err
		}
		return s.install(t.Context(), h, "bgp.source=/etc/isthmus.bgp", "BGP_AS=65001", "BGP_PEERS="+f.at.Addr().String()+" as=65000")
	})
	s.awaitMembers(t, len(s.Hosts()))
	for name, args := range map[string][2]string{
		"gw": {"--subnet 10.60.0.0/16 -o mode=host-gw -o bgp=on", " --ipv6 --subnet fd60::/64"},
		"rt": {"--subnet 10.62.0.0/16 -o mode=routed -o bgp=on", " --ipv6 --subnet fd62::/64"},
	} {
		if f.family == "-4" {
			args[1] = ""
		}
		s.createNetwork(t, name, strings.Fields(args[0]+args[1]))
	}
	boxes := map[string][]*box{"gw": s.oneOnEach(t, "gw"), "rt": s.oneOnEach(t, "rt")}

	learnt := func(want int) {
		t.Helper()
		eventually(t, 30*time.Second, func() error {
			out, err := router.Exec(t.Context(), "ip", f.family, "route", "show", "proto", f.protocol)
			if err == nil && strings.Count(out, " via ") != want {
				err = fmt.Errorf("the router has %d routes, want %d:\n%s", strings.Count(out, " via "), want, out)
			}
			return err
		})
	}
	learnt(6)
	if out, err := isthmus(t.Context(), s.Host(1), "status"); err != nil || !strings.Contains(out, "established") || !regexp.MustCompile(`Announced by AS 65001: .*\b`+f.block).MatchString(out) {
		t.Errorf("status: %v\n%s", err, out)
	}

	third := s.Host(3)
	for _, h := range s.Hosts()[:2] {
		for _, pair := range [][2]*lab.Host{{h, third}, {third, h}} {
			must(pair[0].Exec(t.Context(), "ip", "route", "add", pair[1].IP().String(), "via", f.at.Addr().String()))
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
			if err == nil && strings.Count(out, "on host3: native via "+f.at.Addr().String()) != 2 {
				err = fmt.Errorf("host3 is not reached by way of the router:\n%s", out)
			}
			if err == nil {
				_, err = list[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", f.address(list[2]))
			}
			return err
		})
		seen := recorded(t, s.Host(1), func() { list[0].must(t, "box", "tcp", f.address(list[2]), "--size", "1000000") }, "udp port 8475")
		if len(seen[0]) != 0 {
			t.Errorf("%s: packets in a tunnel: %v", name, seen[0])
		}
	}

	// A plugin that is killed, or replaced by its next version, is no loss of routes:
	// the router keeps them for the next, and goes on when it was told anew, which takes
	// it some seconds from the session's beginning.
	for what, do := range map[string]func(){"kill": func() { kill(t, s.Host(1)) }, "upgrade": func() { s.upgrade(t, s.Host(1), "bgp.source=/etc/isthmus.bgp") }} {
		enough := filepath.Join(t.TempDir(), "enough")
		watch := router.Command(t.Context(), "sh", "-c", `i=0; while [ $i -lt 100 ] || [ ! -e `+enough+` ]; do i=$((i+1)); ip `+f.family+` route show proto `+f.protocol+` | grep -c "via `+s.Host(1).IP().String()+` "; sleep 0.1; done | sort | uniq -c`)
		var lines strings.Builder
		watch.Stdout = &lines
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		do()
		eventually(t, 30*time.Second, func() error {
			out, err := isthmus(t.Context(), s.Host(1), "status")
			if err == nil && !strings.Contains(out, "established") {
				err = fmt.Errorf("no session:\n%s", out)
			}
			return err
		})
		must(router.Exec(t.Context(), "touch", enough))
		if err := watch.Wait(); err != nil || len(strings.Fields(lines.String())) != 2 || strings.Fields(lines.String())[1] != "2" {
			t.Errorf("how often the router had how many routes to host1 over a plugin's %s: %q %v, want 2 at all times", what, lines.String(), err)
		}
	}

	// What a host holds no more is led there no more.
	removeBoxes(t, boxes["rt"][1])
	s.removeNetwork(t, "rt", s.Host(2))
	learnt(5)
}
