//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// refusals: what cannot work is said at once, with the cause and the remedy,
// and leaves nothing behind.
func refusals(t *testing.T, s *site) {
	h := s.Host(1)
	s.createNetwork(t, "base", []string{"--subnet", "10.50.0.0/24", "-o", "vni=5000"}, h)
	docker(t, h, "run", "-d", "--name", "holder", "--network", "base", "--ip", "10.50.0.9", lab.Image, "box", "serve")
	before := snapshot(t, h)

	create := func(args ...string) func() (string, error) {
		return func() (string, error) { return createNetwork(t.Context(), h, "refused", args...) }
	}
	createElsewhere := func(args ...string) func() (string, error) {
		return func() (string, error) { return createNetwork(t.Context(), s.Host(2), "refused", args...) }
	}
	for _, c := range []struct {
		name string
		do   func() (string, error)
		says []string
	}{
		{"unknown-option", create("--subnet", "10.51.0.0/24", "-o", "colour=red"), []string{"colour", "attach", "vni"}},
		{"unknown-value", create("--subnet", "10.51.0.0/24", "-o", "attach=glue"), []string{"attach", "glue", "macvlan"}},
		{"option-of-another-mode", create("--subnet", "10.51.0.0/24", "-o", "parent=eth0"), []string{"parent", "macvlan"}},
		{"mode-not-built", create("--subnet", "10.51.0.0/24", "-o", "encrypt=wireguard"), []string{"wireguard", "not built"}},
		{"encryption-not-built", create("--subnet", "10.51.0.0/24", "-o", "encrypted="), []string{"encrypt", "not built"}},
		{"unknown-ipam-option", create("--subnet", "10.51.0.0/24", "--ipam-opt", "colour=red"), []string{"colour", "network", "space"}},
		{"overlap", create("--subnet", "10.50.0.0/25"), []string{"10.50.0.0/25", "10.50.0.0/24"}},
		{"overlap-elsewhere", createElsewhere("--subnet", "10.50.0.0/23"), []string{"10.50.0.0/23", "10.50.0.0/24", "host1"}},
		{"contradicting-vni", createElsewhere("--subnet", "10.50.0.0/24", "-o", "vni=5001"), []string{"vni", "5000", "5001"}},
		{"contradicting-mtu", createElsewhere("--subnet", "10.50.0.0/24", "-o", "mtu=1200"), []string{"mtu", "1200"}},
		{"contradicting-gateway", createElsewhere("--subnet", "10.50.0.0/24", "--gateway", "10.50.0.77"), []string{"gateway", "10.50.0.77", "10.50.0.1"}},
		{"vni-in-use", create("--subnet", "10.51.0.0/24", "-o", "vni=5000"), []string{"5000", "10.50.0.0/24"}},
		{"mtu-too-large", create("--subnet", "10.51.0.0/24", "-o", "mtu=1500"), []string{"1500", "1450"}},
		{"ipam-missing", func() (string, error) {
			return h.Docker(t.Context(), "network", "create", "-d", driverName, "--subnet", "10.51.0.0/24", "refused")
		}, []string{"--ipam-driver"}},
		{"address-in-use-here", func() (string, error) {
			return h.Docker(t.Context(), "run", "--rm", "--network", "base", "--ip", "10.50.0.9", lab.Image, "true")
		}, []string{"10.50.0.9", "in use"}},
		{"address-outside", func() (string, error) {
			return h.Docker(t.Context(), "run", "--rm", "--network", "base", "--ip", "10.77.0.9", lab.Image, "true")
		}, []string{"10.77.0.9"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			begun := time.Now()
			out, err := c.do()
			if err == nil {
				h.Docker(t.Context(), "network", "rm", "refused")
				s.Host(2).Docker(t.Context(), "network", "rm", "refused")
				t.Fatalf("accepted: %s", out)
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the error does not name %q: %v", word, err)
				}
			}
			if took := time.Since(begun); took > 15*time.Second {
				t.Errorf("the error took %s", took)
			}
			t.Log(err)
		})
	}
	t.Run("address-in-use-elsewhere", func(t *testing.T) {
		s.createNetwork(t, "base", []string{"--subnet", "10.50.0.0/24"}, s.Host(2))
		_, err := s.Host(2).Docker(t.Context(), "run", "--rm", "--network", "base", "--ip", "10.50.0.9", lab.Image, "true")
		if err == nil || !strings.Contains(err.Error(), "10.50.0.9") || !strings.Contains(err.Error(), "host1") {
			t.Errorf("want an error that names the address and host1: %v", err)
		}
		s.removeNetwork(t, "base", s.Host(2))
	})
	t.Run("full-subnet", func(t *testing.T) {
		s.createNetwork(t, "tiny", []string{"--subnet", "10.52.0.0/29"}, h)
		var boxes []*box
		for i := range 5 { // 8, less network, broadcast and gateway
			boxes = append(boxes, run(t, h, fmt.Sprintf("tiny-%d", i), "tiny"))
		}
		_, err := h.Docker(t.Context(), "run", "--rm", "--network", "tiny", lab.Image, "true")
		if err == nil || !strings.Contains(err.Error(), "10.52.0.0/29") || !strings.Contains(err.Error(), "full") {
			t.Errorf("want an error that says which subnet is full: %v", err)
		}
		t.Log(err)
		removeBoxes(t, boxes...)
		s.removeNetwork(t, "tiny", h)
	})
	eventually(t, 15*time.Second, func() error { return unchanged(t.Context(), h, before) })
	docker(t, h, "rm", "-f", "holder")
	s.removeNetwork(t, "base", h)
}

