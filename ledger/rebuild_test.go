package ledger

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

const pool = "10.1.0.0/16"

// holds checks that a host has exactly these leases in the copy of another.
func (n *node) holds(host *node, want ...cluster.Lease) {
	n.t.Helper()
	for _, l := range want {
		if got := n.Registry().Leases[l.ID]; !got.Equal(l) {
			n.t.Errorf("%s: lease %d is %+v, want %+v", n.name, l.ID, got, l)
		}
	}
	if got := n.Registry().LeasesOf(want[0].Pool, host.id()); len(got) != len(want) {
		n.t.Errorf("%s: %s holds %+v, want %+v", n.name, host.name, got, want)
	}
	if err := rules.Check(n.Registry()); err != nil {
		n.t.Error(err)
	}
}

// gen waits until a host is confirmed in a generation.
func (n *node) gen(gen uint64) *node {
	n.t.Helper()
	n.await("its copy is of the new generation, and confirmed", func() bool {
		return n.Registry().Gen == gen && n.Fresh() && n.Status().Error == ""
	})
	return n
}

// The disk of the only voter is set back, while the others are in reach.
func TestOnlyVoterSetBack(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	nodes[2].start(join[0]).fresh()
	for _, n := range nodes {
		n.must(attach(pool))
	}
	early := client.block(pool)
	founder.kill()
	old := founder.image()
	founder.start().fresh()
	client.fresh()
	late, other := client.block(pool), nodes[2].block(pool)
	founder.kill()
	founder.dir = old
	founder.start()
	for _, n := range nodes {
		n.gen(2)
	}
	for _, n := range nodes {
		last := founder.must(attach(pool)).Index
		n.await("it has all", func() bool { return n.Registry().Index >= last })
		n.holds(client, early, late)
		n.holds(nodes[2], other)
	}
	next := client.block(pool)
	if next.ID <= other.ID || next.Block.Overlaps(early.Block) || next.Block.Overlaps(late.Block) || next.Block.Overlaps(other.Block) {
		t.Errorf("%+v after %+v, %+v, %+v", next, early, late, other)
	}
}

// The disk of the only voter is set back, and it starts with nobody in reach:
// what it does then is kept as far as it can be when the others return.
func TestOnlyVoterSetBackAlone(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	founder.must(attach(pool))
	client.must(attach(pool))
	early := client.block(pool)
	founder.kill()
	old := founder.image()
	founder.start().fresh()
	client.fresh()
	late := []cluster.Lease{early}
	for range 10 {
		late = append(late, client.block(pool))
	}
	client.kill()
	founder.kill()

	founder.dir = old
	founder.start().fresh()
	if g := founder.Registry().Gen; g != 1 {
		t.Fatalf("generation %d", g)
	}
	doubtful := founder.block(pool) // the client has that block as well
	if !doubtful.Block.Overlaps(late[1].Block) {
		t.Fatalf("%+v and %+v", doubtful, late[1])
	}
	client.start(join[0]).gen(2)
	founder.gen(2)
	client.holds(client, late...)
	if got := client.Registry().LeasesOf(doubtful.Pool, founder.id()); len(got) != 0 {
		t.Errorf("the founder holds %+v", got)
	}
}

// As above, and its log has grown longer than the one that was lost. What the
// client was leased tells that it is another.
func TestOnlyVoterSetBackAndGrown(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	founder.must(attach(pool))
	client.must(attach(pool))
	early := client.block(pool)
	founder.kill()
	old := founder.image()
	founder.start().fresh()
	client.fresh()
	late := client.block(pool)
	client.kill()
	founder.kill()

	founder.dir = old
	founder.start().fresh()
	grown := []cluster.Lease{founder.block(pool)}
	for founder.Registry().Index < client.Registry().Index+10 {
		grown = append(grown, founder.block(pool))
	}
	client.start(join[0]).gen(2)
	founder.gen(2)
	client.holds(client, early) // another host was given the other block
	client.holds(founder, grown...)
	if !grown[0].Block.Overlaps(late.Block) {
		t.Errorf("%+v and %+v", grown[0], late)
	}
	if g := founder.Registry().Gen; g != 2 {
		t.Errorf("generation %d: the refused claim has the log rebuilt again", g)
	}
}

