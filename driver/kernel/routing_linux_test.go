//go:build kernel

package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// site is a host that routes two networks with bridges is-b1 and is-b2, beside a
// bridge of somebody else, whose FORWARD policy is DROP.
type site struct {
	*space
	k         *kernel.Linux
	want      kernel.State
	world     *space // beyond eth0
	one, mate *space // in network 1, 10.1.0.0/16 and fd01::/64
	two       *space // in network 2, 10.2.0.0/16 and fd02::/64
	theirs    *space // behind the bridge of somebody else, 172.17.0.0/16
}

const (
	worldPort = 7000
	fast      = 250 * time.Millisecond // after which what does not come is dropped
)

// eachSite runs a test with br_netfilter looking at bridged frames, and without.
func eachSite(t *testing.T, test func(t *testing.T, s *site)) {
	for name, value := range map[string]int{"br_netfilter": 1, "plain": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.sh("for f in iptables ip6tables; do echo %d > /proc/sys/net/bridge/bridge-nf-call-$f; done", value)
			apply(t, s.k, s.want)
			test(t, s)
		})
	}
}

// forward is what the user, or Docker, sets. Before Linux 6.17 no link forwards IPv6
// alone.
func (s *space) forward(dev string) {
	s.t.Helper()
	s.sh("echo 1 > /proc/sys/net/ipv4/conf/%s/forwarding", dev)
	if forcesForwarding() {
		s.sh("echo 1 > /proc/sys/net/ipv6/conf/%s/force_forwarding", dev)
	} else {
		s.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	}
}

func forcesForwarding() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/lo/force_forwarding")
	return err == nil
}

func newSite(t *testing.T) *site {
	s := &site{space: newSpace(t), world: newSpace(t), one: newSpace(t), mate: newSpace(t), two: newSpace(t), theirs: newSpace(t)}
	s.sh("iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP; for t in iptables-nft ip6tables-nft; do $t -N DOCKER-USER; $t -A FORWARD -j DOCKER-USER; done")
	// As Docker does for a network of its own.
	s.sh("iptables-nft -A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A FORWARD -i br0 ! -o br0 -j ACCEPT")
	s.sh("ip link add eth0 type veth peer name eth0 netns %s; ip addr add 192.0.2.1/24 dev eth0; ip -6 addr add 2001:db8::1/64 dev eth0 nodad; ip link set eth0 up", s.world.path())
	s.world.sh("ip addr add 192.0.2.2/24 dev eth0; ip -6 addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up; ip route add 10.0.0.0/8 via 192.0.2.1; ip -6 route add fd00::/8 via 2001:db8::1")
	s.sh("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2")
	s.forward("eth0")
	s.k = s.open()
	s.want = stateOf(
		kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MTU: 1500}, kernel.Link{Name: "is-b2", Kind: kernel.Bridge, MTU: 1500},
		kernel.Gateway{Dev: "is-b1", IPv6: true}, kernel.Gateway{Dev: "is-b2", IPv6: true}, kernel.Uplink{Dev: "eth0", IPv6: true},
		kernel.Pool{Prefix: prefix("10.1.0.0/16"), Network: 1, NAT: true}, kernel.Pool{Prefix: prefix("fd01::/64"), Network: 1, NAT: true},
		kernel.Pool{Prefix: prefix("10.2.0.0/16"), Network: 2, NAT: true}, kernel.Pool{Prefix: prefix("fd02::/64"), Network: 2, NAT: true},
		accept("is-b+", "is-b+"), accept("is-b+", "eth0"), accept("eth0", "is-b+"),
		kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.MustParseAddrPort("192.0.2.1:8475")},
	)
	apply(t, s.k, s.want)
	s.sh("ip addr add 10.1.0.1/16 dev is-b1; ip -6 addr add fd01::1/64 dev is-b1 nodad; ip addr add 10.2.0.1/16 dev is-b2; ip -6 addr add fd02::1/64 dev is-b2 nodad; ip addr add fe80::1/64 dev is-b1 nodad; ip addr add fe80::1/64 dev is-b2 nodad")
	for dev, a := range map[string][2]string{"is-b1": {"10.1.0.1/16", "fd01::1/64"}, "is-b2": {"10.2.0.1/16", "fd02::1/64"}} {
		s.want.Put(kernel.Addr{Dev: dev, Prefix: netip.MustParsePrefix(a[0])}, kernel.Addr{Dev: dev, Prefix: netip.MustParsePrefix(a[1])})
	}
	s.sh("ip link add br0 type bridge; ip addr add 172.17.0.1/16 dev br0; ip link set br0 up; echo 1 > /proc/sys/net/ipv4/conf/br0/forwarding")
	for _, c := range []struct {
		*space
		name, master, net4, net6 string
		n                        int
	}{{s.one, "one", "is-b1", "10.1.0", "fd01:", 2}, {s.mate, "mate", "is-b1", "10.1.0", "fd01:", 3}, {s.two, "two", "is-b2", "10.2.0", "fd02:", 2}, {s.theirs, "theirs", "br0", "172.17.0", "fd17:", 2}} {
		s.sh("ip link add %s type veth peer name eth0 netns %s; ip link set %s master %s up", c.name, c.path(), c.name, c.master)
		c.sh("ip addr add %s.%d/16 dev eth0; ip -6 addr add %s:%d/64 dev eth0 nodad; ip link set eth0 up; ip route add default via %s.1; ip -6 route add default via %s:1", c.net4, c.n, c.net6, c.n, c.net4, c.net6)
	}
	return s
}

