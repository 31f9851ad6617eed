package ipam

import (
	"context"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
)

// AddressSpace is what GetDefaultAddressSpaces answers, for local and global
// networks alike: with one name for both, dockerd does not hold and re-request
// automatic pools (moby, ipams/remote RequestPool). The network driver
// recognises pools of this package by it.
const AddressSpace = "isthmus"

// Ledger is what the cluster agreed, as this package needs it.
type Ledger interface {
	// Propose blocks until the command is applied or refused, bounded by ctx
	// and 5 s. A refusal comes back as *cluster.Refusal; after any other error
	// the command may still be applied later.
	Propose(ctx context.Context, c cluster.Command) (cluster.Result, error)
	// Registry returns the newest local copy, never nil, never changed.
	Registry() *cluster.Registry
	// Fresh reports whether the copy includes this run's own Hello.
	Fresh() bool
	// Subscribe returns a one-slot channel that is signalled on any change.
	Subscribe() <-chan struct{}
}

// Config is what an IPAM needs. DB, Host, Ledger and Log are required. The
// functions may be nil; they are called without any lock held and must not
// call the Docker API.
type Config struct {
	DB     *bbolt.DB
	Host   cluster.HostID
	Ledger Ledger
	Log    logrus.FieldLogger

	// Routes lists the destinations in use on this host, without default
	// routes: pools that the cluster picks avoid them.
	Routes func(ctx context.Context) ([]netip.Prefix, error)
	// Recall asks another host to give up what it holds of a pool and does
	// not use (its IPAM.Recalled).
	Recall func(ctx context.Context, host cluster.HostID, pool cluster.PoolKey) error
	// Networked reports whether the network driver has a network on the pool
	// here. Only addresses of such pools are swept.
	Networked func(cluster.PoolKey) bool
	// Live reports whether an endpoint of this host holds the address.
	Live func(cluster.PoolKey, netip.Addr) bool
	// WhoHolds names who uses an address anywhere in the cluster ("web on
	// host2"), or returns "".
	WhoHolds func(cluster.PoolKey, netip.Addr) string
	// Now is the clock, time.Now when nil.
	Now func() time.Time
}
