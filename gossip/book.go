package gossip

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"go.etcd.io/bbolt"
)

// addressesKept is how many addresses of a host are remembered, newest first:
// a host whose address changed may change back.
const addressesKept = 4

// host is an entry of the address book.
type host struct {
	Name      string           `json:"name,omitempty"`
	Addresses []netip.AddrPort `json:"addresses,omitempty"` // newest first
	Seen      time.Time        `json:"seen"`                // when it was last known to be alive
	Left      bool             `json:"left,omitempty"`      // said good-bye: not dialed

	alive   bool      // as membership believes
	since   time.Time // of the present state
	refused error     // why it may not take part, see Cluster.admit
}

func (h *host) state() cluster.MemberState {
	switch {
	case h.alive:
		return cluster.Alive
	case h.Left:
		return cluster.Left
	default:
		return cluster.Failed
	}
}

// awaited reports whether the host is one that should be there.
func (h *host) awaited() bool { return !h.Left && h.refused == nil }

// present reports whether the host is alive and may take part.
func (h *host) present() bool { return h.alive && h.refused == nil }

func (h *host) isAt(a netip.AddrPort) bool { return len(h.Addresses) > 0 && h.Addresses[0] == a }

// at notes the address under which the host is known now.
func (h *host) at(a netip.AddrPort) {
	if h.isAt(a) {
		return
	}
	list := append([]netip.AddrPort{a}, slices.DeleteFunc(slices.Clone(h.Addresses), func(b netip.AddrPort) bool { return b == a })...)
	h.Addresses = list[:min(len(list), addressesKept)]
}

// book is the address book: all hosts ever met, but for this one.
type book struct {
	hosts map[cluster.HostID]*host
	dirty map[cluster.HostID]bool // not yet on disk
}

// meet returns the entry of a host, a new one if need be, which the caller may
// change.
func (b *book) meet(id cluster.HostID) *host {
	h := b.hosts[id]
	if h == nil {
		h = &host{since: time.Now()}
		b.hosts[id] = h
	}
	b.dirty[id] = true
	return h
}

// list returns the hosts for which keep holds, by id.
func (b *book) list(keep func(*host) bool) []cluster.HostID {
	var ids []cluster.HostID
	for _, id := range slices.Sorted(maps.Keys(b.hosts)) {
		if keep(b.hosts[id]) {
			ids = append(ids, id)
		}
	}
	return ids
}

var (
	bucketGossip = []byte("gossip")
	bucketHosts  = []byte("hosts") // within bucketGossip: host id, host as JSON
	keyEpoch     = []byte("epoch")
	keyCluster   = []byte("cluster") // that the hosts belong to
)

// load reads what earlier runs left, and begins the next epoch.
func load(db *bbolt.DB) (b *book, epoch uint32, err error) {
	b = &book{hosts: map[cluster.HostID]*host{}, dirty: map[cluster.HostID]bool{}}
	err = db.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists(bucketGossip)
		if err != nil {
			return err
		}
		if v := root.Get(keyEpoch); len(v) == 4 {
			epoch = binary.BigEndian.Uint32(v)
		}
		epoch++
		if err := putEpoch(root, epoch); err != nil {
			return err
		}
		hosts, err := root.CreateBucketIfNotExists(bucketHosts)
		if err != nil {
			return err
		}
		return hosts.ForEach(func(k, v []byte) error {
			h := &host{}
			if err := json.Unmarshal(v, h); err != nil {
				return fmt.Errorf("read host %s: %w", k, err)
			}
			h.since = h.Seen
			b.hosts[cluster.HostID(k)] = h
			return nil
		})
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read address book: %w", err)
	}
	return b, epoch, nil
}

func putEpoch(root *bbolt.Bucket, epoch uint32) error {
	return root.Put(keyEpoch, binary.BigEndian.AppendUint32(nil, epoch))
}

func storeEpoch(db *bbolt.DB, epoch uint32) error {
	err := db.Update(func(tx *bbolt.Tx) error { return putEpoch(tx.Bucket(bucketGossip), epoch) })
	if err != nil {
		return fmt.Errorf("write epoch: %w", err)
	}
	return nil
}

// swapCluster notes the cluster that the address book belongs to, and returns
// the one noted before.
func swapCluster(db *bbolt.DB, id cluster.ID) (was cluster.ID, err error) {
	err = db.Update(func(tx *bbolt.Tx) error {
		root := tx.Bucket(bucketGossip)
		was = cluster.ID(root.Get(keyCluster))
		return root.Put(keyCluster, []byte(id))
	})
	if err != nil {
		return "", fmt.Errorf("write cluster of address book: %w", err)
	}
	return was, nil
}

// clear drops all hosts.
func (b *book) clear() {
	for id := range b.hosts {
		delete(b.hosts, id)
		b.dirty[id] = true
	}
}

// changes takes the entries that are not on disk yet, encoded; nil for those
// that are gone.
func (b *book) changes() map[cluster.HostID][]byte {
	out := make(map[cluster.HostID][]byte, len(b.dirty))
	for id := range b.dirty {
		// A struct of strings, times and addresses always marshals.
		out[id] = nil
		if h := b.hosts[id]; h != nil {
			out[id], _ = json.Marshal(h)
		}
	}
	clear(b.dirty)
	return out
}

func storeHosts(db *bbolt.DB, hosts map[cluster.HostID][]byte) error {
	if len(hosts) == 0 {
		return nil
	}
	err := db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketGossip).Bucket(bucketHosts)
		var errs []error
		for id, v := range hosts {
			if v == nil {
				errs = append(errs, bucket.Delete([]byte(id)))
			} else {
				errs = append(errs, bucket.Put([]byte(id), v))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("write address book: %w", err)
	}
	return nil
}

// keepBook writes the address book when it changes. A failed write is made up
// for by the next: the entries stay dirty.
func (c *Cluster) keepBook(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			c.mu.Lock()
			for _, id := range c.alivePeers() {
				c.book.meet(id).Seen = time.Now()
			}
			c.mu.Unlock()
			c.saveBook()
			return ctx.Err()
		case <-c.save:
		}
		c.saveBook()
		sleep(ctx, time.Second) // gathers what happens together
	}
}

func (c *Cluster) saveBook() {
	c.mu.Lock()
	changes := c.book.changes()
	c.mu.Unlock()
	if err := storeHosts(c.cfg.DB, changes); err != nil {
		c.log.WithError(err).Error("store address book")
		c.mu.Lock()
		for id := range changes {
			c.book.dirty[id] = true
		}
		c.mu.Unlock()
	}
}
