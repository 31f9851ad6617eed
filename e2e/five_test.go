//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestFiveHosts is about agreement: what holds when hosts cannot reach one
// another, lose their disks, or are told to go.
func TestFiveHosts(t *testing.T) {
	s := newSite(t, lab.Config{Hosts: 5})
	s.createNetwork(t, "soak", []string{"--subnet", soakSubnet})
	// Each part finds the hosts as the one before left them.
	for _, part := range []struct {
		name string
		do   func(*testing.T, *site)
	}{
		{"voters", voters}, {"exact", exactAddresses}, {"minority", minority}, {"power-cycle", powerCycle}, {"clone", cloned},
		{"node-rm", removedHost}, {"leave", leaves}, {"backup", backups}, {"soak", soak}, {"recover", recovers},
		{"apart", apart}, {"restore", restores},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.do(t, s) }) {
			return
		}
	}
}

// ledgerStatus is the part of isthmus status that tells of the agreement.
type ledgerStatus struct {
	Cluster string
	Ledger  struct {
		Role      string
		Gen       uint64
		Reachable bool
		Error     string
		Voters    []voter
	}
	Problems []struct{ Cause, Remedy string }
}

type voter struct {
	Name    string
	Leader  bool
	Healthy bool
}

func statusOf(ctx context.Context, h *lab.Host) (ledgerStatus, error) {
	var st ledgerStatus
	out, err := isthmus(ctx, h, "status", "--json")
	if err != nil {
		return st, err
	}
	return st, decode(out, &st)
}

// voterNames are the voters as one host sees them; the leader comes first.
func voterNames(ctx context.Context, h *lab.Host) ([]string, error) {
	st, err := statusOf(ctx, h)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, v := range st.Ledger.Voters {
		if v.Leader {
			names = append([]string{v.Name}, names...)
		} else {
			names = append(names, v.Name)
		}
	}
	return names, nil
}

// voters: five hosts choose three of them without being told, and every host
// knows which.
func voters(t *testing.T, s *site) {
	for _, h := range s.Hosts() {
		eventually(t, 90*time.Second, func() error {
			st, err := statusOf(t.Context(), h)
			if err != nil {
				return err
			}
			leaders := 0
			for _, v := range st.Ledger.Voters {
				if v.Leader {
					leaders++
				}
			}
			if len(st.Ledger.Voters) != 3 || leaders != 1 {
				return fmt.Errorf("%s sees the voters %+v, want three with one leader", h.Name, st.Ledger.Voters)
			}
			return nil
		})
	}
}

// exactAddresses: an --ip inside the block of another host is given up by it,
// and one that is in use there is refused with the name of its holder.
func exactAddresses(t *testing.T, s *site) {
	there := run(t, s.Host(2), "exact-there", "soak")
	defer removeBoxes(t, there)
	pool, err := poolOf(t.Context(), s.Host(2), soakSubnet)
	if err != nil {
		t.Fatal(err)
	}
	var block string
	for _, b := range pool.Blocks {
		if b.Here && b.Free > 0 {
			block = b.Block
		}
	}
	if block == "" {
		t.Fatalf("host2 has no block with a free address: %+v", pool)
	}
	free := freeIn(t, s, block, there.ip4)
	began := time.Now()
	here, err := start(t.Context(), s.Host(1), "exact-here", "soak", "--ip", free)
	if err != nil {
		t.Fatalf("--ip %s, free in block %s of host2: %v", free, block, err)
	}
	t.Logf("--ip out of another host's block: docker run took %s", time.Since(began).Round(time.Millisecond))
	defer removeBoxes(t, here)
	if here.ip4 != free {
		t.Errorf("got %s, want %s", here.ip4, free)
	}
	here.must(t, "ping", "-c", "1", "-W", "2", there.ip4)
	_, err = start(t.Context(), s.Host(1), "exact-taken", "soak", "--ip", there.ip4)
	removeBoxes(t, &box{host: s.Host(1), name: "exact-taken"})
	if err == nil || !strings.Contains(err.Error(), "host2") || !strings.Contains(err.Error(), there.ip4) {
		t.Errorf("--ip of a container on host2: %v, want it refused with the address and the host", err)
	}
}

