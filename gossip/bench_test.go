package gossip

import (
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// BenchmarkPublish adds and removes one endpoint of a host that has 1,000:
// difference, hash and signature.
func BenchmarkPublish(b *testing.B) {
	tab := newTable(identity(1), 1)
	records := recordsOf(1, 0, 1001)
	for n := 0; b.Loop(); n++ {
		tab.publish(entriesOf(cluster.HostInfo{}, records[:1000+n%2]))
	}
}

// BenchmarkMergeDelta is the same change as another host takes it in: decoding,
// signature, hash and view.
func BenchmarkMergeDelta(b *testing.B) {
	owner, other := newTable(identity(1), 1), newTable(identity(2), 1)
	records := recordsOf(1, 0, 1001)
	var wire [][]byte
	have := summary{owner: hostID(1)}
	for n := range 512 {
		owner.publish(entriesOf(cluster.HostInfo{}, records[:1000+n%2]))
		u, _ := owner.since(have)
		have = owner.streams[hostID(1)].summary(hostID(1))
		wire = append(wire, appendUpdate(nil, u))
	}
	for n := 0; b.Loop(); n++ {
		if n%len(wire) == 0 {
			other.drop(hostID(1))
		}
		d := decoder{b: wire[n%len(wire)]}
		if changed, err := other.merge(d.update()); !changed {
			b.Fatal(err)
		}
	}
}

// BenchmarkMergeSnapshots takes in 10,000 records of 100 hosts, as a host does
// that restarts.
func BenchmarkMergeSnapshots(b *testing.B) {
	var wire [][]byte
	size := 0
	for n := range 100 {
		owner := newTable(identity(n), 1)
		owner.publish(entriesOf(cluster.HostInfo{}, recordsOf(1, n*100, n*100+100)))
		u, _ := owner.since(summary{owner: hostID(n)})
		wire = append(wire, appendUpdate(nil, u))
		size += len(wire[n])
	}
	b.ReportMetric(float64(size), "wire-B")
	for b.Loop() {
		tab := newTable(identity(200), 1)
		for _, w := range wire {
			d := decoder{b: w}
			if changed, err := tab.merge(d.update()); !changed {
				b.Fatal(err)
			}
		}
		tab.root()
	}
}
