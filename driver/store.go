package driver

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
)

// store keeps Intent on disk and in memory. Readers share an immutable copy;
// an edit is on disk before anybody sees it.
type store struct {
	db  *bbolt.DB
	mu  sync.Mutex // one edit at a time
	now atomic.Pointer[Intent]
}

var (
	networkBucket  = []byte("driver.networks")
	endpointBucket = []byte("driver.endpoints")
	partingBucket  = []byte("driver.parting")
	portsBucket    = []byte("driver.ports")
)

// openStore reads what is on disk.
func openStore(db *bbolt.DB) (*store, error) {
	in := &Intent{Networks: map[string]Network{}, Endpoints: map[string]Endpoint{}, Parting: map[cluster.PoolKey]cluster.PoolKey{}, Published: map[string]Published{}}
	err := db.Update(func(tx *bbolt.Tx) error {
		return firstError(
			load(tx, networkBucket, func(n Network) { in.Networks[n.ID] = n }),
			load(tx, endpointBucket, func(e Endpoint) { in.Endpoints[e.ID] = e }),
			load(tx, partingBucket, func(p cluster.PoolKey) { in.Parting[p] = p }),
			load(tx, portsBucket, func(p Published) { in.Published[p.Endpoint] = p }),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	s := &store{db: db}
	s.now.Store(in)
	return s, nil
}

// intent returns the newest copy.
func (s *store) intent() *Intent { return s.now.Load() }

// edit applies fn to a copy and commits what it changed; nothing is changed
// when fn or the disk fails.
func (s *store) edit(fn func(in *Intent) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.now.Load()
	in := &Intent{Networks: maps.Clone(old.Networks), Endpoints: maps.Clone(old.Endpoints), Parting: maps.Clone(old.Parting), Published: maps.Clone(old.Published)}
	if err := fn(in); err != nil {
		return err
	}
	in.forgetPorts()
	var writes []write
	writes = changes(writes, networkBucket, old.Networks, in.Networks, func(a, b Network) bool { return reflect.DeepEqual(a, b) })
	writes = changes(writes, endpointBucket, old.Endpoints, in.Endpoints, func(a, b Endpoint) bool { return a == b })
	writes = changes(writes, partingBucket, old.Parting, in.Parting, func(a, b cluster.PoolKey) bool { return a == b })
	writes = changes(writes, portsBucket, old.Published, in.Published, func(a, b Published) bool { return reflect.DeepEqual(a, b) })
	if len(writes) == 0 {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, w := range writes {
			if err := w.do(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store networks: %w", err)
	}
	s.now.Store(in)
	return nil
}

// write is one changed key; a nil value deletes it.
type write struct {
	bucket []byte
	key    string
	value  any
}

func (w write) do(tx *bbolt.Tx) error {
	b := tx.Bucket(w.bucket)
	if w.value == nil {
		return b.Delete([]byte(w.key))
	}
	text, err := json.Marshal(w.value)
	if err != nil {
		return err
	}
	return b.Put([]byte(w.key), text)
}

func changes[K comparable, V any](to []write, bucket []byte, old, now map[K]V, equal func(a, b V) bool) []write {
	for k, v := range now {
		if o, ok := old[k]; !ok || !equal(o, v) {
			to = append(to, write{bucket, fmt.Sprint(k), v})
		}
	}
	for k := range old {
		if _, ok := now[k]; !ok {
			to = append(to, write{bucket, fmt.Sprint(k), nil})
		}
	}
	return to
}

func load[V any](tx *bbolt.Tx, bucket []byte, put func(V)) error {
	b, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	return b.ForEach(func(k, text []byte) error {
		var v V
		if err := json.Unmarshal(text, &v); err != nil {
			return fmt.Errorf("read %s of %s: %w", k, bucket, err)
		}
		put(v)
		return nil
	})
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
