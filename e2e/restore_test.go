//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const keptSubnet = "10.68.0.0/24"

// restored is what isthmus restore --json says.
type restored struct {
	Cluster       string
	Gen           uint64
	Heard, Fenced []struct{ Name string }
	Refused       []struct{ Name, Why string }
}

// restores: all hosts but one lose their state, all voters among them. On one
// that is empty the registry is put together again, from a backup and from what
// the last host knows, which could not reach the others when the backup was
// taken.
func restores(t *testing.T, s *site) {
	knows := clients(t, s)[0]
	lost := slices.DeleteFunc(s.Hosts(), func(h *lab.Host) bool { return h == knows })
	empty, ghosts := lost[0], lost[len(lost)-1]
	s.createNetwork(t, "kept", []string{"--subnet", keptSubnet})
	vni := vxlanOf(t, knows, keptSubnet)
	before := s.oneOnEach(t, "kept")
	boxes := []*box{before[knows.Index-1]}
	if err := s.Isolate(knows.Index); err != nil {
		t.Fatal(err)
	}
	// The backup is newer than the copy of the host that is cut off, and does not
	// know what that does from its own block.
	before = append(before, quick(t, ghosts, "more", "kept", 14)...)
	boxes = append(boxes, quick(t, knows, "alone", "kept", 2)...)
	backup := lab.Must(t)(lost[1].Exec(t.Context(), "isthmus", "backup"))
	was, err := clusterOf(t.Context(), knows)
	if err != nil {
		t.Fatal(err)
	}

	// One host keeps its containers, whose addresses only the backup knows. All
	// are down before the first is back: it would join those that are left.
	each(t, lost, func(h *lab.Host) error {
		if h != ghosts {
			if err := removeAll(t.Context(), h, "kept"); err != nil {
				return err
			}
		}
		_, err := h.Docker(t.Context(), "plugin", "disable", "-f", driverName)
		return err
	})
	each(t, lost, func(h *lab.Host) error {
		if err := loseState(t.Context(), h); err != nil {
			return err
		}
		_, err := h.Docker(t.Context(), "plugin", "enable", driverName)
		return err
	})
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := empty.WriteFile("/var/tmp/registry.json", backup, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := isthmus(t.Context(), empty, "restore", "/var/tmp/registry.json", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var done restored
	if err := decode(out, &done); err != nil {
		t.Fatal(err)
	}
	heard := func(name string) bool {
		return slices.ContainsFunc(done.Heard, func(h struct{ Name string }) bool { return h.Name == name })
	}
	if done.Cluster != was || !heard(knows.Name) || len(done.Fenced) != len(lost) || len(done.Refused) > 0 {
		t.Errorf("restored %s; want cluster %s, %s heard, the former selves of the %d others fenced, and no claim refused", out, was, knows.Name, len(lost))
	}
	for _, h := range s.Hosts() {
		eventually(t, 60*time.Second, func() error {
			st, err := statusOf(t.Context(), h)
			if err == nil && (st.Cluster != was || st.Ledger.Gen != done.Gen || !st.Ledger.Reachable) {
				err = fmt.Errorf("%s is of cluster %s with %+v, want generation %d of %s", h.Name, st.Cluster, st.Ledger, done.Gen, was)
			}
			return err
		})
	}

	// The networks are back as they were, and the host that was heard holds what it held.
	anew := slices.DeleteFunc(slices.Clone(lost), func(h *lab.Host) bool { return h == ghosts })
	for _, h := range anew {
		for name, subnet := range map[string]string{"kept": keptSubnet, "soak": soakSubnet} {
			if err := recreate(t.Context(), h, name, subnet); err != nil {
				t.Fatal(err)
			}
		}
		if got := vxlanOf(t, h, keptSubnet); got != vni {
			t.Errorf("the network is %s on %s, and was %s", got, h.Name, vni)
		}
		boxes = append(boxes, quick(t, h, "anew", "kept", 12)...)
	}
	boxes = append(boxes, quick(t, knows, "after", "kept", 12)...)
	distinct(t, slices.Concat(boxes, before[len(s.Hosts()):], []*box{before[ghosts.Index-1]}))
	if bad := twice(t.Context(), s.Hosts(), "kept"); len(bad) > 0 {
		t.Error(bad)
	}
	if st, err := statusOf(t.Context(), knows); err != nil || strings.Contains(fmt.Sprint(st.Problems), "its endpoint is cut off") {
		t.Errorf("%s: %v, %+v; want none of its addresses cut off", knows.Name, err, st.Problems)
	}
	eventually(t, 30*time.Second, func() error {
		for _, h := range anew {
			from := boxes[slices.IndexFunc(boxes, func(b *box) bool { return b.host == h })]
			for _, b := range boxes {
				if b.host != knows {
					continue
				}
				if _, err := from.exec(t.Context(), "ping", "-c", "1", "-W", "1", b.ip4); err != nil {
					return err
				}
			}
		}
		return nil
	})

	// What the others had is kept for them, until somebody says that they are gone.
	first := before[lost[1].Index-1]
	_, err = start(t.Context(), empty, "instead", "kept", "--ip", first.ip4)
	empty.Docker(t.Context(), "rm", "-f", "instead")
	if err == nil || !strings.Contains(err.Error(), "isthmus node rm") {
		t.Errorf("--ip of a container that %s had: %v, want it refused with the remedy", lost[1].Name, err)
	}
	each(t, []*lab.Host{ghosts}, func(h *lab.Host) error { return removeAll(t.Context(), h, "kept") })
	for name, subnet := range map[string]string{"kept": keptSubnet, "soak": soakSubnet} {
		if err := recreate(t.Context(), ghosts, name, subnet); err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range lost {
		if _, err := lost[(i+1)%len(lost)].Exec(t.Context(), "isthmus", "node", "rm", formerSelf(t, h)); err != nil {
			t.Error(err)
		}
	}
	instead := run(t, empty, "instead", "kept", "--ip", first.ip4)
	instead.must(t, "ping", "-c", "1", "-W", "2", boxes[0].ip4)
	each(t, s.Hosts(), func(h *lab.Host) error { return removeAll(t.Context(), h, "kept") })
	s.awaitMembers(t, len(s.Hosts()))
}

// formerSelf is the name that a host which lost its state gives the holder of
// its former blocks.
func formerSelf(t *testing.T, h *lab.Host) string {
	t.Helper()
	var name string
	eventually(t, 20*time.Second, func() error {
		st, err := statusOf(t.Context(), h)
		if err != nil {
			return err
		}
		for _, p := range st.Problems {
			if _, what, ok := strings.Cut(p.Remedy, "isthmus node rm "); ok && strings.HasPrefix(what, h.Name+"-") {
				name = what
				return nil
			}
		}
		return fmt.Errorf("%s does not name its former self: %+v", h.Name, st.Problems)
	})
	return name
}