// The only voter is lost for good: another host goes on, and what the lost one
// was told last is not granted again.
func TestRecover(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 4)
	founder, client, other, away := nodes[0].start().fresh(), nodes[1].start(join[0]), nodes[2].start(join...), nodes[3].start(join...)
	for _, n := range nodes {
		n.fresh().must(attach(pool))
	}
	leases := map[*node]cluster.Lease{}
	for _, n := range nodes {
		leases[n] = n.block(pool)
	}
	if _, err := client.Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "host1 ("+founder.addr.String()+") serves it") {
		t.Errorf("recover while all is well: %v", err)
	}
	away.kill()
	founder.kill()
	client.await("it notices", func() bool { return !client.Status().Reachable })
	other.await("it notices", func() bool { return !other.Status().Reachable })

	report, err := client.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Gen != 2 || report.Cluster != client.ID() || len(report.Heard) != 2 || len(report.Fenced) != 2 || len(report.Refused) != 0 || report.Base == "" ||
		report.Fenced[0].Name != "host1" || report.Fenced[1].Name != "host4" {
		t.Errorf("report %+v", report)
	}
	client.gen(2)
	other.gen(2).must(attach(pool))
	if s := client.Status(); s.Role != Voter {
		t.Errorf("status %+v", s)
	}
	if h := client.Registry().Hosts[away.id()]; h.Session != 0 {
		t.Errorf("a host that was not heard has session %d", h.Session)
	}
	for _, n := range nodes {
		client.holds(n, leases[n])
	}
	// The old voter returns: its log is of the past.
	founder.start().gen(2)
	founder.await("it is a client", func() bool { return founder.Status().Role == Client && !hasLog(founder.cfg.Dir) })
	away.start(join...).gen(2)
	for _, n := range nodes {
		n.must(grant(pool))
	}
	if err := rules.Check(client.Registry()); err != nil {
		t.Error(err)
	}
}

// What the voter granted in its last moment is in no copy. The host that got
// it says so, at once or when it comes back.
func TestClaimsOutliveTheLog(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder, client, away := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh(), nodes[2].start(join[0]).fresh()
	for _, n := range nodes {
		n.must(attach(pool))
	}
	lease := client.block(pool)
	last := client.Registry().Index
	away.await("it has all", func() bool { return away.Registry().Index >= last })
	founder.kill()
	away.kill()
	claim := func(number uint64, block string) cluster.Claim {
		c := lease.Claim()
		c.Lease, c.Block = number, netip.MustParsePrefix(block)
		return c
	}
	lost, late, taken := claim(last+1, "10.1.1.0/29"), claim(last+2, "10.1.2.0/29"), claim(last+3, "10.1.1.0/28")
	client.kept[lost.Lease] = lost
	away.kept[late.Lease], away.kept[taken.Lease] = late, taken
	client.await("it notices", func() bool { return !client.Status().Reachable })
	if _, err := client.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	has := func(n *node, c cluster.Claim) bool {
		l, ok := client.Registry().Leases[c.Lease]
		return ok && l.Holder == n.id() && l.Block == c.Block
	}
	if !has(client, lost) {
		t.Errorf("leases %+v", client.Registry().Leases)
	}
	away.start(join...).gen(2)
	if !has(away, late) || has(away, taken) || !has(client, lost) {
		t.Errorf("leases %+v", client.Registry().Leases)
	}
}

