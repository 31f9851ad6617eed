package ledger

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
)

// image copies the state of a host that does not run.
func (n *node) image() string {
	n.t.Helper()
	dir := n.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(n.dir)); err != nil {
		n.t.Fatal(err)
	}
	return dir
}

// loseCopy takes the copy of the registry from the disk, as if it had not been
// written yet.
func (n *node) loseCopy() {
	n.t.Helper()
	db, err := bolt.Open(filepath.Join(n.dir, "state.db"), 0o600, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Delete(registryKey) })
	if err := errors.Join(err, db.Close()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) on(m cluster.Machine, join ...string) *node {
	n.t.Helper()
	return n.startWith(func(c *Config) { c.Join, c.Self.Machine = join, m })
}

func TestBootAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start()
	if b := n.Boot(); !b.Settled || b.Suspect != "" {
		t.Errorf("first start: %+v", b)
	}
	n.fresh().kill()
	n.start()
	if b := n.Boot(); !b.Settled || b.Suspect != "" {
		t.Errorf("second start: %+v", b)
	}
	n.fresh().kill()
	n.startWith(func(c *Config) { c.Strict = true })
	if b := n.Boot(); !strings.Contains(b.Suspect, "STRICT_BOOT") {
		t.Errorf("strict start: %+v", b)
	}
	n.fresh()
	if b := n.Boot(); !b.Settled || b.Suspect != "" {
		t.Errorf("after the cluster confirmed it: %+v", b)
	}
}

func TestBootIsSettledThoughNobodyAnswers(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	nodes[1].start(join[0]).fresh()
	nodes[0].kill()
	nodes[1].kill()
	// Somebody takes the questions and does not answer.
	silence(t, nodes[0].addr)
	began := time.Now()
	n := nodes[1].start(join[0])
	if n.Boot().Settled {
		t.Error("settled before anybody was asked")
	}
	n.await("it is settled", func() bool { return n.Boot().Settled })
	if d := time.Since(began); d < bootTime || d > 3*bootTime {
		t.Errorf("settled after %v", d)
	}
	if b := n.Boot(); b.Suspect != "" || b.Witness.Gen != 0 {
		t.Errorf("%+v", b)
	}
}

// The disk of a host is set back while the voter is away; a third host knows
// better.
func TestBootOfAnOldDisk(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder, host := nodes[0], nodes[1]
	founder.start().fresh()
	nodes[2].start(join[0]).fresh()
	host.start(join[0]).fresh().must(attach("10.1.0.0/16"))
	lost := host.must(grant("10.1.0.0/16")).Lease
	host.kill()
	old := host.image()
	host.start(join[0]).fresh()
	// What was there is given up; the old disk does not know.
	host.must(cluster.Command{Release: &cluster.Release{Lease: lost.ID}})
	kept := host.must(grant("10.1.0.0/16")).Lease
	nodes[2].await("it has all", func() bool { return nodes[2].Registry().Index >= host.Registry().Index })
	host.kill()
	founder.kill()

	// The disk as it is: nobody doubts it.
	host.start(join[0]).await("a witness speaks", func() bool { return host.Boot().Witness.Gen != 0 && host.Boot().Settled })
	if b := host.Boot(); b.Suspect != "" || host.Fresh() {
		t.Errorf("an honest disk: %+v", b)
	}
	host.kill()

	host.dir = old
	host.start(join[0]).await("it doubts its disk", func() bool { return strings.Contains(host.Boot().Suspect, "the disk was set back") })
	b := host.Boot()
	if !strings.Contains(b.Suspect, "host3 knows session") || b.Witness.Host.ID != host.id() || len(b.Witness.Leases) != 1 || !b.Witness.Leases[0].Equal(kept) {
		t.Errorf("%+v", b)
	}
	founder.start()
	host.await("it is confirmed", host.Fresh)
	if b := host.Boot(); b.Suspect != "" || !b.Settled {
		t.Errorf("confirmed: %+v", b)
	}
}