func accept(in, out string) kernel.Guard {
	return kernel.Guard{Rule: kernel.AcceptForward, Dev: in, Out: out}
}

func publish(proto, host, to string) kernel.Publish {
	return kernel.Publish{Proto: proto, Host: netip.MustParseAddrPort(host), To: netip.MustParseAddrPort(to)}
}

// whoami serves at a TCP and UDP port of all addresses: it answers with its name
// and the address that it was asked from.
func (s *space) whoami(name string, port int) {
	s.t.Helper()
	var l net.Listener
	var u net.PacketConn
	err := s.in(func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port)); err == nil {
			u, err = net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close(); u.Close() })
	answer := func(from string) []byte {
		return []byte(name + " " + netip.AddrPortFrom(netip.MustParseAddrPort(from).Addr().Unmap(), 0).Addr().String())
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(answer(c.RemoteAddr().String()))
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(answer(from.String()), from)
		}
	}()
}

// ask returns the answer of a whoami; dialer may bind it.
func (s *space) ask(network, address string, dialer net.Dialer) (answer string, err error) {
	err = s.in(func() error {
		dialer.Timeout = fast
		c, err := dialer.Dial(network, address)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(fast))
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("who")); err != nil {
				return err
			}
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		answer = string(b[:n])
		return err
	})
	return answer, err
}

// gets fails the test unless the answer comes, in time; the first packet may wait
// for a neighbour.
func (s *space) gets(network, address, want string) {
	s.t.Helper()
	await(s.t, network+" "+address, func() error {
		got, err := s.ask(network, address, net.Dialer{})
		if err == nil && got != want {
			err = fmt.Errorf("answer %q, want %q", got, want)
		}
		return err
	})
}

// lacks fails the test if an answer comes.
func (s *space) lacks(network, address string) {
	s.t.Helper()
	if got, err := s.ask(network, address, net.Dialer{}); err == nil {
		s.t.Errorf("%s %s answers %q", network, address, got)
	}
}

// Containers reach the world under the host's address, and each other under their
// own, although Docker's policy is to drop; networks do not reach each other.
func TestLinuxEgress(t *testing.T) {
	t.Parallel()
	eachSite(t, testEgress)
}

