//go:build e2e

package lab_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

func reaches(ctx context.Context, from *lab.Host, to string) bool {
	_, err := from.Exec(ctx, "ping", "-c1", "-W1", to)
	return err == nil
}

func within(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// TestHosts goes through what other tests rely on, in one lab, as starting one
// is the costly part.
func TestHosts(t *testing.T) {
	var made trace
	t.Run("lab", func(t *testing.T) {
		l := lab.New(t, lab.Config{Hosts: 3})
		made.note(t, l)
		t.Run("host", func(t *testing.T) { testHost(t, l) })
		t.Run("links", func(t *testing.T) { testLinks(t, l) })
		t.Run("engine", func(t *testing.T) { testEngine(t, l) })
		t.Run("reboot", func(t *testing.T) { testReboot(t, l) })
		t.Run("snapshot", func(t *testing.T) { testSnapshot(t, l) })
		t.Run("capture", func(t *testing.T) { testCapture(t, l) })
		t.Run("traffic", func(t *testing.T) { testTraffic(t, l) })
		t.Run("plugin", func(t *testing.T) { testPlugin(t, l) })
		t.Run("compose", func(t *testing.T) { testCompose(t, l) })
		t.Run("swarm", func(t *testing.T) { testSwarm(t, l) })
		made.note(t, l)
	})
	made.gone(t)
}

// TestOwner ends a process that made a lab, in the ways that leave it no time
// to clean up, and sees that the lab is gone, and swept by the next.
func TestOwner(t *testing.T) {
	if id := os.Getenv("LAB_TEST_OWN"); id != "" {
		l := lab.New(t, lab.Config{ID: id, Hosts: 1})
		os.Stdout.WriteString("owned\n" + strings.Join(namespaces(t, l), "\n") + "\n\n")
		<-t.Context().Done()
	}
	for _, c := range []struct {
		id     string
		signal os.Signal
	}{{"owner-killed", os.Kill}, {"owner-interrupted", os.Interrupt}} {
		t.Run(c.id, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwner$", "-test.v")
			cmd.Env = append(os.Environ(), "LAB_TEST_OWN="+c.id)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			made := trace{ids: []string{c.id}}
			owned := false
			lines := bufio.NewScanner(stdout)
			for lines.Scan() && !(owned && lines.Text() == "") {
				if owned {
					made.namespaces = append(made.namespaces, lines.Text())
				}
				owned = owned || lines.Text() == "owned"
			}
			if len(made.namespaces) == 0 {
				t.Fatal("the owner made no lab")
			}
			cmd.Process.Signal(c.signal)
			go io.Copy(io.Discard, stdout)
			if cmd.Wait() == nil {
				t.Error("the owner ended well")
			}
			within(t, 10*time.Second, "namespaces are gone", func() bool { return len(made.left(t)) == 0 })
			if c.signal == os.Kill {
				if _, err := lab.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			made.gone(t)
		})
	}
}

// TestIPv6Underlay has hosts with nothing but IPv6 between them.
func TestIPv6Underlay(t *testing.T) {
	ctx, must := t.Context(), lab.Must(t)
	l := lab.New(t, lab.Config{Hosts: 2, IPv6Underlay: true, MTU: 1400})
	one := l.Host(1)
	if got := must(one.Exec(ctx, "ip", "-4", "addr", "show", "eth0")); got != "" {
		t.Errorf("host1 has an IPv4 address on the underlay: %s", got)
	}
	if one.IP() != one.IP6() || !reaches(ctx, one, "host2") {
		t.Errorf("host1, with address %s, does not reach host2", one.IP())
	}
	testPlugin(t, l)
}

// TestTwoLabs has two labs at once, with the same addresses.
func TestTwoLabs(t *testing.T) {
	ctx := t.Context()
	a, b := lab.New(t, lab.Config{Hosts: 1}), lab.New(t, lab.Config{Hosts: 2})
	if a.ID() == b.ID() {
		t.Fatalf("both labs are %q", a.ID())
	}
	if reaches(ctx, a.Host(1), "10.99.0.2") || !reaches(ctx, b.Host(1), "10.99.0.2") {
		t.Error("a host is reached from the other lab, or not from its own")
	}
	if _, err := lab.Up(ctx, lab.Config{ID: a.ID(), Hosts: 1}); err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("making a lab of the same name again said: %v", err)
	}
	if swept, err := lab.Sweep(ctx); err != nil || slices.Contains(swept, a.ID()) || slices.Contains(swept, b.ID()) {
		t.Errorf("swept %q, %v: labs that are up", swept, err)
	}
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	lab.Must(t)(a.Host(1).Docker(ctx, "ps"))
}

