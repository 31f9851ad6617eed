package lan_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(last byte) cluster.MAC { return cluster.MAC{2, 0, 0, 0, 0, last} }

// holder is a machine that answers ARP for an address from its try-th request
// on.
func holder(ip netip.Addr, who cluster.MAC, try int, on func() bool) lantest.Machine {
	return func(frame []byte) [][]byte {
		target := ip.As4()
		if frame[12] != 0x08 || !bytes.Equal(frame[38:42], target[:]) || !on() {
			return nil
		}
		if try--; try > 0 {
			return nil
		}
		b := append(append([]byte(nil), frame[6:12]...), who[:]...)
		b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2)
		b = append(append(b, who[:]...), target[:]...)
		return [][]byte{append(b, frame[22:32]...)}
	}
}

func always() bool { return true }

type bench struct {
	*testing.T
	*lantest.Net
	*lan.Prober
	log    bytes.Buffer
	groups []cluster.MAC
}

// bubble runs a test in time that does not pass by itself.
func bubble(t *testing.T, test func(b *bench)) {
	t.Helper()
	if raceEnabled {
		t.Skip("synctest bubbles crash under the race detector before Go 1.27; TestLinuxProbe covers it")
	}
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, Net: &lantest.Net{MAC: mac(1), Own: []netip.Addr{addr("192.0.2.1")}, Delay: time.Millisecond}}
		log := logrus.New()
		log.SetOutput(&b.log)
		b.Prober = lan.New(lan.Config{Log: log, Open: func(ifname string, groups ...cluster.MAC) (lan.Wire, error) {
			if ifname != "eth0" {
				return nil, errors.New("no such interface")
			}
			b.groups = groups
			return b.Net.Open(), nil
		}})
		test(b)
	})
}

func (b *bench) probe(ips ...netip.Addr) (map[netip.Addr]cluster.MAC, time.Duration) {
	b.Helper()
	start := time.Now()
	held, err := b.Probe(b.Context(), "eth0", ips...)
	if err != nil {
		b.Fatal(err)
	}
	return held, time.Since(start)
}

func TestProbe(t *testing.T) {
	bubble(t, func(b *bench) {
		b.Join(holder(addr("192.0.2.9"), mac(9), 1, always))
		b.Join(holder(addr("192.0.2.8"), mac(8), 3, always)) // hears the last one only
		for _, c := range []struct {
			name string
			ips  []netip.Addr
			want map[netip.Addr]cluster.MAC
			took time.Duration
			sent int
		}{
			{"free", []netip.Addr{addr("192.0.2.7")}, nil, 350 * time.Millisecond, 3},
			{"held", []netip.Addr{addr("192.0.2.9")}, map[netip.Addr]cluster.MAC{addr("192.0.2.9"): mac(9)}, time.Millisecond, 1},
			{"held by one that is hard of hearing", []netip.Addr{addr("192.0.2.8")}, map[netip.Addr]cluster.MAC{addr("192.0.2.8"): mac(8)}, 201 * time.Millisecond, 3},
			{"own", []netip.Addr{addr("192.0.2.1")}, map[netip.Addr]cluster.MAC{addr("192.0.2.1"): mac(1)}, 0, 0},
			{"several at once", []netip.Addr{addr("192.0.2.7"), addr("192.0.2.9"), addr("192.0.2.1"), addr("192.0.2.6")},
				map[netip.Addr]cluster.MAC{addr("192.0.2.9"): mac(9), addr("192.0.2.1"): mac(1)}, 350 * time.Millisecond, 3 + 1 + 3},
			{"none", nil, nil, 0, 0},
		} {
			time.Sleep(time.Second) // another burst
			held, took := b.probe(c.ips...)
			if !maps.Equal(held, c.want) || took != c.took {
				b.Errorf("%s: %v after %s, want %v after %s", c.name, held, took, c.want, c.took)
			}
			if sent := b.Sent(); len(sent) != c.sent {
				b.Errorf("%s: sent %d probes, want %d", c.name, len(sent), c.sent)
			}
		}
		if _, open := b.Wires(); open > 0 {
			b.Errorf("%d sockets stay open", open)
		}
	})
}

// Neighbour discovery is answered to all nodes, and rivals ask in the group of
// the address: both groups are heard, once.
func TestProbeJoinsGroups(t *testing.T) {
	bubble(t, func(b *bench) {
		b.probe(addr("fd00::1:2:3"), addr("fd01::2:3"))
		want := []cluster.MAC{{0x33, 0x33, 0, 0, 0, 1}, {0x33, 0x33, 0xff, 2, 0, 3}}
		if len(b.groups) != 2 || b.groups[0] != want[0] || b.groups[1] != want[1] {
			b.Errorf("groups %v, want %v", b.groups, want)
		}
	})
}