// freeIn picks an address of a block that no container holds.
func freeIn(t *testing.T, s *site, block, not string) string {
	t.Helper()
	taken := map[string]bool{not: true}
	for _, h := range holdings(t.Context(), s.Hosts()) {
		taken[h.ip] = true
	}
	prefix, err := netip.ParsePrefix(block)
	if err != nil {
		t.Fatal(err)
	}
	for a := prefix.Addr(); prefix.Contains(a); a = a.Next() {
		// The gateway and the edges of the subnet are nobody's.
		if last := a.As4()[3]; !taken[a.String()] && last > 1 && last < 255 {
			return a.String()
		}
	}
	t.Fatalf("no free address in %s", block)
	return ""
}

// minority: two of five are cut off. What runs goes on, containers start there
// while local addresses last, and then are refused within 10 s with the reason.
// The others notice nothing, and nothing has to be repaired afterwards.
func minority(t *testing.T, s *site) {
	const subnet = "10.61.0.0/24"
	s.createNetwork(t, "few", []string{"--subnet", subnet})
	boxes := s.oneOnEach(t, "few")
	var extra []*box
	defer func() {
		removeBoxes(t, append(boxes, extra...)...)
		s.removeNetwork(t, "few")
	}()
	names, err := voterNames(t.Context(), s.Host(1))
	if err != nil {
		t.Fatal(err)
	}
	// One voter at most may be among the two, or they would not be the minority.
	var few, many []*lab.Host
	few = append(few, hostNamed(s, names[1]))
	for _, h := range s.Hosts() {
		switch {
		case h == few[0]:
		case len(few) < 2 && !slices.Contains(names, h.Name):
			few = append(few, h)
		default:
			many = append(many, h)
		}
	}
	stream := boxes[few[0].Index-1].begin(t, "box", "stream", "--over", "udp", "--for", "20s", "--interval", "10ms", boxes[few[1].Index-1].ip4)
	for _, a := range few {
		for _, b := range many {
			if err := s.Cut(a.Index, b.Index); err != nil {
				t.Fatal(err)
			}
		}
	}
	var refused error
	for i := 0; refused == nil; i++ {
		if i > 100 {
			t.Fatal("a hundred containers started in the minority, and no end")
		}
		began := time.Now()
		b, err := start(t.Context(), few[0], fmt.Sprintf("few-%d", i), "few")
		if err == nil {
			extra = append(extra, b)
			continue
		}
		refused = err
		extra = append(extra, &box{host: few[0], name: fmt.Sprintf("few-%d", i)})
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("the refusal took %s, want 10 s and what docker itself needs", took)
		}
	}
	t.Logf("%d containers started in the minority, then: %v", len(extra)-1, refused)
	if len(extra) < 3 {
		t.Errorf("only %d containers started from the addresses at hand", len(extra)-1)
	}
	if !strings.Contains(refused.Error(), "voters reachable") {
		t.Errorf("refused with %q, want it to say how many voters are in reach", refused)
	}
	for _, h := range many {
		if b, err := start(t.Context(), h, "few-"+h.Name+"-more", "few"); err != nil {
			t.Errorf("majority: %v", err)
		} else {
			extra = append(extra, b)
		}
	}
	if _, err := createNetwork(t.Context(), many[0], "fewer", "--subnet", "10.62.0.0/24"); err != nil {
		t.Errorf("majority: %v", err)
	} else {
		s.removeNetwork(t, "fewer", many[0])
	}
	out, err := stream.wait(60 * time.Second)
	var f flow
	if err == nil {
		err = decode(out, &f)
	}
	if err != nil || f.Lost != 0 || f.Sent < 500 {
		t.Errorf("traffic inside the minority: %+v, %v", f, err)
	}
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 30*time.Second, func() error {
		b, err := start(t.Context(), few[0], "few-healed", "few")
		if err != nil {
			few[0].Docker(t.Context(), "rm", "-f", "few-healed")
			return err
		}
		extra = append(extra, b)
		return nil
	})
	t.Logf("the next container started %s after the cut ended", took.Round(10*time.Millisecond))
	if bad := twice(t.Context(), s.Hosts(), "few"); len(bad) > 0 {
		t.Errorf("after healing: %v", bad)
	}
	eventually(t, 30*time.Second, func() error {
		for from, to := range map[*box]*box{boxes[0]: boxes[1], boxes[1]: boxes[2], boxes[2]: boxes[3], boxes[3]: boxes[4], boxes[4]: boxes[0]} {
			if _, err := from.exec(t.Context(), "ping", "-c", "1", "-W", "1", to.ip4); err != nil {
				return err
			}
		}
		return nil
	})
}

