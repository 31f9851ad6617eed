package dhcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"

	"go.etcd.io/bbolt"
)

// bucket holds group, NUL, address in text → Lease as JSON.
var bucket = []byte("dhcp")

// Bolt keeps leases in a bucket "dhcp" of a database.
type Bolt struct{ DB *bbolt.DB }

func (k Key) bytes() []byte { return append(append([]byte(k.Group), 0), k.Addr.String()...) }

// Load implements Store.
func (s Bolt) Load() (map[Key]Lease, error) {
	out := map[Key]Lease{}
	err := s.DB.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(name, value []byte) error {
			var l Lease
			cut := bytes.LastIndexByte(name, 0)
			addr, err := netip.ParseAddr(string(name[cut+1:]))
			if err != nil || cut < 0 {
				return fmt.Errorf("key %q is not one of a lease", name)
			}
			if err := json.Unmarshal(value, &l); err != nil {
				return fmt.Errorf("key %q: %w", name, err)
			}
			out[Key{string(name[:cut]), addr}] = l
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", bucket, err)
	}
	return out, nil
}

// Put implements Store.
func (s Bolt) Put(k Key, l Lease) error {
	value, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return s.DB.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return b.Put(k.bytes(), value)
	})
}

// Delete implements Store.
func (s Bolt) Delete(k Key) error {
	return s.DB.Update(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucket); b != nil {
			return b.Delete(k.bytes())
		}
		return nil
	})
}