func TestBootOnAnotherMachine(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	was := cluster.Machine{ID: "m1", UUID: "u1", MAC: "02:00:00:00:00:01"}
	nodes[0].start().fresh()
	host := nodes[1].on(was, join[0]).fresh()
	host.kill()
	for _, tt := range []struct {
		is   cluster.Machine
		says string
	}{
		{was, ""},
		{cluster.Machine{}, ""},
		{cluster.Machine{ID: "m2", UUID: "u1"}, "machine id is m2, and was m1"},
		{cluster.Machine{ID: "m1", UUID: "u2"}, "product UUID is u2"},
		{cluster.Machine{ID: "m1", UUID: "u1", MAC: "02:00:00:00:00:02"}, "MAC address is 02:00:00:00:00:02"},
	} {
		if got := otherMachine(was, tt.is); !strings.Contains(got, tt.says) || (got == "") != (tt.says == "") {
			t.Errorf("%+v: %q", tt.is, got)
		}
	}
	nodes[0].kill()
	host.on(cluster.Machine{ID: "m2"}, join[0])
	if b := host.Boot(); !strings.Contains(b.Suspect, "copy of the host on another machine") {
		t.Errorf("%+v", b)
	}
}

// A copy of a host's state runs on another machine, and speaks while the
// original is down. It gets nothing, and the original loses nothing.
func TestCloneSpeaksFirst(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	here, there := cluster.Machine{ID: "m1", UUID: "u1"}, cluster.Machine{ID: "m2", UUID: "u2"}
	host := nodes[1].on(here, join[0]).fresh()
	host.must(attach("10.1.0.0/16"))
	lease := host.must(grant("10.1.0.0/16")).Lease
	session := host.Registry().Hosts[host.id()].Session
	host.kill()
	clone := &node{t: t, name: host.name, dir: host.image(), key: host.key, addr: nextAddr()}
	t.Cleanup(clone.kill)
	clone.on(there, join[0])
	clone.await("it is refused", func() bool { return clone.Status().Refused == cluster.Clone })
	if s := clone.Status(); !strings.Contains(s.Error, "isthmus reset") || clone.Fresh() || clone.Boot().Suspect == "" {
		t.Errorf("status %+v, boot %+v", s, clone.Boot())
	}
	if at := nodes[0].Registry().Hosts[host.id()]; at.Session != session || at.Address != host.addr {
		t.Errorf("the original is registered as %+v", at)
	}
	host.on(here, join[0]).fresh()
	if got := host.Registry().Leases[lease.ID]; !got.Equal(lease) || host.Boot().Suspect != "" {
		t.Errorf("the original has %+v, boot %+v", got, host.Boot())
	}
	host.must(grant("10.1.0.0/16"))
}

// A copy that cannot be told from the original by its machine is refused while
// the original runs.
func TestCloneOfARunningHost(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	for _, host := range nodes {
		host.start(join[0]).fresh().must(attach("10.1.0.0/16"))
	}
	for i, host := range nodes {
		host.kill()
		dir := host.image()
		host.start(join[0]).fresh()
		nodes[1-i].fresh()
		session := host.Registry().Hosts[host.id()].Session
		clone := &node{t: t, name: host.name, dir: dir, key: host.key, addr: nextAddr()}
		t.Cleanup(clone.kill)
		if i == 0 {
			// The copy of a voter brings a log of its own; without it, it is a client.
			if err := wipeLog(clone.dir + "/raft"); err != nil {
				t.Fatal(err)
			}
		}
		clone.start(join[0]).await("it is refused", func() bool { return clone.Status().Refused == cluster.Clone })
		if s := clone.Status(); !strings.Contains(s.Error, "runs already at "+host.addr.String()) {
			t.Errorf("status %+v", s)
		}
		clone.kill()
		if at := host.Registry().Hosts[host.id()].Session; at != session || !host.Fresh() || host.Status().Refused != "" {
			t.Errorf("%s: session %d, was %d; %+v", host.name, at, session, host.Status())
		}
		host.must(grant("10.1.0.0/16"))
	}
	if ids := slices.Collect(maps.Keys(nodes[0].Registry().Hosts)); len(ids) != 2 {
		t.Errorf("hosts %v", ids)
	}
}