// clients are the hosts that are no voters.
func clients(t *testing.T, s *site) []*lab.Host {
	t.Helper()
	names, err := voterNames(t.Context(), s.Host(1))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(s.Hosts(), func(h *lab.Host) bool { return slices.Contains(names, h.Name) })
}

func hostNamed(s *site, name string) *lab.Host {
	for _, h := range s.Hosts() {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// powerCycle: all hosts lose power at once, and none of them reaches another
// when they are back. Containers marked so return, those with --ip under it,
// before any quorum exists.
func powerCycle(t *testing.T, s *site) {
	s.createNetwork(t, "power", []string{"--subnet", "10.63.0.0/24"})
	boxes := s.oneOnEach(t, "power", "--restart=always")
	fixed := make([]*box, len(s.Hosts()))
	each(t, s.Hosts(), func(h *lab.Host) (err error) {
		fixed[h.Index-1], err = start(t.Context(), h, "power-fixed-"+h.Name, "power", "--restart=always", "--ip", fmt.Sprintf("10.63.0.%d", 200+h.Index))
		return err
	})
	each(t, s.Hosts(), func(h *lab.Host) error { return h.PowerOff(t.Context()) })
	for a := 1; a <= len(s.Hosts()); a++ {
		if err := s.Isolate(a); err != nil {
			t.Fatal(err)
		}
	}
	each(t, s.Hosts(), func(h *lab.Host) error { return h.Reboot(t.Context()) })
	back := func(all ...*box) {
		t.Helper()
		for _, b := range all {
			eventually(t, 60*time.Second, func() error {
				b.ip4 = ""
				if err := b.inspect(t.Context()); err != nil {
					return err
				}
				if b.ip4 == "" {
					return fmt.Errorf("%s is not up", b.name)
				}
				return nil
			})
		}
	}
	back(boxes...)
	back(fixed...)
	for i, b := range fixed {
		if want := fmt.Sprintf("10.63.0.%d", 201+i); b.ip4 != want {
			t.Errorf("%s came back with %s, want %s", b.name, b.ip4, want)
		}
	}
	for _, h := range s.Hosts() {
		if st, err := statusOf(t.Context(), h); err != nil || st.Ledger.Reachable {
			t.Errorf("%s, alone: %v, ledger %+v; want it out of reach", h.Name, err, st.Ledger)
		}
	}
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	if bad := twice(t.Context(), s.Hosts(), "power"); len(bad) > 0 {
		t.Error(bad)
	}
	eventually(t, 60*time.Second, func() error {
		for i, b := range boxes {
			if _, err := b.exec(t.Context(), "ping", "-c", "1", "-W", "1", fixed[(i+1)%len(fixed)].ip4); err != nil {
				return err
			}
		}
		return nil
	})
	removeBoxes(t, append(boxes, fixed...)...)
	s.removeNetwork(t, "power")
}

// cloned: the state of one host on another machine is refused there, and the
// original goes on, whichever of the two speaks first.
func cloned(t *testing.T, s *site) {
	free := clients(t, s)
	original, copied := free[0], free[1]
	first := run(t, original, "clone-original", "soak")
	must := lab.Must(t)
	keep := must(saveState(t.Context(), copied, "own"))
	image := must(saveState(t.Context(), original, "image"))
	// The clone speaks first: the original is off.
	if err := original.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := swapState(t.Context(), copied, func() error { return copyState(t.Context(), original, image, copied) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		st, err := statusOf(t.Context(), copied)
		if err == nil && !strings.Contains(st.Ledger.Error, "was copied from there") {
			err = fmt.Errorf("the clone does not say so: %+v", st)
		}
		return err
	})
	if _, err := start(t.Context(), copied, "clone-box", "soak"); err == nil {
		t.Error("a container started on the clone")
	} else if !strings.Contains(err.Error(), "was copied from there") {
		t.Errorf("the start on the clone fails with %v, want it to name the cause", err)
	}
	copied.Docker(t.Context(), "rm", "-f", "clone-box")
	if err := original.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	docker(t, original, "start", first.name)
	second := run(t, original, "clone-second", "soak")
	if bad := twice(t.Context(), s.Hosts(), "soak"); len(bad) > 0 {
		t.Error(bad)
	}
	if err := swapState(t.Context(), copied, func() error { return putState(t.Context(), copied, keep) }); err != nil {
		t.Fatal(err)
	}
	s.awaitMembers(t, len(s.Hosts()))
	third := run(t, copied, "clone-third", "soak")
	third.must(t, "ping", "-c", "1", "-W", "2", second.ip4)
	removeBoxes(t, first, second, third)
}

// removedHost: node rm, said twice and on two hosts, for a host that is off.
// Its addresses are free for others; when it comes back it is refused, and a
// reset makes it a new member.
func removedHost(t *testing.T, s *site) {
	gone := s.Host(5)
	lost := run(t, gone, "gone-box", "soak", "--restart=always", "--ip", "10.60.0.250")
	if err := gone.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for _, i := range []int{1, 2} {
		wait.Go(func() {
			if out, err := s.Host(i).Exec(t.Context(), "isthmus", "node", "rm", gone.Name); err != nil {
				t.Errorf("node rm on host%d: %v: %s", i, err, out)
			}
		})
	}
	wait.Wait()
	taken := run(t, s.Host(1), "gone-next", "soak", "--ip", lost.ip4)
	if err := gone.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, func() error {
		st, err := statusOf(t.Context(), gone)
		if err == nil && !strings.Contains(fmt.Sprint(st.Problems, st.Ledger.Error), "reset") {
			err = fmt.Errorf("the removed host does not say so: %+v", st)
		}
		return err
	})
	// The two holders of one address: only the one that is in the cluster is heard.
	watcher := run(t, s.Host(2), "gone-watcher", "soak")
	got := watcher.must(t, "box", "get", "http://"+lost.ip4+"/")
	if !strings.Contains(got, "gone-next") {
		t.Errorf("%s answers as %q, want gone-next", lost.ip4, got)
	}
	removeBoxes(t, lost)
	if err := rejoin(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	removeBoxes(t, taken, watcher)
}

// rejoin resets a host and gives it the network of the test again. It must have
// no containers on it.
func rejoin(ctx context.Context, h *lab.Host) error {
	if out, err := h.Exec(ctx, "isthmus", "reset", "--force"); err != nil {
		return fmt.Errorf("reset: %w: %s", err, out)
	}
	return recreate(ctx, h, "soak", soakSubnet)
}

// recreate removes a network of a host's engine, of which the plugin may know
// nothing any more, and creates it anew.
func recreate(ctx context.Context, h *lab.Host, name, subnet string) error {
	var removed error
	err := retry(90*time.Second, 500*time.Millisecond, func() error {
		removed = removeNetwork(h, name)
		_, err := createNetwork(ctx, h, name, "--subnet", subnet)
		return err
	})
	if err != nil {
		left, _ := h.Docker(ctx, "network", "inspect", "-f", "{{json .Containers}}", name)
		return fmt.Errorf("%w (%v: %s)", err, removed, left)
	}
	return nil
}

// leaves: a host that leaves gives everything back, and is missed by nobody.
func leaves(t *testing.T, s *site) {
	h := s.Host(5)
	b := run(t, h, "leave-box", "soak")
	if out, err := h.Exec(t.Context(), "isthmus", "leave"); err == nil {
		t.Errorf("leave with a running container succeeds: %s", out)
	}
	removeBoxes(t, b)
	s.removeNetwork(t, "soak", h)
	if out, err := h.Exec(t.Context(), "isthmus", "leave"); err != nil {
		t.Fatalf("leave: %v: %s", err, out)
	}
	eventually(t, 10*time.Second, func() error {
		pool, err := poolOf(t.Context(), s.Host(1), soakSubnet)
		for _, b := range pool.Blocks {
			if b.Host == h.Name {
				return fmt.Errorf("host5 left, and holds %s", b.Block)
			}
		}
		return err
	})
	docker(t, h, "plugin", "disable", "-f", driverName)
	docker(t, h, "plugin", "enable", driverName)
	eventually(t, 40*time.Second, func() error {
		_, err := createNetwork(t.Context(), h, "soak", "--subnet", soakSubnet)
		return err
	})
}

// backups: what the cluster agreed about can be written to a file that others
// cannot read, and is not put back while there is a cluster that knows better.
func backups(t *testing.T, s *site) {
	h := s.Host(2)
	must := lab.Must(t)
	must(h.Exec(t.Context(), "isthmus", "backup", "/var/tmp/registry.json"))
	if mode := strings.TrimSpace(must(h.Exec(t.Context(), "stat", "-c", "%a", "/var/tmp/registry.json"))); mode != "600" {
		t.Errorf("the backup has mode %s, want 600", mode)
	}
	text := must(h.Exec(t.Context(), "cat", "/var/tmp/registry.json"))
	if !strings.Contains(text, soakSubnet) || strings.Contains(text, clusterKey) {
		t.Errorf("the backup lacks the network, or has the key: %s", text)
	}
	if out, err := h.Exec(t.Context(), "isthmus", "restore", "/var/tmp/registry.json"); err == nil {
		t.Errorf("restored over a living cluster: %s", out)
	} else if !strings.Contains(err.Error(), "restore") {
		t.Errorf("restore over a living cluster: %v, want the reason", err)
	}
}

// recovers: two of three voters are gone for good. One survivor is told so, and
// the cluster goes on with all that was agreed.
func recovers(t *testing.T, s *site) {
	names, err := voterNames(t.Context(), s.Host(1))
	if err != nil {
		t.Fatal(err)
	}
	var lost, left []*lab.Host
	for _, h := range s.Hosts() {
		if slices.Contains(names[:2], h.Name) {
			lost = append(lost, h)
		} else {
			left = append(left, h)
		}
	}
	keep := run(t, left[0], "recover-keep", "soak")
	for _, h := range lost {
		if err := h.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := createNetwork(t.Context(), left[0], "late", "--subnet", "10.64.0.0/24"); err == nil {
		t.Error("a network was made without a quorum")
		s.removeNetwork(t, "late", left[0])
	} else if !strings.Contains(err.Error(), "voters reachable") {
		t.Errorf("without a quorum: %v, want it to say so", err)
	}
	if out, err := left[0].Exec(t.Context(), "isthmus", "recover"); err != nil {
		t.Fatalf("recover: %v: %s", err, out)
	}
	var more []*box
	eventually(t, 60*time.Second, func() error {
		_, err := createNetwork(t.Context(), left[1], "late", "--subnet", "10.64.0.0/24")
		return err
	})
	more = append(more, run(t, left[1], "recover-late", "late"), run(t, left[1], "recover-more", "soak"))
	more[1].must(t, "ping", "-c", "1", "-W", "2", keep.ip4)
	// Those that were lost come back after all: they follow, and share nothing.
	each(t, lost, func(h *lab.Host) error { return h.Reboot(t.Context()) })
	for _, h := range lost {
		eventually(t, 60*time.Second, func() error {
			b, err := start(t.Context(), h, "recover-"+h.Name, "soak")
			if err != nil {
				h.Docker(t.Context(), "rm", "-f", "recover-"+h.Name)
				return err
			}
			more = append(more, b)
			_, err = b.exec(t.Context(), "ping", "-c", "1", "-W", "2", keep.ip4)
			return err
		})
	}
	if bad := twice(t.Context(), s.Hosts(), "soak"); len(bad) > 0 {
		t.Error(bad)
	}
	removeBoxes(t, append(more, keep)...)
	s.removeNetwork(t, "late", left[1])
}
