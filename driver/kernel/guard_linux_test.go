//go:build kernel

package kernel_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// udpTo is a UDP packet for a host's own address, to the MAC of its device.
func udpTo(dst cluster.MAC, ip string, port uint16) []byte {
	from, to := addr("10.32.0.12").As4(), addr(ip).As4()
	src := containerMAC(2)
	b := append(append(dst[:len(dst):len(dst)], src[:]...), 8, 0)
	h := []byte{0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0}
	h = append(append(h, from[:]...), to[:]...)
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum&0xffff))
	u := binary.BigEndian.AppendUint16([]byte{0, 99}, port)
	return append(append(append(b, h...), u...), 0, 13, 0, 0, 'h', 'e', 'l', 'l', 'o')
}

// arpFor is a broadcast ARP request from a stranger for a host's own address.
func arpFor(ip string) []byte {
	from, to := addr("10.32.0.99").As4(), addr(ip).As4()
	m := containerMAC(2)
	b := []byte{255, 255, 255, 255, 255, 255}
	b = append(append(b, m[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, m[:]...), from[:]...)
	return append(append(b, 0, 0, 0, 0, 0, 0), to[:]...)
}

// routerAdvertisement offers a default route to all nodes.
func routerAdvertisement() []byte {
	m := containerMAC(2)
	src, dst := addr("fe80::ff:fe00:12").As16(), addr("ff02::1").As16()
	icmp := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	pseudo := append(append(slices.Clone(src[:]), dst[:]...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	var sum uint32
	for i, all := 0, append(pseudo, icmp...); i < len(all); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(all[i:]))
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum>>16+sum&0xffff))
	b := append([]byte{0x33, 0x33, 0, 0, 0, 1}, m[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	return append(append(append(b, src[:]...), dst[:]...), icmp...)
}

// What arrives on a VXLAN device or bridge does not enter the host's own stack,
// while the container beside it gets it. Without the guards it would: each
// frame is tried without them first.
func TestLinuxGuards(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.")
			for _, x := range []*node{a, b} { // proxy would swallow the ARP request
				v := x.want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
				v.Proxy = false
				x.want.Put(v)
				apply(t, x.k, x.want)
				if kind == kernel.Macvlan {
					x.start(t)
				}
			}
			mustReach(t, a.box, containerB...)
			dev := "is-v1"
			if kind == kernel.Veth {
				dev = "is-b1"
			}
			var socket net.PacketConn
			err := a.in(func() (err error) {
				socket, err = net.ListenPacket("udp4", "192.0.2.1:9999")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			received := func(wait time.Duration) bool {
				_ = socket.SetReadDeadline(time.Now().Add(wait))
				_, _, err := socket.ReadFrom(make([]byte, 100))
				return err == nil
			}
			resolved := func() bool { return a.sh("ip neigh show 10.32.0.99 dev %s", dev) != "" }
			routed := func() bool { return a.sh("ip -6 route show default") != "" }
			until := func(what string, is func() bool, provoke func()) {
				t.Helper()
				await(t, what, func() error {
					if provoke(); is() {
						return nil
					}
					return fmt.Errorf("it does not happen")
				})
			}
			udp := func() { b.box.send("eth0", udpTo(mac(1), "192.0.2.1", 9999)) }
			arp := func() { b.box.send("eth0", arpFor("192.0.2.1")) }
			ra := func() { b.box.send("eth0", routerAdvertisement()) }

			apply(t, a.k, a.unguarded())
			until("UDP enters without a guard", func() bool { return received(50 * time.Millisecond) }, udp)
			until("ARP enters without a guard", resolved, arp)
			until("router advertisement enters without a guard", routed, ra)

			apply(t, a.k, a.want)
			const forget = "while ip -6 route del default 2>/dev/null; do :; done"
			a.sh("ip neigh del 10.32.0.99 dev %s; %s", dev, forget)
			a.box.sh(forget)
			for received(0) {
			}
			dropped := func(family, chain string) int {
				n := 0
				for line := range strings.Lines(a.sh("nft list chain %s isthmus %s", family, chain)) {
					var packets int
					if _, rest, ok := strings.Cut(line, "counter packets "); ok {
						_, _ = fmt.Sscan(rest, &packets)
						n += packets
					}
				}
				return n
			}
			chain := "refused"
			if kind == kernel.Veth {
				chain = "input"
			}
			start := dropped("inet", chain)
			until("UDP is dropped", func() bool { return dropped("inet", chain) > start }, udp)
			start = dropped("inet", chain)
			until("router advertisement is dropped", func() bool { return dropped("inet", chain) > start }, ra)
			start = dropped("arp", "input")
			until("ARP is dropped", func() bool { return dropped("arp", "input") > start }, arp)
			until("the container gets the router advertisement", func() bool { return a.box.sh("ip -6 route show default") != "" }, ra)
			if received(50*time.Millisecond) || resolved() || routed() {
				t.Errorf("entered the host: UDP %v, ARP %v, RA %v", received(0), resolved(), routed())
			}
			mustReach(t, a.box, containerB...)
		})
	}
}

// Tunnels have no entries where connections are tracked, and what only looks
// like one of ours has.
func TestLinuxNoTrack(t *testing.T) {
	t.Parallel()
	underlays := []string{"192.0.2.", "fd00::"}
	for _, underlay := range spared(underlays, underlays[1:]) {
		t.Run(underlay, func(t *testing.T) {
			a, b := newNodes(t, kernel.Macvlan, underlay,
				"nft 'add table inet theirs; add chain inet theirs in { type filter hook input priority 0; }; add rule inet theirs in ct state new'")
			mustReach(t, a.box, containerB...)
			// Multicast of a's container may have reached b before it had guards.
			for _, x := range []*node{a, b} {
				if err := x.in(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
					t.Fatal(err)
				}
			}
			mustReach(t, a.box, containerB...)
			tracked := func(x *node) bool { return strings.Contains(x.sh("cat /proc/net/nf_conntrack"), "dport=8475") }
			if tracked(a) || tracked(b) {
				t.Errorf("tracked:\n%s", a.sh("cat /proc/net/nf_conntrack")+b.sh("cat /proc/net/nf_conntrack"))
			}

			bits := map[bool]int{true: 64, false: 24}[strings.Contains(underlay, ":")]
			b.sh("ip addr add %s77/%d dev u0 nodad", underlay, bits)
			err := a.in(func() error {
				c, err := net.Dial("udp", net.JoinHostPort(underlay+"77", fmt.Sprint(vxlanPort)))
				if err == nil {
					defer c.Close()
					_, err = c.Write([]byte("hello"))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			await(t, "another address is tracked", func() error {
				if !tracked(b) {
					return fmt.Errorf("it is not")
				}
				return nil
			})
			b.sh("ip addr del %s77/%d dev u0", underlay, bits)

			apply(t, a.k, a.unguarded())
			mustReach(t, a.box, containerB...)
			if !tracked(a) {
				t.Error("not tracked without the guard: the test shows nothing")
			}
		})
	}
}

// A table of an older layout is replaced.
func TestLinuxReplacesLayout(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	s.sh(`nft 'table inet isthmus {
		set drop_links { type ifname; elements = { is-v1, is-gone } }
		chain prerouting { type filter hook prerouting priority -310; iifname @drop_links counter drop comment "isthmus layout 1"; }
	}'`)
	apply(t, k, networks("192.0.2.1", "192.0.2.9"))
	if out := s.sh("nft list ruleset"); strings.Contains(out, "layout 1") || strings.Contains(out, "is-gone") {
		t.Errorf("still\n%s", out)
	}
}

// Docker's FORWARD policy DROP meets bridged frames where br_netfilter is on.
func TestLinuxForwardDrop(t *testing.T) {
	t.Parallel()
	chains := []string{"DOCKER-USER", "FORWARD"}
	for _, chain := range spared(chains, chains[:1]) {
		t.Run(chain, func(t *testing.T) {
			a, _ := newNodes(t, kernel.Veth, "192.0.2.")
			mustReach(t, a.box, containerB...)
			a.sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables")
			for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
				a.sh("%s -P FORWARD DROP", tool)
				if chain == "DOCKER-USER" {
					a.sh("%s -N DOCKER-USER; %s -A DOCKER-USER -m comment --comment theirs -j RETURN; %s -A FORWARD -j DOCKER-USER; %s -A FORWARD -m conntrack --ctstate ESTABLISHED -o docker0 -j ACCEPT", tool, tool, tool, tool)
				}
			}
			before := a.sh("iptables-nft -S; ip6tables-nft -S")
			for _, address := range containerB {
				if err := a.box.reach(address, 300*time.Millisecond); err == nil {
					t.Errorf("%s is reached although FORWARD drops: the test shows nothing", address)
				}
			}
			if ops := apply(t, a.k, a.want); len(ops) != 1 {
				t.Errorf("operations:\n%s", text(ops))
			}
			mustReach(t, a.box, containerB...)
			for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
				contains(t, a.sh("%s -L %s -v -n", tool, chain), "/* isthmus is-b1 */")
				rules := strings.Split(a.sh("%s -S %s", tool, chain), "\n")
				contains(t, rules[1], "-i is-b1 -o is-b1", "-j ACCEPT") // the first rule
				// What saves and restores rules turns our mark into another form.
				a.sh("%s-save > /tmp/$$.rules; %s-restore < /tmp/$$.rules; rm /tmp/$$.rules", tool, tool)
			}
			if ops := apply(t, a.k, a.want); len(ops) != 0 {
				t.Errorf("not recognised after restoring:\n%s", text(ops))
			}
			mustReach(t, a.box, containerB...)
			for _, command := range []string{"iptables-nft -F " + chain, "ip6tables-nft -D " + chain + " 1", "iptables-nft -I " + chain + " -i is-b1 -o is-b1 -m comment --comment 'isthmus is-b1' -j ACCEPT"} {
				a.sh("%s", command)
				if ops := apply(t, a.k, a.want); len(ops) != 1 {
					t.Errorf("after %s:\n%s", command, text(ops))
				}
				mustReach(t, a.box, containerB...)
			}
			a.sh("iptables-nft -F %s", chain)
			apply(t, a.k, a.unguarded())
			if chain == "DOCKER-USER" {
				a.sh("iptables-nft -A DOCKER-USER -m comment --comment theirs -j RETURN")
			}
			if after := a.sh("iptables-nft -S; ip6tables-nft -S"); after != before {
				t.Errorf("was\n%s\nis\n%s", before, after)
			}
		})
	}
}

// The rule follows Docker: a chain that appears later is the right one, as long as
// FORWARD leads to it.
func TestLinuxForwardChainAppears(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := networks("192.0.2.1", "192.0.2.9")
	apply(t, k, want) // no chain: nothing to do, and no difference
	for _, c := range []struct{ command, chain string }{
		{"iptables-nft -P FORWARD DROP", "FORWARD"},
		{"iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER", "DOCKER-USER"},
		{"iptables-nft -F FORWARD", "FORWARD"}, // nothing leads to the other any more
	} {
		s.sh("%s", c.command)
		if ops := apply(t, k, want); len(ops) != 1 {
			t.Errorf("after %s:\n%s", c.command, text(ops))
		}
		contains(t, s.sh("iptables-nft -S %s", c.chain), "-i is-b2 -o is-b2")
		if n := strings.Count(s.sh("iptables-nft -S"), "is-b2 -o"); n != 1 {
			t.Errorf("%d rules", n)
		}
	}
}

// Rules of iptables-legacy are out of reach: that is said once, with the remedy.
func TestLinuxForwardLegacy(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.sh("iptables-legacy -N DOCKER-USER; iptables-legacy -P FORWARD DROP")
	log := logrus.New()
	var out bytes.Buffer
	log.SetOutput(&out)
	var k *kernel.Linux
	err := s.in(func() (err error) {
		k, err = kernel.Open(kernel.Config{Log: log})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	want := networks("192.0.2.1", "192.0.2.9")
	apply(t, k, want)
	apply(t, k, stateOf())
	apply(t, k, want)
	contains(t, out.String(), "iptables-legacy -I DOCKER-USER -i is-b2 -o is-b2 -j ACCEPT")
	if n := strings.Count(out.String(), "level=warning"); n != 1 {
		t.Errorf("%d warnings: %s", n, out.String())
	}
	want.Put(accept("is-b+", "eth0"), accept("eth0", "is-b+"))
	apply(t, k, want)
	contains(t, out.String(), "iptables-legacy -I DOCKER-USER -i eth0 -o is-b+ -j ACCEPT; iptables-legacy -I DOCKER-USER -i is-b+ -o eth0 -j ACCEPT; and the same")
}
