//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// The networks of the cluster of two.
const (
	apartSubnet = "10.65.0.0/24"
	laterSubnet = "10.66.0.0/24"
)

// apart: two of the five hosts leave, and found a cluster of their own where
// they cannot reach the others. Its only voter loses minutes of its memory; it
// meets the other cluster; and once it has no networks it joins that by itself.
func apart(t *testing.T, s *site) {
	rest, founder, client := s.Hosts()[:3], s.Host(4), s.Host(5)
	pair := []*lab.Host{founder, client}
	for _, h := range pair {
		s.removeNetwork(t, "soak", h)
		if out, err := h.Exec(t.Context(), "isthmus", "leave"); err != nil {
			t.Fatalf("leave: %v: %s", err, out)
		}
		for _, other := range rest {
			if err := s.Cut(h.Index, other.Index); err != nil {
				t.Fatal(err)
			}
		}
	}
	join := docker(t, founder, "plugin", "inspect", "-f", `{{range .Settings.Env}}{{println .}}{{end}}`, driverName)
	_, join, _ = strings.Cut(join, "JOIN=")
	join, _, _ = strings.Cut(join, "\n")
	setJoin(t, founder, "")
	setJoin(t, client, founder.Name)
	for _, h := range pair {
		s.createNetwork(t, "apart", []string{"--subnet", apartSubnet}, h)
	}
	s.awaitMembers(t, len(pair), pair...)
	for _, part := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"set-back", func(t *testing.T) { onlyVoterSetBack(t, s, founder, client) }},
		{"meet", func(t *testing.T) { meet(t, s, rest, pair) }},
		{"join", func(t *testing.T) { joinWithout(t, s, rest, pair) }},
	} {
		if !t.Run(part.name, part.do) {
			return
		}
	}
	for _, h := range pair {
		setJoin(t, h, join)
	}
	s.awaitMembers(t, len(s.Hosts()))
}

