package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger"
)

func TestFindHost(t *testing.T) {
	host := func(id, name string, gone bool) cluster.Host {
		return cluster.Host{ID: cluster.HostID(id), Name: name, Tombstone: gone}
	}
	r := &cluster.Registry{Hosts: map[cluster.HostID]cluster.Host{}}
	for _, h := range []cluster.Host{
		host("aaaaaaaa11", "web", false), host("bbbbbbbb22", "web", true), host("cccccccc33", "db", true),
		host("dddddddd44", "old", true), host("eeeeeeee55", "old", true),
	} {
		r.Hosts[h.ID] = h
	}
	for _, c := range []struct {
		what    string
		dead    bool
		id, err string
	}{
		{"web", false, "aaaaaaaa11", ""},
		{"bbbbbbbb", false, "bbbbbbbb22", ""},
		{"cccccccc33", false, "cccccccc33", ""},
		{"db", false, "cccccccc33", ""},
		{"old", false, "dddddddd44", ""},
		{"old", true, "", "old may be dddddddd44 or eeeeeeee55: give the id"},
		{"nobody", false, "", "there is no host nobody; there are web"},
		{"", false, "", "say which"},
	} {
		h, err := findHost(r, c.what, c.dead)
		if string(h.ID) != c.id || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %s, %v; want %s, %q", c.what, h.ID, err, c.id, c.err)
		}
	}
}

// TestClaimant: what another member keeps is held against a grant; what this
// host or a removed one says is not.
func TestClaimant(t *testing.T) {
	pool := cluster.PoolKey{Prefix: netip.MustParsePrefix("10.0.0.0/24")}
	claim := func(lease uint64, block string) cluster.Claim {
		return cluster.Claim{Lease: lease, Pool: pool, Block: netip.MustParsePrefix(block)}
	}
	stream := func(owner string, claims ...cluster.Claim) cluster.Stream {
		s := cluster.Stream{Owner: cluster.HostID(owner), Records: map[cluster.RecordKey]cluster.Record{}}
		for _, c := range claims {
			r := cluster.Record{Claim: c}
			s.Records[r.Key()] = r
		}
		return s
	}
	heard := []cluster.Stream{
		stream("self", claim(1, "10.0.0.0/29")),
		stream("gone", claim(2, "10.0.0.8/29")),
		stream("peer", claim(3, "10.0.0.16/29"), claim(4, "10.0.0.24/32")),
	}
	r := &cluster.Registry{Hosts: map[cluster.HostID]cluster.Host{"gone": {ID: "gone", Tombstone: true}}}
	for block, want := range map[string]uint64{"10.0.0.0/29": 0, "10.0.0.8/29": 0, "10.0.0.20/30": 3, "10.0.0.24/29": 4, "10.0.0.32/29": 0} {
		host, got, ok := claimant(heard, r, "self", claim(0, block))
		if got.Lease != want || ok != (want != 0) || ok && host != "peer" {
			t.Errorf("%s: claimed by %s with lease %d, want %d", block, host, got.Lease, want)
		}
	}
}

// TestDetachedBy: a refusal and a settled doubt cut a host off; the moment in
// which the others are asked does not.
func TestDetachedBy(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  ledger.Status
		boot    cluster.Boot
		suspect string
		barred  string
		want    string
	}{
		{"well", ledger.Status{}, cluster.Boot{Settled: true}, "", "", ""},
		{"asking", ledger.Status{}, cluster.Boot{}, "not asked yet", "", ""},
		{"asking, and rebuilt since", ledger.Status{}, cluster.Boot{}, "rebuilt", "rebuilt", "rebuilt"},
		{"set back", ledger.Status{}, cluster.Boot{Settled: true}, "set back", "", "set back"},
		{"removed", ledger.Status{Refused: cluster.Forgotten, Error: "reset it"}, cluster.Boot{}, "", "removed", "reset it"},
		{"clone", ledger.Status{Refused: cluster.Clone, Error: "a clone"}, cluster.Boot{Settled: true}, "", "", "a clone"},
		{"name taken", ledger.Status{Refused: cluster.NameTaken, Error: "taken"}, cluster.Boot{Settled: true}, "", "", ""},
	} {
		if got := detachedBy(c.status, c.boot, c.suspect, c.barred); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestFormerSelves: a host that was installed anew is told what frees what it
// held before.
func TestFormerSelves(t *testing.T) {
	r := &cluster.Registry{
		Hosts: map[cluster.HostID]cluster.Host{
			"old":   {ID: "old", Name: "web-old", Replaced: "self"},
			"gone":  {ID: "gone", Name: "web-gone", Replaced: "self", Tombstone: true},
			"other": {ID: "other", Name: "db-other", Replaced: "peer"},
		},
		Leases: map[uint64]cluster.Lease{7: {ID: 7, Holder: "old"}, 8: {ID: 8, Holder: "old"}, 9: {ID: 9, Holder: "other"}},
	}
	want := []note{{"this host was installed anew; its former self, web-old, still holds 2 address blocks", "if none of its containers runs any more: isthmus node rm web-old"}}
	if got := formerSelves(r, "self"); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
