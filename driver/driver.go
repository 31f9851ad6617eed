package driver

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// AddressSpace is the address space that isthmus' own IPAM answers; a network
// whose pools carry another one gets its addresses from a foreign IPAM driver.
const AddressSpace = "isthmus"

// Ledger is what the cluster agreed. All methods are safe for concurrent use.
type Ledger interface {
	// Propose asks for one change. It blocks until ctx ends or for 5 s; a
	// refusal is an error that is a *cluster.Refusal.
	Propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error)
	// Registry returns the newest local copy, never nil, not to be changed.
	Registry() *cluster.Registry
	// Subscribe returns a one-slot channel, signalled when Registry changed.
	Subscribe() <-chan struct{}
}

// Heard is what the cluster says of itself. No method blocks.
type Heard interface {
	// Streams returns the other hosts' records, those of failed hosts too.
	Streams() []cluster.Stream
	// Members returns all hosts, this one included.
	Members() []cluster.Member
	// Settled reports whether absence from Streams means absence.
	Settled() bool
	// Publish replaces this host's own records.
	Publish([]cluster.Record)
	// Subscribe returns a one-slot channel, signalled on any change.
	Subscribe() <-chan struct{}
}

// Addresses is the part of address management that networks need.
type Addresses interface {
	// Prepare leases this host's first block of each pool.
	Prepare(ctx context.Context, pools []cluster.PoolKey) error
	// LeaseOf names the lease that covers an address of this host, 0 if none.
	LeaseOf(cluster.PoolKey, netip.Addr) uint64
	// Holds reports whether this host's Docker requested the pool from us.
	Holds(cluster.PoolKey) bool
}

// Config is what a Driver needs. All fields but Scope and MTU are required.
type Config struct {
	DB        *bbolt.DB
	Host      cluster.HostID
	Kernel    kernel.Kernel
	Ledger    Ledger
	Heard     Heard
	Addresses Addresses
	VTEP      netip.Addr // this host's address on the underlay
	MTU       int        // of the underlay link, in bytes; 0: as Heard says of this host
	Port      uint16     // UDP port of VXLAN
	Scope     string     // "local" (default) or "global"
	Log       logrus.FieldLogger
}

func (c Config) check() error {
	switch {
	case c.DB == nil || c.Kernel == nil || c.Ledger == nil || c.Heard == nil || c.Addresses == nil || c.Log == nil:
		return fmt.Errorf("open driver: incomplete configuration")
	case c.Host == "":
		return fmt.Errorf("open driver: no host identity")
	case !c.VTEP.IsValid():
		return fmt.Errorf("open driver: no underlay address")
	case c.Port == 0:
		return fmt.Errorf("open driver: no VXLAN port")
	}
	return nil
}
