package gossip

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/isthmus-net/isthmus/cluster"
	"pgregory.net/rapid"
)

// identities are the keys of test hosts, and hostIDs their names.
var (
	identities [256]ed25519.PrivateKey
	hostIDs    [256]cluster.HostID
)

func init() {
	for n := range identities {
		identities[n] = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(n)}, ed25519.SeedSize))
		hostIDs[n] = cluster.HostIDOf(identities[n].Public().(ed25519.PublicKey))
	}
}

func identity(n int) ed25519.PrivateKey { return identities[n] }
func hostID(n int) cluster.HostID       { return hostIDs[n] }

func record(network uint32, n int) cluster.Record {
	return cluster.Record{
		Network:  network,
		Endpoint: cluster.EndpointIDOf(fmt.Sprintf("%032x", n+1)),
		MAC:      cluster.MAC{2, 0, 0, 0, byte(n >> 8), byte(n)},
		IPv4:     netip.AddrFrom4([4]byte{10, 32, byte(n >> 8), byte(n)}),
		Lease4:   uint64(n),
		Name:     fmt.Sprintf("web-%d", n),
	}
}

func recordsOf(network uint32, from, to int) []cluster.Record {
	var out []cluster.Record
	for n := from; n < to; n++ {
		out = append(out, record(network, n))
	}
	return out
}

// say makes entries of texts.
func say(texts ...string) []entry {
	var list []entry
	for _, s := range texts {
		list = append(list, entry{"r" + s, "value of " + s})
	}
	return sorted(list)
}

// contents prints a table: what two tables that agree have in common.
func contents(t *table) map[cluster.HostID]string {
	out := map[cluster.HostID]string{}
	for owner, s := range t.streams {
		out[owner] = fmt.Sprint(s.epoch, s.seq, s.entries)
	}
	return out
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Helper()
	Fatal(...any)
}

// copyOf makes a table of another host hold the same streams, by snapshots.
func copyOf(tb fataler, self int, t *table) *table {
	tb.Helper()
	c := newTable(identity(self), 1)
	for owner := range t.streams {
		u, _ := t.since(summary{owner: owner})
		if _, err := c.merge(u); err != nil {
			tb.Fatal(err)
		}
	}
	return c
}

// exchangeOnce runs one exchange between two bare tables.
func exchangeOnce(tb fataler, a, b *table, budget int) (outcome, outcome) {
	tb.Helper()
	ca, cb := net.Pipe()
	sa := &session{ReadWriter: ca, replica: a, dice: newDice(1), budget: budget}
	sb := &session{ReadWriter: cb, replica: b, dice: newDice(2), budget: budget}
	done := make(chan error)
	go func() {
		done <- sb.answer()
		cb.Close()
	}()
	err := sa.call()
	ca.Close()
	if err := errors.Join(err, <-done); err != nil {
		tb.Fatal(err)
	}
	return sa.outcome, sb.outcome
}

var drawPrefix = rapid.Custom(func(t *rapid.T) netip.Prefix {
	n := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
	return netip.PrefixFrom(a, rapid.IntRange(0, 8*n).Draw(t, "bits")).Masked()
})

var drawRecord = rapid.Custom(func(t *rapid.T) cluster.Record {
	if rapid.Bool().Draw(t, "claim") {
		return cluster.Record{Claim: cluster.Claim{
			Lease: rapid.Uint64Min(1).Draw(t, "lease"),
			Pool:  cluster.PoolKey{Space: rapid.StringMatching(`[a-z]{0,64}`).Draw(t, "space"), Prefix: drawPrefix.Draw(t, "pool")},
			Block: drawPrefix.Draw(t, "block"), Without: rapid.Uint64().Draw(t, "without"),
		}}
	}
	r := cluster.Record{
		Network: rapid.Uint32().Draw(t, "network"),
		Lease4:  rapid.Uint64().Draw(t, "lease4"),
		Lease6:  rapid.Uint64().Draw(t, "lease6"),
		Name:    rapid.StringN(0, 40, 200).Draw(t, "name"),
	}
	copy(r.Endpoint[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "endpoint"))
	copy(r.MAC[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
	if rapid.Bool().Draw(t, "has4") {
		r.IPv4, _ = netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4"))
	}
	if rapid.Bool().Draw(t, "has6") {
		r.IPv6, _ = netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "v6"))
	}
	return r
})

func TestRecordsSurviveEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		info := cluster.HostInfo{Name: rapid.String().Draw(t, "host"), VTEP: netip.MustParseAddr("fd00::1"), MTU: 9000, Version: "1"}
		records := rapid.SliceOfNDistinct(drawRecord, 0, 8, cluster.Record.Key).Draw(t, "records")
		tab := newTable(identity(1), 7)
		tab.publish(entriesOf(info, records))
		u, _ := tab.since(summary{owner: hostID(1)})

		d := decoder{b: appendUpdate(nil, u)}
		got := newTable(identity(2), 1)
		if _, err := got.merge(d.update()); err != nil || d.failed || len(d.b) > 0 {
			t.Fatalf("merge: %v, failed %v, %d bytes left", err, d.failed, len(d.b))
		}
		want := cluster.Stream{Owner: hostID(1), Epoch: 7, Seq: 1, Info: info, Records: map[cluster.RecordKey]cluster.Record{}}
		for _, r := range records {
			want.Records[r.Key()] = r
		}
		if diff := cmp.Diff(want, got.streams[hostID(1)].view, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestUnknownEntriesTravelOn(t *testing.T) {
	a := newTable(identity(1), 1)
	entries := entriesOf(cluster.HostInfo{Name: "a"}, recordsOf(1, 0, 1))
	for i := range entries {
		if entries[i].key[0] == recordKind {
			entries[i].value += "a field of the next version"
		}
	}
	a.publish(append(entries, entry{"z of the next version", "anything"}))
	c := copyOf(t, 3, copyOf(t, 2, a))
	if diff := cmp.Diff(contents(a), contents(c)); diff != "" {
		t.Fatal(diff)
	}
	if r := record(1, 0); c.streams[hostID(1)].view.Records[r.Key()] != r {
		t.Fatalf("record with an unknown field: got %v", c.streams[hostID(1)].view.Records)
	}
}

// drawHistory lets one owner publish a few times, over several runs, and
// returns all updates that anybody might see, and the owner's table.
func drawHistory(t *rapid.T) (updates []update, owner *table) {
	owner = newTable(identity(1), 1)
	id := hostID(1)
	var versions []summary
	for range rapid.IntRange(1, 8).Draw(t, "versions") {
		if rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
			owner = newTable(identity(1), owner.epoch+1)
		}
		owner.publish(say(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 4).Draw(t, "set")...))
		versions = append(versions, owner.streams[id].summary(id))
		for _, have := range append(versions, summary{owner: id}) {
			if u, ok := owner.since(have); ok {
				updates = append(updates, u)
			}
		}
	}
	return updates, owner
}

// Whatever arrives, in any order and however often: a table never goes back,
// holds nothing that the owner did not publish, and after one exchange with
// the owner holds what the owner holds.
func TestMergeConvergesInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		updates, owner := drawHistory(t)
		id := hostID(1)
		signed := map[version][]entry{}
		for _, u := range updates {
			if u.full {
				signed[u.version] = u.ops
			}
		}
		got := newTable(identity(2), 1)
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(updates)-1), 0, 3*len(updates)).Draw(t, "order") {
			var before version
			if s := got.streams[id]; s != nil {
				before = s.version
			}
			changed, err := got.merge(updates[i])
			if err != nil && !errors.Is(err, errGap) {
				t.Fatal(err)
			}
			s := got.streams[id]
			if changed != (s != nil && s.compare(before) > 0) {
				t.Fatalf("merge reports %v, version %v became %v", changed, before, s)
			}
			if again, err := got.merge(updates[i]); again || changed && err != nil {
				t.Fatalf("the same update again: changed %v, %v", again, err)
			}
			if s != nil && !slices.Equal(s.entries, signed[s.version]) {
				t.Fatalf("version %v holds %v, published was %v", s.version, s.entries, signed[s.version])
			}
		}
		exchangeOnce(t, got, owner, exchangeBudget)
		if diff := cmp.Diff(contents(owner), contents(got)); diff != "" {
			t.Fatal(diff)
		}
		if got.root() != owner.root() {
			t.Fatal("same content, other root")
		}
	})
}

