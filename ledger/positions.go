package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// place is how far a log has come, as far as others may count on it: the term
// that its server has seen, and the last entry that it knows to be committed.
// Neither ever goes back, so a log that ends before its own place was set back.
type place struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

// position is what a server says of its own log.
type position struct {
	Server string `json:"server"`
	Boot   uint64 `json:"boot"`  // drawn when the log was opened
	Start  place  `json:"start"` // where the log ended then: its term and its last entry
	Now    place  `json:"now"`
}

// contradicts reports whether a log that once was at seen cannot have been
// opened at p.Start, but from an older state of its disk.
func (seen position) contradicts(p position) bool {
	return seen.Server == p.Server && seen.Boot != p.Boot && (p.Start.Term < seen.Now.Term || p.Start.Index < seen.Now.Index)
}

// witness remembers, over restarts, what other servers said of their logs.
type witness struct {
	db *bolt.DB

	saved map[string]position // by save, of which there is one at a time

	mu   sync.Mutex
	seen map[string]position
}

var positionsKey = []byte("positions")

func openWitness(db *bolt.DB) (*witness, error) {
	w := &witness{db: db, seen: map[string]position{}}
	b, err := load(db, positionsKey)
	if err == nil && b != nil {
		err = json.Unmarshal(b, &w.seen)
	}
	if err != nil {
		return nil, fmt.Errorf("read the positions of voters: %w", err)
	}
	w.saved = maps.Clone(w.seen)
	return w, nil
}

// hear takes note of a position, and reports false when an earlier one
// contradicts it. That one is kept then: it goes on testifying.
func (w *witness) hear(p position) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen, known := w.seen[p.Server]
	if known && seen.contradicts(p) {
		return false
	}
	p.Now = place{max(p.Now.Term, seen.Now.Term), max(p.Now.Index, seen.Now.Index)}
	w.seen[p.Server] = p
	return true
}

// of is what was last heard of a server.
func (w *witness) of(server string) (position, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.seen[server]
	return p, ok
}

// save writes what changed, and forgets all servers but these. Nobody who
// hears a position waits for the disk.
func (w *witness) save(servers []string) error {
	w.mu.Lock()
	maps.DeleteFunc(w.seen, func(id string, _ position) bool { return !slices.Contains(servers, id) })
	now := maps.Clone(w.seen)
	w.mu.Unlock()
	if maps.Equal(now, w.saved) {
		return nil
	}
	b, err := json.Marshal(now)
	if err == nil {
		err = save(w.db, positionsKey, b)
	}
	if err == nil {
		w.saved = now
	}
	return err
}