func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	for _, n := range nodes[:2] {
		n.must(attach(pool))
	}
	lease := client.block(pool)
	founder.await("it has all", func() bool { return founder.Registry().Index >= client.Registry().Index })
	var file bytes.Buffer
	if err := founder.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(file.String(), "secret") {
		t.Error("the backup has a secret")
	}
	from := func() io.Reader { return bytes.NewReader(file.Bytes()) }
	if _, err := client.Restore(t.Context(), from()); err == nil || !strings.Contains(err.Error(), "the log is in reach") {
		t.Errorf("restore while all is well: %v", err)
	}
	late := client.block(pool)
	founder.kill()
	client.await("it notices", func() bool { return !client.Status().Reachable })
	// The client has seen more than the backup.
	if _, err := client.Restore(t.Context(), from()); err == nil || !strings.Contains(err.Error(), "the copy on host2 is newer") || !strings.Contains(err.Error(), "isthmus recover") {
		t.Errorf("restore over a newer copy: %v", err)
	}
	empty := nodes[2].start(join...)
	if _, err := empty.Restore(t.Context(), from()); err == nil || !strings.Contains(err.Error(), "the copy on host2 is newer") {
		t.Errorf("restore beside a newer copy: %v", err)
	}
	if err := empty.Backup(t.Context(), io.Discard); err == nil {
		t.Error("a host without a cluster has a backup")
	}
	client.kill()
	// Nobody is left: a new host takes the backup.
	report, err := empty.Restore(t.Context(), from())
	if err != nil {
		t.Fatal(err)
	}
	if report.Base != "the backup" || report.Gen != 2 || len(report.Heard) != 1 || len(report.Fenced) != 2 {
		t.Errorf("report %+v", report)
	}
	empty.gen(2).holds(client, lease)
	// The others return, with newer copies of the older generation.
	client.start(join[2]).gen(2)
	empty.holds(client, lease, late)
	founder.start(join[2]).gen(2).must(grant(pool))
	if founder.ID() != empty.ID() || founder.Status().Role != Client {
		t.Errorf("status %+v", founder.Status())
	}
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach(pool))
	var good bytes.Buffer
	if err := n.Backup(t.Context(), &good); err != nil {
		t.Fatal(err)
	}
	other := newNode(t, "host2").start()
	fresh := newNode(t, "host3").start(n.addr.String())
	fresh.await("it enters", fresh.Fresh)
	for _, tt := range []struct {
		name string
		on   *node
		file string
		says string
	}{
		{"garbage", other, "garbage", "it is not one"},
		{"cut short", other, good.String()[:good.Len()/2], "cut short"},
		{"later format", other, strings.Replace(good.String(), `"format": 1`, `"format": 2`, 1), "its format is 2"},
		{"changed", other, strings.Replace(good.String(), `10.1.0.0/16`, `10.2.0.0/16`, -1), "checksum"},
		{"other head", other, strings.Replace(good.String(), `"index": `, `"index": 1`, 1), "head"},
	} {
		_, err := tt.on.Restore(t.Context(), strings.NewReader(tt.file))
		if err == nil || !strings.Contains(err.Error(), "restore the registry: ") || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	other.fresh()
	if _, err := other.Restore(t.Context(), bytes.NewReader(good.Bytes())); err == nil || !strings.Contains(err.Error(), "this host belongs to cluster "+string(other.ID())) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := newNode(t, "host4").start().Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to no cluster") {
		t.Errorf("recover without a cluster: %v", err)
	}
}