// narrowPath: a path that carries less than its links say is reported with the
// MTU that fits.
func narrowPath(t *testing.T, s *site) {
	if err := s.PathMTU(1, 2, 1400); err != nil {
		t.Fatal(err)
	}
	defer s.Heal()
	// A plugin that starts probes its peers at once.
	if _, err := s.Host(1).Exec(t.Context(), "kill", "-9", pluginPID(t, s.Host(1))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() error {
		out, err := isthmus(t.Context(), s.Host(1), "status")
		if err == nil && !(strings.Contains(out, "1400") && strings.Contains(out, "host2") && strings.Contains(out, "mtu=1350")) {
			err = fmt.Errorf("status does not name path, host and the MTU that fits:\n%s", out)
		}
		return err
	})
}

// TestStrangers: hosts that must not get in are told why, and so are those they
// knock at. Plain processes suffice: no engine is asked.
func TestStrangers(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Config{Hosts: 4})
	binary, err := os.ReadFile(filepath.Join(pluginDir(t), "rootfs", "isthmus"))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(h *lab.Host, settings ...string) {
		t.Helper()
		if err := h.WriteFile("/usr/local/bin/isthmus", string(binary), 0o755); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"env"}, settings...)
		cmd := h.Command(context.WithoutCancel(t.Context()), append(args, "isthmus", "serve")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		eventually(t, 10*time.Second, func() error {
			_, err := isthmus(t.Context(), h, "status", "--json")
			return err
		})
	}
	says := func(h *lab.Host, words ...string) {
		t.Helper()
		eventually(t, 20*time.Second, func() error {
			out, err := isthmus(t.Context(), h, "status")
			if err != nil {
				return err
			}
			for _, w := range words {
				if !strings.Contains(out, w) {
					return fmt.Errorf("status of %s does not say %q:\n%s", h.Name, w, out)
				}
			}
			return nil
		})
	}
	// A cluster is founded with its first network.
	found := func(h *lab.Host, subnet string) {
		t.Helper()
		docker(t, h, "network", "create", "-d", "isthmus", "--ipam-driver", "isthmus", "--subnet", subnet, "first")
	}
	founder, stranger, other, lost := l.Host(1), l.Host(2), l.Host(3), l.Host(4)
	serve(founder, "CLUSTER_KEY="+clusterKey)
	found(founder, "10.70.0.0/24")
	serve(stranger, "CLUSTER_KEY=another key of sixteen bytes", "JOIN=host1")
	serve(lost, "CLUSTER_KEY="+clusterKey, "JOIN=host1:7951")
	t.Run("wrong-key", func(t *testing.T) {
		says(stranger, "key", "host1")
		says(founder, "key", stranger.IP().String())
	})
	t.Run("wrong-port", func(t *testing.T) { says(lost, "7951", "refused") })
	t.Run("wrong-cluster", func(t *testing.T) {
		serve(other, "CLUSTER_KEY="+clusterKey)
		found(other, "10.71.0.0/24")
		if _, err := other.Exec(t.Context(), "pkill", "-9", "isthmus"); err != nil {
			t.Fatal(err)
		}
		serve(other, "CLUSTER_KEY="+clusterKey, "JOIN=host1")
		says(other, "cluster", "isthmus reset")
		says(founder, "cluster", other.IP().String())
	})
	t.Run("unreachable", func(t *testing.T) {
		if _, err := lost.Exec(t.Context(), "pkill", "-9", "isthmus"); err != nil {
			t.Fatal(err)
		}
		if err := l.Isolate(4); err != nil {
			t.Fatal(err)
		}
		serve(lost, "CLUSTER_KEY="+clusterKey, "JOIN=host1")
		says(lost, "host1")
		// A network cannot be made yet, and the error says so within 10 s.
		begun := time.Now()
		_, err := lost.Docker(t.Context(), "network", "create", "-d", "isthmus", "--ipam-driver", "isthmus", "--subnet", "10.60.0.0/24", "early")
		if err == nil || !strings.Contains(err.Error(), "host1") || time.Since(begun) > 12*time.Second {
			t.Errorf("want an error that names host1 within 10 s, got after %s: %v", time.Since(begun), err)
		}
		t.Log(err)
	})
	t.Run("unknown-setting", func(t *testing.T) {
		for setting, word := range map[string]string{"STRICT_BOOT=maybe": "STRICT_BOOT", "SCOPE=global": "SCOPE", "METRICS=127.0.0.1:1": "METRICS", "GOSSIP_PORT=x": "GOSSIP_PORT"} {
			out, err := founder.Exec(t.Context(), "env", setting, "isthmus", "serve", "--socket", "/tmp/x.sock")
			if err == nil || !strings.Contains(err.Error()+out, word) {
				t.Errorf("%s: want a refusal that names it: %v", setting, err)
			}
		}
	})
}
