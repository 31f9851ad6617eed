//go:build e2e

package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

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
		t.Run("station", func(t *testing.T) { testStation(t, l) })
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