// A copy of the only voter brings its log. It serves nobody: not on another
// machine, and not while the original runs, however much newer that is.
func TestCloneOfTheOnlyVoter(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	here := cluster.Machine{ID: "m1"}
	founder, client := nodes[0].on(here).fresh(), nodes[1].start(join[0]).fresh()
	for _, n := range nodes {
		n.must(attach(pool))
	}
	founder.kill()
	clone := &node{t: t, name: founder.name, dir: founder.image(), key: founder.key, addr: nextAddr()}
	t.Cleanup(clone.kill)
	// While the original is down, on another machine.
	clone.on(cluster.Machine{ID: "m2"}).await("it is refused", func() bool { return clone.Status().Refused == cluster.Clone })
	if s := clone.Status(); s.Reachable || !strings.Contains(s.Error, "isthmus reset") {
		t.Errorf("status %+v", s)
	}
	clone.kill()
	founder.on(here).fresh()
	client.fresh()
	for range 5 {
		client.block(pool)
	}
	// While the original runs, on a machine that looks the same.
	clone.on(here, join[1]).await("it is refused", func() bool { return clone.Status().Refused == cluster.Clone })
	if s := clone.Status(); s.Reachable || !strings.Contains(s.Error, "runs already at "+founder.addr.String()) {
		t.Errorf("status %+v", s)
	}
	if _, err := clone.Recover(t.Context()); err == nil {
		t.Error("the copy recovered the log")
	}
	client.block(pool)
	if g := client.Registry().Gen; g != 1 || !founder.Fresh() || founder.Status().Error != "" {
		t.Errorf("generation %d; %+v", g, founder.Status())
	}
}

// TestMachineIsStoredWithTheSession: the copy of the registry is written some
// time after the Hello; that the machine is another shows without it.
func TestMachineIsStoredWithTheSession(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").on(cluster.Machine{ID: "m1"}).fresh()
	n.await("the session is stored", func() bool {
		n.Ledger.mu.Lock() // n.mu is the node's own
		defer n.Ledger.mu.Unlock()
		return n.stands.Session != 0
	})
	n.kill()
	n.loseCopy()
	n.on(cluster.Machine{ID: "m2"})
	if b := n.Boot(); !strings.Contains(b.Suspect, "machine id") {
		t.Errorf("on another machine: %+v", b)
	}
}

// TestRemovedHostConfirms: a host that was taken out has no session any more,
// and says all the same that it stopped. What it knows by then survives a crash.
func TestRemovedHostConfirms(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	host := nodes[1].start(join[0]).fresh()
	if _, err := host.Propose(t.Context(), cluster.Command{Confirm: &cluster.Confirm{}}); err == nil || !strings.Contains(err.Error(), "isthmus leave") {
		t.Errorf("a member confirmed: %v", err)
	}
	nodes[0].must(cluster.Command{Forget: &cluster.Forget{Host: host.id()}})
	host.await("it hears of it", func() bool { return host.Status().Refused == cluster.Forgotten })
	if _, err := host.Propose(t.Context(), cluster.Command{Confirm: &cluster.Confirm{}}); err != nil {
		t.Errorf("confirm: %v", err)
	}
	host.kill()
	nodes[0].kill()
	host.loseCopy()
	host.start()
	if b, s := host.Boot(), host.Status(); !strings.Contains(b.Suspect, "isthmus reset") || s.Refused != cluster.Forgotten || !strings.Contains(s.Error, "isthmus reset") {
		t.Errorf("after a crash, with nobody in reach: %+v, %+v", b, s)
	}
}