// Snapshots alone commute: two orders, one result, no exchange needed.
func TestSnapshotsCommute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		updates, _ := drawHistory(t)
		updates = slices.DeleteFunc(updates, func(u update) bool { return !u.full })
		a, b := newTable(identity(2), 1), newTable(identity(3), 1)
		for _, u := range updates {
			a.merge(u)
		}
		for _, i := range rapid.Permutation(indices(len(updates))).Draw(t, "order") {
			b.merge(updates[i])
		}
		if diff := cmp.Diff(contents(a), contents(b)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func indices(n int) []int {
	var out []int
	for i := range n {
		out = append(out, i)
	}
	return out
}

// Any byte of an update changed on its way: it is refused, or it says nothing
// else than the owner said.
func TestForgeryIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owner := newTable(identity(1), 3)
		owner.publish(entriesOf(cluster.HostInfo{Name: "a"}, recordsOf(1, 0, 3)))
		have := owner.streams[hostID(1)].summary(hostID(1))
		relay := copyOf(t, 2, owner)
		owner.publish(entriesOf(cluster.HostInfo{Name: "a"}, recordsOf(1, 1, 5)))
		if rapid.Bool().Draw(t, "full") {
			have = summary{owner: hostID(1)}
		}
		u, _ := owner.since(have)
		wire := appendUpdate(nil, u)
		wire[rapid.IntRange(0, len(wire)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		d := decoder{b: wire}
		forged := d.update()
		if d.failed {
			return
		}
		before := contents(relay)
		// One that looks older than what is known is passed over unread.
		known := relay.streams[forged.owner()]
		old := known != nil && forged.version.compare(known.version) <= 0
		changed, err := relay.merge(forged)
		if !changed && err == nil && !old {
			t.Fatal("a forgery passed without a word")
		}
		if changed {
			before[hostID(1)] = contents(owner)[hostID(1)]
		}
		if diff := cmp.Diff(before, contents(relay)); diff != "" {
			t.Fatalf("forged: %s", diff)
		}
	})
}

func TestMemberCannotSpeakForAnother(t *testing.T) {
	victim := newTable(identity(1), 1)
	victim.publish(say("true"))
	u, _ := victim.since(summary{owner: hostID(1)})

	liar := newTable(identity(2), 1)
	liar.publish(say("false"))
	forged := *liar.streams[hostID(2)]
	forged.epoch = 9
	forged.sig = ed25519.Sign(identity(2), forged.signed())
	forged.key = u.key // claims to be the victim

	got := newTable(identity(3), 1)
	got.merge(u)
	if changed, err := got.merge(update{head: forged.head, full: true, ops: forged.entries}); changed || !errors.Is(err, errForged) {
		t.Fatalf("forged snapshot: changed %v, %v", changed, err)
	}
	if diff := cmp.Diff(contents(victim), contents(got)); diff != "" {
		t.Fatal(diff)
	}
	// The victim itself must not be driven to a higher epoch either.
	victim.merge(update{head: forged.head, full: true, ops: forged.entries})
	if victim.outdated() {
		t.Fatal("a forged version raised the owner's epoch")
	}
}

func TestManyTablesConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const hosts = 6
		var tables []*table
		for n := range hosts {
			tables = append(tables, newTable(identity(n), 1))
		}
		budget := rapid.SampledFrom([]int{1, 500, exchangeBudget}).Draw(t, "budget")
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			n := rapid.IntRange(0, hosts-1).Draw(t, "host")
			if rapid.Bool().Draw(t, "publish") {
				from := rapid.IntRange(0, 5).Draw(t, "from")
				tables[n].publish(entriesOf(cluster.HostInfo{}, recordsOf(1, from, from+rapid.IntRange(0, 5).Draw(t, "n"))))
				continue
			}
			m := rapid.IntRange(0, hosts-1).Draw(t, "peer")
			if m != n {
				exchangeOnce(t, tables[n], tables[m], budget)
			}
		}
		for n := range hosts { // an owner that never spoke cannot agree on its own stream
			if tables[n].streams[hostID(n)] == nil {
				tables[n].publish(say("late"))
			}
		}
		// A ring of exchanges, round after round, spreads everything; a tiny
		// budget needs several per pair.
		rounds := 0
		for agree := false; !agree; rounds++ {
			if rounds > 4*hosts {
				t.Fatalf("no agreement after %d rounds", rounds)
			}
			for n := range hosts {
				exchangeOnce(t, tables[n], tables[(n+1)%hosts], budget)
			}
			agree = true
			for _, tab := range tables {
				agree = agree && tab.root() == tables[0].root()
			}
		}
		for n, tab := range tables {
			if diff := cmp.Diff(contents(tables[0]), contents(tab)); diff != "" {
				t.Fatalf("host %d: %s", n, diff)
			}
		}
	})
}

// A disk that was rolled back makes a host publish other content under
// versions that others know. It must win in the end, under a new epoch.
func TestRolledBackOwnerWins(t *testing.T) {
	before := newTable(identity(1), 5)
	for _, s := range []string{"a", "b", "c", "d"} {
		before.publish(say(s))
	}
	for name, count := range map[string]int{"others know more": 1, "same version": 4, "others know less": 9} {
		t.Run(name, func(t *testing.T) {
			peer := copyOf(t, 2, before)
			back := newTable(identity(1), 5)
			for n := range count { // each publish but the first makes two changes
				back.publish(say(fmt.Sprint("after rollback ", n)))
			}
			for range 3 {
				exchangeOnce(t, back, peer, exchangeBudget)
				if back.outdated() {
					back.raise(back.seen + 1)
				}
			}
			if diff := cmp.Diff(contents(back), contents(peer)); diff != "" {
				t.Fatal(diff)
			}
			if len(contents(peer)) != 1 || peer.streams[hostID(1)].entries[0].key != fmt.Sprint("rafter rollback ", count-1) {
				t.Fatalf("peer holds %v", contents(peer))
			}
		})
	}
}