// A copy is gone on from with the end of a voter's log, but not with one that
// went another way.
func TestHighest(t *testing.T) {
	log := func(commands ...cluster.Command) (*cluster.Registry, []entry) {
		r, all := rules.New(), []entry(nil)
		for i, c := range commands {
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			e := entry{uint64(i + 2), b}
			r, _ = step(r, e)
			all = append(all, e)
		}
		return r, all
	}
	n := newNode(t, "host1")
	hello := func(name string) cluster.Command {
		return cluster.Command{Host: n.id(), Hello: &cluster.Hello{PublicKey: n.key.Public().(ed25519.PublicKey), Name: name, Nonce: uint64(len(name))}}
	}
	found := cluster.Command{Host: n.id(), Found: &cluster.Found{Cluster: "c1"}}
	at := func(name string, commands ...cluster.Command) census {
		r, _ := log(commands...)
		return census{Host: cluster.Host{ID: cluster.HostID(name), Name: name}, Registry: r}
	}
	tail := func(c census, term uint64, commands ...cluster.Command) census {
		_, all := log(commands...)
		i := slices.IndexFunc(all, func(e entry) bool { return e.Index > c.Registry.Index })
		c.Tail, c.Term = all[max(i, 0):], term
		return c
	}
	for _, tt := range []struct {
		name  string
		all   []census
		index uint64
		whose string
	}{
		{"the newest copy", []census{at("a", found), at("b", found, hello("x")), at("c", found)}, 3, "b"},
		{"its own end", []census{tail(at("a", found), 1, found, hello("x"), hello("xx")), at("b", found)}, 4, "a"},
		{"the end of another's log", []census{tail(at("a", found), 1, found, hello("x"), hello("xx")), at("b", found, hello("x"))}, 4, "b and the log of a"},
		{"a log that went another way", []census{tail(at("a", found), 1, found, hello("y"), hello("yy"), hello("yyy")), at("b", found, hello("xx"))}, 3, "b"},
		{"a log that is behind", []census{tail(at("a", found), 1, found, hello("x")), at("b", found, hello("x"), hello("xx"))}, 4, "b"},
		{"of two ends that of the later term", []census{
			tail(at("a", found), 1, found, hello("x"), hello("xx"), hello("xxx")), tail(at("b", found), 2, found, hello("x")),
		}, 3, "a and the log of b"},
	} {
		got, whose := highest(tt.all)
		if got.Index != tt.index || whose != tt.whose {
			t.Errorf("%s: index %d of %s, want %d of %s", tt.name, got.Index, whose, tt.index, tt.whose)
		}
	}
}

// A voter's log holds an entry that was not committed when the others were
// lost. Whoever sent it may have been told that it was: it counts.
func TestRecoverKeepsTheEndOfTheLog(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach(pool))
	c := grant(pool)
	c.Host, c.Session, c.Request = n.id(), n.session, 1000
	lost := n.lateEntry(c)
	report, err := n.rebuild(t.Context(), rebuildOf{alone: true})
	if err != nil || report.Gen != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	n.gen(2)
	if got := n.Registry().LeasesOf(cluster.PoolKey{Prefix: netip.MustParsePrefix(pool)}, n.id()); len(got) != 1 || got[0].ID != lost {
		t.Errorf("leases %+v, want number %d", got, lost)
	}
}

// lateEntry appends a command to the log without committing it.
func (n *node) lateEntry(c cluster.Command) uint64 {
	n.t.Helper()
	s := n.local().store
	last, err := s.LastIndex()
	if err != nil {
		n.t.Fatal(err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := s.StoreLog(&raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand, Data: body}); err != nil {
		n.t.Fatal(err)
	}
	return last + 1
}

// A crash while the new log is put in its place leaves the old or the new one.
func TestGenesisIsWhole(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach(pool))
	n.kill()
	dir := n.cfg.Dir
	found := cluster.Command{Host: n.id(), Found: &cluster.Found{Cluster: "00000000c0ffee00"}}
	// Before it was complete.
	if err := writeGenesis(dir+partSuffix, n.id(), 1, &found); err != nil {
		t.Fatal(err)
	}
	n.start().fresh().kill()
	// After.
	next, _ := renew(n.Registry(), []census{{Host: n.Registry().Hosts[n.id()], Registry: n.Registry()}})
	if err := writeGenesis(dir+nextSuffix, n.id(), 2, &cluster.Command{Host: n.id(), Rebuild: &cluster.Rebuild{Registry: next}}); err != nil {
		t.Fatal(err)
	}
	n.start().gen(2).must(grant(pool))
}
