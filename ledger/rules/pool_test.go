package rules_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestReservedAddressesStaySorted(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	for _, last := range []int{9, 7, 8, 5, 6, 3, 4, 2, 10, 1} {
		l.must("a", reserve("10.1.0.0/24", fmt.Sprint("10.1.0.", last)))
		l.must("a", reserve("10.1.0.0/24", fmt.Sprint("10.1.0.", last)))
	}
	if got := len(l.r.Pools[pool("10.1.0.0/24")].Reserved); got != 10 {
		t.Errorf("%d reserved", got)
	}
	l.refused("a", exact("10.1.0.0/24", "10.1.0.4"), cluster.Held, "reserved")
	l.refused("a", reserve("10.1.0.0/24", "10.2.0.4"), cluster.OutOfRange)
}

func TestPoolsOverlap(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	l.must("a", attach("10.1.0.0/16"))
	l.must("b", attach("10.1.0.0/16"))
	why := l.refused("c", attach("10.1.5.0/24"), cluster.Overlap, "10.1.0.0/16", "a and b hold", "--subnet")
	if len(why.Holders) != 2 {
		t.Errorf("holders %v", why.Holders)
	}
	other := attach("10.1.5.0/24")
	other.AttachPool.Space = "lab"
	l.must("c", other)
	l.must("a", detach("10.1.0.0/16"))
	l.must("b", detach("10.1.0.0/16"))
	if got := l.must("c", attach("10.1.7.9/24")).Pool.Key; got != pool("10.1.7.0/24") {
		t.Errorf("attached %v", got)
	}
	l.must("c", detach("10.1.200.0/24"))
}

func TestAnIdlePoolIsNoObstacle(t *testing.T) {
	l := newLog(t, "a")
	r := *l.r
	r.Pools = map[cluster.PoolKey]cluster.Pool{pool("10.1.0.0/16"): {Key: pool("10.1.0.0/16")}}
	l.r = &r
	l.must("a", attach("10.1.5.0/24"))
	if _, ok := l.r.Pools[pool("10.1.0.0/16")]; ok {
		t.Error("the pool that nobody needs is still there")
	}
}

func TestPoolStaysWhileLeased(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/16"))
	lease := l.must("a", grant("10.1.0.0/16", 8)).Lease
	l.must("a", detach("10.1.0.0/16"))
	why := l.refused("b", attach("10.1.0.0/24"), cluster.Overlap, "a holds")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
	l.must("a", release(lease.ID))
	if len(l.r.Pools) != 0 {
		t.Error("the pool outlived its last lease")
	}
}

func TestAutomaticPools(t *testing.T) {
	l := newLog(t, "a", "b")
	auto := func(name string) cluster.Command {
		return cluster.Command{AttachPool: &cluster.AttachPool{
			Name: name, Bits: 24, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/22"), netip.MustParsePrefix("192.168.0.0/24")},
			Avoid: []netip.Prefix{netip.MustParsePrefix("10.0.1.128/25"), netip.MustParsePrefix("10.0.1.0/24")},
		}}
	}
	for _, want := range []string{"10.0.0.0/24", "10.0.2.0/24", "10.0.3.0/24", "192.168.0.0/24"} {
		if got := l.must("a", auto("")).Pool.Key; got != pool(want) {
			t.Errorf("got %v, want %s", got, want)
		}
	}
	l.refused("a", auto(""), cluster.Full, "--subnet")
	l.must("a", detach("10.0.2.0/24"))
	shared := l.must("a", auto("web")).Pool
	if got := l.must("b", auto("web")).Pool; got.Key != shared.Key || len(got.Holders) != 2 {
		t.Errorf("named: %+v, want %+v", got, shared)
	}
	v6 := cluster.Command{AttachPool: &cluster.AttachPool{V6: true, Name: "web", Bits: 64, From: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}}}
	if got := l.must("a", v6).Pool.Key; got != pool("fd00::/64") {
		t.Errorf("v6: %v", got)
	}
	v6.AttachPool.Name = ""
	if got := l.must("a", v6).Pool.Key; got != pool("fd00:0:0:1::/64") {
		t.Errorf("v6: %v", got)
	}
}

func TestNamedPoolWithSubnet(t *testing.T) {
	l := newLog(t, "a", "b")
	named := func(s string) cluster.Command {
		c := attach(s)
		c.AttachPool.Name = "web"
		return c
	}
	l.must("a", named("10.1.0.0/16"))
	l.must("a", named("10.2.0.0/16")) // a second subnet of the same network
	why := l.refused("b", named("10.3.0.0/16"), cluster.Contradiction, "web", "10.1.0.0/16", "--subnet")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
}

