package cluster_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestAClaimSaysWhatItsLeaseCovers(t *testing.T) {
	pool := cluster.PoolKey{Prefix: netip.MustParsePrefix("10.1.0.0/24")}
	l := cluster.Lease{ID: 7, Pool: pool, Block: netip.MustParsePrefix("10.1.0.64/26"), Without: addrs("10.1.0.64", "10.1.0.70", "10.1.0.127")}
	c := l.Claim()
	if c.Without != 1|1<<6|1<<63 || c.Lease != 7 || c.Pool != pool || c.Block != l.Block {
		t.Errorf("claim %+v", c)
	}
	if !slices.Equal(c.Given(), l.Without) {
		t.Errorf("given %v", c.Given())
	}
	for a := netip.MustParseAddr("10.1.0.60"); a != netip.MustParseAddr("10.1.0.140"); a = a.Next() {
		if c.Covers(a) != l.Covers(a) {
			t.Errorf("%s: claim %v, lease %v", a, c.Covers(a), l.Covers(a))
		}
	}
}

func TestClaimsOverlapInAnAddressOnly(t *testing.T) {
	claim := func(block string, without ...string) cluster.Claim {
		p := netip.MustParsePrefix(block)
		return cluster.Lease{ID: 1, Pool: cluster.PoolKey{Prefix: netip.PrefixFrom(p.Addr(), 16).Masked()}, Block: p, Without: addrs(without...)}.Claim()
	}
	for _, tc := range []struct {
		a, b cluster.Claim
		want bool
	}{
		{claim("10.1.0.0/29"), claim("10.1.0.8/29"), false},
		{claim("10.1.0.0/29"), claim("10.1.0.4/32"), true},
		{claim("10.1.0.0/29", "10.1.0.4"), claim("10.1.0.4/32"), false},
		{claim("10.1.0.0/29", "10.1.0.4"), claim("10.1.0.4/31"), true},
		{claim("10.1.0.0/29", "10.1.0.4"), claim("10.1.0.4/31", "10.1.0.5"), false},
		{claim("10.1.0.0/29"), claim("10.2.0.0/29"), false},
		{claim("fd00::/125", "fd00::1"), claim("fd00::1/128"), false},
		{claim("fd00::/125", "fd00::1"), claim("fd00::2/128"), true},
	} {
		if tc.a.Overlaps(tc.b) != tc.want || tc.b.Overlaps(tc.a) != tc.want {
			t.Errorf("%+v and %+v: not %v", tc.a, tc.b, tc.want)
		}
	}
}

func TestHostsCalled(t *testing.T) {
	r := &cluster.Registry{Hosts: map[cluster.HostID]cluster.Host{}}
	for _, h := range []cluster.Host{
		{ID: "aaaaaaaa11111111", Name: "web", Tombstone: true},
		{ID: "bbbbbbbb11111111", Name: "web"},
		{ID: "cccccccc11111111", Name: "db"},
	} {
		r.Hosts[h.ID] = h
	}
	for name, want := range map[string][]cluster.HostID{
		"web":              {"bbbbbbbb11111111", "aaaaaaaa11111111"},
		"db":               {"cccccccc11111111"},
		"aaaaaaaa":         {"aaaaaaaa11111111"},
		"cccccccc11111111": {"cccccccc11111111"},
		"cccc":             nil,
		"":                 nil,
	} {
		var got []cluster.HostID
		for _, h := range r.HostsCalled(name) {
			got = append(got, h.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q means %v, want %v", name, got, want)
		}
	}
}