// setJoin changes the list of hosts that a host's plugin asks for a cluster.
func setJoin(t *testing.T, h *lab.Host, join string) {
	t.Helper()
	err := swapState(t.Context(), h, func() error {
		_, err := h.Docker(t.Context(), "plugin", "set", driverName, "JOIN="+join)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// onlyVoterSetBack: the disk of the only voter is set back to before its client
// was granted blocks and made a network. The voter learns so from the client,
// and takes up all that was agreed since; no address is given twice.
func onlyVoterSetBack(t *testing.T, s *site, voter, client *lab.Host) {
	if names, err := voterNames(t.Context(), client); err != nil || !slices.Equal(names, []string{voter.Name}) {
		t.Fatalf("voters are %v, %v, want %s alone", names, err, voter.Name)
	}
	pair := []*lab.Host{voter, client}
	boxes := quick(t, voter, "before", "apart", 2)
	image := lab.Must(t)(saveState(t.Context(), voter, "image"))
	boxes = slices.Concat(boxes, quick(t, client, "since", "apart", 14), quick(t, voter, "since", "apart", 10))
	s.createNetwork(t, "later", []string{"--subnet", laterSubnet}, client)
	vni := vxlanOf(t, client, laterSubnet)
	was, err := statusOf(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	logged := len(voter.Logs())
	if err := swapState(t.Context(), voter, func() error { return putState(t.Context(), voter, image) }); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 60*time.Second, func() error {
		for _, h := range pair {
			st, err := statusOf(t.Context(), h)
			if err != nil {
				return err
			}
			if st.Cluster != was.Cluster || st.Ledger.Gen <= was.Ledger.Gen || !st.Ledger.Reachable {
				return fmt.Errorf("%s is of cluster %s, with %+v; want a later generation than %d of cluster %s", h.Name, st.Cluster, st.Ledger, was.Ledger.Gen, was.Cluster)
			}
		}
		return nil
	})
	t.Logf("the registry was put together again %s after the plugin was enabled", took.Round(10*time.Millisecond))
	if log := voter.Logs()[logged:]; !strings.Contains(log, "the log on this host was set back") {
		t.Errorf("the log of %s does not say that it was set back:\n%s", voter.Name, log)
	}
	for _, h := range pair {
		eventually(t, 30*time.Second, func() error {
			b, err := startQuick(t.Context(), h, "after-"+h.Name, "apart")
			if err != nil {
				h.Docker(t.Context(), "rm", "-f", "after-"+h.Name)
				return err
			}
			boxes = append(boxes, b)
			return nil
		})
		boxes = append(boxes, quick(t, h, "after", "apart", 12)...)
	}
	distinct(t, boxes)
	if bad := twice(t.Context(), pair, "apart"); len(bad) > 0 {
		t.Error(bad)
	}
	s.createNetwork(t, "later", []string{"--subnet", laterSubnet}, voter)
	if got := vxlanOf(t, voter, laterSubnet); got != vni {
		t.Errorf("the network made meanwhile is %s on %s and %s on %s", vni, client.Name, got, voter.Name)
	}
	from := map[*lab.Host]*box{voter: boxes[0], client: boxes[2]}
	eventually(t, 60*time.Second, func() error {
		for _, b := range boxes {
			for h, by := range from {
				if _, err := by.exec(t.Context(), "ping", "-c", "1", "-W", "1", b.ip4); h != b.host && err != nil {
					return err
				}
			}
		}
		return nil
	})
	each(t, pair, func(h *lab.Host) error { return removeAll(t.Context(), h, "apart") })
}

// quick starts some idle containers on a host.
func quick(t *testing.T, h *lab.Host, name, network string, n int) []*box {
	t.Helper()
	var boxes []*box
	for i := range n {
		b, err := startQuick(t.Context(), h, fmt.Sprintf("%s-%s-%d", name, h.Name, i), network)
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, b)
	}
	return boxes
}

// distinct wants another address for each of some containers.
func distinct(t *testing.T, boxes []*box) {
	t.Helper()
	of := map[string]*box{}
	for _, b := range boxes {
		if a, ok := of[b.ip4]; ok {
			t.Errorf("%s on %s and %s on %s both got %q", a.name, a.host.Name, b.name, b.host.Name, b.ip4)
		}
		of[b.ip4] = b
	}
}

// clusterOf names the cluster of a host.
func clusterOf(ctx context.Context, h *lab.Host) (string, error) {
	st, err := statusOf(ctx, h)
	if err == nil && st.Cluster == "" {
		err = fmt.Errorf("%s belongs to no cluster", h.Name)
	}
	return st.Cluster, err
}

// meet: two clusters with networks come into reach of each other. Both go on,
// each by itself, and every host names both and the remedy.
func meet(t *testing.T, s *site, one, other []*lab.Host) {
	sides := [][]*lab.Host{one, other}
	networks := []string{"soak", "apart"}
	var ids [2]string
	for i, side := range sides {
		ids[i] = lab.Must(t)(clusterOf(t.Context(), side[0]))
	}
	if ids[0] == ids[1] {
		t.Fatalf("both belong to cluster %s", ids[0])
	}
	var boxes []*box
	for i, side := range sides {
		for _, h := range side {
			boxes = append(boxes, run(t, h, "met-"+h.Name, networks[i]))
		}
	}
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	for _, h := range s.Hosts() {
		took := eventually(t, 60*time.Second, func() error {
			st, err := statusOf(t.Context(), h)
			if err != nil {
				return err
			}
			for _, p := range st.Problems {
				text := p.Cause + " " + p.Remedy
				if strings.Contains(text, ids[0]) && strings.Contains(text, ids[1]) && strings.Contains(text, "isthmus reset") {
					return nil
				}
			}
			return fmt.Errorf("%s does not name clusters %s and %s, and what to do: %+v", h.Name, ids[0], ids[1], st.Problems)
		})
		t.Logf("%s says so %s later", h.Name, took.Round(10*time.Millisecond))
	}
	for i, side := range sides {
		s.awaitMembers(t, len(side), side...)
		for _, h := range side {
			if id, err := clusterOf(t.Context(), h); err != nil || id != ids[i] {
				t.Errorf("%s belongs to cluster %s now (%v), and did to %s", h.Name, id, err, ids[i])
			}
		}
		more := fmt.Sprintf("met-%d", i)
		s.createNetwork(t, more, []string{"--subnet", fmt.Sprintf("10.67.%d.0/24", i)}, side...)
		last := run(t, side[len(side)-1], "met-last-"+more, more)
		first := run(t, side[0], "met-first-"+more, more)
		eventually(t, 10*time.Second, func() error {
			_, err := last.exec(t.Context(), "ping", "-c", "1", "-W", "1", first.ip4)
			return err
		})
		removeBoxes(t, first, last)
		drop(t, more, fmt.Sprintf("10.67.%d.0/24", i), side...)
	}
	for i, b := range boxes {
		to := boxes[(i+1)%len(one)]
		if i >= len(one) {
			to = boxes[len(one)+(i+1-len(one))%len(other)]
		}
		b.must(t, "ping", "-c", "2", "-i", "0.2", "-W", "2", to.ip4)
	}
	removeBoxes(t, boxes...)
}

// drop removes a network, and what is kept for its return.
func drop(t *testing.T, name, subnet string, hosts ...*lab.Host) {
	t.Helper()
	each(t, hosts, func(h *lab.Host) error {
		if err := removeNetwork(h, name); err != nil {
			return err
		}
		out, err := h.Exec(t.Context(), "isthmus", "networks", "forget", subnet)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// joinWithout: a cluster that has no networks any more joins the one that it
// met, without being told.
func joinWithout(t *testing.T, s *site, with, without []*lab.Host) {
	id := lab.Must(t)(clusterOf(t.Context(), with[0]))
	stays := run(t, with[0], "stays", "soak")
	drop(t, "apart", apartSubnet, without...)
	drop(t, "later", laterSubnet, without...)
	for _, h := range without {
		took := eventually(t, 60*time.Second, func() error {
			got, err := clusterOf(t.Context(), h)
			if err == nil && got != id {
				err = fmt.Errorf("%s belongs to cluster %s, want %s", h.Name, got, id)
			}
			return err
		})
		t.Logf("%s joined %s later", h.Name, took.Round(10*time.Millisecond))
	}
	s.awaitMembers(t, len(s.Hosts()))
	s.createNetwork(t, "soak", []string{"--subnet", soakSubnet}, without...)
	for _, h := range without {
		b := run(t, h, "joined", "soak")
		eventually(t, 10*time.Second, func() error {
			_, err := b.exec(t.Context(), "ping", "-c", "1", "-W", "1", stays.ip4)
			return err
		})
		removeBoxes(t, b)
	}
	if bad := twice(t.Context(), s.Hosts(), "soak"); len(bad) > 0 {
		t.Error(bad)
	}
	removeBoxes(t, stays)
	for _, h := range s.Hosts() {
		eventually(t, 60*time.Second, func() error {
			st, err := statusOf(t.Context(), h)
			if err == nil && strings.Contains(st.Ledger.Error, "belongs to cluster") {
				err = fmt.Errorf("%s still speaks of another cluster: %s", h.Name, st.Ledger.Error)
			}
			return err
		})
	}
}
