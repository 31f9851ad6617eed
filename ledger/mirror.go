package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// mirror is this host's newest copy of the registry, and what else it must
// know when it boots alone. It only moves forward.
type mirror struct {
	db    *bolt.DB
	dirty chan struct{}

	mu       sync.Mutex
	registry *cluster.Registry
	saved    *cluster.Registry
	subs     []chan struct{}
}

var (
	bucket      = []byte("ledger")
	registryKey = []byte("registry")
	clusterKey  = []byte("cluster")
	votersKey   = []byte("voters")
)

// saveEvery bounds how often the copy is written: it is a large value, and
// losing its last changes in a crash loses nothing but time.
const saveEvery = 250 * time.Millisecond

func openMirror(db *bolt.DB) (*mirror, error) {
	m := &mirror{db: db, dirty: make(chan struct{}, 1), registry: rules.New()}
	b, err := load(db, registryKey)
	if err != nil {
		return nil, err
	}
	if b != nil {
		if m.registry, err = rules.Decode(b); err != nil {
			return nil, err
		}
	}
	m.saved = m.registry
	return m, nil
}

func load(db *bolt.DB, key []byte) (val []byte, err error) {
	err = db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(bucket); b != nil {
			val = append(val, b.Get(key)...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", key, err)
	}
	return val, nil
}

func save(db *bolt.DB, key, val []byte) error {
	err := db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return b.Put(key, val)
	})
	if err != nil {
		return fmt.Errorf("save %s: %w", key, err)
	}
	return nil
}

func (m *mirror) Registry() *cluster.Registry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.registry
}

// advance takes a registry if it is newer than the copy.
func (m *mirror) advance(r *cluster.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !newer(r, m.registry) {
		return
	}
	m.registry = r
	signal(m.dirty)
	for _, ch := range m.subs {
		signal(ch)
	}
}

func newer(a, b *cluster.Registry) bool {
	return a.Gen > b.Gen || a.Gen == b.Gen && a.Index > b.Index
}

// touch wakes the subscribers although the copy is the same.
func (m *mirror) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ch := range m.subs {
		signal(ch)
	}
}

func (m *mirror) subscribe() chan struct{} {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs = append(m.subs, ch)
	return ch
}

func (m *mirror) unsubscribe(ch chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, sub := range m.subs {
		if sub == ch {
			m.subs = append(m.subs[:i:i], m.subs[i+1:]...)
			return
		}
	}
}

// run writes the copy to disk as it changes, and a last time when ctx ends.
func (m *mirror) run(ctx context.Context, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			failed(m.save())
			return
		case <-m.dirty:
		}
		failed(m.save())
		select {
		case <-ctx.Done():
		case <-time.After(saveEvery):
		}
	}
}

func (m *mirror) save() error {
	r := m.Registry()
	if r == m.saved {
		return nil
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = save(m.db, registryKey, b)
	}
	if err == nil {
		m.saved = r
	} else {
		signal(m.dirty)
	}
	return err
}