func testEgress(t *testing.T, s *site) {
	s.world.whoami("world", worldPort)
	s.two.whoami("two", 80)
	s.mate.whoami("mate", 80)
	s.theirs.whoami("theirs", 80)
	for _, network := range []string{"tcp", "udp"} {
		s.one.gets(network, "192.0.2.2:7000", "world 192.0.2.1")
		s.one.gets(network, "[2001:db8::2]:7000", "world 2001:db8::1")
		s.one.gets(network, "10.1.0.3:80", "mate 10.1.0.2")
		s.one.lacks(network, "10.2.0.2:80")
		s.one.lacks(network, "[fd02::2]:80")
		s.one.lacks(network, "172.17.0.2:80") // Docker's networks are Docker's to open
	}
	// Sockets of tunnels get no answers that are for others.
	s.world.whoami("world", 8475)
	answer, err := s.one.ask("udp", "192.0.2.2:8475", net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 1, 0, 2), Port: 8475}})
	if err != nil || answer != "world 192.0.2.1" {
		t.Errorf("from the tunnels' port: %q, %v", answer, err)
	}

	// A passage lets two networks reach each other, and they see who it is.
	s.want.Put(kernel.Passage{A: 1, B: 2})
	apply(t, s.k, s.want)
	s.one.gets("tcp", "10.2.0.2:80", "two 10.1.0.2")
	s.one.gets("tcp", "[fd02::2]:80", "two fd01::2")
	s.two.gets("tcp", "10.1.0.3:80", "mate 10.2.0.2")
	delete(s.want, kernel.Passage{A: 1, B: 2}.Key())

	// Without translation the world sees the container.
	s.want.Put(kernel.Pool{Prefix: prefix("10.1.0.0/16"), Network: 1})
	apply(t, s.k, s.want)
	s.one.gets("tcp", "192.0.2.2:7000", "world 10.1.0.2")
	s.world.gets("tcp", "10.1.0.3:80", "mate 192.0.2.2") // routed, since the world has a route

	// An internal network reaches itself alone, and nobody reaches it.
	s.want.Put(kernel.Pool{Prefix: prefix("10.1.0.0/16"), Network: 1, Internal: true}, publish("tcp", "0.0.0.0:8080", "10.1.0.3:80"))
	apply(t, s.k, s.want)
	s.one.gets("tcp", "10.1.0.3:80", "mate 10.1.0.2")
	s.one.lacks("tcp", "192.0.2.2:7000")
	s.world.lacks("tcp", "10.1.0.3:80")
	s.world.lacks("tcp", "192.0.2.1:8080")

	// What somebody does to the rules is undone.
	s.want.Put(kernel.Pool{Prefix: prefix("10.1.0.0/16"), Network: 1, NAT: true})
	apply(t, s.k, s.want)
	harm := []string{
		"nft flush ruleset; iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER",
		"iptables-nft -F DOCKER-USER", "nft flush chain inet isthmus egress", "nft flush chain inet isthmus translate",
		"nft flush set inet isthmus pools4", "nft flush set inet isthmus gateways", "nft flush map inet isthmus links", "nft delete element inet isthmus uplinks '{ eth0 }'",
		"nft flush chain inet isthmus from_1", "nft flush map inet isthmus every4", "nft delete table inet isthmus",
		"echo 0 > /proc/sys/net/ipv4/conf/is-b1/forwarding", "echo 0 > /proc/sys/net/ipv4/conf/is-b1/route_localnet",
	}
	if forcesForwarding() {
		harm = append(harm, "echo 0 > /proc/sys/net/ipv6/conf/is-b1/force_forwarding")
	}
	for _, command := range harm {
		s.sh("%s", command)
		if ops := apply(t, s.k, s.want); len(ops) == 0 {
			t.Errorf("nothing to do after %s", command)
		}
		s.one.gets("tcp", "192.0.2.2:7000", "world 192.0.2.1")
	}

	// What saves and restores rules turns our mark into another form.
	s.sh("for t in iptables-nft ip6tables-nft; do $t-save | $t-restore; done")
	contains(t, s.sh("iptables-nft -S DOCKER-USER"), "-A DOCKER-USER -i is-b+ -o eth0 -m comment --comment \"isthmus is-b+ eth0\" -j ACCEPT")
	if ops := apply(t, s.k, s.want); len(ops) != 0 {
		t.Errorf("not recognised after restoring:\n%s", text(ops))
	}
	s.one.gets("tcp", "192.0.2.2:7000", "world 192.0.2.1")

	// Nothing is left of it.
	apply(t, s.k, stateOf())
	if out := s.sh("nft list ruleset"); strings.Contains(out, "isthmus") {
		t.Errorf("left:\n%s", out)
	}
}

// Published ports answer whoever asks, under the addresses that they are for.
func TestLinuxPublish(t *testing.T) {
	t.Parallel()
	eachSite(t, testPublish)
}

