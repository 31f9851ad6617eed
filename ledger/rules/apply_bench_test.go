package rules_test

import (
	"fmt"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// A cluster of 100 hosts, with 50 blocks on each of 100 networks.
func BenchmarkGrant(b *testing.B) {
	r, _ := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
	do := func(name string, c cluster.Command) cluster.Result {
		h := r.Hosts[id(name)]
		c.Host, c.Session, c.Request = h.ID, h.Session, r.Requests[h.ID].Request+1
		next, res := rules.Apply(r, c, r.Index+1)
		if r = next; res.Refused != nil {
			b.Fatal(res.Refused)
		}
		return res
	}
	for i := range 100 {
		c := hello(fmt.Sprint("host", i), 1)
		r, _ = rules.Apply(r, c, r.Index+1)
	}
	pool := func(i int) string { return fmt.Sprintf("10.%d.0.0/16", i) }
	for i := range 100 {
		do("host0", attach(pool(i)))
		for j := range 50 {
			do(fmt.Sprint("host", j), grant(pool(i), 8))
		}
	}
	for b.Loop() {
		lease := do("host7", grant(pool(7), 8)).Lease
		do("host7", release(lease.ID))
	}
}
