package ipam

import (
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// onDisk reopens a host on a database that syncs each commit.
func (h *host) onDisk(b *testing.B) {
	b.Helper()
	h.db.Close()
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "sync.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	cfg := h.cfg
	cfg.DB = db
	if h.IPAM, err = Open(cfg); err != nil {
		b.Fatal(err)
	}
	h.db = db
	b.Cleanup(func() { db.Close() })
}

// latencies collects how long each of many calls took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	l.all = append(l.all, d)
	l.mu.Unlock()
}

func (l *latencies) report(b *testing.B) {
	slices.Sort(l.all)
	at := func(part float64) float64 {
		return float64(l.all[int(part*float64(len(l.all)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

// BenchmarkStart hands out one address, on disk before it is answered, and
// frees it; p50 and p99 are of the request alone. In parallel, callers share
// the fsyncs.
func BenchmarkStart(b *testing.B) {
	run := func(b *testing.B, starts func(b *testing.B, one func())) {
		h := newLab(b, "h1").hosts[0]
		h.onDisk(b)
		id, err := h.network("10.0.0.0/16", "", "")
		if err != nil {
			b.Fatal(err)
		}
		var took latencies
		b.ResetTimer()
		starts(b, func() {
			begin := time.Now()
			a, err := h.start(id, "", "")
			if err != nil {
				b.Error(err)
				return
			}
			took.add(time.Since(begin))
			h.stop(id, a)
		})
		took.report(b)
	}
	b.Run("alone", func(b *testing.B) {
		run(b, func(b *testing.B, one func()) {
			for b.Loop() {
				one()
			}
		})
	})
	b.Run("parallel", func(b *testing.B) {
		run(b, func(b *testing.B, one func()) {
			b.SetParallelism(25)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					one()
				}
			})
		})
	})
}

// BenchmarkCommit is what the disk itself takes: one key in one transaction.
func BenchmarkCommit(b *testing.B) {
	h := newLab(b, "h1").hosts[0]
	h.onDisk(b)
	var took latencies
	for b.Loop() {
		begin := time.Now()
		if err := h.store.commit(put(poolBucket, []byte("k"), 1)); err != nil {
			b.Fatal(err)
		}
		took.add(time.Since(begin))
	}
	took.report(b)
}

// BenchmarkRefill leases one block of 64 addresses, with the pool's record and
// the block on disk before it counts, and gives it back. The log is in memory:
// what raft and the network add is the ledger's to measure.
func BenchmarkRefill(b *testing.B) {
	h := newLab(b, "h1", "h2", "h3").hosts[0]
	h.onDisk(b)
	id, err := h.network("10.0.0.0/16", "", "")
	if err != nil {
		b.Fatal(err)
	}
	p, _ := h.find(keyOf(id))
	var took latencies
	for b.Loop() {
		begin := time.Now()
		if err := h.grow(b.Context(), p, keyOf(id).Prefix, 64); err != nil {
			b.Fatal(err)
		}
		took.add(time.Since(begin))
		if err := h.Recalled(b.Context(), keyOf(id), netip.Addr{}); err != nil {
			b.Fatal(err)
		}
	}
	took.report(b)
}

// BenchmarkRecall starts a container in a full subnet of 20 hosts, where another
// host has to give an address back first.
func BenchmarkRecall(b *testing.B) {
	c := crowd{"10.0.0.0/26", 20}
	l, ids, size := c.open(b)
	for n := range size {
		h := l.hosts[n%len(l.hosts)]
		if _, err := h.start(ids[h], "", ""); err != nil {
			b.Fatal(err)
		}
	}
	var took latencies
	n := 0
	for b.Loop() {
		from, to := l.hosts[n%20], l.hosts[(n+7)%20]
		n++
		used := from.Used(keyOf(ids[from]))
		if len(used) == 0 {
			continue
		}
		from.stop(ids[from], used[0].Addr)
		begin := time.Now()
		if _, err := to.start(ids[to], "", ""); err != nil {
			b.Fatal(err)
		}
		took.add(time.Since(begin))
	}
	took.report(b)
}
