package rules_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

func carve(lease uint64, addr string) cluster.Command {
	return cluster.Command{Release: &cluster.Release{Lease: lease, Addr: netip.MustParseAddr(addr)}}
}

func TestAnAddressIsCarvedOutOfABlock(t *testing.T) {
	l := newLog(t, "a", "b")
	for _, h := range []string{"a", "b"} {
		l.must(h, attach("10.1.0.0/24"))
	}
	block := l.must("a", grant("10.1.0.0/24", 8)).Lease // 10.1.0.0/29
	l.refused("b", carve(block.ID, "10.1.0.5"), cluster.NotHeld, "host a")
	l.refused("a", carve(block.ID, "10.1.0.8"), cluster.OutOfRange, "10.1.0.8", "10.1.0.0/29")
	for range 2 {
		for _, addr := range []string{"10.1.0.5", "10.1.0.3"} {
			l.must("a", carve(block.ID, addr))
		}
	}
	got := l.r.Leases[block.ID]
	if !slices.Equal(got.Without, []netip.Addr{netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.5")}) {
		t.Errorf("without %v", got.Without)
	}
	if res := l.must("a", carve(block.ID, "10.1.0.5")); !res.Lease.Equal(got) {
		t.Errorf("carved again: %+v", res.Lease)
	}

	// It is anybody's now, though it lies inside the block.
	one := l.must("b", exact("10.1.0.0/24", "10.1.0.5")).Lease
	if one.Block.String() != "10.1.0.5/32" || one.Holder != id("b") {
		t.Errorf("leased %+v", one)
	}
	l.refused("b", exact("10.1.0.0/24", "10.1.0.4"), cluster.Held, "10.1.0.0/29", "host a")
	l.refused("a", exact("10.1.0.0/24", "10.1.0.5"), cluster.Held, "10.1.0.5/32", "host b")
	back := l.must("a", exact("10.1.0.0/24", "10.1.0.3")).Lease
	if back.ID == block.ID || back.Block.String() != "10.1.0.3/32" {
		t.Errorf("a carved address came back as %+v", back)
	}
	// The block goes, what was carved out of it stays.
	l.must("a", release(block.ID))
	l.refused("a", exact("10.1.0.0/24", "10.1.0.5"), cluster.Held, "host b")
	l.must("a", exact("10.1.0.0/24", "10.1.0.6"))
}

func TestCarvedAddressesStaySorted(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	block := l.must("a", grant("10.1.0.0/24", 16)).Lease
	for i, last := range []int{9, 7, 8, 5, 6, 3, 4, 2, 10, 1} {
		if got := l.must("a", carve(block.ID, fmt.Sprint("10.1.0.", last))).Lease; len(got.Without) != i+1 || got.Claim().Without>>last&1 == 0 {
			t.Errorf("without %v", got.Without)
		}
	}
}

func TestALeaseWithNothingLeftEnds(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	l.must("a", gateway("10.1.0.0/24", ""))
	in := grant("10.1.0.0/24", 4)
	in.Grant.Range = netip.MustParsePrefix("10.1.0.0/30") // network, gateway, .2, .3
	block := l.must("a", in).Lease
	l.must("a", carve(block.ID, "10.1.0.2"))
	l.must("a", carve(block.ID, "10.1.0.3"))
	if _, ok := l.r.Leases[block.ID]; ok {
		t.Error("a lease without an address for an endpoint is still there")
	}
	if res := l.must("a", carve(block.ID, "10.1.0.3")); res.Lease.ID != 0 {
		t.Errorf("carved out of a lease that ended: %+v", res.Lease)
	}
	l.must("a", detach("10.1.0.0/24"))
	if !l.r.Empty() {
		t.Errorf("left over: %+v", l.r.Pools)
	}
	l.must("a", attach("fd00::/64"))
	one := l.must("a", exact("fd00::/64", "fd00::9")).Lease
	l.must("a", carve(one.ID, "fd00::9"))
	if len(l.r.Leases) != 0 {
		t.Error("an exact lease outlived its address")
	}
}

func TestCarvedAddressesAreGrantedAgain(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/28"))
	var blocks []cluster.Lease
	for range 2 {
		blocks = append(blocks, l.must("a", grant("10.1.0.0/28", 8)).Lease)
	}
	l.must("b", attach("10.1.0.0/28"))
	l.refused("b", grant("10.1.0.0/28", 8), cluster.Full, "all 14 are leased", "a 14")
	for _, addr := range []string{"10.1.0.4", "10.1.0.5", "10.1.0.7"} {
		l.must("a", carve(blocks[0].ID, addr))
	}
	var got []string
	for range 2 {
		got = append(got, l.must("b", grant("10.1.0.0/28", 8)).Lease.Block.String())
	}
	if want := []string{"10.1.0.4/31", "10.1.0.7/32"}; !slices.Equal(got, want) {
		t.Errorf("blocks %v, want %v", got, want)
	}
	l.refused("b", grant("10.1.0.0/28", 8), cluster.Full, "all 14 are leased", "a 11", "b 3")
	l.must("a", release(blocks[0].ID))
	if got := l.must("a", grant("10.1.0.0/28", 8)).Lease.Block.String(); got != "10.1.0.0/30" {
		t.Errorf("around the carved addresses: %s", got)
	}
}

func TestAGatewayAvoidsWhatOthersCover(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/24"))
	l.must("b", attach("10.1.0.0/24"))
	block := l.must("a", grant("10.1.0.0/24", 8)).Lease
	l.refused("b", reserve("10.1.0.0/24", "10.1.0.3"), cluster.Held, "host a")
	l.must("a", carve(block.ID, "10.1.0.3"))
	l.must("b", reserve("10.1.0.0/24", "10.1.0.3"))
	l.must("a", carve(block.ID, "10.1.0.4"))
	if got := l.must("b", gateway("10.1.0.0/24", "")).Pool.Gateway.String(); got != "10.1.0.4" {
		t.Errorf("gateway %s", got)
	}
}

func TestFullNamesWhatAnOperatorCanFree(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	for _, h := range []string{"a", "b", "c"} {
		l.must(h, attach("10.2.0.0/29"))
		l.must(h, network(cluster.Definition{Mode: "macvlan"}, "10.2.0.0/29"))
	}
	for _, addr := range []string{"10.2.0.1", "10.2.0.2"} {
		l.must("a", exact("10.2.0.0/29", addr))
	}
	l.must("c", exact("10.2.0.0/29", "10.2.0.3"))
	for _, addr := range []string{"10.2.0.4", "10.2.0.5", "10.2.0.6"} {
		l.must("b", exact("10.2.0.0/29", addr))
	}
	l.must("b", forget("a", false))
	anew := hello("c2", 1)
	anew.Hello.Name, anew.Hello.Address = "c", l.r.Hosts[id("c")].Address
	l.apply(anew)
	former := "c-" + id("c").Short()
	why := l.refused("b", grant("10.2.0.0/29", 1), cluster.Full, "all 6 are leased (a 2, b 3, "+former+" 1)",
		"`isthmus node rm a --dead`", "`isthmus node rm "+former+"`")
	if len(why.Holders) != 3 {
		t.Errorf("holders %v", why.Holders)
	}
	l.refused("b", attach("10.2.0.0/24"), cluster.Overlap, "`isthmus node rm a --dead`")
}

// A pool that is full of other hosts' blocks is filled to its last address, when
// each of them gives an address back that it does not use.
func TestASmallPoolServesItsLastAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tc := rapid.SampledFrom([]struct {
			pool  string
			hosts int
			free  int // addresses for endpoints beside the gateway
		}{
			{"10.1.0.0/26", 20, 61}, {"10.1.0.0/29", 5, 5}, {"10.1.0.0/28", 3, 13}, {"10.1.0.0/30", 4, 1},
			{"10.1.0.0/31", 3, 1}, {"10.1.0.7/32", 2, 0}, {"fd00::/124", 6, 14}, {"fd00::/127", 2, 1}, {"fd00::/128", 2, 0},
		}).Draw(t, "pool")
		key := pool(tc.pool)
		r, _ := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
		do := func(c cluster.Command) cluster.Result {
			h := r.Hosts[c.Host]
			c.Session, c.Request = h.Session, r.Requests[h.ID].Request+1
			next, res := rules.Apply(r, c, after(r))
			if err := rules.Check(next); err != nil {
				t.Fatalf("after %+v: %v", c, err)
			}
			r = next
			return res
		}
		must := func(c cluster.Command) {
			if res := do(c); res.Refused != nil {
				t.Fatalf("%+v: %v", c, res.Refused)
			}
		}
		var hosts []cluster.HostID
		join := func() {
			c := hello(fmt.Sprint("host", len(hosts)), 1)
			r, _ = rules.Apply(r, c, after(r))
			hosts = append(hosts, c.Host)
			must(cluster.Command{Host: c.Host, AttachPool: &cluster.AttachPool{Prefix: key.Prefix}})
		}
		join()
		must(cluster.Command{Host: hosts[0], SetGateway: &cluster.SetGateway{Pool: key}})

		used := map[netip.Addr]cluster.HostID{}
		spare := func(h cluster.HostID) (netip.Addr, uint64) {
			for _, l := range r.LeasesOf(key, h) {
				for a := l.Block.Addr(); l.Block.Contains(a); a = a.Next() {
					if used[a] == "" && l.Covers(a) && endpoint(r.Pools[key], a) {
						return a, l.ID
					}
				}
			}
			return netip.Addr{}, 0
		}
		// start gives a container an address, as ipam does: its own, a new block,
		// or one that another host gives back.
		start := func(h cluster.HostID) *cluster.Refusal {
			for {
				if a, _ := spare(h); a.IsValid() {
					used[a] = h
					return nil
				}
				want := rapid.SampledFrom([]int{0, 1, 8, 64}).Draw(t, "want")
				res := do(cluster.Command{Host: h, Grant: &cluster.Grant{Pool: key, Want: want}})
				if res.Refused == nil {
					continue
				}
				given := false
				for _, other := range res.Refused.Holders {
					if a, lease := spare(other); !given && a.IsValid() {
						must(cluster.Command{Host: other, Release: &cluster.Release{Lease: lease, Addr: a}})
						given = true
					}
				}
				if !given {
					return res.Refused
				}
			}
		}

		for range tc.free + 10 {
			if len(hosts) < tc.hosts && rapid.Bool().Draw(t, "join") {
				join()
			}
			h := rapid.SampledFrom(hosts).Draw(t, "host")
			why := start(h)
			if full := len(used) == tc.free; why != nil && !full {
				t.Fatalf("%d of %d in use, and %s gets none: %v", len(used), tc.free, r.HostName(h), why)
			}
			if len(used) > tc.free {
				t.Fatalf("%d of %d in use", len(used), tc.free)
			}
			if len(used) > 0 && rapid.IntRange(0, 3).Draw(t, "stop") == 0 {
				addrs := slices.SortedFunc(maps.Keys(used), netip.Addr.Compare)
				delete(used, rapid.SampledFrom(addrs).Draw(t, "stopped"))
			}
		}
		for len(used) < tc.free {
			if why := start(rapid.SampledFrom(hosts).Draw(t, "host")); why != nil {
				t.Fatalf("%d of %d in use: %v", len(used), tc.free, why)
			}
		}
		if why := start(hosts[0]); why == nil || why.Code != cluster.Full {
			t.Fatalf("beyond the last address: %v", why)
		}
	})
}