func TestRestartedHostKeepsSilentUntilItPublishes(t *testing.T) {
	first := newTable(identity(1), 1)
	first.publish(say("a"))
	peer := copyOf(t, 2, first)
	again := newTable(identity(1), 2)
	exchangeOnce(t, again, peer, exchangeBudget)
	exchangeOnce(t, peer, again, exchangeBudget)
	if diff := cmp.Diff(contents(first), contents(peer)); diff != "" {
		t.Fatalf("before the first publish: %s", diff)
	}
	if again.outdated() {
		t.Fatal("its own earlier epoch frightens the host")
	}
	again.publish(nil)
	exchangeOnce(t, peer, again, exchangeBudget)
	if s := peer.streams[hostID(1)]; s.epoch != 2 || len(s.entries) != 0 {
		t.Fatalf("after an empty publish: %v", contents(peer))
	}
}

func TestDeltasUntilTheLogEnds(t *testing.T) {
	tab := newTable(identity(1), 1)
	id := hostID(1)
	var set []entry
	grow := func(n int) {
		set = sorted(append(slices.Clone(set), entry{fmt.Sprint("r", n), "x"}))
		tab.publish(set)
	}
	tab.publish(set)
	start := tab.streams[id].summary(id)
	for n := range logSize {
		grow(n)
	}
	if u, _ := tab.since(start); u.full || len(u.ops) != logSize {
		t.Fatalf("with the log full: full %v, %d changes", u.full, len(u.ops))
	}
	grow(logSize)
	if u, _ := tab.since(start); !u.full {
		t.Fatal("the log reaches back further than it is long")
	}
	if s := tab.streams[id]; len(s.log) != logSize || s.floor+logSize != s.seq {
		t.Fatalf("log of %d changes from %d to %d", len(s.log), s.floor, s.seq)
	}
	// A long history of a small set is no better than the set.
	for n := range 200 {
		tab.publish(say(fmt.Sprint(n)))
	}
	if n := len(tab.streams[id].log); n > 64 {
		t.Fatalf("log of %d changes for one entry", n)
	}
}

func TestHintsFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := newTable(identity(1), 1<<32-1)
		n := rapid.IntRange(0, 40).Draw(t, "records")
		tab.publish(entriesOf(cluster.HostInfo{Name: "host"}, recordsOf(1, 0, n)))
		old := copyOf(t, 2, tab)
		m := rapid.IntRange(0, 60).Draw(t, "then")
		tab.publish(entriesOf(cluster.HostInfo{Name: "host"}, recordsOf(1, 0, m)))
		limit := rapid.IntRange(200, 1200).Draw(t, "limit")
		u, _ := tab.newest(hostID(1), limit)
		if size := len(appendUpdate(nil, u)); size > limit {
			t.Fatalf("%d bytes, limit %d", size, limit)
		}
		if _, err := old.merge(u); err != nil && !errors.Is(err, errGap) {
			t.Fatal(err)
		} else if err == nil && old.root() != tab.root() {
			t.Fatal("hint taken in, content differs")
		}
		// The usual change, one more endpoint, always fits.
		tab.publish(entriesOf(cluster.HostInfo{Name: "host"}, recordsOf(1, 0, m+1)))
		if u, _ := tab.newest(hostID(1), 400); len(u.ops) == 0 {
			t.Fatal("one change does not fit 400 bytes")
		}
	})
}

// Bytes from anywhere must not crash a host.
func FuzzMessages(f *testing.F) {
	tab := newTable(identity(1), 1)
	tab.publish(entriesOf(cluster.HostInfo{Name: "a"}, recordsOf(1, 0, 3)))
	u, _ := tab.since(summary{owner: hostID(1)})
	f.Add(appendUpdate(nil, u))
	f.Add(appendSummaries(nil, tab.digest()))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := decoder{b: b}
		if u := d.update(); !d.failed {
			newTable(identity(2), 1).merge(u)
		}
		d = decoder{b: b}
		tab.compare(d.summaries())
		decodeRecord(cluster.RecordKey{}, string(b))
		decodeRecord(cluster.RecordKey{Claim: 1}, string(b))
	})
}
