//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// routes is a lab whose hosts route their containers: two networks of each mode, with
// a container on every host, and a machine of the LAN that is in no cluster.
type routes struct {
	*site
	machine *lab.Station
	boxes   map[string][]*box  // by network
	joined  map[[2]string]bool // networks that reach each other, in both orders
}

const outside = "10.99.0.200"

// TestRoutes runs what hosts must do without tunnels, on one lab.
func TestRoutes(t *testing.T) {
	r := &routes{site: newSite(t, lab.Config{Hosts: atLength(3, 5)}), boxes: map[string][]*box{}}
	r.forwardIPv6(t)
	before := snapshots(t, r.site)
	var err error
	if r.machine, err = r.Station(t.Context(), "machine", netip.MustParsePrefix(outside+"/24")); err != nil {
		t.Fatal(err)
	}
	r.networks(t)
	type part struct {
		name string
		do   func(*testing.T)
	}
	parts := []part{
		{"reach", r.reach},
		{"wire", r.wire},
		{"world", r.world},
		{"publish", func(t *testing.T) {
			for _, network := range []string{"gw", "rt"} {
				r.publish(t, r.Host(1), network, "gw2")
			}
		}},
		{"spoof", r.spoof},
		{"behind-router", r.behindRouter},
		{"kill-plugin", r.killed},
		{"remove", r.remove},
		{"nothing-left", func(t *testing.T) {
			if err := r.machine.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, r.site, before)
		}},
		// What these do to a host itself stays.
		{"again", r.networks},
		{"mend", r.mend},
		{"restart-engine", r.engineRestarted},
	}
	parts = append(parts, atLength(nil, []part{{"readdress", r.readdressed}, {"upgrade", r.upgraded}})...)
	parts = append(parts, part{"remove-again", r.remove})
	for _, part := range parts {
		if !t.Run(part.name, part.do) {
			return
		}
	}
}

// forwardIPv6 does what status asks the operator for: the kernel does not by itself.
func (r *routes) forwardIPv6(t *testing.T) {
	each(t, r.Hosts(), func(h *lab.Host) error {
		_, err := h.Exec(t.Context(), "sh", "-c", "f=/proc/sys/net/ipv6/conf; echo 1 >$f/eth0/force_forwarding || echo 1 >$f/all/forwarding")
		return err
	})
}

// routesOverIPv6: between hosts that have nothing but IPv6, that of containers is
// what is on the wire. Their IPv4 goes by the fallback, and nowhere without one,
// which status says.
func routesOverIPv6(t *testing.T, s *site) {
	r := &routes{site: s, boxes: map[string][]*box{}}
	r.forwardIPv6(t)
	r.create(t, "gw", "--subnet 10.60.0.0/16 -o mode=host-gw --ipv6 --subnet fd60::/64")
	r.reach(t)
	r.native(t, "gw", func(b *box) string { return b.ip6 }, "icmp6")
	from, to := r.boxes["gw"][0], r.boxes["gw"][1]
	tunnel, _ := captures(t, from.host, func() { from.must(t, "ping", "-c", "3", "-i", "0.1", "-W", "2", to.ip4) })
	if len(tunnel) != 6 {
		t.Errorf("%d packets of IPv4 in the tunnel, want 6: %v", len(tunnel), tunnel)
	}
	r.remove(t)
	r.create(t, "rt", "--subnet 10.62.0.0/16 -o mode=routed --ipv6 --subnet fd62::/64")
	for _, from := range r.boxes["rt"] {
		for _, to := range r.boxes["rt"] {
			eventually(t, 20*time.Second, func() error {
				_, err := from.exec(t.Context(), "ping", "-c", "1", "-W", "2", to.ip6)
				return err
			})
		}
	}
	r.native(t, "rt", func(b *box) string { return b.ip6 }, "icmp6")
	eventually(t, 20*time.Second, func() error {
		st, err := statusOf(t.Context(), s.Host(1))
		if err == nil && !slices.ContainsFunc(st.Problems, func(p struct{ Cause, Remedy string }) bool {
			return strings.Contains(p.Cause+p.Remedy, "mode=host-gw with a fallback")
		}) {
			err = fmt.Errorf("status does not say why IPv4 goes nowhere: %+v", st.Problems)
		}
		return err
	})
	r.remove(t)
}

