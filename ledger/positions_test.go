package ledger

import (
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

func TestWitness(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open := func() (*witness, func()) {
		t.Helper()
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		w, err := openWitness(db)
		if err != nil {
			t.Fatal(err)
		}
		return w, func() { db.Close() }
	}
	w, end := open()
	for _, test := range []struct {
		what string
		p    position
		ok   bool
	}{
		{"a server that is new", position{Server: "a", Boot: 1, Now: place{3, 10}}, true},
		{"it goes on", position{Server: "a", Boot: 1, Now: place{4, 12}}, true},
		{"what came late", position{Server: "a", Boot: 1, Now: place{3, 11}}, true},
		{"a start from where it was", position{Server: "a", Boot: 2, Start: place{4, 12}, Now: place{4, 0}}, true},
		{"a start with entries that were not committed", position{Server: "a", Boot: 3, Start: place{5, 14}, Now: place{5, 13}}, true},
		{"entries that were not committed are overwritten", position{Server: "a", Boot: 4, Start: place{6, 13}, Now: place{6, 13}}, true},
		{"an older log", position{Server: "a", Boot: 5, Start: place{6, 12}, Now: place{6, 12}}, false},
		{"an older vote", position{Server: "a", Boot: 5, Start: place{5, 20}, Now: place{7, 20}}, false},
		{"it grew, and is still another log", position{Server: "a", Boot: 5, Start: place{6, 12}, Now: place{9, 90}}, false},
		{"another server", position{Server: "b", Boot: 5, Start: place{1, 1}, Now: place{1, 1}}, true},
	} {
		if got := w.hear(test.p); got != test.ok {
			t.Errorf("%s: %v", test.what, got)
		}
	}
	if p, ok := w.of("a"); !ok || p.Boot != 4 || p.Now != (place{6, 13}) {
		t.Errorf("a is remembered at %+v", p)
	}
	if err := w.save([]string{"a"}); err != nil {
		t.Fatal(err)
	}
	end()
	w, end = open()
	defer end()
	if w.hear(position{Server: "a", Boot: 6, Start: place{6, 1}}) {
		t.Error("forgotten over a restart")
	}
	if _, ok := w.of("b"); ok {
		t.Error("a server that is in no configuration is remembered")
	}
}
