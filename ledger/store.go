package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// store is raft's log and its stable values in one bbolt file. Every write is
// synced before it returns: raft counts on that.
//
// Raft panics when it cannot save its term. A full disk must not end the
// plugin, so the term is written again and again until that succeeds or the
// store is stopped. Any other failed write makes raft step down, which it
// recovers from.
type store struct {
	db     *bolt.DB
	update atomic.Pointer[func(func(*bolt.Tx) error) error] // db.Update, but for tests of full disks
	failed atomic.Pointer[error]                            // of the last write
	done   chan struct{}
	once   sync.Once
}

const (
	termKey = "CurrentTerm" // raft's name for it
	rewrite = 250 * time.Millisecond
)

var (
	logBucket    = []byte("log")
	stableBucket = []byte("stable")
	serverKey    = []byte("server") // our own: the raft.ServerID of this directory
	genKey       = []byte("gen")    // our own: the generation of the registry
)

func openStore(path string) (*store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 2 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, e1 := tx.CreateBucketIfNotExists(logBucket)
		_, e2 := tx.CreateBucketIfNotExists(stableBucket)
		return errors.Join(e1, e2)
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	s := &store{db: db, done: make(chan struct{})}
	update := db.Update
	s.update.Store(&update)
	return s, nil
}

// stop ends all waiting for a disk that cannot be written.
func (s *store) stop() { s.once.Do(func() { close(s.done) }) }

func (s *store) Close() error {
	s.stop()
	return s.db.Close()
}

func (s *store) write(fn func(*bolt.Tx) error) error {
	err := (*s.update.Load())(fn)
	if err == nil {
		s.failed.Store(nil)
	} else {
		s.failed.Store(&err)
	}
	return err
}

// failure is why the last write failed; nil when it did not.
func (s *store) failure() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *store) FirstIndex() (uint64, error) { return s.edge((*bolt.Cursor).First) }
func (s *store) LastIndex() (uint64, error)  { return s.edge((*bolt.Cursor).Last) }

func (s *store) edge(end func(*bolt.Cursor) ([]byte, []byte)) (index uint64, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		if k, _ := end(tx.Bucket(logBucket).Cursor()); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

func (s *store) GetLog(index uint64, log *raft.Log) error {
	return s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(logBucket).Get(number(index))
		if b == nil {
			return raft.ErrLogNotFound
		}
		return decodeLog(index, b, log)
	})
}

func (s *store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

func (s *store) StoreLogs(logs []*raft.Log) error {
	return s.write(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(logBucket)
		for _, log := range logs {
			if err := bucket.Put(number(log.Index), encodeLog(log)); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteRange deletes from min to max, both included.
func (s *store) DeleteRange(min, max uint64) error {
	return s.write(func(tx *bolt.Tx) error {
		c := tx.Bucket(logBucket).Cursor()
		// Next after Delete may skip an entry, so the place is looked up anew.
		for k, _ := c.Seek(number(min)); k != nil && binary.BigEndian.Uint64(k) <= max; k, _ = c.Seek(number(min)) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set waits for the disk when raft would panic otherwise. Once the store is
// stopped it claims success for that one key: raft is going down then, and its
// next step, a vote or an entry, fails.
func (s *store) Set(key, val []byte) error {
	for {
		err := s.write(func(tx *bolt.Tx) error { return tx.Bucket(stableBucket).Put(key, val) })
		if err == nil || string(key) != termKey {
			return err
		}
		select {
		case <-s.done:
			return nil
		case <-time.After(rewrite):
		}
	}
}

// Get returns an empty value for an unknown key.
func (s *store) Get(key []byte) (val []byte, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		val = append(val, tx.Bucket(stableBucket).Get(key)...)
		return nil
	})
	return val, err
}

func (s *store) SetUint64(key []byte, val uint64) error { return s.Set(key, number(val)) }

func (s *store) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil || len(b) == 0 {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("read %s from the log's file: %d bytes instead of 8", key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// An entry is: format, type, term, time, length of the data, data, extensions.
const (
	entryFormat = 1
	entryHead   = 1 + 1 + 8 + 8 + 4
)

func encodeLog(log *raft.Log) []byte {
	b := make([]byte, 0, entryHead+len(log.Data)+len(log.Extensions))
	b = append(b, entryFormat, byte(log.Type))
	b = binary.BigEndian.AppendUint64(b, log.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(log.AppendedAt.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(log.Data)))
	b = append(b, log.Data...)
	return append(b, log.Extensions...)
}

func decodeLog(index uint64, b []byte, log *raft.Log) error {
	if len(b) < entryHead || b[0] != entryFormat {
		return fmt.Errorf("read log entry %d: unknown format", index)
	}
	size := binary.BigEndian.Uint32(b[entryHead-4:])
	if uint64(len(b)-entryHead) < uint64(size) {
		return fmt.Errorf("read log entry %d: cut short", index)
	}
	*log = raft.Log{
		Index: index,
		Type:  raft.LogType(b[1]),
		Term:  binary.BigEndian.Uint64(b[2:]),
	}
	if at := int64(binary.BigEndian.Uint64(b[10:])); at != (time.Time{}).UnixNano() {
		log.AppendedAt = time.Unix(0, at)
	}
	body := append([]byte(nil), b[entryHead:]...) // b belongs to the transaction
	if size > 0 {
		log.Data = body[:size:size]
	}
	if len(body) > int(size) {
		log.Extensions = body[size:]
	}
	return nil
}
