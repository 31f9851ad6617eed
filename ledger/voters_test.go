package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/council"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// hasty is how patient voters are in tests.
var hasty = Timing{Election: 300 * time.Millisecond, Position: 100 * time.Millisecond, Stable: 300 * time.Millisecond, Replace: 2 * time.Second}

// startHasty runs the host with voters in a hurry.
func (n *node) startHasty(join ...string) *node {
	n.t.Helper()
	return n.startWith(func(c *Config) { c.Join, c.Timing = join, hasty })
}

// voters lists who votes, as this host knows.
func (n *node) voting() (names []string) {
	for _, v := range n.Status().Voters {
		if v.Suffrage == Voting {
			names = append(names, v.Name)
		}
	}
	return names
}

// awaitVoters waits until the hosts agree on so many voters, all of them well,
// and returns who leads.
func awaitVoters(t *testing.T, nodes []*node, count int) *node {
	t.Helper()
	for _, n := range nodes {
		n.await(fmt.Sprintf("there are %d voters", count), func() bool {
			s := n.Status()
			return s.Reachable && len(s.Voters) == count && s.Quorum == Quorum{count, count/2 + 1, count} && s.Leader != ""
		})
	}
	return leaderOf(t, nodes)
}

// leaderOf waits until one of the hosts leads.
func leaderOf(t *testing.T, nodes []*node) (lead *node) {
	t.Helper()
	nodes[0].await("it knows who leads", func() bool {
		for _, n := range nodes {
			if n.id() == nodes[0].Status().Leader && n.leads() {
				lead = n
			}
		}
		return lead != nil
	})
	return lead
}

func others(nodes []*node, not ...*node) (out []*node) {
	for _, n := range nodes {
		keep := true
		for _, other := range not {
			keep = keep && n != other
		}
		if keep {
			out = append(out, n)
		}
	}
	return out
}

// trio makes a cluster of so many hosts, with its voters.
func assemble(t *testing.T, hostCount int) []*node {
	t.Helper()
	nodes, join := hosts(t, hostCount)
	for _, n := range nodes {
		n.startHasty(join...)
	}
	for _, n := range nodes {
		n.fresh()
	}
	awaitVoters(t, nodes, council.Seats(hostCount))
	return nodes
}

func TestThreeVoters(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	for _, n := range nodes {
		n.must(attach("10.1.0.0/16"))
		if s := n.Status(); s.Role != Voter || s.Error != "" {
			t.Errorf("%s: %+v", n.name, s)
		}
	}
	// Two hosts want one voter; and no host is asked twice.
	for _, n := range nodes[1:] {
		n.must(grant("10.1.0.0/16"))
	}
}

func TestLeaderDies(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	nodes[0].must(attach("10.1.0.0/16"))
	var leases []cluster.Lease
	for range 2 {
		lead := leaderOf(t, nodes)
		rest := others(nodes, lead)
		lead.crash()
		began := time.Now()
		for _, n := range rest {
			leases = append(leases, n.must(grant("10.1.0.0/16")).Lease)
		}
		t.Logf("two grants %v after the leader died", time.Since(began))
		lead.startHasty(nodes[0].addr.String(), nodes[1].addr.String())
		lead.fresh()
		awaitVoters(t, nodes, 3)
	}
	for _, n := range nodes {
		n.must(attach("10.1.0.0/16"))
		for _, l := range leases {
			if !n.Registry().Leases[l.ID].Equal(l) {
				t.Errorf("%s: lease %d is %+v, granted was %+v", n.name, l.ID, n.Registry().Leases[l.ID], l)
			}
		}
	}
}

// crash ends a host without a farewell: nothing it holds is given back.
func (n *node) crash() {
	n.t.Helper()
	if r := n.local(); r != nil {
		r.ready.Store(false) // it hands nothing over
	}
	n.kill()
}

// A planned stop of the leader hands over first.
func TestLeaderStops(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	lead := leaderOf(t, nodes)
	rest := others(nodes, lead)
	lead.kill()
	began := time.Now()
	rest[0].must(attach("10.1.0.0/16"))
	t.Logf("a pool %v after the leader stopped", time.Since(began))
}

