//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// reachability is the promise of the vxlan mode: every container reaches every
// other by address, by every kind of traffic, each packet once.
func reachability(t *testing.T, s *site, attach string, subnet4, subnet6 string) {
	net := "reach-" + attach
	s.createNetwork(t, net, "--subnet", subnet4, "--ipv6", "--subnet", subnet6, "-o", "attach="+attach)
	defer s.removeNetwork(t, net)
	boxes := s.oneOnEach(t, net)
	defer s.removeBoxes(t, boxes)

	seen := map[string]string{}
	for _, b := range boxes {
		for _, a := range []string{b.ip4, b.ip6} {
			if other, twice := seen[a]; twice {
				t.Fatalf("address %s given to %s and %s", a, other, b.name)
			}
			seen[a] = b.name
		}
	}
	for _, from := range boxes {
		for _, to := range boxes {
			if from == to {
				continue
			}
			t.Run(fmt.Sprintf("%s-to-%s", from.name, to.name), func(t *testing.T) {
				for _, addr := range []string{to.ip4, to.ip6} {
					from.must(t, "box", "ping", "--count", "3", "--timeout", "5s", addr)
					from.must(t, "box", "ping", "--count", "2", "--size", "60000", "--timeout", "5s", addr)
					from.must(t, "box", "tcp", "--timeout", "5s", hostport(addr, 7000))
					from.must(t, "box", "udp", "--timeout", "5s", hostport(addr, 7000))
				}
			})
		}
	}
	// Each host has the network's three boxes' worth of knowledge, and ARP for
	// known endpoints never leaves the host.
	t.Run("multicast", func(t *testing.T) {
		for _, group := range []string{"239.1.2.3", "ff05::1:3"} {
			deliveredOnce(t, boxes, "mcast", group)
		}
	})
	t.Run("broadcast", func(t *testing.T) { deliveredOnce(t, boxes, "bcast", broadcastOf(t, subnet4)) })
	t.Run("arp-stays", func(t *testing.T) {
		from, to := boxes[0], boxes[1]
		frames := from.host.wire(t, s, "udp port 8475", func() {
			from.must(t, "box", "neigh-flush", "eth0")
			from.must(t, "box", "ping", "--count", "2", "--timeout", "5s", to.ip4)
			from.must(t, "box", "ping", "--count", "2", "--timeout", "5s", to.ip6)
		})
		for _, line := range frames {
			if strings.Contains(line, "ARP") || strings.Contains(line, "neighbor solicitation") {
				t.Errorf("resolution reached the wire: %s", line)
			}
		}
		if len(frames) == 0 {
			t.Error("capture shows no tunnel traffic at all")
		}
	})
}

// deliveredOnce sends from the first box and counts on all others.
func deliveredOnce(t *testing.T, boxes []*box, kind, to string) {
	t.Helper()
	const packets = 5
	type heard struct {
		Received   int `json:"received"`
		Distinct   int `json:"distinct"`
		Duplicates int `json:"duplicates"`
	}
	receivers := make(chan error, len(boxes)-1)
	for _, b := range boxes[1:] {
		ready, result := b.background(t, "box", kind+"-recv", "--iface", "eth0", "--count", fmt.Sprint(packets),
			"--quiet", "2s", "--timeout", "20s", to)
		ready()
		go func() {
			out, err := result()
			var h heard
			if err == nil {
				err = json.Unmarshal([]byte(lastLine(out)), &h)
			}
			if err == nil && (h.Distinct != packets || h.Duplicates != 0) {
				err = fmt.Errorf("%s to %s at %s: %d distinct, %d duplicates, want %d and 0", kind, to, b.name, h.Distinct, h.Duplicates, packets)
			}
			receivers <- err
		}()
	}
	boxes[0].must(t, "box", kind+"-send", "--iface", "eth0", "--count", fmt.Sprint(packets), "--interval", "50ms", to)
	for range boxes[1:] {
		select {
		case err := <-receivers:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("receiver does not end")
		}
	}
}
