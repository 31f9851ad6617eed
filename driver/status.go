package driver

import (
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// Status is the driver on one screen.
type Status struct {
	VTEP      netip.Addr `json:"vtep"`
	Port      uint16     `json:"vxlanPort"`
	MTU       int        `json:"underlayMTU"` // smallest underlay MTU of the cluster
	Settled   bool       `json:"settled"`
	Networks  int        `json:"networks"`
	Endpoints int        `json:"endpoints"`
	Error     string     `json:"error,omitempty"` // of the newest pass
	Problems  []Problem  `json:"problems,omitempty"`
}

// Problem is something that a person should know of.
type Problem struct {
	Network string `json:"network,omitempty"` // the pools
	Cause   string `json:"cause"`
	Remedy  string `json:"remedy"`
}

func (p Problem) String() string {
	s := p.Cause
	if p.Network != "" {
		s = "network " + p.Network + ": " + s
	}
	if p.Remedy != "" {
		s += ": " + p.Remedy
	}
	return s
}

// NetworkStatus is one network of the cluster that this host holds.
type NetworkStatus struct {
	ID       uint32            `json:"id"`
	Docker   []string          `json:"docker"` // ids of the Docker networks on this host that are it
	Pools    []cluster.PoolKey `json:"pools"`
	Mode     string            `json:"mode"`
	VNI      uint32            `json:"vni"`
	Device   string            `json:"device"`
	Attach   string            `json:"attach"`
	MTU      int               `json:"mtu"`
	ARP      string            `json:"arp"`
	BUM      string            `json:"bum"`
	Gateway  string            `json:"gateway"`
	Internal bool              `json:"internal"`
	Foreign  bool              `json:"foreign,omitempty"`
	Hosts    []string          `json:"hosts"` // names of the hosts that hold it, this one included
	Local    int               `json:"local"`
	Remote   int               `json:"remote"`
	Problems []Problem         `json:"problems,omitempty"`
}

// EndpointStatus is one endpoint, here or elsewhere.
type EndpointStatus struct {
	Network string      `json:"network"` // the pools
	VNI     uint32      `json:"vni"`
	ID      string      `json:"id"` // 32 hex digits
	Host    string      `json:"host"`
	VTEP    netip.Addr  `json:"vtep"`
	MAC     cluster.MAC `json:"mac"`
	IPv4    netip.Addr  `json:"ipv4,omitzero"`
	IPv6    netip.Addr  `json:"ipv6,omitzero"`
	Name    string      `json:"name,omitempty"`
	State   string      `json:"state"`             // created, joined, gone; remote ones: alive, failed
	Inside  string      `json:"inside,omitempty"`  // interface name inside the container
	Sandbox string      `json:"sandbox,omitempty"` // of local ones
}
