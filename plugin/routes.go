package main

import (
	"context"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ipam"
)

func driverOf(n *node) *driver.Driver { return n.driver }
func ipamOf(n *node) *ipam.IPAM       { return n.ipam }

// routes is the whole protocol of engines 20.10 to 29 (moby,
// daemon/libnetwork/drivers/remote and ipams/remote). What the helpers'
// packages lack is here: GwAllocCheck with its capability, and
// RequiresRequestReplay.
var routes = []route{
	{"NetworkDriver.GetCapabilities", true, static(networkCapabilities{
		CapabilitiesResponse: network.CapabilitiesResponse{Scope: network.LocalScope, ConnectivityScope: network.GlobalScope},
	})},
	{"NetworkDriver.GwAllocCheck", false, gwAllocCheck},
	{"NetworkDriver.CreateNetwork", false, act(driverOf, (*driver.Driver).CreateNetwork)},
	{"NetworkDriver.DeleteNetwork", false, act(driverOf, (*driver.Driver).DeleteNetwork)},
	{"NetworkDriver.AllocateNetwork", false, answer(driverOf, (*driver.Driver).AllocateNetwork)},
	{"NetworkDriver.FreeNetwork", false, act(driverOf, (*driver.Driver).FreeNetwork)},
	{"NetworkDriver.CreateEndpoint", false, answer(driverOf, (*driver.Driver).CreateEndpoint)},
	{"NetworkDriver.DeleteEndpoint", false, act(driverOf, (*driver.Driver).DeleteEndpoint)},
	{"NetworkDriver.EndpointOperInfo", false, answer(driverOf, (*driver.Driver).EndpointOperInfo)},
	{"NetworkDriver.Join", false, answer(driverOf, (*driver.Driver).Join)},
	{"NetworkDriver.Leave", false, act(driverOf, (*driver.Driver).Leave)},
	{"NetworkDriver.ProgramExternalConnectivity", false, act(driverOf, (*driver.Driver).ProgramExternalConnectivity)},
	{"NetworkDriver.RevokeExternalConnectivity", false, act(driverOf, (*driver.Driver).RevokeExternalConnectivity)},
	{"NetworkDriver.DiscoverNew", false, act(driverOf, (*driver.Driver).DiscoverNew)},
	{"NetworkDriver.DiscoverDelete", false, act(driverOf, (*driver.Driver).DiscoverDelete)},

	// Without RequiresRequestReplay the engine asks for nothing again when it
	// starts: what it was told is on our disk.
	{"IpamDriver.GetCapabilities", true, static(ipamCapabilities{})},
	{"IpamDriver.GetDefaultAddressSpaces", true, static(addressSpaces{ipam.AddressSpace, ipam.AddressSpace})},
	{"IpamDriver.RequestPool", false, answer(ipamOf, (*ipam.IPAM).RequestPool)},
	{"IpamDriver.ReleasePool", false, act(ipamOf, (*ipam.IPAM).ReleasePool)},
	{"IpamDriver.RequestAddress", false, answer(ipamOf, (*ipam.IPAM).RequestAddress)},
	{"IpamDriver.ReleaseAddress", false, act(ipamOf, (*ipam.IPAM).ReleaseAddress)},
}

// networkCapabilities adds what engines from 28 on ask.
type networkCapabilities struct {
	network.CapabilitiesResponse
	GwAllocChecker bool
}

type ipamCapabilities struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

type addressSpaces struct {
	LocalDefaultAddressSpace, GlobalDefaultAddressSpace string
}

// gwAllocCheck says that every network wants its gateway addresses, so that
// they are never handed to an endpoint. Engines ask it only of drivers whose
// capability says that they may answer otherwise.
func gwAllocCheck(_ context.Context, _ *server, body []byte) (any, error) {
	_, err := decode[struct{ Options map[string]any }](body)
	return struct{ SkipIPv4, SkipIPv6 bool }{}, err
}
