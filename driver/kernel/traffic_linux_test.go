//go:build kernel

package kernel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// node is a host with one container, n = 1 or 2.
type node struct {
	*space
	k    *kernel.Linux
	box  *space
	want kernel.State
	h    kernel.Handover
}

const vxlanPort = 8475

func containerMAC(n int) cluster.MAC { return mac(0x10 + byte(n)) }

// The same device name, VNI and addresses in all tests: host n has VTEP MAC n,
// its container 10.32.0.1n and fd32::1n. Each host runs the setup commands first.
func newNodes(t *testing.T, kind kernel.Kind, underlay string, setup ...string) (a, b *node) {
	t.Helper()
	a = &node{space: newSpace(t), box: newSpace(t)}
	b = &node{space: newSpace(t), box: newSpace(t)}
	bits, mtu := 24, 1450
	if strings.Contains(underlay, ":") {
		bits, mtu = 64, 1430
	}
	vtep := func(n int) netip.Addr { return addr(fmt.Sprint(underlay, n)) }
	join(a.space, b.space, fmt.Sprintf("%s/%d", vtep(1), bits), fmt.Sprintf("%s/%d", vtep(2), bits))
	for i, x := range []*node{a, b} {
		n, other := i+1, 2-i
		x.sh("echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter")
		for _, command := range setup {
			x.sh("%s", command)
		}
		x.k = x.open()
		v := kernel.Link{Name: "is-v1", Kind: kernel.VXLAN, MAC: mac(byte(n)), MTU: mtu, VNI: 7, Local: vtep(n), Port: vxlanPort, Proxy: true}
		x.h = kernel.Handover{
			Link:    kernel.Link{Name: "is-c1", Kind: kind, MAC: containerMAC(n), MTU: mtu},
			Sandbox: x.box.path(), Name: "eth0",
			Addrs: []netip.Prefix{prefix(fmt.Sprintf("10.32.0.1%d/24", n)), prefix(fmt.Sprintf("fd32::1%d/64", n))},
		}
		x.want = stateOf(
			kernel.FDB{Dev: v.Name, Dst: vtep(other)},
			kernel.FDB{Dev: v.Name, MAC: containerMAC(other), Dst: vtep(other)},
			kernel.FDB{Dev: v.Name, MAC: mac(byte(other)), Dst: vtep(other)}, // so that frames to the VTEP's MAC arrive
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("10.32.0.1%d", other)), MAC: containerMAC(other)},
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("fd32::1%d", other)), MAC: containerMAC(other)},
			kernel.Neigh{Dev: v.Name, IP: addr(fmt.Sprintf("fe80::ff:fe00:1%d", other)), MAC: containerMAC(other)},
		)
		if kind == kernel.Macvlan {
			x.h.Link.Parent = v.Name
			x.want.Put(kernel.Link{Name: "is-a1", Kind: kernel.Macvlan, MAC: mac(0x40 + byte(n)), MTU: mtu, Parent: v.Name},
				kernel.Guard{Dev: "is-v1", Rule: kernel.DropInput}, kernel.Guard{Dev: "is-a1", Rule: kernel.DropInput})
		} else {
			v.Master = "is-b1"
			x.h.Host = kernel.Link{Name: "is-h1", Kind: kernel.Veth, Standing: kernel.Adopted, MTU: mtu, Master: "is-b1"}
			x.want.Put(kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MAC: mac(byte(n)), MTU: mtu}, x.h.Host,
				kernel.Guard{Dev: "is-b1", Rule: kernel.DropBridgeInput}, kernel.Guard{Dev: "is-b1", Rule: kernel.AcceptForward})
		}
		x.want.Put(v)
		apply(t, x.k, x.want)
		x.start(t)
	}
	b.box.echo(":80")
	return a, b
}

// start does what Docker does at a container's start.
func (x *node) start(t *testing.T) {
	t.Helper()
	if err := x.k.Hand(context.Background(), x.h); err != nil {
		t.Fatal(err)
	}
	take(x.space, x.box, x.h.Link.Name, "eth0", x.h.Addrs[0].String(), x.h.Addrs[1].String())
}

// unguarded returns the wanted state without guards.
func (x *node) unguarded() kernel.State {
	s := kernel.State{}
	for k, o := range x.want {
		if k.Type != "guard" {
			s[k] = o
		}
	}
	return s
}

var containerB = []string{"10.32.0.12:80", "[fd32::12]:80"}

func mustReach(t *testing.T, from *space, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		await(t, "reach "+a, func() error { return from.reach(a, time.Second) })
	}
}

// inner returns the frames inside the VXLAN packets among frames.
func inner(frames [][]byte) (out [][]byte) {
	for _, f := range frames {
		at := 0
		switch {
		case len(f) > 42 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP && f[23] == unix.IPPROTO_UDP:
			at = 14 + int(f[14]&15)*4
		case len(f) > 62 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 && f[20] == unix.IPPROTO_UDP:
			at = 54
		default:
			continue
		}
		if len(f) > at+16+14 && binary.BigEndian.Uint16(f[at+2:]) == vxlanPort {
			out = append(out, f[at+16:])
		}
	}
	return out
}

