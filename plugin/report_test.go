package main

import (
	"fmt"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// What is kept for a network's return goes with all of its subnets, whichever of
// them is named.
func TestKeptWith(t *testing.T) {
	of := func(subnets ...string) []cluster.PoolKey {
		pools := []cluster.PoolKey{}
		for _, s := range subnets {
			pools = append(pools, pool(s))
		}
		return pools
	}
	r := &cluster.Registry{Networks: map[uint32]cluster.Network{
		1: {Pools: of("10.1.0.0/24", "fd01::/64")},
		2: {Pools: of("10.2.0.0/24", "fd02::/64")},
	}}
	kept := of("10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "fd01::/64")
	for named, want := range map[string][]cluster.PoolKey{
		"10.1.0.0/24": of("10.1.0.0/24", "fd01::/64"),
		"fd01::/64":   of("10.1.0.0/24", "fd01::/64"),
		"10.2.0.0/24": of("10.2.0.0/24"), // the other one is in use again
		"10.3.0.0/24": of("10.3.0.0/24"), // no network is left on it
		"fd02::/64":   of(),
	} {
		got := keptWith(kept, r, func(p cluster.PoolKey) bool { return p.Prefix.String() == named })
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("forget %s: %v, want %v", named, got, want)
		}
	}
}
