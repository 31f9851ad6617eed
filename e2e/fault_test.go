//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// pluginPID is the process of the managed plugin on a host, in its pid namespace.
func pluginPID(t *testing.T, h *lab.Host) string {
	t.Helper()
	out, err := h.Exec(t.Context(), "pidof", "isthmus")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out)[0]
}

type flow struct {
	Sent       int `json:"sent"`
	Received   int `json:"received"`
	Lost       int `json:"lost"`
	Duplicates int `json:"duplicates"`
}

// kill kills the plugin of a host and waits until its successor answers.
func kill(t *testing.T, h *lab.Host) {
	t.Helper()
	old := pluginPID(t, h)
	if _, err := h.Exec(t.Context(), "kill", "-9", old); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		out, err := h.Exec(t.Context(), "pidof", "isthmus")
		if err != nil || strings.Fields(out)[0] == old {
			return fmt.Errorf("plugin of %s not restarted: %q %v", h.Name, out, err)
		}
		_, err = membersOf(t.Context(), h)
		return err
	})
}

// lossless waits for the end of a stream, which sent so much at least, and had no loss.
func (s *session) lossless(t *testing.T, least int, within time.Duration) {
	t.Helper()
	out, err := s.wait(within)
	if err != nil {
		t.Fatal(err)
	}
	var f flow
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if f.Sent < least || f.Lost != 0 || f.Duplicates != 0 {
		t.Errorf("flow: %+v, want %d sent at least, no loss and no duplicate", f, least)
	}
}

// killPlugin: the data path does not depend on the process.
func killPlugin(t *testing.T, s *site) {
	s.createNetwork(t, "steady", []string{"--subnet", "10.40.0.0/24"})
	boxes := s.oneOnEach(t, "steady")
	defer func() {
		removeBoxes(t, boxes...)
		s.removeNetwork(t, "steady")
	}()
	stream := boxes[0].begin(t, "box", "stream", "--over", "udp", "--for", "12s", "--interval", "5ms", boxes[1].ip4)
	for _, h := range s.Hosts()[:2] {
		kill(t, h)
	}
	stream.lossless(t, 1000, 40*time.Second)
	// What changes while it restarts is caught up with.
	late := run(t, s.Host(1), "late", "steady")
	defer removeBoxes(t, late)
	eventually(t, 5*time.Second, func() error {
		_, err := boxes[1].exec(t.Context(), "ping", "-c", "1", "-W", "1", late.ip4)
		return err
	})
}

// mends: what is deleted by hand returns within 15 s, containers included.
func mends(t *testing.T, s *site) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			s.createNetwork(t, "mend", []string{"--subnet", "10.41.0.0/24", "--ipv6", "--subnet", "fd41::/64", "-o", "attach=" + attach})
			boxes := s.oneOnEach(t, "mend")
			defer func() {
				removeBoxes(t, boxes...)
				s.removeNetwork(t, "mend")
			}()
			h := s.Host(1)
			dev := vxlanOf(t, h, "10.41.0.0/24")
			works := func() error {
				for _, to := range boxes[1:] {
					for _, addr := range []string{to.ip4, to.ip6} {
						if _, err := boxes[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", addr); err != nil {
							return err
						}
						if _, err := to.exec(t.Context(), "ping", "-c", "1", "-W", "1", boxes[0].ip4); err != nil {
							return err
						}
					}
				}
				return nil
			}
			if err := works(); err != nil {
				t.Fatal(err)
			}
			before := lab.Must(t)(boxes[0].exec(t.Context(), "ip", "-o", "addr", "show", "eth0"))
			faults := []struct{ name, command string }{
				{"fdb", "bridge fdb show dev " + dev + ` | while read mac rest; do bridge fdb del $mac $(echo "$rest" | sed 's/self.*//') dev ` + dev + " self || true; done"},
				{"neighbours", "ip neigh flush nud permanent dev " + dev + "; ip -6 neigh flush nud permanent dev " + dev},
				{"link-down", "ip link set " + dev + " down"},
				{"mac", "ip link set " + dev + " address 02:00:00:00:00:99"},
				{"guards", "nft delete table inet isthmus; nft delete table arp isthmus"},
				{"device", "ip link del " + dev},
			}
			if attach == "bridge" {
				faults = append(faults, struct{ name, command string }{"bridge", "ip link del is-b" + strings.TrimPrefix(dev, "is-v")})
			}
			for _, f := range faults {
				lab.Must(t)(h.Exec(t.Context(), "sh", "-c", f.command))
				took := eventually(t, 15*time.Second, works)
				t.Logf("%s deleted: works again after %s", f.name, took.Round(10*time.Millisecond))
			}
			after := lab.Must(t)(boxes[0].exec(t.Context(), "ip", "-o", "addr", "show", "eth0"))
			if normal(before) != normal(after) {
				t.Errorf("interface in the container is not what it was:\n%s\n%s", before, after)
			}
		})
	}
}