func TestQuorumLost(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	lead := leaderOf(t, nodes)
	rest := others(nodes, lead)
	for _, n := range rest {
		n.crash()
	}
	began := time.Now()
	_, err := lead.Propose(t.Context(), attach("10.1.0.0/16"))
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
	var away *Unreachable
	if !errors.As(err, &away) || len(away.Missing) != 2 {
		t.Fatalf("without a quorum: %v", err)
	}
	for _, words := range []string{"control quorum unavailable: 1/3 voters reachable (", rest[0].name + " " + rest[0].addr.String(), rest[1].name + " " + rest[1].addr.String(), " missing)", "until one of them returns"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q does not say %q", err, words)
		}
	}
	if s := lead.Status(); s.Reachable || s.Quorum != (Quorum{3, 2, 1}) || s.Error == "" {
		t.Errorf("status %+v", s)
	}
	rest[0].startHasty(lead.addr.String()).fresh()
	lead.must(attach("10.1.0.0/16"))
}

// Seven hosts have five voters; one that stays away is replaced, one that
// returns in time is not; one that is forgotten goes at once.
func TestVotersAreReplaced(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 4)
	lead := leaderOf(t, nodes)
	var out, spare *node
	for _, n := range nodes {
		switch {
		case n.Status().Role == Client:
			spare = n
		case n != lead:
			out = n
		}
	}
	out.crash()
	rest := others(nodes, out)
	spare.await("it is a voter", func() bool { return spare.Status().Role == Voter })
	awaitVoters(t, rest, 3)
	// It comes back to a cluster that has no seat for four: who has none is a
	// client, and its log is gone.
	out.startHasty(lead.addr.String()).fresh()
	out.await("one of four is a client", func() bool {
		clients := 0
		for _, n := range nodes {
			if s := n.Status(); s.Role == Client && s.Reachable && !hasLog(n.cfg.Dir) {
				clients++
			}
		}
		return clients == 1
	})
	lead = awaitVoters(t, nodes, 3)
	out.must(attach("10.1.0.0/16"))
	var victim *node
	for _, n := range others(nodes, lead) {
		if n.Status().Role == Voter {
			victim = n
		}
	}
	lead.must(cluster.Command{Forget: &cluster.Forget{Host: victim.id()}})
	left := others(nodes, victim)
	for _, n := range left {
		n.await("the forgotten host has no vote", func() bool {
			for _, v := range n.Status().Voters {
				if v.Host == victim.id() {
					return false
				}
			}
			return len(n.voting()) == 3
		})
	}
}

// Hosts come and go until one voter is enough again.
func TestVotersShrink(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	lead := leaderOf(t, nodes)
	gone := others(nodes, lead)[0]
	gone.crash()
	lead.must(cluster.Command{Forget: &cluster.Forget{Host: gone.id()}})
	rest := others(nodes, gone)
	lead = awaitVoters(t, rest, 1)
	client := others(rest, lead)[0]
	client.await("it is a client", func() bool { return client.Status().Role == Client })
	client.must(attach("10.1.0.0/16"))
	lead.kill()
	lead.startHasty().fresh().must(attach("10.1.0.0/16"))
}

// The leader is forgotten by another host: it hands over, and is taken out.
func TestLeaderIsForgotten(t *testing.T) {
	t.Parallel()
	for _, count := range []int{2, 3} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			t.Parallel()
			nodes := assemble(t, count)
			lead := leaderOf(t, nodes)
			rest := others(nodes, lead)
			rest[0].must(cluster.Command{Forget: &cluster.Forget{Host: lead.id()}})
			heir := awaitVoters(t, rest, 1)
			heir.must(attach("10.1.0.0/16"))
		})
	}
}

// The directory of a voter's log is set back by a copy of its files. The other
// voters know better: it takes part anew, and nothing is lost.
func TestVoterIsSetBack(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	nodes[0].must(attach("10.1.0.0/16"))
	victim := others(nodes, leaderOf(t, nodes))[0]
	was := victim.server()
	victim.kill()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(victim.dir)); err != nil {
		t.Fatal(err)
	}
	join := nodes[0].addr.String()
	victim.startHasty(join).fresh()
	awaitVoters(t, nodes, 3)
	var leases []cluster.Lease
	for range 5 {
		leases = append(leases, victim.must(grant("10.1.0.0/16")).Lease)
	}
	for _, n := range nodes { // they have heard where its log is
		n.await("it has heard the victim", func() bool {
			p, _ := n.witness.of(was)
			return n == victim || p.Now.Index >= leases[4].ID
		})
	}
	victim.kill()
	if err := os.RemoveAll(filepath.Join(victim.dir, "raft")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(victim.dir, "raft"), os.DirFS(filepath.Join(old, "raft"))); err != nil {
		t.Fatal(err)
	}
	victim.startHasty(join).fresh()
	victim.await("it has another server", func() bool { return victim.server() != "" && victim.server() != was })
	lead := awaitVoters(t, nodes, 3)
	for _, v := range lead.Status().Voters {
		if v.ID == was {
			t.Errorf("its old server is still there: %+v", v)
		}
	}
	for _, n := range nodes {
		last := n.must(attach("10.1.0.0/16"))
		if n.Registry().Index < last.Index {
			t.Error("the copy lags")
		}
		for _, l := range leases {
			if !n.Registry().Leases[l.ID].Equal(l) {
				t.Errorf("%s: lease %d is %+v", n.name, l.ID, n.Registry().Leases[l.ID])
			}
		}
		if err := rules.Check(n.Registry()); err != nil {
			t.Error(err)
		}
	}
}

