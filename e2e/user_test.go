//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// publishedPorts: -p works as on Docker's own overlay, through docker_gwbridge.
func publishedPorts(t *testing.T, s *site) {
	s.createNetwork(t, "ports", []string{"--subnet", "10.39.0.0/24"})
	b := run(t, s.Host(1), "web", "ports", "-p", "8081:80", "-p", "7070:7000/udp")
	defer func() {
		removeBoxes(t, b)
		s.removeNetwork(t, "ports")
	}()
	published := func() {
		t.Helper()
		for _, from := range []*lab.Host{s.Host(2), s.Host(1)} {
			eventually(t, 5*time.Second, func() error {
				out, err := from.Exec(t.Context(), "box", "get", fmt.Sprintf("http://%s:8081/", s.Host(1).IP()))
				if err == nil && !strings.HasPrefix(out, "web ") {
					err = fmt.Errorf("answered %q", out)
				}
				return err
			})
		}
		if _, err := s.Host(2).Exec(t.Context(), "box", "udp", s.Host(1).IP().String(), "--port", "7070", "--count", "3"); err != nil {
			t.Error(err)
		}
	}
	published()
	docker(t, s.Host(1), "restart", "-t", "1", "web")
	published()
	// And the way out.
	if _, err := b.exec(t.Context(), "ping", "-c", "1", "-W", "3", s.Host(2).IP().String()); err != nil {
		t.Errorf("egress: %v", err)
	}
}

// compose: one project of two files, one per host, on one shared network.
func compose(t *testing.T, s *site) {
	web, client := s.Host(1), s.Host(2)
	for range 2 { // up, down, and up again
		for h, file := range map[*lab.Host]string{web: "web.yml", client: "client.yml"} {
			if out, err := h.Compose(t.Context(), "../examples/"+file, "isthmus-example", "up", "-d"); err != nil {
				t.Fatalf("compose up of %s: %v: %s", file, err, out)
			}
		}
		eventually(t, 20*time.Second, func() error {
			out, err := client.Compose(t.Context(), "../examples/client.yml", "isthmus-example", "logs")
			if err == nil && !strings.Contains(out, "10.90.0.") {
				err = fmt.Errorf("client fetched nothing yet: %s", out)
			}
			return err
		})
		if out, err := s.Host(3).Exec(t.Context(), "box", "get", fmt.Sprintf("http://%s:8080/", web.IP())); err != nil {
			t.Errorf("published port: %v: %s", err, out)
		}
		for h, file := range map[*lab.Host]string{web: "web.yml", client: "client.yml"} {
			if out, err := h.Compose(t.Context(), "../examples/"+file, "isthmus-example", "down", "-t", "1"); err != nil {
				t.Fatalf("compose down of %s: %v: %s", file, err, out)
			}
		}
	}
}

// poolChoices: the ways to say, or not to say, which addresses a network has.
func poolChoices(t *testing.T, s *site) {
	subnets := func(h *lab.Host, name string) []netip.Prefix {
		var all []netip.Prefix
		for f := range strings.FieldsSeq(docker(t, h, "network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", name)) {
			all = append(all, netip.MustParsePrefix(f))
		}
		return all
	}
	t.Run("no-subnet", func(t *testing.T) {
		s.createNetwork(t, "auto", nil)
		a, b := subnets(s.Host(1), "auto"), subnets(s.Host(2), "auto")
		if len(a) != 1 || len(b) != 1 || a[0].Overlaps(b[0]) {
			t.Errorf("two hosts that name no subnet got %v and %v, want one each, of their own", a, b)
		}
		removeBoxes(t, run(t, s.Host(1), "auto-box", "auto"))
		s.removeNetwork(t, "auto")
	})
	t.Run("named", func(t *testing.T) {
		s.createNetwork(t, "named", []string{"--ipam-opt", "network=shop", "--ipv6"})
		a, b := subnets(s.Host(1), "named"), subnets(s.Host(2), "named")
		if len(a) != 2 || fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("two hosts that name the network got %v and %v, want the same IPv4 and IPv6 subnet", a, b)
		}
		boxes := s.oneOnEach(t, "named")
		boxes[0].must(t, "ping", "-c", "1", "-W", "3", boxes[1].ip4)
		boxes[0].must(t, "ping", "-c", "1", "-W", "3", boxes[1].ip6)
		removeBoxes(t, boxes...)
		s.removeNetwork(t, "named")
	})
	t.Run("ranges", func(t *testing.T) {
		for i, h := range s.Hosts() {
			s.createNetwork(t, "ranges", []string{"--subnet", "10.48.0.0/24", "--gateway", "10.48.0.254",
				"--aux-address", "router=10.48.0.65", "--ip-range", fmt.Sprintf("10.48.0.%d/27", 64+32*i)}, h)
		}
		boxes := make([]*box, 3*len(s.Hosts()))
		each(t, s.Hosts(), func(h *lab.Host) (err error) {
			for n := range 3 {
				i := 3*(h.Index-1) + n
				if boxes[i], err = start(t.Context(), h, fmt.Sprintf("range-%d", i), "ranges"); err != nil {
					return err
				}
			}
			return nil
		})
		for i, b := range boxes {
			inside := netip.MustParsePrefix(fmt.Sprintf("10.48.0.%d/27", 64+32*(i/3)))
			if a := netip.MustParseAddr(b.ip4); !inside.Contains(a) || b.ip4 == "10.48.0.65" {
				t.Errorf("%s got %s, want one of %s and not the auxiliary address", b.name, b.ip4, inside)
			}
		}
		removeBoxes(t, boxes...)
	})
	s.removeNetwork(t, "ranges")
	t.Run("space", func(t *testing.T) {
		s.createNetwork(t, "space-a", []string{"--subnet", "10.49.0.0/24"})
		s.createNetwork(t, "space-b", []string{"--subnet", "10.49.0.0/24", "--ipam-opt", "space=b", "-o", "space=b"})
		a, b := run(t, s.Host(1), "in-a", "space-a"), run(t, s.Host(2), "in-b", "space-b", "--ip", "10.49.0.77")
		twin := run(t, s.Host(1), "twin", "space-a", "--ip", "10.49.0.77")
		if out, err := a.exec(t.Context(), "ping", "-c", "1", "-W", "1", "10.49.0.77"); err != nil {
			t.Errorf("own space: %v: %s", err, out)
		}
		removeBoxes(t, a, b, twin)
		s.removeNetwork(t, "space-a")
		s.removeNetwork(t, "space-b")
	})
}
