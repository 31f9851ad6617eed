//go:build e2e

package lab_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

func reaches(ctx context.Context, from *lab.Host, to string) bool {
	_, err := from.Exec(ctx, "ping", "-c1", "-W1", to)
	return err == nil
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