// A client that was set back claims a block that it gave back since. That is no
// reason to take the log of three voters for one that was set back.
func TestClientThatWasSetBackFollows(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 4)
	awaitVoters(t, nodes, 3)
	client := nodes[slices.IndexFunc(nodes, func(n *node) bool { return n.server() == "" })]
	client.must(attach("10.1.0.0/16"))
	lease := client.block("10.1.0.0/16")
	client.must(cluster.Command{Release: &cluster.Release{Lease: lease.ID}})
	client.kill()
	db, err := bolt.Open(filepath.Join(client.dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Delete(registryKey) }) // it is sent a whole copy
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	client.startHasty(others(nodes, client)[0].addr.String()).fresh()
}

// The copy of a voter brings its log to another machine, while the original is
// off. It does not vote: the original would be the one that lacks what it took in.
func TestCloneOfAVoter(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	on := func(n *node, machine string) *node {
		return n.startWith(func(c *Config) {
			c.Join, c.Timing, c.Self.Machine = join, hasty, cluster.Machine{ID: machine}
		})
	}
	for _, n := range nodes {
		on(n, n.name)
	}
	for _, n := range nodes {
		n.fresh()
	}
	awaitVoters(t, nodes, 3)
	nodes[0].must(attach("10.1.0.0/16"))
	victim := others(nodes, leaderOf(t, nodes))[0]
	was := victim.server()
	victim.kill()
	rest := others(nodes, victim)
	clone := &node{t: t, name: victim.name, dir: victim.image(), key: victim.key, addr: nextAddr()}
	t.Cleanup(clone.kill)
	for _, n := range rest {
		n.UpdateAddresses(map[cluster.HostID]netip.AddrPort{clone.id(): clone.addr}) // gossip hears the copy
	}
	on(clone, "copy").await("it is refused", func() bool { return clone.Status().Refused == cluster.Clone })
	rest[0].must(attach("10.2.0.0/16"))
	for range 5 {
		rest[0].must(grant("10.2.0.0/16"))
	}
	if s := clone.Status(); clone.server() != "" || !strings.Contains(s.Error, "isthmus reset") {
		t.Errorf("the copy votes as server %q: %+v", clone.server(), s)
	}
	clone.kill()
	for _, n := range rest {
		n.UpdateAddresses(map[cluster.HostID]netip.AddrPort{victim.id(): victim.addr})
	}
	on(victim, victim.name).fresh()
	awaitVoters(t, nodes, 3)
	if got := victim.server(); got != was {
		t.Errorf("the original is server %q, and was %q", got, was)
	}
}

// A voter gets another address: the others find it where gossip hears it.
func TestVoterGetsAnotherAddress(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	mover := others(nodes, leaderOf(t, nodes))[0]
	mover.kill()
	mover.addr = nextAddr()
	mover.startHasty()
	for _, n := range nodes {
		n.UpdateAddresses(map[cluster.HostID]netip.AddrPort{mover.id(): mover.addr})
	}
	mover.fresh()
	awaitVoters(t, nodes, 3)
	// It is needed now.
	lead := leaderOf(t, nodes)
	if lead == mover {
		lead = others(nodes, mover)[0]
	}
	lead.crash()
	rest := others(nodes, lead)
	rest[0].must(attach("10.1.0.0/16"))
	rest[0].await("the one that moved is said to be where it is", func() bool {
		return slices.ContainsFunc(rest[0].Status().Voters, func(v Server) bool { return v.Host == mover.id() && v.Address == mover.addr })
	})
}

func TestSync(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 4)
	for i := range 10 {
		writer, reader := nodes[i%4], nodes[(i+1)%4]
		res := writer.must(attach(fmt.Sprintf("10.%d.0.0/16", i+1)))
		if err := reader.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if at := reader.Registry().Index; at < res.Index {
			t.Errorf("the copy is at %d after Sync, %d was agreed before", at, res.Index)
		}
	}
}