func testPublish(t *testing.T, s *site) {
	// A tunnel returns nothing to where it came from: two hosts would do so for ever.
	s.want.Put(kernel.Link{Name: "is-v1", Kind: kernel.VXLAN, VNI: 1, Local: addr("192.0.2.1"), Port: 8475, MAC: mac(0x71), MTU: 1500, Master: "is-b1"}, kernel.Guard{Rule: kernel.DropStrangers, Tunnel: netip.MustParseAddrPort("192.0.2.1:8475")})
	s.one.whoami("one", 80)
	s.mate.whoami("mate", 80)
	s.want.Put(publish("tcp", "0.0.0.0:8080", "10.1.0.2:80"), publish("udp", "0.0.0.0:8080", "10.1.0.2:80"),
		publish("tcp", "[::]:8080", "[fd01::2]:80"), publish("udp", "[::]:8080", "[fd01::2]:80"),
		publish("tcp", "192.0.2.1:8081", "10.1.0.3:80"), publish("tcp", "127.0.0.1:8082", "10.1.0.2:80"), publish("tcp", "[2001:db8::1]:8081", "[fd01::3]:80"))
	apply(t, s.k, s.want)
	contains(t, s.sh("bridge -d link show dev is-v1"), "hairpin off")
	for _, network := range []string{"tcp", "udp"} {
		s.world.gets(network, "192.0.2.1:8080", "one 192.0.2.2")       // another machine
		s.world.gets(network, "[2001:db8::1]:8080", "one 2001:db8::2") // by IPv6
		s.gets(network, "192.0.2.1:8080", "one 192.0.2.1")             // the host itself
		s.gets(network, "127.0.0.1:8080", "one 10.1.0.1")              // by its loopback
		s.gets(network, "[2001:db8::1]:8080", "one 2001:db8::1")       // by IPv6
		s.two.gets(network, "192.0.2.1:8080", "one 10.2.0.2")          // another network
		s.two.gets(network, "[2001:db8::1]:8080", "one fd02::2")       //
		s.mate.gets(network, "192.0.2.1:8080", "one 10.1.0.1")         // a neighbour
		s.one.gets(network, "192.0.2.1:8080", "one 10.1.0.1")          // itself
		s.two.gets(network, "10.2.0.1:8080", "one 10.2.0.2")           // by its gateway
		s.theirs.gets(network, "192.0.2.1:8080", "one 172.17.0.2")     // a network of Docker's
	}
	s.world.gets("tcp", "192.0.2.1:8081", "mate 192.0.2.2")
	s.world.gets("tcp", "[2001:db8::1]:8081", "mate 2001:db8::2")
	s.two.lacks("tcp", "10.2.0.1:8081") // not at that address
	s.gets("tcp", "127.0.0.1:8082", "one 10.1.0.1")
	s.world.lacks("tcp", "192.0.2.1:8082")
	if _, err := s.ask("tcp", "[::1]:8080", net.Dialer{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("[::1]: %v", err)
	}
	s.two.lacks("tcp", "10.1.0.2:80") // not past the port

	// Nobody reaches the host's loopback addresses, although route_localnet is on.
	s.whoami("host", 9000)
	s.one.sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local 2>/dev/null || true; ip route add 127.0.0.0/8 via 10.1.0.1")
	if got, err := s.one.ask("udp", "127.0.0.1:9000", net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 1, 0, 2)}}); err == nil {
		t.Errorf("a container reaches the host's loopback: %q", got)
	}
	if !strings.Contains(s.sh("nft list chain inet isthmus sent"), "counter packets") || strings.Contains(s.sh("nft list chain inet isthmus sent"), "counter packets 0 ") {
		t.Errorf("nothing came, the test shows nothing:\n%s", s.sh("nft list chain inet isthmus sent"))
	}

	// A client of UDP that goes on sending from one port is led to the new target at
	// once, to none when there is none, and to the first one that comes.
	client := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 5000}}
	var c net.Conn
	if err := s.world.in(func() (err error) { c, err = client.Dial("udp", "192.0.2.1:8080"); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := func(want string) {
		t.Helper()
		await(t, "answer "+want, func() error {
			b := make([]byte, 100)
			_ = c.SetDeadline(time.Now().Add(fast))
			if _, err := c.Write([]byte("who")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return err
			}
			n, err := c.Read(b)
			if want == "" && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ECONNREFUSED)) {
				return nil
			}
			if err == nil && string(b[:n]) != want {
				err = fmt.Errorf("answer %q", b[:n])
			}
			return err
		})
	}
	answers("one 192.0.2.2")
	s.world.whoami("world", 8080)
	s.two.gets("udp", "192.0.2.2:8080", "world 192.0.2.1")
	s.want.Put(publish("udp", "0.0.0.0:8080", "10.1.0.3:80"))
	apply(t, s.k, s.want)
	if flows := s.sh("cat /proc/net/nf_conntrack"); !strings.Contains(flows, "dst=192.0.2.2 ") || strings.Contains(flows, "src=192.0.2.2 dst=192.0.2.1 sport=5000 dport=8080 src=10.1.0.2") {
		t.Errorf("a flow through this host is gone, or one to the old target is not:\n%s", flows)
	}
	answers("mate 192.0.2.2")
	delete(s.want, publish("udp", "0.0.0.0:8080", "10.1.0.3:80").Key())
	apply(t, s.k, s.want)
	answers("")
	s.want.Put(publish("udp", "0.0.0.0:8080", "10.1.0.2:80"))
	apply(t, s.k, s.want)
	answers("one 192.0.2.2")
}

