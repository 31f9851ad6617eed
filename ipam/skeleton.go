package ipam

import (
	"context"
	"errors"
	"net/netip"
	"time"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
)

type IPAM struct{ cfg Config }

var errSkeleton = errors.New("ipam: being written")

func Open(cfg Config) (*IPAM, error)          { return &IPAM{cfg: cfg}, nil }
func (i *IPAM) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (i *IPAM) GetCapabilities(context.Context) (*docker.CapabilitiesResponse, error) {
	return nil, errSkeleton
}
func (i *IPAM) GetDefaultAddressSpaces(context.Context) (*docker.AddressSpacesResponse, error) {
	return nil, errSkeleton
}
func (i *IPAM) RequestPool(context.Context, *docker.RequestPoolRequest) (*docker.RequestPoolResponse, error) {
	return nil, errSkeleton
}
func (i *IPAM) ReleasePool(context.Context, *docker.ReleasePoolRequest) error { return errSkeleton }
func (i *IPAM) RequestAddress(context.Context, *docker.RequestAddressRequest) (*docker.RequestAddressResponse, error) {
	return nil, errSkeleton
}
func (i *IPAM) ReleaseAddress(context.Context, *docker.ReleaseAddressRequest) error {
	return errSkeleton
}

func (i *IPAM) Prepare(ctx context.Context, pools []cluster.PoolKey) error { return errSkeleton }
func (i *IPAM) LeaseOf(cluster.PoolKey, netip.Addr) uint64                 { return 0 }
func (i *IPAM) Holds(cluster.PoolKey) bool                                 { return false }
func (i *IPAM) Used(cluster.PoolKey) []Use                                 { return nil }
func (i *IPAM) Free(context.Context, cluster.PoolKey, netip.Addr) error    { return errSkeleton }
func (i *IPAM) Recalled(context.Context, cluster.PoolKey) error            { return errSkeleton }
func (i *IPAM) Forget(context.Context, cluster.PoolKey) error              { return errSkeleton }
func (i *IPAM) Status() []PoolStatus                                       { return nil }

// Use is one address that this host has handed out.
type Use struct {
	Addr  netip.Addr `json:"addr"`
	Name  string     `json:"name,omitempty"` // container name, where the engine tells it
	Since time.Time  `json:"since"`
	Lease uint64     `json:"lease"` // lease that covers Addr; 0 when the cluster took it away
}

// BlockStatus is one leased block of a pool.
type BlockStatus struct {
	Lease    uint64       `json:"lease"`
	Block    netip.Prefix `json:"block"`
	Draining bool         `json:"draining,omitempty"` // being given back
	Exact    bool         `json:"exact,omitempty"`    // leased for one --ip
	Used     int          `json:"used"`
	Free     int          `json:"free"`
}

// PoolStatus is what this host holds of one pool.
type PoolStatus struct {
	Pool     cluster.PoolKey `json:"pool"`
	Name     string          `json:"name,omitempty"` // of --ipam-opt network=NAME
	Gateway  netip.Addr      `json:"gateway"`
	Reserved []netip.Addr    `json:"reserved"`
	Uses     int             `json:"uses"` // Docker networks on it here; 0: parked, kept for a network that may come back
	Used     []Use           `json:"used"`
	Free     int             `json:"free"` // addresses that can be handed out without asking anyone
	Blocks   []BlockStatus   `json:"blocks"`
	Problem  string          `json:"problem,omitempty"` // why it could not lease, or what it lost
}
