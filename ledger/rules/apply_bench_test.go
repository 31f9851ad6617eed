package rules_test

import (
	"fmt"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// bench is a log of hosts whose commands must be done.
type bench struct {
	b *testing.B
	r *cluster.Registry
}

func newBench(b *testing.B, hosts int) *bench {
	r, _ := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
	for i := range hosts {
		r, _ = rules.Apply(r, hello(fmt.Sprint("host", i), 1), r.Index+1)
	}
	return &bench{b, r}
}

func (l *bench) do(host int, c cluster.Command) cluster.Result {
	h := l.r.Hosts[id(fmt.Sprint("host", host))]
	c.Host, c.Session, c.Request = h.ID, h.Session, l.r.Requests[h.ID].Request+1
	next, res := rules.Apply(l.r, c, l.r.Index+1)
	if l.r = next; res.Refused != nil {
		l.b.Fatal(res.Refused)
	}
	return res
}

// A cluster of 100 hosts, with 50 blocks on each of 100 networks.
func BenchmarkGrant(b *testing.B) {
	l := newBench(b, 100)
	pool := func(i int) string { return fmt.Sprintf("10.%d.0.0/16", i) }
	for i := range 100 {
		l.do(0, attach(pool(i)))
		for j := range 50 {
			l.do(j, grant(pool(i), 8))
		}
	}
	for b.Loop() {
		lease := l.do(7, grant(pool(7), 8)).Lease
		l.do(7, release(lease.ID))
	}
}

// One network for 200 endpoints on each of 200 hosts, in blocks that double,
// with an address of every host's first block leased to its neighbour.
func BenchmarkOneLargePool(b *testing.B) {
	const subnet = "10.1.0.0/16"
	l := newBench(b, 200)
	grants := 0
	var first []cluster.Lease
	for i := range 200 {
		l.do(i, attach(subnet))
	}
	for i := range 200 {
		for have, want := 0, 8; have < 200; want = min(2*want, 64) {
			lease := l.do(i, grant(subnet, want)).Lease
			if have += 1 << (32 - lease.Block.Bits()); grants%6 == 0 {
				first = append(first, lease)
			}
			grants++
		}
	}
	for i, lease := range first {
		a := lease.Block.Addr().Next().String()
		holder := i
		for j := range 200 {
			if id(fmt.Sprint("host", j)) == lease.Holder {
				holder = j
			}
		}
		l.do(holder, carve(lease.ID, a))
		l.do((holder+1)%200, exact(subnet, a))
	}
	for b.Loop() {
		lease := l.do(7, grant(subnet, 8)).Lease
		l.do(7, carve(lease.ID, lease.Block.Addr().String()))
		l.do(7, release(lease.ID))
	}
	b.ReportMetric(float64(grants)/200, "blocks/host")
	if err := rules.Check(l.r); err != nil {
		b.Fatal(err)
	}
}