func TestProbeErrors(t *testing.T) {
	bubble(t, func(b *bench) {
		for _, c := range []struct {
			ifname, ip, want string
		}{
			{"eth1", "192.0.2.9", "probe addresses on eth1: no such interface"},
			{"eth0", "224.0.0.1", "address 224.0.0.1: is not one of a single machine"},
			{"eth0", "::ffff:192.0.2.9", "is not one of a single machine"},
			{"eth0", "0.0.0.0", "is not one of a single machine"},
		} {
			if _, err := b.Probe(b.Context(), c.ifname, addr(c.ip)); err == nil || !strings.Contains(err.Error(), c.want) {
				b.Errorf("%s on %s: %v, want %q", c.ip, c.ifname, err, c.want)
			}
		}
		ctx, cancel := context.WithTimeout(b.Context(), 120*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := b.Probe(ctx, "eth0", addr("192.0.2.9")); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 120*time.Millisecond {
			b.Errorf("with a limit of 120 ms: %v after %s", err, time.Since(start))
		}
		b.Down = errors.New("network is down")
		if _, err := b.Probe(b.Context(), "eth0", addr("192.0.2.9")); !errors.Is(err, b.Down) {
			b.Errorf("on a dead interface: %v", err)
		}
		if c := b.Conflicts(""); len(c) > 0 {
			b.Errorf("failed probes left conflicts: %v", c)
		}
	})
}

// However many containers start, no more than 200 probes a second are sent
// after the first 60.
func TestProbePace(t *testing.T) {
	bubble(t, func(b *bench) {
		var done sync.WaitGroup
		ip := addr("192.0.2.10")
		for range 100 {
			probed := ip
			done.Go(func() { b.probe(probed) })
			ip = ip.Next()
		}
		done.Wait()
		sent := b.Sent()
		if len(sent) != 300 {
			b.Fatalf("%d probes", len(sent))
		}
		start := sent[0].At
		for n, s := range sent {
			if least := time.Duration(n-60) * 5 * time.Millisecond; s.At.Sub(start) < least {
				b.Fatalf("probe %d after %s, want %s", n, s.At.Sub(start), least)
			}
		}
		if took := sent[299].At.Sub(start); took > 2*time.Second {
			b.Errorf("100 addresses took %s", took)
		}
	})
}

func TestConflicts(t *testing.T) {
	bubble(t, func(b *bench) {
		there := true
		b.Join(holder(addr("192.0.2.9"), mac(9), 1, func() bool { return there }))
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error)
		go func() { ended <- b.Prober.Run(ctx) }()
		start := time.Now()
		b.probe(addr("192.0.2.9"), addr("192.0.2.10"))
		check := func(when string, want ...string) {
			b.Helper()
			synctest.Wait()
			var got []string
			for _, c := range b.Conflicts("eth0") {
				got = append(got, c.Addr.String()+" "+c.MAC.String())
			}
			if strings.Join(got, ",") != strings.Join(want, ",") {
				b.Errorf("%s: conflicts %v, want %v", when, got, want)
			}
		}
		check("at first", "192.0.2.9 02:00:00:00:00:09")
		time.Sleep(90 * time.Second)
		check("after a minute", "192.0.2.9 02:00:00:00:00:09")
		c := b.Conflicts("")[0]
		if !c.Since.Equal(start.Add(350*time.Millisecond)) || c.Seen.Sub(start) < 50*time.Second || c.Seen.Sub(start) > 71*time.Second {
			b.Errorf("since %s, seen %s", c.Since.Sub(start), c.Seen.Sub(start))
		}
		b.Down = errors.New("network is down")
		there = false
		time.Sleep(70 * time.Second)
		check("when nobody can be asked", "192.0.2.9 02:00:00:00:00:09")
		b.Down = nil
		time.Sleep(80 * time.Second)
		check("when it is gone")
		if n := strings.Count(b.log.String(), "stranger"); n != 1 || !strings.Contains(b.log.String(), "no more") {
			b.Errorf("log:\n%s", &b.log)
		}
		there = true
		b.probe(addr("192.0.2.9"))
		check("when it is back", "192.0.2.9 02:00:00:00:00:09")
		b.Forget("eth0")
		check("when its network is removed")
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}