// trace is what was seen of labs while they were up.
type trace struct{ ids, namespaces []string }

func (r *trace) note(t *testing.T, l *lab.Lab) {
	t.Helper()
	r.ids = append(r.ids, l.ID())
	r.namespaces = append(r.namespaces, namespaces(t, l)...)
}

// namespaces lists those of all hosts, containers included, by inode.
func namespaces(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	var list []string
	for _, h := range l.Hosts() {
		out := lab.Must(t)(h.Exec(t.Context(), "lsns", "-n", "-o", "NS"))
		list = append(list, strings.Fields(out)...)
	}
	shared := machineNamespaces(t)
	return slices.DeleteFunc(list, func(ns string) bool { return slices.Contains(shared, ns) })
}

// machineNamespaces are those that hosts may share with the machine.
func machineNamespaces(t *testing.T) []string {
	t.Helper()
	var list []string
	links, _ := filepath.Glob("/proc/self/ns/*")
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil {
			_, inode, _ := strings.Cut(strings.Trim(name, "]"), "[")
			list = append(list, inode)
		}
	}
	return list
}

// left lists namespaces that exist still.
func (r *trace) left(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("lsns", "-n", "-o", "NS").Output()
	if err != nil {
		t.Fatal(err)
	}
	now := strings.Fields(string(out))
	return slices.DeleteFunc(slices.Clone(r.namespaces), func(ns string) bool { return !slices.Contains(now, ns) })
}

