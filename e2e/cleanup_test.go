//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// nothingLeft: after the last network is removed the kernel holds what it held
// before the first one was made.
func nothingLeft(t *testing.T, s *site, before map[string][]string) {
	for _, h := range s.Hosts() {
		eventually(t, 20*time.Second, func() error { return unchanged(t.Context(), h, before[h.Name]) })
	}
}

func unchanged(ctx context.Context, h *lab.Host, before []string) error {
	after, err := h.Snapshot(ctx)
	if err != nil {
		return err
	}
	if d := lab.Difference(withoutGateway(before), withoutGateway(after)); d != "" {
		return fmt.Errorf("%s differs from before:\n%s", h.Name, d)
	}
	return nil
}

var drawn = regexp.MustCompile(`\b[0-9a-f][26ae](:[0-9a-f]{2}){5}\b`)

// withoutGateway leaves out what Docker itself makes for containers that need
// docker_gwbridge: the bridge, which it keeps, veth pairs, whose link-local
// addresses come late, the raw table of engines from 28 on, which stays, and the
// hardware address of docker0, which engines draw anew at each boot.
func withoutGateway(lines []string) []string {
	var kept []string
	for _, line := range lines {
		if strings.Contains(line, " docker0 ") {
			line = drawn.ReplaceAllString(line, "drawn")
		}
		if !strings.Contains(line, "docker_gwbridge") && !strings.Contains(line, "172.18.0.") && !strings.Contains(line, " veth") &&
			!strings.HasPrefix(line, "nft table ip raw") && !strings.HasPrefix(line, "nft table ip6 raw") {
			kept = append(kept, line)
		}
	}
	return kept
}

// removedWhileDisabled: Docker cannot tell a disabled plugin of a removal. The
// network is gone for good once both run again.
func removedWhileDisabled(t *testing.T, s *site) {
	h := s.Host(3)
	before := snapshot(t, h)
	if _, err := createNetwork(t.Context(), h, "orphan", "--subnet", "10.46.0.0/24"); err != nil {
		t.Fatal(err)
	}
	b := run(t, h, "orphan-box", "orphan")
	removeBoxes(t, b)
	docker(t, h, "plugin", "disable", "-f", driverName)
	removeNetwork(h, "orphan") // hides the network, whether the engine calls that a failure or not
	docker(t, h, "plugin", "enable", driverName)
	if err := h.StopEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		out, err := isthmus(t.Context(), h, "networks", "--json")
		if err != nil {
			return err
		}
		if strings.Contains(out, "10.46.0.0/24") {
			// What Docker did not say is said by hand.
			if _, err := isthmus(t.Context(), h, "networks", "forget", "10.46.0.0/24"); err != nil {
				return err
			}
			return fmt.Errorf("%s still holds 10.46.0.0/24: %s", h.Name, out)
		}
		return unchanged(t.Context(), h, before)
	})
	// The space is free again for another network.
	if _, err := createNetwork(t.Context(), h, "next", "--subnet", "10.46.0.0/25"); err != nil {
		t.Fatal(err)
	}
	s.removeNetwork(t, "next", h)
}

// reset clears a host that has networks, in good order and with a dead plugin.
func reset(t *testing.T, s *site) {
	h := s.Host(3)
	before := snapshot(t, h)
	if _, err := createNetwork(t.Context(), h, "doomed", "--subnet", "10.47.0.0/24", "--ipv6", "--subnet", "fd47::/64", "-o", "attach=bridge"); err != nil {
		t.Fatal(err)
	}
	b := run(t, h, "doomed-box", "doomed")
	if out, err := h.Exec(t.Context(), "isthmus", "reset"); err == nil {
		t.Errorf("reset with a running container succeeds: %s", out)
	}
	removeBoxes(t, b)
	if out, err := h.Exec(t.Context(), "isthmus", "reset"); err != nil {
		t.Fatalf("reset: %v: %s", err, out)
	}
	eventually(t, 20*time.Second, func() error { return unchanged(t.Context(), h, before) })
	// It comes back as a new host that joins the same cluster.
	s.awaitMembers(t, len(s.Hosts()), h)
	s.removeNetwork(t, "doomed", h)
}

func docker(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	out, err := h.Docker(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
