package ipam

import (
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// BenchmarkStart hands out and frees one address, each on disk before it is
// answered; in parallel, callers share the fsyncs.
func BenchmarkStart(b *testing.B) {
	run := func(b *testing.B, starts func(b *testing.B, one func())) {
		l := newLab(b, "h1")
		h := l.hosts[0]
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
		b.Cleanup(func() { db.Close() })
		id, err := h.network("10.0.0.0/16", "", "")
		if err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		starts(b, func() {
			a, err := h.start(id, "", "")
			if err != nil {
				b.Error(err)
				return
			}
			h.stop(id, a)
		})
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