func TestGateway(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/24"))
	l.must("b", attach("10.1.0.0/24"))
	l.refused("a", gateway("10.1.0.0/24", "10.1.0.0"), cluster.OutOfRange, "network or broadcast")
	l.refused("a", gateway("10.1.0.0/24", "10.1.0.255"), cluster.OutOfRange, "network or broadcast")
	l.refused("a", gateway("10.1.0.0/24", "10.1.1.1"), cluster.OutOfRange, "not in pool")
	l.must("a", attach("fd01::/64"))
	l.refused("a", gateway("fd01::/64", "fd01::"), cluster.OutOfRange, "any router")
	l.refused("a", exact("fd01::/64", "fd01::"), cluster.OutOfRange, "any router")
	l.refused("a", gateway("10.9.0.0/24", ""), cluster.UnknownPool)
	l.must("a", reserve("10.1.0.0/24", "10.1.0.1"))
	l.refused("a", gateway("10.1.0.0/24", "10.1.0.1"), cluster.Held, "reserved")
	l.must("b", exact("10.1.0.0/24", "10.1.0.2"))
	l.refused("a", gateway("10.1.0.0/24", "10.1.0.2"), cluster.Held, "b")
	if got := l.must("a", gateway("10.1.0.0/24", "")).Pool.Gateway.String(); got != "10.1.0.3" {
		t.Errorf("gateway %s", got)
	}
	l.must("b", gateway("10.1.0.0/24", ""))
	l.must("b", gateway("10.1.0.0/24", "10.1.0.3"))
	l.refused("b", gateway("10.1.0.0/24", "10.1.0.9"), cluster.Contradiction, "10.1.0.3", "10.1.0.9")
	l.refused("b", reserve("10.1.0.0/24", "10.1.0.3"), cluster.Held, "gateway")
	l.refused("b", exact("10.1.0.0/24", "10.1.0.3"), cluster.Held, "gateway")

	for subnet, want := range map[string]string{"fd01::/64": "fd01::1", "10.2.0.0/31": "10.2.0.0", "10.3.0.7/32": "10.3.0.7", "fd02::4/127": "fd02::4"} {
		l.must("a", attach(subnet))
		if got := l.must("a", gateway(subnet, "")).Pool.Gateway.String(); got != want {
			t.Errorf("first usable of %s: %s, want %s", subnet, got, want)
		}
	}
	l.refused("a", grant("10.3.0.7/32", 1), cluster.Full, "no address for containers")
}

func TestBlockSizes(t *testing.T) {
	for _, tc := range []struct {
		pool    string
		holders int
		want    int
		block   string
	}{
		{"10.1.0.0/16", 1, 8, "10.1.0.0/29"},
		{"10.1.0.0/16", 1, 0, "10.1.0.0/29"},
		{"10.1.0.0/16", 1, 9, "10.1.0.0/28"},
		{"10.1.0.0/16", 1, 1 << 20, "10.1.0.0/26"},
		{"10.1.0.0/16", 1, 2, "10.1.0.2/31"}, // .0 is the network, .1 the gateway
		{"10.1.0.0/16", 1, 1, "10.1.0.2/32"},
		{"10.1.0.0/24", 3, 64, "10.1.0.0/27"},
		{"10.1.0.0/24", 4, 64, "10.1.0.0/27"},
		{"10.1.0.0/28", 2, 8, "10.1.0.0/30"},
		{"10.1.0.0/29", 3, 8, "10.1.0.2/32"},
		{"10.1.0.0/29", 5, 8, "10.1.0.2/32"},
		{"fd00::/48", 1, 64, "fd00::/122"},
		{"fd00::/64", 1, 8, "fd00::/125"},
		{"fd00::/120", 4, 64, "fd00::/123"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 1, 64, ""},
	} {
		t.Run(fmt.Sprintf("%s by %d for %d", tc.pool, tc.holders, tc.want), func(t *testing.T) {
			l := newLog(t)
			for i := range tc.holders {
				l.hello(fmt.Sprint("host", i))
				if res := l.do(fmt.Sprint("host", i), attach(tc.pool)); tc.block == "" {
					if res.Refused == nil {
						t.Fatal("a multicast pool was accepted")
					}
					return
				}
			}
			l.must("host0", gateway(tc.pool, ""))
			if got := l.must("host0", grant(tc.pool, tc.want)).Lease.Block.String(); got != tc.block {
				t.Errorf("block %s, want %s", got, tc.block)
			}
		})
	}
}