// normal leaves out the interface's index, which is new.
func normal(addrs string) string {
	var lines []string
	for line := range strings.Lines(addrs) {
		_, rest, _ := strings.Cut(line, ":")
		if strings.Contains(rest, "inet") {
			lines = append(lines, strings.Join(strings.Fields(rest), " "))
		}
	}
	return strings.Join(lines, "\n")
}

// partition: 60 s of silence between host 3 and the others heal by themselves.
func partition(t *testing.T, s *site) {
	s.createNetwork(t, "split", []string{"--subnet", "10.42.0.0/24"})
	boxes := s.oneOnEach(t, "split")
	if err := s.Isolate(3); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	// Both sides go on: a container more on each.
	one := run(t, s.Host(1), "split-more-1", "split")
	three := run(t, s.Host(3), "split-more-3", "split")
	if one.ip4 == three.ip4 {
		t.Errorf("both sides of the partition gave %s", one.ip4)
	}
	eventually(t, 60*time.Second, func() error {
		members, err := membersOf(t.Context(), s.Host(1))
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.Info.Name == "host3" && m.State == "failed" {
				return nil
			}
		}
		return fmt.Errorf("host3 is not seen as failed: %+v", members)
	})
	time.Sleep(time.Until(cut.Add(60 * time.Second))) // the length of the cut is what is tested
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 15*time.Second, func() error {
		for from, to := range map[*box]*box{one: three, three: one, boxes[2]: one, boxes[1]: three} {
			if _, err := from.exec(t.Context(), "ping", "-c", "1", "-W", "1", to.ip4); err != nil {
				return err
			}
		}
		members, err := membersOf(t.Context(), s.Host(2))
		for _, m := range members {
			if m.State != "alive" {
				return fmt.Errorf("%+v", members)
			}
		}
		return err
	})
	t.Logf("healed %s after the end of the cut", took.Round(10*time.Millisecond))
	removeBoxes(t, append(boxes, one, three)...)
	s.removeNetwork(t, "split")
}

// restartEngine: dockerd ends and comes back; containers marked so return with it.
func restartEngine(t *testing.T, s *site) {
	s.createNetwork(t, "again", []string{"--subnet", "10.43.0.0/24"})
	boxes := s.oneOnEach(t, "again", "--restart=always")
	fixed := run(t, s.Host(2), "again-fixed", "again", "--restart=always", "--ip", "10.43.0.99")
	h := s.Host(2)
	for _, stop := range []func() error{
		func() error { return h.StopEngine(t.Context()) },
		func() error { return h.KillEngine(t.Context()) },
	} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := h.StartEngine(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, 60*time.Second, func() error {
			for _, b := range []*box{boxes[1], fixed} {
				if err := b.inspect(t.Context()); err != nil {
					return err
				}
				if b.ip4 == "" {
					return fmt.Errorf("%s has no address yet", b.name)
				}
			}
			_, err := boxes[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", boxes[1].ip4)
			return err
		})
		if fixed.ip4 != "10.43.0.99" {
			t.Errorf("container with --ip came back with %s", fixed.ip4)
		}
	}
	removeBoxes(t, append(boxes, fixed)...)
	s.removeNetwork(t, "again")
}

// rebootAlone: a host reboots while no other host answers. Its containers are
// up, its engine is not delayed, and Compose goes down and up.
func rebootAlone(t *testing.T, s *site) {
	h := s.Host(2)
	s.createNetwork(t, "alone", []string{"--subnet", "10.44.0.0/24"})
	boxes := s.oneOnEach(t, "alone", "--restart=always")
	fixed := run(t, h, "alone-fixed", "alone", "--restart=always", "--ip", "10.44.0.99")
	if _, err := h.Compose(t.Context(), "../examples/web.yml", "isthmus-example", "up", "-d"); err != nil {
		t.Fatal(err)
	}
	for _, other := range []int{1, 3} {
		if err := s.HostDown(other); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("engine answers %s after the reboot began", took.Round(10*time.Millisecond))
	if took > 40*time.Second {
		t.Errorf("engine answers only %s after the reboot", took)
	}
	eventually(t, 30*time.Second, func() error {
		for _, b := range []*box{boxes[1], fixed} {
			if err := b.inspect(t.Context()); err != nil {
				return err
			}
			if b.ip4 == "" {
				return fmt.Errorf("%s is not up", b.name)
			}
		}
		_, err := fixed.exec(t.Context(), "ping", "-c", "1", "-W", "1", boxes[1].ip4)
		return err
	})
	if fixed.ip4 != "10.44.0.99" {
		t.Errorf("container with --ip came back with %s", fixed.ip4)
	}
	for _, args := range [][]string{{"down"}, {"up", "-d"}, {"down"}} {
		if out, err := h.Compose(t.Context(), "../examples/web.yml", "isthmus-example", args...); err != nil {
			t.Fatalf("compose %v with all other hosts down: %v: %s", args, err, out)
		}
	}
	for _, other := range []int{1, 3} {
		if err := s.HostUp(other); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 30*time.Second, func() error {
		_, err := boxes[0].exec(t.Context(), "ping", "-c", "1", "-W", "1", boxes[1].ip4)
		return err
	})
	removeBoxes(t, append(boxes, fixed)...)
	s.removeNetwork(t, "alone")
}
