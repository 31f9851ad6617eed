package ledger

import (
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

func TestMirrorMovesForward(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m, err := openMirror(db)
	if err != nil {
		t.Fatal(err)
	}
	at := func(gen, index uint64) *cluster.Registry {
		r := rules.New()
		r.Gen, r.Index = gen, index
		return r
	}
	changed := m.subscribe()
	for _, step := range []struct {
		gen, index uint64
		want       bool
	}{{1, 5, true}, {1, 4, false}, {1, 5, false}, {1, 6, true}, {2, 3, true}, {1, 7, false}} {
		r := at(step.gen, step.index)
		m.advance(r)
		if got := m.Registry() == r; got != step.want {
			t.Errorf("generation %d, index %d: taken %v", step.gen, step.index, got)
		}
		select {
		case <-changed:
			if !step.want {
				t.Errorf("generation %d, index %d: subscribers woken for nothing", step.gen, step.index)
			}
		default:
			if step.want {
				t.Errorf("generation %d, index %d: subscribers not woken", step.gen, step.index)
			}
		}
	}
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	m.unsubscribe(changed)
	m.touch()
	if len(changed) != 0 {
		t.Error("woken after unsubscribing")
	}
	again, err := openMirror(db)
	if err != nil || again.Registry().Gen != 2 || again.Registry().Index != 3 {
		t.Errorf("after a restart: %+v %v", again.Registry(), err)
	}
}
