package ipam

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// The buckets, all below "ipam".
const (
	root        = "ipam"
	poolBucket  = "pools"  // PoolKey text → record
	blockBucket = "blocks" // lease, 8 bytes big endian → lease.Block
	usedBucket  = "used"   // PoolKey text, NUL, address bytes → lease.Use
	freedBucket = "freed"  // the same → lease.Freed
	hostBucket  = "host"   // standingKey → lease.Standing
)

var standingKey = []byte("standing")

// record is a pool that this host is attached to.
type record struct {
	Pool   cluster.Pool   `json:"pool"`  // as of Index; a newer Registry knows better
	Index  uint64         `json:"index"` // of the newest own command on it
	Auto   bool           `json:"auto,omitempty"`
	Uses   map[string]int `json:"uses,omitempty"`  // PoolID → Docker networks that requested it
	Parked time.Time      `json:"parked,omitzero"` // since when Uses is empty; zero then: give it up at once
}

func (r record) uses() int {
	n := 0
	for _, k := range r.Uses {
		n += k
	}
	return n
}

// op is one change of the store: a value put, or with a nil value deleted.
type op struct {
	bucket string
	key    []byte
	value  []byte
}

func put(bucket string, key []byte, v any) op {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // plain data: cannot fail
	}
	return op{bucket, key, b}
}

func del(bucket string, key []byte) op { return op{bucket: bucket, key: key} }

func poolKey(k cluster.PoolKey) []byte { b, _ := k.MarshalText(); return b }

func addrKey(k cluster.PoolKey, a netip.Addr) []byte {
	return append(append(poolKey(k), 0), a.AsSlice()...)
}

func blockKey(lease uint64) []byte { return binary.BigEndian.AppendUint64(nil, lease) }

// store writes changes to disk, in the order in which they were queued. The
// changes that queue up while one fsync runs share the next: without a timer,
// so that a single one waits for nothing.
type store struct {
	db     *bbolt.DB
	mu     sync.Mutex
	queue  []*write
	leader sync.Mutex // held by the writer that commits for all
}

type write struct {
	ops  []op
	done bool // guarded by leader
	err  error
}

// enqueue fixes the place of ops in the order of writes.
func (s *store) enqueue(ops ...op) *write {
	w := &write{ops: ops}
	s.mu.Lock()
	s.queue = append(s.queue, w)
	s.mu.Unlock()
	return w
}

// wait returns when w is on disk, or failed.
func (s *store) wait(w *write) error {
	s.leader.Lock()
	defer s.leader.Unlock()
	if w.done {
		return w.err
	}
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()
	err := s.db.Update(func(tx *bbolt.Tx) error {
		top := tx.Bucket([]byte(root))
		for _, w := range batch {
			for _, o := range w.ops {
				b := top.Bucket([]byte(o.bucket))
				if o.value == nil {
					if err := b.Delete(o.key); err != nil {
						return err
					}
				} else if err := b.Put(o.key, o.value); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("store addresses: %w", err)
	}
	for _, w := range batch {
		w.done, w.err = true, err
	}
	return w.err
}

func (s *store) commit(ops ...op) error { return s.wait(s.enqueue(ops...)) }

// opsOf turns the writes of a step into changes of the store.
func opsOf(writes []lease.Write) []op {
	var ops []op
	for _, w := range writes {
		switch {
		case w.Standing != nil:
			ops = append(ops, put(hostBucket, standingKey, *w.Standing))
		case w.Lease != 0 && w.Block != nil:
			ops = append(ops, put(blockBucket, blockKey(w.Lease), *w.Block))
		case w.Lease != 0:
			ops = append(ops, del(blockBucket, blockKey(w.Lease)))
		default:
			key := addrKey(w.Pool, w.Addr)
			ops = append(ops, putOrDelete(usedBucket, key, w.Used), putOrDelete(freedBucket, key, w.Freed))
		}
	}
	return ops
}

func putOrDelete[V any](bucket string, key []byte, v *V) op {
	if v == nil {
		return del(bucket, key)
	}
	return put(bucket, key, *v)
}

// load makes the buckets and reads what an earlier run left.
func (s *store) load() (records map[cluster.PoolKey]record, disk lease.Disk, err error) {
	records = map[cluster.PoolKey]record{}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		top, err := tx.CreateBucketIfNotExists([]byte(root))
		if err != nil {
			return err
		}
		return errors.Join(
			read(top, poolBucket, func(k []byte, r record) error {
				var key cluster.PoolKey
				err := key.UnmarshalText(k)
				records[key] = r
				return err
			}),
			read(top, blockBucket, func(k []byte, b lease.Block) error {
				b.Lease = binary.BigEndian.Uint64(k)
				disk.Shelf(b.Pool).Blocks[b.Lease] = b
				return nil
			}),
			read(top, usedBucket, func(k []byte, u lease.Use) error {
				p, a, err := splitKey(k)
				disk.Shelf(p).Used[a] = u
				return err
			}),
			read(top, freedBucket, func(k []byte, f lease.Freed) error {
				p, a, err := splitKey(k)
				disk.Shelf(p).Freed[a] = f
				return err
			}),
			read(top, hostBucket, func(_ []byte, s lease.Standing) error {
				disk.Standing = s
				return nil
			}),
		)
	})
	return records, disk, err
}

// read decodes all values of a bucket.
func read[V any](top *bbolt.Bucket, bucket string, each func(k []byte, v V) error) error {
	b, err := top.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	err = b.ForEach(func(k, v []byte) error {
		var value V
		if err := json.Unmarshal(v, &value); err != nil {
			return err
		}
		return each(k, value)
	})
	if err != nil {
		return fmt.Errorf("read bucket %s: %w", bucket, err)
	}
	return nil
}

func splitKey(k []byte) (key cluster.PoolKey, a netip.Addr, err error) {
	// Neither a space nor a prefix in text holds a NUL; an address may.
	text, addr, _ := bytes.Cut(k, []byte{0})
	if err := key.UnmarshalText(text); err != nil {
		return key, a, err
	}
	a, ok := netip.AddrFromSlice(addr)
	if !ok {
		return key, a, fmt.Errorf("key %q holds no address", k)
	}
	return key, a, nil
}
