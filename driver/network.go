package driver

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Intent is what Docker said. An Intent that was handed out is never changed.
type Intent struct {
	Networks  map[string]Network  // by Docker's network id
	Endpoints map[string]Endpoint // by Docker's endpoint id
	// Parting lists the pools that the driver itself attached, for a foreign
	// IPAM, and that no network uses any more: the cluster is to be told.
	Parting map[cluster.PoolKey]cluster.PoolKey
	// Published holds the ports of endpoints, by Docker's endpoint id.
	Published map[string]Published
}

// Network is one Docker network of this host.
type Network struct {
	ID      string             `json:"id"`
	Pools   []cluster.PoolKey  `json:"pools"`      // canonical order
	Options Options            `json:"options"`    // as asked for
	Cluster uint32             `json:"cluster"`    // cluster.Network.ID
	Def     cluster.Definition `json:"definition"` // as agreed
	// Of networks in a LAN, or routed by this host: its routers, as Docker was told
	// of them or asked IPAM for them, and the host's own addresses (in a LAN with
	// host_access only).
	Gateways  []netip.Addr `json:"gateways,omitempty"`
	HostAddrs []netip.Addr `json:"hostAddrs,omitempty"`
}

// Endpoint is one container's end of a network, with all that it takes to make
// its interface again.
type Endpoint struct {
	ID      string       `json:"id"`
	Network string       `json:"network"` // Docker's network id
	MAC     cluster.MAC  `json:"mac"`
	IPv4    netip.Prefix `json:"ipv4,omitzero"`
	IPv6    netip.Prefix `json:"ipv6,omitzero"`
	Lease4  uint64       `json:"lease4,omitempty"`
	Lease6  uint64       `json:"lease6,omitempty"`
	Ifname  string       `json:"ifname,omitempty"`  // beginning of the name inside, where asked for
	Sandbox string       `json:"sandbox,omitempty"` // empty while not joined
	Inside  string       `json:"inside,omitempty"`  // its name in the sandbox, once seen there
	Router  netip.Addr   `json:"router,omitzero"`   // of the LAN's DHCP server: the default route, where the network has none
	MTU     int          `json:"mtu,omitempty"`     // of the LAN's DHCP server: the network's is not exceeded
	Gone    bool         `json:"gone,omitempty"`    // it was seen in a sandbox that is no more

	found bool // it is not stored, but was found in a sandbox: see Tenant
}

// Joined reports whether the endpoint is in a container that may be alive.
func (e Endpoint) Joined() bool { return e.Sandbox != "" && !e.Gone }

// Addrs lists the endpoint's addresses.
func (e Endpoint) Addrs() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// bare lists them without the length of their subnet.
func (e Endpoint) bare() []netip.Addr {
	var out []netip.Addr
	for _, p := range e.Addrs() {
		out = append(out, p.Addr())
	}
	return out
}

// link and hostEnd name the endpoint's interface and, of a veth, its other end.
func (e Endpoint) link() string    { return "is-e" + cluster.EndpointIDOf(e.ID).String()[:10] }
func (e Endpoint) hostEnd() string { return "is-p" + cluster.EndpointIDOf(e.ID).String()[:10] }

// record is what the other hosts are told of the endpoint.
func (e Endpoint) record(network uint32) cluster.Record {
	return cluster.Record{
		Network: network, Endpoint: cluster.EndpointIDOf(e.ID), MAC: e.MAC,
		IPv4: e.IPv4.Addr(), IPv6: e.IPv6.Addr(), Lease4: e.Lease4, Lease6: e.Lease6,
	}
}

// held is one cluster network as this host holds it: all Docker networks with
// the same pools together.
type held struct {
	Network            // the first by id stands for all: they may not contradict
	docker    []string // ids, sorted
	endpoints []Endpoint
}

func (h held) fenced() bool  { return fenced(h.Def.Mode) }
func (h held) direct() bool  { return direct(h.Def.Mode) }
func (h held) led() bool     { return led(h.Def) }
func (h held) tunnels() bool { return tunnels(h.Def) }

// lan reports whether any network of this host stands in a LAN.
func (in *Intent) lan() bool {
	for _, n := range in.Networks {
		if !fenced(n.Def.Mode) {
			return true
		}
	}
	return false
}

// led reports whether this host may be the router of any of its networks.
func (in *Intent) led() bool {
	for _, n := range in.Networks {
		if led(n.Def) {
			return true
		}
	}
	return false
}

// central reports whether any of this host's networks has one gateway for all.
func (in *Intent) central() bool {
	for _, n := range in.Networks {
		if central(n.Def) != "" {
			return true
		}
	}
	return false
}

// direct reports whether any of this host's networks is without frames between hosts.
func (in *Intent) direct() bool {
	for _, n := range in.Networks {
		if direct(n.Def.Mode) {
			return true
		}
	}
	return false
}

// bgp reports whether routers matter to any network of this host.
func (in *Intent) bgp() bool {
	for _, n := range in.Networks {
		if n.Options.BGP {
			return true
		}
	}
	return false
}

// held groups the networks by the cluster network that they are, in order.
func (in *Intent) held() []held {
	byID := make(map[uint32]*held)
	for _, id := range slices.Sorted(maps.Keys(in.Networks)) {
		n := in.Networks[id]
		h := byID[n.Cluster]
		if h == nil {
			h = &held{Network: n}
			byID[n.Cluster] = h
		}
		if len(h.HostAddrs) == 0 {
			h.HostAddrs = n.HostAddrs
		}
		h.docker = append(h.docker, id)
	}
	for _, id := range slices.Sorted(maps.Keys(in.Endpoints)) {
		e := in.Endpoints[id]
		if n, ok := in.Networks[e.Network]; ok {
			byID[n.Cluster].endpoints = append(byID[n.Cluster].endpoints, e)
		}
	}
	out := make([]held, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, *byID[id])
	}
	return out
}