// A container has its own addresses only, and learns in time what its routes carry.
func TestLinuxSources(t *testing.T) {
	t.Parallel()
	eachSite(t, testSources)
}

func testSources(t *testing.T, s *site) {
	s.want.Put(kernel.Source{Dev: "is-b1", IP: addr("10.1.0.2")}, kernel.Source{Dev: "is-b1", IP: addr("fd01::2")})
	apply(t, s.k, s.want)
	s.world.whoami("world", worldPort)
	s.whoami("host", 9000)
	s.one.sh("ip addr add 10.1.0.77/16 dev eth0; ip addr add fd01::77/64 dev eth0 nodad")
	from := func(ip string) net.Dialer { return net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}} }
	for _, c := range []struct{ address, good, bad string }{
		{"192.0.2.2:7000", "10.1.0.2", "10.1.0.77"}, {"[2001:db8::2]:7000", "fd01::2", "fd01::77"},
		{"10.1.0.1:9000", "10.1.0.2", "10.1.0.77"}, {"[fd01::1]:9000", "fd01::2", "fd01::77"},
	} {
		await(t, c.good+" to "+c.address, func() error { _, err := s.one.ask("tcp", c.address, from(c.good)); return err })
		if got, err := s.one.ask("tcp", c.address, from(c.bad)); err == nil {
			t.Errorf("%s to %s: %q", c.bad, c.address, got)
		}
	}
	s.mate.lacks("tcp", "192.0.2.2:7000")

	// A narrower way out: both ends agree on smaller segments.
	s.sh("ip link set eth0 mtu 1400")
	stop := s.world.capture("eth0")
	s.one.gets("tcp", "192.0.2.2:7000", "world 192.0.2.1")
	sizes := map[int]bool{}
	for _, f := range stop() {
		if len(f) > 58 && f[12] == 8 && f[23] == 6 && f[47]&0x12 == 2 && f[54] == 2 {
			sizes[int(f[56])<<8|int(f[57])] = true
		}
	}
	if !sizes[1360] || len(sizes) != 1 {
		t.Errorf("SYN with segment sizes %v, want 1360", sizes)
	}
}

// What is not forwarded is said with the sysctl, and set only if the user said so.
func TestLinuxForwarding(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.parent()
	k := s.open()
	s.sh("echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding")
	all := "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"
	before := s.sh("%s", all)
	file := "/proc/sys/net/ipv4/conf/eth0/forwarding"
	want := stateOf(kernel.Uplink{Dev: "eth0", IPv6: true})
	err := do(k, t, want)
	if err == nil {
		t.Fatal("no error")
	}
	contains(t, err.Error(), "sysctl -w net.ipv4.conf.eth0.forwarding=1")
	s.sh("echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding")
	err, want = do(k, t, want), stateOf(kernel.Uplink{Dev: "eth0", IPv6: true, Forward: true})
	s.sh("echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding")
	if forcesForwarding() {
		contains(t, err.Error(), "sysctl -w net.ipv6.conf.eth0.force_forwarding=1")
		file += " /proc/sys/net/ipv6/conf/eth0/force_forwarding"
		apply(t, k, want)
	} else { // IPv4 is set, and for IPv6 the user has to decide
		for _, err := range []error{err, do(k, t, want)} {
			contains(t, err.Error(), "sysctl -w net.ipv6.conf.all.forwarding=1")
		}
	}
	if got := s.sh("cat %s", file); strings.Contains(got, "0") {
		t.Errorf("forwarding: %q", got)
	}
	apply(t, k, stateOf())
	if got := s.sh("cat %s", file); strings.Contains(got, "1") {
		t.Errorf("forwarding afterwards: %q", got)
	}
	if after := s.sh("%s", all); after != before {
		t.Errorf("all links: %q, were %q", after, before)
	}
	contains(t, do(k, t, stateOf(kernel.Uplink{Dev: "eth9"})).Error(), "there is no link eth9")
	contains(t, do(k, t, stateOf(kernel.Passage{A: 1, B: 2})).Error(), "networks 1 and 2 are not two that have pools")
}