// resolution tells an ARP packet, neighbour solicitation or advertisement.
func resolution(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		return true
	case unix.ETH_P_IPV6:
		return len(f) > 54 && f[20] == unix.IPPROTO_ICMPV6 && (f[54] == 135 || f[54] == 136)
	}
	return false
}

func TestLinuxTraffic(t *testing.T) {
	t.Parallel()
	for _, underlay := range []string{"192.0.2.", "fd99::"} {
		for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
			t.Run(string(kind)+" "+underlay, func(t *testing.T) {
				a, b := newNodes(t, kind, underlay)
				stop := b.capture("u0")
				mustReach(t, a.box, containerB...)
				frames := inner(stop())
				if len(frames) < 10 {
					t.Errorf("only %d frames passed the wire", len(frames))
				}
				if i := slices.IndexFunc(frames, resolution); i >= 0 {
					t.Errorf("address resolution on the wire: %x", frames[i])
				}

				// The device dies, is made again, and the interface with it.
				a.sh("ip link del is-v1")
				if kind == kernel.Veth {
					a.sh("ip link del is-h1")
				}
				ops := apply(t, a.k, a.want)
				if !slices.Contains(kernel.Recreated(ops), "is-v1") {
					t.Errorf("recreated %q", kernel.Recreated(ops))
				}
				if made, err := a.k.Mend(context.Background(), a.h); !made || err != nil {
					t.Fatalf("mend: %v, %v", made, err)
				}
				apply(t, a.k, a.want)
				mustReach(t, a.box, containerB...)
			})
		}
	}
}

// Containers have IPv6 on a host that has none, with neighbours answered locally.
func TestLinuxTrafficWithIPv6Off(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
			stop := b.capture("u0")
			mustReach(t, a.box, containerB...)
			if i := slices.IndexFunc(inner(stop()), resolution); i >= 0 {
				t.Error("address resolution on the wire")
			}
		})
	}
}

func TestLinuxTunnelFollowsLocal(t *testing.T) {
	t.Parallel()
	a, b := newNodes(t, kernel.Macvlan, "192.0.2.")
	mustReach(t, a.box, containerB...)
	a.sh("ip addr add 192.0.2.77/24 dev u0")
	v := a.want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
	v.Local = addr("192.0.2.77")
	a.want.Put(v)
	apply(t, a.k, a.want)
	for _, k := range []kernel.FDB{{Dev: "is-v1", MAC: containerMAC(1)}, {Dev: "is-v1", MAC: mac(1)}} {
		k.Dst = v.Local
		b.want.Put(k)
	}
	apply(t, b.k, b.want)
	a.sh("ip addr del 192.0.2.1/24 dev u0; ip addr add 192.0.2.77/24 dev u0 2>/dev/null || true")
	mustReach(t, a.box, containerB...)
}

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
			chain := "prerouting"
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

func TestLinuxAnnounce(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.Veth} {
		t.Run(string(kind), func(t *testing.T) {
			a, b := newNodes(t, kind, "192.0.2.")
			mustReach(t, a.box, containerB...)
			dev := "is-a1"
			if kind == kernel.Veth {
				dev = "is-b1"
			}
			for _, ip := range []string{"10.32.0.12", "fd32::12"} {
				contains(t, a.box.sh("ip neigh show %s dev eth0", ip), containerMAC(2).String())
			}
			stop := b.capture("u0")
			moved := mac(0x77)
			err := a.k.Announce(context.Background(), []kernel.Announcement{
				{Dev: dev, To: containerMAC(1), IP: addr("10.32.0.12"), MAC: moved},
				{Dev: dev, To: containerMAC(1), IP: addr("fd32::12"), MAC: moved},
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range []string{"10.32.0.12", "fd32::12"} {
				await(t, "announce "+ip, func() error {
					if out := a.box.sh("ip neigh show %s dev eth0", ip); !strings.Contains(out, moved.String()) {
						return fmt.Errorf("still %s", out)
					}
					return nil
				})
			}
			if i := slices.IndexFunc(inner(stop()), resolution); i >= 0 {
				t.Errorf("an announcement reached the wire")
			}
			err = a.k.Announce(context.Background(), []kernel.Announcement{{Dev: "is-none", To: moved, IP: addr("10.32.0.12"), MAC: moved}})
			if err == nil || !strings.Contains(err.Error(), "announce from is-none") {
				t.Errorf("from a missing link: %v", err)
			}
		})
	}
}

// Docker's FORWARD policy DROP meets bridged frames where br_netfilter is on.
func TestLinuxForwardDrop(t *testing.T) {
	t.Parallel()
	for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
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

// The rule follows Docker: a chain that appears later is the right one.
func TestLinuxForwardChainAppears(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := networks("192.0.2.1", "192.0.2.9")
	apply(t, k, want) // no chain: nothing to do, and no difference
	for _, c := range []struct{ command, chain string }{
		{"iptables-nft -P FORWARD DROP", "FORWARD"},
		{"iptables-nft -N DOCKER-USER", "DOCKER-USER"},
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
}