// gone fails the test when anything of the labs is left.
func (r *trace) gone(t *testing.T) {
	t.Helper()
	if len(r.namespaces) < 5 {
		t.Fatalf("saw only the namespaces %q of a lab", r.namespaces)
	}
	if left := r.left(t); len(left) > 0 {
		t.Errorf("namespaces are left: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range r.ids {
		for _, pattern := range []string{"/run/isthmus-lab/", "/var/tmp/isthmus-lab/", "/sys/fs/cgroup/isthmus-lab-", "/sys/fs/cgroup/*/isthmus-lab-"} {
			if found, _ := filepath.Glob(pattern + id); len(found) > 0 {
				t.Errorf("left behind: %q", found)
			}
		}
		if strings.Contains(string(mounts), id) {
			t.Errorf("a mount of lab %s is left on the machine", id)
		}
	}
}

func testHost(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	for _, h := range l.Hosts() {
		if got := must(h.Exec(ctx, "cat", "/etc/hostname")); got != h.Name {
			t.Errorf("%s has the name %q in /etc/hostname", h.Name, got)
		}
		if got := must(h.Exec(ctx, "hostname")); got != h.Name {
			t.Errorf("%s calls itself %q", h.Name, got)
		}
		if policy := must(h.Exec(ctx, "iptables", "-S", "FORWARD")); !strings.HasPrefix(policy, "-P FORWARD DROP") {
			t.Errorf("%s: the engine left the FORWARD policy at %q", h.Name, policy)
		}
		must(h.Exec(ctx, "test", "-d", "/lib/modules"))
		must(h.Exec(ctx, "mountpoint", "-q", "/run"))
		if got := must(h.Exec(ctx, "findmnt", "-n", "-o", "PROPAGATION", "/run")); got != "shared" {
			t.Errorf("%s: /run is %s: plugins would not see sandboxes", h.Name, got)
		}
	}
	one, two := must(l.Host(1).Exec(ctx, "cat", "/etc/machine-id")), must(l.Host(2).Exec(ctx, "cat", "/etc/machine-id"))
	if one == two {
		t.Errorf("host1 and host2 have the same machine id %s", one)
	}
	if _, err := l.Host(1).Exec(ctx, "false"); err == nil {
		t.Error("a command that failed was reported as a success")
	}
	if _, err := l.Host(1).Exec(ctx, "no-such-program"); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("running a missing program said: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := l.Host(1).Exec(short, "sleep", "4242"); err == nil {
		t.Error("a command outlived its context")
	}
	if out, err := l.Host(1).Exec(ctx, "pgrep", "-f", "sleep 4242"); err == nil {
		t.Errorf("a cancelled command is still there: process %s", out)
	}
}

func testLinks(t *testing.T, l *lab.Lab) {
	ctx := t.Context()
	one, two, three := l.Host(1), l.Host(2), l.Host(3)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	expect := func(from *lab.Host, to string, want bool) {
		t.Helper()
		if got := reaches(ctx, from, to); got != want {
			t.Errorf("%s reaches %s: %t, want %t", from.Name, to, got, want)
		}
	}
	expect(one, "host2", true)
	expect(one, two.IP6().String(), true)

	do(l.Cut(1, 2))
	expect(one, "host2", false)
	expect(two, one.IP6().String(), false)
	expect(one, "host3", true)
	do(l.Heal())
	expect(one, "host2", true)

	do(l.CutOneWay(1, 2))
	expect(one, "host2", false)
	c, err := two.Capture(ctx, "eth0", "icmp and dst "+one.IP().String())
	do(err)
	expect(two, "host1", false) // the request arrives, its answer does not
	packets, err := c.Stop(ctx)
	do(err)
	if len(packets) != 1 {
		t.Errorf("captured %d requests from host2 to host1, want 1: %q", len(packets), packets)
	}
	do(l.Heal())

	do(l.Isolate(3))
	expect(three, "host1", false)
	expect(two, "host3", false)
	expect(one, "host2", true)
	do(l.Heal())

	do(l.Loss(1, 2, 50))
	out, _ := one.Exec(ctx, "ping", "-q", "-c100", "-i0.01", "-W1", "host2")
	if strings.Contains(out, " 0% packet loss") || strings.Contains(out, "100% packet loss") {
		t.Errorf("with half of the frames lost, ping said: %s", out)
	}
	do(l.Loss(1, 2, 0))
	expect(one, "host2", true)

	do(l.HostDown(2))
	expect(one, "host2", false)
	do(l.Heal())
	within(t, 5*time.Second, "host2 is back", func() bool { return reaches(ctx, one, "host2") })

	do(l.PathMTU(1, 2, 1400))
	fits := func(size string) bool {
		_, err := one.Exec(ctx, "ping", "-c1", "-W1", "-M", "do", "-s", size, "host2")
		return err == nil
	}
	if !fits("1372") || fits("1373") {
		t.Error("the path does not pass packets of up to 1400 bytes exactly")
	}
	do(l.Heal())
	if !fits("1472") {
		t.Error("the path is not healed")
	}
	do(two.SetMTU(ctx, 1400))
	if link := lab.Must(t)(two.Exec(ctx, "cat", "/sys/class/net/eth0/mtu")); link != "1400" {
		t.Errorf("the link of host2 has MTU %s", link)
	}
	do(two.SetMTU(ctx, 1500))
	if err := l.Delay(2, 20*time.Millisecond); err == nil {
		begin := time.Now()
		if expect(one, "host2", true); time.Since(begin) < 20*time.Millisecond {
			t.Error("a delayed link was as fast as ever")
		}
		do(l.Heal())
	} else if !strings.Contains(err.Error(), "netem") {
		t.Errorf("a delay that the kernel cannot make was refused with: %v", err)
	}
}

func testEngine(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(1)
	if got := must(h.Docker(ctx, "run", "--rm", lab.Image, "echo", "hello")); got != "hello" {
		t.Errorf("the container said %q", got)
	}
	must(h.Docker(ctx, "run", "-d", "--stop-signal", "KILL", "--name", "long", lab.Image, "sleep", "1000"))
	if err := h.KillEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Docker(ctx, "ps"); err == nil {
		t.Error("a killed engine answers")
	}
	must(h.Exec(ctx, "pgrep", "-f", "sleep 1000"))
	for range 2 { // the second time it runs already
		if err := h.StartEngine(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.StopEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	must(h.Docker(ctx, "rm", "-f", "long"))
	if !strings.Contains(h.Logs(), "API listen on") {
		t.Error("the engine's log is missing")
	}
}

func testReboot(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(2)
	identity := must(h.Exec(ctx, "cat", "/etc/machine-id", "/sys/class/net/eth0/address"))
	must(h.Docker(ctx, "run", "-d", "--restart=always", "--name", "always", lab.Image, "sleep", "1000"))
	must(h.Exec(ctx, "sh", "-c", "echo kept >/var/lib/kept; echo lost >/run/lost; ip link add left type bridge"))
	if err := h.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Docker(ctx, "ps"); err == nil {
		t.Error("Boot started the engine")
	}
	if got := must(h.Exec(ctx, "cat", "/etc/machine-id", "/sys/class/net/eth0/address")); got != identity {
		t.Errorf("the host was\n%s\nand is\n%s", identity, got)
	}
	must(h.Exec(ctx, "grep", "-q", "kept", "/var/lib/kept"))
	for _, gone := range []string{"/run/lost", "/sys/class/net/left", "/sys/class/net/docker0"} {
		if _, err := h.Exec(ctx, "test", "-e", gone); err == nil {
			t.Errorf("%s outlived the reboot", gone)
		}
	}
	if !reaches(ctx, l.Host(1), "host2") {
		t.Error("host2 is not reached after its reboot")
	}
	if err := h.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if got := must(h.Docker(ctx, "ps", "--format", "{{.Names}}")); got != "always" {
		t.Errorf("after the reboot these run: %q", got)
	}
	if err := h.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	must(h.Docker(ctx, "rm", "-f", "always"))
}

func testSnapshot(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(1)
	take := func() []string {
		t.Helper()
		s, err := h.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := take()
	must(h.Docker(ctx, "network", "create", "passing"))
	must(h.Docker(ctx, "run", "--rm", "--network", "passing", lab.Image, "true"))
	must(h.Docker(ctx, "network", "rm", "passing"))
	if d := lab.Difference(before, take()); d != "" {
		t.Errorf("a Docker network that came and went changed:\n%s", d)
	}
	for _, c := range []struct{ do, undo, want string }{
		{"ip link add x0 type vxlan id 7 dstport 8475", "ip link del x0", "link x0 vxlan"},
		{"ip addr add 10.1.1.1/32 dev eth0", "ip addr del 10.1.1.1/32 dev eth0", "address eth0 10.1.1.1/32"},
		{"ip route add 10.2.0.0/16 dev eth0 table 77 proto 201", "ip route del 10.2.0.0/16 table 77", "route 10.2.0.0/16 dev eth0 table 77 proto 201"},
		{"ip -6 route add fd42::/64 dev eth0", "ip -6 route del fd42::/64 dev eth0", "route fd42::/64 dev eth0"},
		{"ip rule add pref 99 lookup 77", "ip rule del pref 99", "rule -4 99: from all lookup 77"},
		{"ip neigh add 10.99.0.77 lladdr 02:00:00:00:00:01 dev eth0 nud permanent", "ip neigh del 10.99.0.77 dev eth0", "neighbour eth0 10.99.0.77 02:00:00:00:00:01"},
		{"nft add table inet left", "nft delete table inet left", "nft table inet left"},
		{"iptables -A DOCKER-USER -s 10.9.9.9 -j ACCEPT", "iptables -D DOCKER-USER -s 10.9.9.9 -j ACCEPT", "10.9.9.9"},
		{"sysctl -q -w net.ipv4.conf.all.arp_ignore=1", "sysctl -q -w net.ipv4.conf.all.arp_ignore=0", "sysctl net.ipv4.conf.all.arp_ignore = 1"},
	} {
		must(h.Exec(ctx, "sh", "-c", c.do))
		if d := lab.Difference(before, take()); !strings.Contains(d, "+ ") || !strings.Contains(d, c.want) {
			t.Errorf("after %q the snapshot differs by %q, want a line with %q", c.do, d, c.want)
		}
		must(h.Exec(ctx, "sh", "-c", c.undo))
		if d := lab.Difference(before, take()); d != "" {
			t.Errorf("after %q the snapshot still differs:\n%s", c.undo, d)
		}
	}
}

func testCapture(t *testing.T, l *lab.Lab) {
	ctx, h := t.Context(), l.Host(1)
	c, err := h.Capture(ctx, "eth0", "icmp[icmptype] = icmp-echo")
	if err != nil {
		t.Fatal(err)
	}
	lab.Must(t)(h.Exec(ctx, "ping", "-q", "-c20", "-i0.01", "host2"))
	packets, err := c.Stop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(packets) != 20 {
		t.Errorf("captured %d packets of 20: %q", len(packets), packets)
	}
	for _, p := range packets {
		if !strings.Contains(p, "10.99.0.1 > 10.99.0.2: ICMP echo request") {
			t.Errorf("captured %q", p)
		}
	}
}

func testTraffic(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	one, two := l.Host(1), l.Host(2)
	serve := must(two.Docker(ctx, "run", "-d", "--network", "host", "--name", "serve", lab.Image, "box", "serve"))
	defer two.Docker(ctx, "rm", "-f", serve)
	within(t, 10*time.Second, "the server is ready", func() bool {
		out, _ := two.Docker(ctx, "logs", "serve")
		return strings.Contains(out, `"ready":true`)
	})
	for _, to := range []string{two.IP().String(), two.IP6().String()} {
		must(one.Exec(ctx, "box", "tcp", to, "--size", "1000000"))
		must(one.Exec(ctx, "box", "udp", to, "--count", "20", "--size", "1400"))
		var rate struct {
			Mbit float64 `json:"mbitPerSecond"`
		}
		decode(t, must(one.Exec(ctx, "box", "throughput", to, "--for", "300ms")), &rate)
		var times struct {
			Count    int
			P50, P99 float64
		}
		decode(t, strings.ReplaceAll(must(one.Exec(ctx, "box", "rr", to, "--for", "300ms")), "Micros", ""), &times)
		if rate.Mbit < 10 || times.Count < 10 || times.P50 <= 0 || times.P99 < times.P50 {
			t.Errorf("measured to %s: %.0f Mbit/s, %+v", to, rate.Mbit, times)
		}
		var flow struct{ Sent, Received, Lost, Duplicates int }
		for _, kind := range []string{"tcp", "udp"} {
			lines := strings.Split(must(one.Exec(ctx, "box", "stream", to, "--over", kind, "--for", "300ms", "--linger", "200ms")), "\n")
			decode(t, lines[len(lines)-1], &flow)
			if flow.Sent < 10 || flow.Lost != 0 || flow.Duplicates != 0 || flow.Received != flow.Sent {
				t.Errorf("a stream over %s to %s came to %+v", kind, to, flow)
			}
		}
	}
	if got := must(one.Exec(ctx, "busybox", "wget", "-qO-", "http://host2/")); !strings.HasPrefix(got, "host2 ") {
		t.Errorf("the HTTP server said %q", got)
	}
	if _, err := one.Exec(ctx, "box", "tcp", "host2", "--port", "1"); err == nil {
		t.Error("a refused connection was reported as a success")
	}

	if err := l.CutOneWay(1, 2); err != nil {
		t.Fatal(err)
	}
	out, err := one.Exec(ctx, "box", "udp", two.IP().String(), "--timeout", "300ms")
	if err == nil || !strings.Contains(out, `"received":0`) {
		t.Errorf("a datagram over a cut link: %q, %v", out, err)
	}
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct{ name, group, to string }{
		{"multicast4", "239.1.2.3", "239.1.2.3"},
		{"multicast6", "ff15::77", "ff15::77"},
		{"broadcast", "", "255.255.255.255"},
		{"subnet", "", "10.99.0.255"},
		{"unicast6", "", two.IP6().String()},
	} {
		args := []string{"run", "-d", "--network", "host", "--name", c.name, lab.Image, "box", "recv"}
		if c.group != "" {
			args = append(args, c.group, "--iface", "eth0")
		}
		must(two.Docker(ctx, args...))
		logs := func() string { out, _ := two.Docker(ctx, "logs", c.name); return out }
		within(t, 10*time.Second, "receiver is ready", func() bool { return strings.Contains(logs(), "ready") })
		must(one.Exec(ctx, "box", "send", c.to, "payload", "--iface", "eth0", "--count", "3"))
		must(one.Exec(ctx, "box", "send", two.IP().String(), "last"))
		within(t, 10*time.Second, "last datagram came", func() bool { return strings.Contains(logs(), "last") })
		if got := strings.Count(logs(), `"iface":"eth0","payload":"payload`); got != 3 {
			t.Errorf("%s: %d deliveries of 3 datagrams: %s", c.name, got, logs())
		}
		must(two.Docker(ctx, "rm", "-f", c.name))
	}

	capture, err := two.Capture(ctx, "eth0", "icmp6[icmp6type] == icmp6-routeradvert")
	if err != nil {
		t.Fatal(err)
	}
	must(one.Exec(ctx, "box", "ra", "eth0", "fd77::/64"))
	if packets, err := capture.Stop(ctx); err != nil || len(packets) != 1 || !strings.Contains(packets[0], "fd77::/64") {
		t.Errorf("captured %q, %v, want a router advertisement", packets, err)
	}
	must(two.Exec(ctx, "sh", "-c", "ip -6 route flush proto ra; ip -6 addr flush dynamic"))
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
}

// testPlugin installs a managed plugin from the registry on every host: a volume
// plugin, which needs nothing of the engine, but on the host's network and with
// the sandboxes' directory mounted as a network plugin has it.
func testPlugin(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	dir := t.TempDir()
	must(l.Host(1).Exec(ctx, "true"))
	for _, sub := range []string{"rootfs/run/docker/plugins", "rootfs/var/run/docker"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool, err := os.ReadFile(l.Host(1).Path("/usr/local/bin/box"))
	if err != nil {
		t.Fatal(err)
	}
	config := `{
		"description": "answers on the host's network", "entrypoint": ["/box", "serve", "--socket", "/run/docker/plugins/box.sock"],
		"interface": {"types": ["docker.volumedriver/1.0"], "socket": "box.sock"},
		"network": {"type": "host"},
		"env": [{"name": "WHO", "value": "nobody", "settable": ["value"]}],
		"mounts": [{"name": "sandboxes", "type": "bind", "source": "/var/run/docker", "destination": "/var/run/docker", "options": ["rbind", "rslave"]}],
		"linux": {"capabilities": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]}
	}`
	for name, content := range map[string][]byte{"config.json": []byte(config), "rootfs/box": tool} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := l.PushPlugin(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "WHO="+h.Name); err != nil {
			t.Fatal(err)
		}
		if got := must(h.Docker(ctx, "plugin", "inspect", "-f", "{{.Enabled}} {{.Settings.Env}}", "isthmus")); got != "true [WHO="+h.Name+"]" {
			t.Errorf("the plugin of %s is %s", h.Name, got)
		}
		must(h.Exec(ctx, "box", "tcp", h.IP().String())) // it is on the host's network
		must(h.Docker(ctx, "run", "-d", "--name", "sandbox", lab.Image, "sleep", "1000"))
		key := must(h.Docker(ctx, "inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "sandbox"))
		pid := must(h.Exec(ctx, "pgrep", "-f", "^/box serve"))
		within(t, 5*time.Second, "the plugin sees a new sandbox as one", func() bool {
			kind, err := h.Exec(ctx, "stat", "-f", "-c", "%T", "/proc/"+pid+"/root"+key)
			return err == nil && kind == "nsfs"
		})
		must(h.Docker(ctx, "rm", "-f", "sandbox"))
		must(h.Docker(ctx, "plugin", "rm", "-f", "isthmus"))
	}
}

func testCompose(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(1)
	file := t.TempDir() + "/pair.yml"
	content := `
services:
  server:
    image: lab/box
    command: box serve
  client:
    image: lab/box
    command: sleep 1000
networks:
  default:
    ipam: {config: [{subnet: 10.77.0.0/24}]}
`
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		must(h.Compose(ctx, file, "pair", "up", "-d"))
		must(h.Compose(ctx, file, "pair", "exec", "-T", "client", "box", "tcp", "server"))
		must(h.Compose(ctx, file, "pair", "down", "-t", "0"))
	}
}

func testSwarm(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	if err := l.Swarm(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	must(l.Host(2).Docker(ctx, "run", "-d", "--name", "server", "--network", "base", lab.Image, "box", "serve"))
	within(t, 20*time.Second, "overlay carries traffic", func() bool {
		_, err := l.Host(1).Docker(ctx, "run", "--rm", "--network", "base", lab.Image, "box", "tcp", "server")
		return err == nil
	})
	must(l.Host(2).Docker(ctx, "rm", "-f", "server"))
	if err := l.LeaveSwarm(ctx); err != nil {
		t.Fatal(err)
	}
}