func do(k *kernel.Linux, t *testing.T, want kernel.State) error {
	return k.Do(t.Context(), kernel.Diff(mustDump(t, k), want, kernel.Options{}))
}

// All that a typical host has goes into the kernel and comes back, nft can read it,
// and other tools' rules are as before.
func TestLinuxRoutingReadsBack(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.sh("for d in eth0 eth1; do ip link add $d type veth peer name peer-$d; ip link set $d up; done")
	s.forward("eth0")
	s.sh("iptables-nft -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; nft 'add table ip theirs; add set ip theirs gateways { type ipv4_addr; elements = { 10.1.0.1 } }'")
	theirs := s.sh("nft list ruleset")
	k := s.open()
	want := typical()
	for _, dev := range []string{"is-b1", "is-b2", "is-p0123456789a"} {
		want.Put(kernel.Link{Name: dev, Kind: kernel.Bridge, MTU: 1500})
	}
	for port := range uint16(1500) { // more than one message holds
		want.Put(kernel.Publish{Proto: "tcp", Host: netip.AddrPortFrom(netip.IPv4Unspecified(), 20000+port), To: netip.AddrPortFrom(addr("10.1.0.2"), 20000+port)})
	}
	apply(t, k, want)
	// In nft's own words and order: what testdata says, but for counters and comments.
	table := s.sh("nft list table inet isthmus")
	for _, part := range []string{"10.2.0.0/16 : jump into_2", "iifname . ip saddr @sources4 goto sent", "\"is-v9\" : goto refused", "\"is-p0123456789a\" : goto checked", "iifname vmap @links", "dnat ip to ip daddr . meta l4proto . th dport map @ports4",
		"fib daddr type local dnat ip6 to meta l4proto . th dport map @every6", "tcp . 21499 : 10.1.0.2 . 21499", "127.0.0.1 . sctp . 3868 : 10.1.0.4 . 3868",
		`"is-p0123456789a" . 10.3.0.7`, "meta pkttype != host return", "255.255.0.0/16 : jump from_5"} {
		contains(t, table, part)
	}
	delete(want, kernel.Source{Dev: "is-p0123456789a", IP: addr("10.3.0.7")}.Key())
	s.sh("nft flush table inet isthmus")
	apply(t, k, want)
	apply(t, k, stateOf())
	if left := s.sh("nft list ruleset"); left != theirs {
		t.Errorf("was\n%s\nis\n%s", theirs, left)
	}
}

// A container is not told that another one is its neighbour, which may be on another
// host soon.
func TestLinuxNoRedirects(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := stateOf(kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MTU: 1500}, kernel.Gateway{Dev: "is-b1"}, kernel.Addr{Dev: "is-b1", Prefix: prefix("10.1.0.1/32")},
		kernel.FIB{Dst: prefix("10.1.0.2/32"), Dev: "is-b1"}, kernel.FIB{Dst: prefix("10.1.0.3/32"), Dev: "is-b1"})
	apply(t, k, want)
	boxes := map[string]*space{"10.1.0.2": newSpace(t), "10.1.0.3": newSpace(t)}
	for ip, box := range boxes {
		end := "v" + ip[len(ip)-1:]
		s.sh("ip link add %s type veth peer name eth0 netns %s; ip link set %s master is-b1 up", end, box.path(), end)
		box.sh("ip link set eth0 up; ip addr add %s/32 dev eth0; ip route add 10.1.0.1 dev eth0; ip route add default via 10.1.0.1", ip)
	}
	apply(t, k, want)
	one := boxes["10.1.0.2"]
	await(t, "an answer", func() error { _, err := one.try("ping -c 1 -W 1 10.1.0.3"); return err })
	if out := s.sh("nft list chain inet isthmus output"); !strings.Contains(out, "icmp type redirect oifname @gateways counter packets") || strings.Contains(out, "icmp type redirect oifname @gateways counter packets 0 ") {
		t.Errorf("the kernel told it nothing, which shows nothing:\n%s", out)
	}
	if out := one.sh("ip route get 10.1.0.3"); !strings.Contains(out, "via 10.1.0.1") {
		t.Errorf("led directly: %s", out)
	}
}