func TestGrantIsNextFit(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/27"))
	first := l.must("a", grant("10.1.0.0/27", 8)).Lease
	l.must("a", release(first.ID))
	for _, want := range []string{"10.1.0.8/29", "10.1.0.16/29", "10.1.0.24/29", "10.1.0.0/29"} {
		if got := l.must("a", grant("10.1.0.0/27", 8)).Lease.Block.String(); got != want {
			t.Errorf("block %s, want %s", got, want)
		}
	}
	why := l.refused("a", grant("10.1.0.0/27", 8), cluster.Full, "all 30 are leased", "a 30")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
}

func TestGrantInAFragmentedPool(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/28"))
	l.must("a", gateway("10.1.0.0/28", ""))
	for _, addr := range []string{"10.1.0.2", "10.1.0.4", "10.1.0.9", "10.1.0.12"} {
		l.must("b", exact("10.1.0.0/28", addr))
	}
	l.must("a", reserve("10.1.0.0/28", "10.1.0.13"))
	var got []string
	for range 5 {
		got = append(got, l.must("a", grant("10.1.0.0/28", 64)).Lease.Block.String())
	}
	want := []string{"10.1.0.6/31", "10.1.0.10/31", "10.1.0.14/31", "10.1.0.3/32", "10.1.0.5/32"}
	if !slices.Equal(got, want) {
		t.Errorf("blocks %v, want %v", got, want)
	}
	if got := l.must("a", grant("10.1.0.0/28", 64)).Lease.Block.String(); got != "10.1.0.8/32" {
		t.Errorf("block %s", got)
	}
	l.refused("a", grant("10.1.0.0/28", 64), cluster.Full, "all 12 are leased", "a 8", "b 4")
}

func TestGrantInRange(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/16"))
	in := func(s string, want int) cluster.Command {
		c := grant("10.1.0.0/16", want)
		c.Grant.Range = netip.MustParsePrefix(s)
		return c
	}
	for _, want := range []string{"10.1.5.0/31", "10.1.5.2/31"} {
		if got := l.must("a", in("10.1.5.0/30", 2)).Lease.Block.String(); got != want {
			t.Errorf("block %s, want %s", got, want)
		}
	}
	l.refused("b", in("10.1.5.0/30", 8), cluster.Full, "range 10.1.5.0/30", "a 4")
	if got := l.must("b", in("10.1.6.0/30", 64)).Lease.Block.String(); got != "10.1.6.0/30" {
		t.Errorf("block %s", got)
	}
	l.refused("b", in("10.2.0.0/24", 8), cluster.OutOfRange, "--ip-range")
	l.refused("b", in("10.0.0.0/8", 8), cluster.OutOfRange, "--ip-range")
}

func TestGrantExactAndRelease(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/16"))
	l.must("b", attach("10.1.0.0/16"))
	block := l.must("a", grant("10.1.0.0/16", 8)).Lease
	if got := l.must("a", exact("10.1.0.0/16", "10.1.0.5")).Lease; !got.Equal(block) {
		t.Errorf("an address of the own block: %+v", got)
	}
	why := l.refused("b", exact("10.1.0.0/16", "10.1.0.5"), cluster.Held, "10.1.0.5", "host a")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
	one := l.must("b", exact("10.1.0.0/16", "10.1.200.5")).Lease
	if again := l.must("b", exact("10.1.0.0/16", "10.1.200.5")).Lease; !again.Equal(one) || one.Block.String() != "10.1.200.5/32" {
		t.Errorf("again %+v, first %+v", again, one)
	}
	l.refused("b", exact("10.1.0.0/16", "10.2.0.5"), cluster.OutOfRange)
	l.refused("b", exact("10.1.0.0/16", "10.1.255.255"), cluster.OutOfRange, "broadcast")
	l.refused("b", exact("10.1.0.0/16", "fd00::1"), cluster.OutOfRange)
	l.refused("b", release(block.ID), cluster.NotHeld, "host a")
	l.must("a", release(block.ID))
	l.must("a", release(block.ID))
	l.must("b", exact("10.1.0.0/16", "10.1.0.5"))
}
