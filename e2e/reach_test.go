//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// reachability is the promise of the vxlan mode: every container reaches every
// other by address, by every kind of traffic, each packet once.
func reachability(t *testing.T, s *site, attach string, subnet4, subnet6 string) {
	network := "reach-" + attach
	s.createNetwork(t, network, []string{"--subnet", subnet4, "--ipv6", "--subnet", subnet6, "-o", "attach=" + attach})
	boxes := s.oneOnEach(t, network)
	defer func() {
		removeBoxes(t, boxes...)
		s.removeNetwork(t, network)
	}()

	seen := map[string]string{}
	for _, b := range boxes {
		for _, a := range []string{b.ip4, b.ip6} {
			if other, twice := seen[a]; twice || a == "" {
				t.Fatalf("address %q of %s is also that of %q", a, b.name, other)
			}
			seen[a] = b.name
		}
	}
	for _, from := range boxes {
		for _, to := range boxes {
			if from == to {
				continue
			}
			t.Run(from.host.Name+"-to-"+to.host.Name, func(t *testing.T) {
				var script []string // in one exec, as each costs the engine half a second
				for _, addr := range []string{to.ip4, to.ip6} {
					script = append(script,
						"ping -c 2 -i 0.1 -W 3 "+addr,
						"ping -c 2 -i 0.1 -s 60000 -W 3 "+addr,
						"box tcp "+addr+" --size 1000000",
						"box udp "+addr+" --count 20 --size 1300")
				}
				from.must(t, "sh", "-ec", strings.Join(script, "; "))
			})
		}
	}
	t.Run("multicast", func(t *testing.T) {
		for _, group := range []string{"239.1.2.3", "ff05::1:3"} {
			deliveredOnce(t, boxes, group, group)
		}
	})
	t.Run("broadcast", func(t *testing.T) {
		deliveredOnce(t, boxes, "", "255.255.255.255")
		deliveredOnce(t, boxes, "", broadcastOf(t, subnet4))
	})
	t.Run("resolution-stays-on-the-host", func(t *testing.T) {
		from, to := boxes[0], boxes[1]
		fresh := run(t, from.host, network+"-fresh", network) // has resolved nobody yet
		defer removeBoxes(t, fresh)
		tunnel, resolution := captures(t, from.host, func() {
			fresh.must(t, "ping", "-c", "2", "-i", "0.1", "-W", "3", to.ip4)
			fresh.must(t, "ping", "-c", "2", "-i", "0.1", "-W", "3", to.ip6)
		})
		if len(tunnel) < 8 {
			t.Errorf("%d packets in the tunnel, want those of four pings at least", len(tunnel))
		}
		if len(resolution) != 0 {
			t.Errorf("resolution reached the wire: %v", resolution)
		}
	})
}

// captures returns the tunnel's packets on the underlay while do ran, and those
// of them that are ARP or neighbour solicitations inside. Offsets are from the
// UDP header, of which the VXLAN header and the inner frame follow after 8 bytes.
func captures(t *testing.T, h *lab.Host, do func()) (tunnel, resolution []string) {
	t.Helper()
	at := func(offset int) string { return fmt.Sprintf("udp[%d", offset) }
	if h.IP().Is6() {
		at = func(offset int) string { return fmt.Sprintf("ip6[%d", 40+offset) }
	}
	arp := at(28) + ":2] = 0x0806"
	solicitation := at(28) + ":2] = 0x86dd and " + at(36) + "] = 58 and " + at(70) + "] = 135"
	out := recorded(t, h, do, "udp port 8475", "udp port 8475 and ("+arp+" or ("+solicitation+"))")
	return out[0], out[1]
}

