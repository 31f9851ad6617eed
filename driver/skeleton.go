package driver

import (
	"context"
	"errors"
	"net/netip"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
)

var errSkeleton = errors.New("not written yet")

// Driver answers NetworkDriver calls; all methods are safe for concurrent use.
type Driver struct{}

func Open(c Config) (*Driver, error)            { return &Driver{}, c.check() }
func (d *Driver) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (d *Driver) GetCapabilities(ctx context.Context) (*network.CapabilitiesResponse, error) {
	return nil, errSkeleton
}
func (d *Driver) CreateNetwork(ctx context.Context, r *network.CreateNetworkRequest) error {
	return errSkeleton
}
func (d *Driver) DeleteNetwork(ctx context.Context, r *network.DeleteNetworkRequest) error {
	return errSkeleton
}
func (d *Driver) AllocateNetwork(ctx context.Context, r *network.AllocateNetworkRequest) (*network.AllocateNetworkResponse, error) {
	return nil, errSkeleton
}
func (d *Driver) FreeNetwork(ctx context.Context, r *network.FreeNetworkRequest) error {
	return errSkeleton
}
func (d *Driver) CreateEndpoint(ctx context.Context, r *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	return nil, errSkeleton
}
func (d *Driver) DeleteEndpoint(ctx context.Context, r *network.DeleteEndpointRequest) error {
	return errSkeleton
}
func (d *Driver) EndpointOperInfo(ctx context.Context, r *network.InfoRequest) (*network.InfoResponse, error) {
	return nil, errSkeleton
}
func (d *Driver) Join(ctx context.Context, r *network.JoinRequest) (*network.JoinResponse, error) {
	return nil, errSkeleton
}
func (d *Driver) Leave(ctx context.Context, r *network.LeaveRequest) error { return errSkeleton }
func (d *Driver) ProgramExternalConnectivity(ctx context.Context, r *network.ProgramExternalConnectivityRequest) error {
	return errSkeleton
}
func (d *Driver) RevokeExternalConnectivity(ctx context.Context, r *network.RevokeExternalConnectivityRequest) error {
	return errSkeleton
}
func (d *Driver) DiscoverNew(ctx context.Context, r *network.DiscoveryNotification) error {
	return errSkeleton
}
func (d *Driver) DiscoverDelete(ctx context.Context, r *network.DiscoveryNotification) error {
	return errSkeleton
}

// Sync waits for a pass that includes all edits made before, and returns what
// went wrong with the named Docker network in it; an empty name means all.
func (d *Driver) Sync(ctx context.Context, network string) error { return errSkeleton }

func (d *Driver) Status() Status              { return Status{} }
func (d *Driver) Networks() []NetworkStatus   { return nil }
func (d *Driver) Endpoints() []EndpointStatus { return nil }

// Forget drops a network that Docker no longer knows: what is a Docker network
// id (or its beginning), a VNI or a pool. It returns the pools that no network
// of this host uses any more.
func (d *Driver) Forget(ctx context.Context, what string) ([]cluster.PoolKey, error) {
	return nil, errSkeleton
}

// Reset drops all intent and clears the kernel.
func (d *Driver) Reset(ctx context.Context) error { return errSkeleton }

// Live reports whether an endpoint of this host has the address.
func (d *Driver) Live(pool cluster.PoolKey, addr netip.Addr) bool { return false }

// Networked reports whether a network of this host uses the pool.
func (d *Driver) Networked(pool cluster.PoolKey) bool { return false }

// WhoHolds names the host whose endpoint is known to have the address, for
// error texts; empty when none is known.
func (d *Driver) WhoHolds(pool cluster.PoolKey, addr netip.Addr) string { return "" }

// SetUnderlay tells of a new own address or MTU of the underlay.
func (d *Driver) SetUnderlay(addr netip.Addr, mtu int) {}

// PathMTU tells what the probe found: the largest IP packet, in bytes, that the
// path to the host carries whole. It is reported, the plan does not change.
func (d *Driver) PathMTU(host cluster.HostID, fits int) {}
