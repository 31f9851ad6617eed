//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestVXLAN runs everything that three hosts with an IPv4 underlay must do, on
// one lab, in an order in which each part leaves the lab as it found it.
func TestVXLAN(t *testing.T) {
	s := newSite(t, lab.Config{Hosts: 3})
	before := snapshots(t, s)

	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run("reach-"+attach, func(t *testing.T) { reachability(t, s, attach, "10.32.0.0/16", "fd32::/64") })
	}
	t.Run("mixed-attach", func(t *testing.T) { mixedAttach(t, s) })
	t.Run("flood", func(t *testing.T) { floods(t, s) })
	t.Run("bridge-filter", func(t *testing.T) { bridgeFilter(t, s) })
	t.Run("isolation", func(t *testing.T) { isolation(t, s) })
	t.Run("host-stack", func(t *testing.T) { hostStack(t, s) })
	t.Run("ports", func(t *testing.T) { publishedPorts(t, s) })
	t.Run("compose", func(t *testing.T) { compose(t, s) })
	t.Run("pools", func(t *testing.T) { poolChoices(t, s) })
	t.Run("refusals", func(t *testing.T) { refusals(t, s) })
	t.Run("path-mtu", func(t *testing.T) { narrowPath(t, s) })
	t.Run("churn", func(t *testing.T) { churn(t, s) })
	t.Run("move", func(t *testing.T) { moves(t, s) })
	t.Run("kill-plugin", func(t *testing.T) { killPlugin(t, s) })
	t.Run("mend", func(t *testing.T) { mends(t, s) })
	t.Run("nothing-left", func(t *testing.T) { nothingLeft(t, s, before) })
	t.Run("partition", func(t *testing.T) { partition(t, s) })
	t.Run("restart-engine", func(t *testing.T) { restartEngine(t, s) })
	t.Run("reboot-alone", func(t *testing.T) { rebootAlone(t, s) })
	t.Run("removed-while-disabled", func(t *testing.T) { removedWhileDisabled(t, s) })
	t.Run("reset", func(t *testing.T) { reset(t, s) })
}

// TestIPv6Underlay repeats what depends on the family of the underlay.
func TestIPv6Underlay(t *testing.T) {
	t.Parallel()
	s := newSite(t, lab.Config{Hosts: 3, IPv6Underlay: true})
	if got := lab.Must(t)(s.Host(1).Exec(t.Context(), "ip", "-4", "addr", "show", "eth0")); got != "" {
		t.Fatalf("host1 has an IPv4 address on the underlay, and the test proves nothing: %s", got)
	}
	for _, attach := range atLength([]string{"macvlan"}, []string{"macvlan", "bridge"}) {
		t.Run("reach-"+attach, func(t *testing.T) { reachability(t, s, attach, "10.32.0.0/16", "fd32::/64") })
	}
	t.Run("routes", func(t *testing.T) { routesOverIPv6(t, s) })
}

func snapshots(t *testing.T, s *site) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, h := range s.Hosts() {
		all[h.Name] = snapshot(t, h)
	}
	return all
}

func snapshot(t *testing.T, h *lab.Host) []string {
	t.Helper()
	lines, err := h.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// mixedAttach: hosts of one network may differ in how containers meet it.
func mixedAttach(t *testing.T, s *site) {
	for i, attach := range []string{"macvlan", "bridge", "auto"} {
		s.createNetwork(t, "mixed", []string{"--subnet", "10.33.0.0/24", "-o", "attach=" + attach}, s.Host(i+1))
	}
	boxes := s.oneOnEach(t, "mixed")
	for _, from := range boxes {
		for _, to := range boxes {
			if from != to {
				from.must(t, "ping", "-c", "2", "-i", "0.1", "-W", "3", to.ip4)
			}
		}
	}
	removeBoxes(t, boxes...)
	s.removeNetwork(t, "mixed")
}

// isolation: no frame of one network reaches another, not by address, not by
// broadcast, not when a container is told the other's route.
func isolation(t *testing.T, s *site) {
	s.createNetwork(t, "red", []string{"--subnet", "10.34.0.0/24", "--internal"})
	s.createNetwork(t, "blue", []string{"--subnet", "10.35.0.0/24", "--internal"})
	red, blue := s.oneOnEach(t, "red", "--cap-add", "NET_ADMIN"), s.oneOnEach(t, "blue")
	each(t, s.Hosts(), func(h *lab.Host) error {
		from := red[h.Index-1]
		reached := "" // the echo makes the exec succeed for what was reached
		for _, to := range blue {
			reached += "ping -c 1 -W 1 " + to.ip4 + " >/dev/null && echo " + to.name + "; "
		}
		neighbour := red[h.Index%len(red)]
		out, err := from.exec(t.Context(), "sh", "-c", "ip route add 10.35.0.0/24 dev eth0; "+reached+
			"ping -c 1 -W 3 "+neighbour.ip4+" >/dev/null && echo "+neighbour.name)
		if err == nil && strings.TrimSpace(out) != neighbour.name {
			err = fmt.Errorf("%s on red reaches %q, want only %s", from.name, out, neighbour.name)
		}
		return err
	})
	// --internal: no second interface, no way out.
	if links := red[0].must(t, "ip", "-o", "link"); strings.Count(links, ": eth") != 1 {
		t.Errorf("container of an internal network has more than one interface:\n%s", links)
	}
	removeBoxes(t, slices.Concat(red, blue)...)
	s.removeNetwork(t, "red")
	s.removeNetwork(t, "blue")
}