// recorded returns, for each filter, what was on the underlay while do ran.
func recorded(t *testing.T, h *lab.Host, do func(), filters ...string) [][]string {
	t.Helper()
	var all []*lab.Capture
	for _, filter := range filters {
		c, err := h.Capture(t.Context(), "eth0", filter)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	do()
	var out [][]string
	for _, c := range all {
		packets, err := c.Stop(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, packets)
	}
	return out
}

// floods: arp=flood sends resolution to the others, so that addresses that only
// a container knows of are found; bum=none sends no broadcast.
func floods(t *testing.T, s *site) {
	s.createNetwork(t, "flood", []string{"--subnet", "10.53.0.0/24", "--ipv6", "--subnet", "fd53::/64", "-o", "arp=flood"})
	s.createNetwork(t, "quiet", []string{"--subnet", "10.54.0.0/24", "-o", "bum=none"})
	boxes := s.oneOnEach(t, "flood", "--cap-add", "NET_ADMIN")
	from, to := boxes[0], boxes[1]
	to.must(t, "ip", "addr", "add", "10.53.0.250/24", "dev", "eth0") // as VRRP would
	_, resolution := captures(t, from.host, func() {
		from.must(t, "ping", "-c", "1", "-W", "3", to.ip4)
		from.must(t, "ping", "-c", "1", "-W", "3", to.ip6)
		from.must(t, "ping", "-c", "1", "-W", "3", "10.53.0.250")
	})
	if len(resolution) < 3 {
		t.Errorf("with arp=flood %d requests are on the wire, want three at least: %v", len(resolution), resolution)
	}
	removeBoxes(t, boxes...)

	boxes = s.oneOnEach(t, "quiet")
	r := boxes[1].begin(t, "box", "recv", "--count", "1", "--iface", "eth0")
	boxes[0].must(t, "box", "send", "--iface", "eth0", "255.255.255.255", "cast")
	boxes[0].must(t, "box", "send", "--iface", "eth0", boxes[1].ip4, "last")
	if out, err := r.wait(20 * time.Second); err != nil || !strings.Contains(out, `"last"`) {
		t.Errorf("with bum=none a broadcast arrived: %v %s", err, out)
	}
	removeBoxes(t, boxes...)
	s.removeNetwork(t, "flood")
	s.removeNetwork(t, "quiet")
}

// deliveredOnce sends datagrams from the first box and demands that all others
// get each of them once. A last datagram to each receiver alone comes after
// all else on the path, so that a late duplicate is not missed.
func deliveredOnce(t *testing.T, boxes []*box, group, to string) {
	t.Helper()
	const packets = 5
	var receivers []*session
	for _, b := range boxes[1:] {
		args := []string{"box", "recv", "--count", fmt.Sprint(packets + 1), "--iface", "eth0"}
		if group != "" {
			args = append(args, group)
		}
		receivers = append(receivers, b.begin(t, args...))
	}
	boxes[0].must(t, "box", "send", "--iface", "eth0", "--count", fmt.Sprint(packets), to, "cast")
	for _, b := range boxes[1:] {
		last := b.ip4
		if strings.Contains(to, ":") {
			last = b.ip6
		}
		boxes[0].must(t, "box", "send", "--iface", "eth0", last, "last")
	}
	for i, r := range receivers {
		out, err := r.wait(20 * time.Second)
		if err != nil {
			t.Errorf("%s at %s: %v", to, boxes[i+1].name, err)
			continue
		}
		if !strings.Contains(out, `"last"`) {
			t.Errorf("%s at %s: datagrams came twice: %v", to, boxes[i+1].name, r.out)
		}
		for n := range packets {
			if got := strings.Count(strings.Join(r.out, "\n"), fmt.Sprintf(`"cast %d"`, n)); got != 1 {
				t.Errorf("%s at %s: datagram %d came %d times", to, boxes[i+1].name, n, got)
			}
		}
	}
}

func broadcastOf(t *testing.T, subnet string) string {
	t.Helper()
	p := netip.MustParsePrefix(subnet).Masked()
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b).String()
}

// bridgeFilter: Docker's FORWARD policy DROP does not stop bridge attach,
// whether bridged frames are shown to it or not.
func bridgeFilter(t *testing.T, s *site) {
	s.createNetwork(t, "filter", []string{"--subnet", "10.55.0.0/24", "--ipv6", "--subnet", "fd55::/64", "-o", "attach=bridge"})
	boxes := append(s.oneOnEach(t, "filter"), run(t, s.Host(1), "filter-neighbour", "filter"))
	defer func() {
		removeBoxes(t, boxes...)
		s.removeNetwork(t, "filter")
	}()
	for _, shown := range []string{"0", "1"} {
		for _, h := range s.Hosts() {
			lab.Must(t)(h.Exec(t.Context(), "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables="+shown, "net.bridge.bridge-nf-call-ip6tables="+shown))
			if policy := lab.Must(t)(h.Exec(t.Context(), "iptables", "-S", "FORWARD")); !strings.HasPrefix(policy, "-P FORWARD DROP") {
				t.Fatalf("%s has FORWARD policy %q, and the test proves nothing", h.Name, policy)
			}
		}
		for _, from := range boxes {
			var script []string
			for _, to := range boxes {
				if from != to {
					script = append(script, "ping -c 1 -W 3 "+to.ip4, "ping -c 1 -W 3 "+to.ip6, "box tcp "+to.ip4)
				}
			}
			from.must(t, "sh", "-ec", strings.Join(script, "; "))
		}
	}
}