// around returns the intent without the endpoints of other networks.
func (in *Intent) around(endpoint string) *Intent {
	network := in.Networks[in.Endpoints[endpoint].Network].Cluster
	out := &Intent{Networks: in.Networks, Endpoints: map[string]Endpoint{}}
	for id, e := range in.Endpoints {
		if in.Networks[e.Network].Cluster == network {
			out.Endpoints[id] = e
		}
	}
	return out
}

// uses reports whether a network of this host has exactly these pools, which
// are in canonical order.
func (in *Intent) uses(pools []cluster.PoolKey) bool {
	for _, n := range in.Networks {
		if slices.Equal(n.Pools, pools) {
			return true
		}
	}
	return false
}

// defines reports whether a network of this host is the one on these pools, as
// it is defined here.
func (in *Intent) defines(pools []cluster.PoolKey, def cluster.Definition) bool {
	for _, n := range in.Networks {
		if slices.Equal(n.Pools, pools) && n.Def == def {
			return true
		}
	}
	return false
}

// networked reports whether a network of this host uses the pool.
func (in *Intent) networked(pool cluster.PoolKey) bool {
	for _, n := range in.Networks {
		if slices.Contains(n.Pools, pool) {
			return true
		}
	}
	return false
}

// contradiction explains how n contradicts another Docker network of this host with
// the same pools; nil when it may stand beside all of them.
func (in *Intent) contradiction(n Network) error {
	for _, id := range slices.Sorted(maps.Keys(in.Networks)) {
		other := in.Networks[id]
		if id == n.ID || !slices.Equal(other.Pools, n.Pools) {
			continue
		}
		theirs := other.Options.local()
		for i, ours := range n.Options.local() {
			if ours != theirs[i] {
				return fmt.Errorf("networks %s and %s of this host have the same subnets (%s) and so are one network, but the first has %s=%s, the second %s=%s: use the same, or other subnets",
					short(id), short(n.ID), poolNames(n.Pools), theirs[i].key, theirs[i].value, ours.key, ours.value)
			}
		}
	}
	return nil
}

// covers finds the pool of the network that an address lies in.
func (n Network) covers(a netip.Addr) (cluster.PoolKey, bool) {
	for _, p := range n.Pools {
		if p.Prefix.Contains(a) {
			return p, true
		}
	}
	return cluster.PoolKey{}, false
}

// short cuts an id as Docker does for people.
func short(id string) string { return id[:min(len(id), 12)] }

func poolNames(pools []cluster.PoolKey) string {
	names := make([]string, len(pools))
	for i, p := range pools {
		names[i] = p.String()
	}
	return strings.Join(names, " + ")
}

// deriveMAC makes a locally administered address that is the same after every
// restart: two devices of one host, and one device of two hosts, never share it.
func deriveMAC(host cluster.HostID, device string) cluster.MAC {
	sum := sha256.Sum256([]byte("isthmus link\x00" + string(host) + "\x00" + device))
	return localMAC(cluster.MAC(sum[:6]))
}

// localMAC marks an address as unicast and locally administered.
func localMAC(m cluster.MAC) cluster.MAC {
	m[0] = m[0]&^0x01 | 0x02
	return m
}

// linkLocal is the address that a container's kernel forms from the MAC
// (RFC 4291, appendix A).
func linkLocal(m cluster.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 0x02, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// family names the underlay that an address belongs to.
func family(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// contradicts reports whether a request contradicts what is agreed.
func contradicts(want, have cluster.Definition) bool {
	tunnels, usual := fenced(have.Mode), tenureOf(cluster.Definition{Mode: have.Mode})
	differ := func(a, b string) bool { return a != "" && cmp.Or(b, a) != a }
	return differ(want.Mode, have.Mode) || differ(want.ARP, have.ARP) || differ(want.BUM, have.BUM) ||
		differ(want.Encrypt, have.Encrypt) || differ(want.Fallback, have.Fallback) ||
		have.Mode == modeVXLAN && differ(want.Gateway, cmp.Or(have.Gateway, gatewayDocker)) || want.RouteTo != "" && want.RouteTo != have.RouteTo || tunnels && differ(want.Underlay, have.Underlay) ||
		differ(want.Submode, cmp.Or(have.Submode, usual.mode)) || differ(want.Flag, cmp.Or(have.Flag, usual.flag)) ||
		have.VLAN != "" && differ(want.VLAN, have.VLAN) ||
		want.VNI != 0 && want.VNI != have.VNI || want.MTU != 0 && want.MTU != have.MTU
}

// filled says in full what a request comes to where nobody disagrees; before is
// what the network was.
func filled(asked, before cluster.Definition) cluster.Definition {
	if !fenced(asked.Mode) {
		usual := tenureOf(cluster.Definition{Mode: asked.Mode})
		asked.Submode, asked.Flag = cmp.Or(asked.Submode, usual.mode), cmp.Or(asked.Flag, usual.flag)
		asked.Encrypt, asked.Underlay = cmp.Or(asked.Encrypt, before.Encrypt), before.Underlay // say nothing there
		return asked
	}
	asked.VNI = cmp.Or(asked.VNI, before.VNI)
	if direct(asked.Mode) {
		if asked.Mode == modeHostGW {
			asked.Fallback = cmp.Or(asked.Fallback, modeVXLAN)
		}
		if !tunnels(asked) {
			asked.VNI = 0
		}
		return asked
	}
	asked.ARP = cmp.Or(asked.ARP, "suppress")
	asked.BUM = cmp.Or(asked.BUM, "replicate")
	asked.Gateway = cmp.Or(asked.Gateway, gatewayDocker)
	return asked
}