// networks makes two of each mode.
func (r *routes) networks(t *testing.T) {
	r.create(t, "gw", "--subnet 10.60.0.0/16 -o mode=host-gw --ipv6 --subnet fd60::/64")
	r.create(t, "gw2", "--subnet 10.61.0.0/24 -o mode=host-gw -o nat=off")
	r.create(t, "rt", "--subnet 10.62.0.0/16 -o mode=routed")
	r.create(t, "rt2", "--subnet 10.63.0.0/24 -o mode=routed --internal")
}

func (r *routes) create(t *testing.T, name, args string) {
	r.createNetwork(t, name, strings.Fields(args))
	r.boxes[name] = r.oneOnEach(t, name)
}

// reach: all reach all inside a network by TCP, UDP and ICMP, by both families, and
// none across, but where two are joined.
func (r *routes) reach(t *testing.T) {
	each(t, r.Hosts(), func(h *lab.Host) error {
		for name, boxes := range r.boxes {
			from := boxes[slices.Index(r.Hosts(), h)]
			script := []string{"true"} // in one exec, as each costs the engine half a second
			for _, to := range boxes {
				for _, a := range []string{to.ip4, to.ip6} {
					if a != "" && to != from {
						script = append(script, "ping -c 1 -W 2 "+a, "box tcp "+a+" --size 100000", "box udp "+a+" --count 5 --size 1300")
					}
				}
			}
			for other, others := range r.boxes {
				for _, to := range others {
					if other != name && r.joined[[2]string{name, other}] {
						script = append(script, "box tcp "+to.ip4+" --size 100000", "box udp "+to.ip4+" --count 5 --size 1300")
					} else if other != name {
						script = append(script, "! ping -c 1 -W 1 -q "+to.ip4)
						break // on one host: each takes a second
					}
				}
			}
			err := retry(20*time.Second, time.Second, func() error {
				out, err := from.exec(t.Context(), "sh", "-exc", strings.Join(script, "\n"))
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// wire: between hosts that share a subnet, packets of containers are the packets on
// the wire.
func (r *routes) wire(t *testing.T) {
	for _, name := range []string{"gw", "rt"} {
		r.native(t, name, func(b *box) string { return b.ip4 }, "icmp")
	}
}

// native: three echoes between the first two containers of a network, and their
// answers, are the only packets of the two on the wire, and nothing is in a tunnel.
func (r *routes) native(t *testing.T, network string, address func(*box) string, kind string) {
	t.Helper()
	from, to := r.boxes[network][0], r.boxes[network][1]
	seen := recorded(t, from.host, func() { from.must(t, "ping", "-c", "3", "-i", "0.2", "-W", "2", address(to)) },
		"udp port 8475 or ip proto 4 or ip proto 47 or ip6 proto 4 or ip6 proto 41 or ip6 proto 47",
		kind+" and host "+address(to)+" and host "+address(from))
	if len(seen[0]) != 0 || len(seen[1]) != 6 {
		t.Errorf("%s: %d packets in a tunnel and %d plain ones, want 0 and 6: %v", network, len(seen[0]), len(seen[1]), seen[0])
	}
}

// world: what leaves the cluster has the host's address, but with nat=off, and not
// at all from an internal network. The host reaches its containers and others'.
func (r *routes) world(t *testing.T) {
	for name, reaches := range map[string]bool{"gw": true, "rt": true, "gw2": false, "rt2": false} {
		b := r.boxes[name][0]
		if out, err := b.exec(t.Context(), "ping", "-c", "1", "-W", "1", outside); (err == nil) != reaches {
			t.Errorf("container of %s reaches the world: %t, want %t: %s", name, err == nil, reaches, out)
		}
	}
	b := r.boxes["gw2"][0]
	if _, err := r.machine.Exec(t.Context(), "ip", "route", "add", "10.61.0.0/24", "via", b.host.IP().String()); err != nil {
		t.Fatal(err)
	}
	b.must(t, "ping", "-c", "1", "-W", "2", outside)
	for _, to := range r.boxes["gw"] {
		if out, err := r.Host(1).Exec(t.Context(), "ping", "-c", "1", "-W", "2", to.ip4); err != nil {
			t.Errorf("the host reaches %s on %s: %v %s", to.ip4, to.host.Name, err, out)
		}
	}
}

// publish: ports of a container are ports of its host, for everybody, as long as
// it runs; apart names another network. h is not the last host.
func (r *routes) publish(t *testing.T, h *lab.Host, network, apart string) {
	web := run(t, h, "web", network, "-p", "8081:80", "-p", "7070:7000/udp", "-p", "127.0.0.1:8082:80", "-p", "9000-9001:80-81")
	askers := map[string]asked{
		"another machine":           r.machine.Exec,
		"another host":              r.Host(3).Exec,
		"its host":                  h.Exec,
		"a container elsewhere":     r.boxes[network][2].exec,
		"a container here":          r.boxes[network][h.Index-1].exec,
		"one of another network":    r.boxes[apart][h.Index-1].exec,
		"one elsewhere of another":  r.boxes[apart][2].exec,
		"its host by its loopback ": h.Exec,
	}
	published := func() {
		t.Helper()
		var group sync.WaitGroup
		for who, from := range askers {
			address := h.IP().String()
			if strings.HasSuffix(who, " ") {
				address = "127.0.0.1"
			}
			script := fmt.Sprintf("box get http://%[1]s:8081/ && box get http://%[1]s:9000/ && box udp %[1]s --port 7070 --count 3", address)
			group.Go(func() {
				err := retry(10*time.Second, 200*time.Millisecond, func() error {
					out, err := from(t.Context(), "sh", "-c", script)
					if err == nil && strings.Count(out, "web ") != 2 {
						err = errors.New("somebody else answered")
					}
					if err != nil {
						return fmt.Errorf("%s asks %s: %w: %s", who, address, err, out)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if out, err := h.Exec(t.Context(), "box", "get", "http://127.0.0.1:8082/"); err != nil || !strings.HasPrefix(out, "web ") {
			t.Errorf("port of the loopback address: %q %v", out, err)
		}
		if r.boxes[network][0].ip6 != "" { // of the networks that have IPv6, and from who has
			for who, from := range map[string]asked{"another host": r.Host(3).Exec, "its host": h.Exec, "a container elsewhere": r.boxes[network][2].exec} {
				if out, err := from(t.Context(), "box", "get", "http://["+h.IP6().String()+"]:8081/"); err != nil || !strings.HasPrefix(out, "web ") {
					t.Errorf("%s asks %s: %q %v", who, h.IP6(), out, err)
				}
			}
		}
		if out, err := r.machine.Exec(t.Context(), "box", "get", "http://"+h.IP().String()+":8082/"); err == nil {
			t.Errorf("port of the loopback address answers others: %q", out)
		}
	}
	published()
	out, err := h.Docker(t.Context(), "run", "--rm", "--name", "second", "--network", network, "-p", "8081:80", lab.Image, "true")
	if err == nil || !strings.Contains(err.Error()+out, "8081 is taken") {
		t.Errorf("a port that is taken: %v %s", err, out)
	}
	docker(t, h, "rm", "-f", "second")
	docker(t, h, "restart", "-t", "1", "web")
	published()
	kill(t, h)
	published()
	removeBoxes(t, web)
	if out, err := h.Exec(t.Context(), "nft", "list", "table", "inet", "isthmus"); err != nil || strings.Contains(out, "8081") {
		t.Errorf("something of the port is left: %v %s", err, out)
	}
}

// spoof: a container that sends from an address that is not its own is not heard.
func (r *routes) spoof(t *testing.T) {
	liar := run(t, r.Host(1), "liar", "rt", "--cap-add", "NET_ADMIN")
	defer removeBoxes(t, liar)
	to := r.boxes["rt"][1]
	liar.must(t, "ping", "-c", "1", "-W", "2", to.ip4)
	liar.must(t, "ip", "address", "add", "10.62.99.99/32", "dev", "eth0")
	c, err := to.host.Capture(t.Context(), "eth0", "src host 10.62.99.99")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := liar.exec(t.Context(), "ping", "-c", "2", "-W", "1", "-I", "10.62.99.99", to.ip4); err == nil {
		t.Errorf("answered: %s", out)
	}
	if seen, err := c.Stop(t.Context()); err != nil || len(seen) != 0 {
		t.Errorf("it left the host: %v %v", seen, err)
	}
}

// behindRouter: a host is moved behind a router and back, under a TCP connection, by
// way of VXLAN.
func (r *routes) behindRouter(t *testing.T) {
	r.moved(t, "gw", "vxlan", func() {
		if out, err := isthmus(t.Context(), r.Host(1), "status"); !strings.Contains(out, "behind router") {
			t.Errorf("status does not say that a host is behind a router for mode routed: %v\n%s", err, out)
		}
	})
}

// moved: the third host, or the second of two, is moved behind a router and back, under
// a TCP connection: by the network's fallback within 10 s, and natively again. Hosts
// check strictly by which way packets come, as some distributions have it.
func (r *routes) moved(t *testing.T, network, fallback string, meanwhile func()) {
	third := r.Hosts()[min(3, len(r.Hosts()))-1]
	near := r.Hosts()[:third.Index-1]
	a, b := r.boxes[network][0], r.boxes[network][third.Index-1]
	if _, err := r.machine.Exec(t.Context(), "sh", "-ec", "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0"); err != nil {
		t.Fatal(err)
	}
	for _, h := range r.Hosts() {
		before, err := h.Exec(t.Context(), "sh", "-ec", "cat /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter")
		if err != nil {
			t.Fatal(err, before)
		}
		defer func() {
			if out, err := h.Exec(t.Context(), "sh", "-ec", "echo "+strings.TrimSpace(before)+" >/proc/sys/net/ipv4/conf/all/rp_filter"); err != nil {
				t.Error(err, out)
			}
		}()
	}
	stream := a.begin(t, "box", "stream", "--over", "tcp", "--for", "25s", "--interval", "10ms", b.ip4)
	move := func(verb string) {
		for _, h := range near {
			for _, pair := range [][2]*lab.Host{{h, third}, {third, h}} {
				if out, err := pair[0].Exec(t.Context(), "ip", "route", verb, pair[1].IP().String()+"/32", "via", outside); err != nil {
					t.Fatal(err, out)
				}
			}
		}
	}
	by := func(way string) time.Duration {
		return eventually(t, 10*time.Second, func() error {
			out, err := isthmus(t.Context(), r.Host(1), "networks")
			if err != nil {
				return err
			}
			for _, line := range strings.Split(out, "\n") {
				if strings.Contains(line, " on "+third.Name+": "+way) && strings.HasPrefix(line, a.ip4[:6]) {
					_, err := a.exec(t.Context(), "ping", "-c", "1", "-W", "1", b.ip4)
					return err
				}
			}
			return fmt.Errorf("host1 does not reach %s %s:\n%s", third.Name, way, out)
		})
	}
	for _, h := range near {
		if err := r.Cut(h.Index, third.Index); err != nil {
			t.Fatal(err)
		}
	}
	move("add")
	t.Logf("by the fallback after %s", by("by "+fallback))
	a.must(t, "box", "tcp", b.ip4, "--size", "1000000")
	meanwhile()
	move("del")
	if err := r.Heal(); err != nil {
		t.Fatal(err)
	}
	t.Logf("natively again after %s", by("native"))
	stream.lossless(t, 100, 60*time.Second)
}

// mend: what others delete returns, within 15 s.
func (r *routes) mend(t *testing.T) {
	h, b, to := r.Host(1), r.boxes["gw"][0], r.boxes["gw"][1]
	for _, fault := range []string{
		"ip route flush proto 105",
		"iptables -F FORWARD; iptables -F DOCKER-USER",
		"nft flush ruleset",
		"ip address flush dev $(ip -o link | sed -n 's/.*: \\(is-g[0-9a-f]*\\):.*/\\1/p' | head -1)",
		"ip link set eth0 down; ip link set eth0 up; ip route replace default via 10.99.0.254",
	} {
		if out, err := h.Exec(t.Context(), "sh", "-c", fault); err != nil {
			t.Fatalf("%s: %v %s", fault, err, out)
		}
		took := eventually(t, 15*time.Second, func() error {
			for network, pair := range map[string][2]*box{"gw": {b, to}, "rt": {r.boxes["rt"][0], r.boxes["rt"][1]}} {
				if out, err := pair[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", pair[1].ip4); err != nil {
					return fmt.Errorf("%s after %s: %w %s", network, fault, err, out)
				}
			}
			return nil
		})
		t.Logf("%s: %s", fault, took)
	}
	r.reach(t)
}

// readdressed: a host gets another address from its DHCP server, and its old one back.
func (r *routes) readdressed(t *testing.T) {
	h := r.Host(2)
	for _, address := range []string{"10.99.0.52", h.IP().String()} {
		if out, err := h.Exec(t.Context(), "sh", "-ec", "ip -4 address flush dev eth0; ip address add "+address+"/24 dev eth0; ip route add default via 10.99.0.254"); err != nil {
			t.Fatal(err, out)
		}
		took := eventually(t, 30*time.Second, func() error {
			for _, boxes := range r.boxes {
				for _, pair := range [][2]*box{{boxes[0], boxes[1]}, {boxes[1], boxes[2]}} {
					if out, err := pair[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", pair[1].ip4); err != nil {
						return fmt.Errorf("from %s to %s: %w %s", pair[0].name, pair[1].name, err, out)
					}
				}
			}
			return nil
		})
		t.Logf("reached by %s after %s", address, took)
		if address != h.IP().String() {
			r.reach(t)
		}
	}
}

// upgraded: the kernel forwards on while another plugin takes over.
func (r *routes) upgraded(t *testing.T) {
	from, to := r.boxes["rt"][0], r.boxes["rt"][1]
	stream := from.begin(t, "box", "stream", "--over", "udp", "--for", "20s", "--interval", "5ms", to.ip4)
	r.upgrade(t, from.host)
	stream.lossless(t, 1000, 60*time.Second)
	r.reach(t)
}

// upgrade gives a host the plugin's next version; settings are those that engines
// forget with it, beside the key.
func (s *site) upgrade(t *testing.T, h *lab.Host, settings ...string) {
	t.Helper()
	dir := t.TempDir() // the same but for a name, or the engine says that it has it
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.CopyFS(dir, os.DirFS(pluginDir(t))))
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	must(err)
	must(os.WriteFile(filepath.Join(dir, "config.json"), bytes.Replace(config, []byte(`"description": "`), []byte(`"description": "Next: `), 1), 0o644))
	must(os.WriteFile(filepath.Join(dir, "rootfs", "next"), []byte("next"), 0o644))
	next, err := s.PushPluginAs(t.Context(), dir, "next")
	must(err)
	docker(t, h, "plugin", "disable", "-f", driverName)
	docker(t, h, "plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", driverName, next)
	docker(t, h, slices.Concat([]string{"plugin", "set", driverName, "key.source=/etc/isthmus.key"}, settings)...)
	docker(t, h, "plugin", "enable", driverName)
}

// killed: the kernel forwards on without the plugin.
func (r *routes) killed(t *testing.T) {
	from, to := r.boxes["gw"][0], r.boxes["gw"][1]
	stream := from.begin(t, "box", "stream", "--over", "udp", "--for", "8s", "--interval", "5ms", to.ip4)
	kill(t, from.host)
	stream.lossless(t, 1000, 40*time.Second)
}

// engineRestarted: the engine writes its rules anew, and everything goes on.
func (r *routes) engineRestarted(t *testing.T) {
	h := r.Host(1)
	if err := h.StopEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, boxes := range r.boxes {
		docker(t, h, "start", boxes[0].name)
		if err := boxes[0].inspect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.reach(t)
}

// remove: and nothing of them stays.
func (r *routes) remove(t *testing.T) {
	for name, boxes := range r.boxes {
		removeBoxes(t, boxes...)
		r.removeNetwork(t, name)
		delete(r.boxes, name)
	}
	each(t, r.Hosts(), func(h *lab.Host) error {
		return retry(20*time.Second, 200*time.Millisecond, func() error {
			out, err := h.Exec(t.Context(), "sh", "-c", "ip route show proto 105; ip -6 route show proto 105")
			if err == nil && out != "" {
				err = fmt.Errorf("routes are left: %s", out)
			}
			return err
		})
	})
}