// hostStack: what arrives on a VXLAN device never enters the host's own stack.
func hostStack(t *testing.T, s *site) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			s.createNetwork(t, "stack", []string{"--subnet", "10.36.0.0/24", "--ipv6", "--subnet", "fd36::/64", "-o", "attach=" + attach})
			defer s.removeNetwork(t, "stack")
			evil := run(t, s.Host(1), "evil", "stack", "--cap-add", "NET_ADMIN")
			defer removeBoxes(t, evil)
			good := run(t, s.Host(2), "good", "stack")
			defer removeBoxes(t, good)
			victim := s.Host(2)
			before := withoutGateway(snapshot(t, victim))
			vxlan := vxlanOf(t, victim, "10.36.0.0/24")

			// A router advertisement that every host of a network would believe.
			evil.must(t, "box", "ra", "eth0", "2001:db8:bad::/64")
			evil.must(t, "ping", "-c", "1", "-W", "3", good.ip6) // comes after it
			if d := lab.Difference(before, withoutGateway(snapshot(t, victim))); d != "" {
				t.Errorf("a container's router advertisement changed the host:\n%s", d)
			}

			// Frames to the MAC of the host's own link, with an address of the
			// host inside. They arrive, as the guard's counter shows, and end there.
			link := vxlan
			if attach == "bridge" {
				link = "is-b" + strings.TrimPrefix(vxlan, "is-v")
			}
			mac := strings.TrimSpace(lab.Must(t)(victim.Exec(t.Context(), "cat", "/sys/class/net/"+link+"/address")))
			lab.Must(t)(s.Host(1).Exec(t.Context(), "bridge", "fdb", "replace", mac, "dev", vxlanOf(t, s.Host(1), "10.36.0.0/24"), "dst", victim.IP().String()))
			delivered, dropped := datagramsWithoutPort(t, victim), guardDrops(t, victim)
			packet := hex.EncodeToString(datagram(netip.MustParseAddr(evil.ip4), victim.IP(), 9))
			for range 5 {
				evil.must(t, "box", "frame", "eth0", "--to", mac, "--type", "0x0800", "--payload", packet)
			}
			eventually(t, 5*time.Second, func() error {
				if n := guardDrops(t, victim) - dropped; n < 1 {
					return fmt.Errorf("the guard has dropped %d packets", n)
				}
				return nil
			})
			if n := datagramsWithoutPort(t, victim) - delivered; n != 0 {
				t.Errorf("%d datagrams from a container entered the host's stack", n)
			}
		})
	}
}

// datagram is an IPv4 UDP packet of a few bytes.
func datagram(from, to netip.Addr, port uint16) []byte {
	b := []byte{0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	b = binary.BigEndian.AppendUint16(b, 4000)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, 0, 16, 0, 0, 'i', 'n', 't', 'r', 'u', 'd', 'e', 'r') // no checksum
}

// guardDrops sums the counters of the guards' rules.
func guardDrops(t *testing.T, h *lab.Host) int {
	t.Helper()
	sum := 0
	for line := range strings.Lines(lab.Must(t)(h.Exec(t.Context(), "nft", "list", "ruleset"))) {
		if _, counter, ok := strings.Cut(line, "counter packets "); ok && strings.Contains(line, "drop") && strings.Contains(line, "isthmus") {
			var n int
			fmt.Sscan(counter, &n)
			sum += n
		}
	}
	return sum
}

// datagramsWithoutPort counts what reached the host's UDP, for nobody.
func datagramsWithoutPort(t *testing.T, h *lab.Host) int {
	t.Helper()
	out := lab.Must(t)(h.Exec(t.Context(), "sh", "-c", `awk '/^Udp: [0-9]/ {print $3}' /proc/net/snmp`))
	var n int
	if _, err := fmt.Sscan(out, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// vxlanOf finds the network's device by what the command line says.
func vxlanOf(t *testing.T, h *lab.Host, subnet string) string {
	t.Helper()
	for _, n := range networksOf(t, h) {
		for _, p := range n.Pools {
			if p == subnet {
				return n.Device
			}
		}
	}
	t.Fatalf("%s does not hold %s", h.Name, subnet)
	return ""
}

type networkStatus struct {
	Pools  []string `json:"pools"`
	VNI    int      `json:"vni"`
	Device string   `json:"device"`
	MTU    int      `json:"mtu"`
}

func networksOf(t *testing.T, h *lab.Host) []networkStatus {
	t.Helper()
	out, err := isthmus(t.Context(), h, "networks", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var networks []networkStatus
	if err := decode(out, &networks); err != nil {
		t.Fatal(err)
	}
	return networks
}
