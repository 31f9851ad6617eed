package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Status is the driver on one screen.
type Status struct {
	VTEP      netip.Addr `json:"vtep"`
	Port      uint16     `json:"vxlanPort"`
	MTU       int        `json:"underlayMTU"` // smallest underlay MTU of the cluster
	Settled   bool       `json:"settled"`
	Detached  string     `json:"detached,omitempty"` // why this host's containers are cut off from others
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

	alarm bool // it is worth a line in the log
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
	Attach   string            `json:"attach"` // of a network in a LAN: its kind of macvlan or ipvlan
	MTU      int               `json:"mtu"`
	ARP      string            `json:"arp"`
	BUM      string            `json:"bum"`
	Gateway  string            `json:"gateway"`
	Internal bool              `json:"internal"`
	Foreign  bool              `json:"foreign,omitempty"`
	Parent   string            `json:"parent,omitempty"` // as asked for
	VLAN     string            `json:"vlan,omitempty"`
	Host     []netip.Addr      `json:"host,omitempty"` // addresses of the host itself, by host_access
	Hosts    []string          `json:"hosts"`          // names of the hosts that hold it, this one included
	Local    int               `json:"local"`
	Remote   int               `json:"remote"`
	NAT      string            `json:"nat,omitempty"`      // where this host routes: on or off
	Fallback string            `json:"fallback,omitempty"` // of host-gw
	Ways     []PeerWay         `json:"ways,omitempty"`     // how other hosts' blocks are reached, where this host routes
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
	State   string      `json:"state"`             // created, joined, gone, found (in a sandbox, and not known otherwise), cut off (its address is not leased to this host any more); remote ones: alive, failed
	Inside  string      `json:"inside,omitempty"`  // interface name inside the container
	Sandbox string      `json:"sandbox,omitempty"` // of local ones
}

// Status describes the driver.
func (d *Driver) Status() Status {
	in, v := d.store.intent(), d.world()
	p := Plan(in, v)
	s := Status{
		VTEP: v.VTEP, Port: v.Port, MTU: v.underlay(), Settled: d.cfg.Heard.Settled(), Detached: v.Detached,
		Networks: len(p.Segments), Endpoints: len(in.Endpoints), Problems: d.problems(p),
	}
	d.loop.mu.Lock()
	defer d.loop.mu.Unlock()
	if err := d.loop.last.err; err != nil {
		s.Error = err.Error()
	}
	return s
}

// problems lists all that is known to be wrong.
func (d *Driver) problems(p Desired) []Problem {
	d.loop.mu.Lock()
	made := d.loop.last.problems
	d.loop.mu.Unlock()
	return slices.Concat(p.Problems, d.agree.refused(p.Segments), made)
}

// Networks lists the cluster networks that this host holds, by id.
func (d *Driver) Networks() []NetworkStatus {
	v := d.world()
	p := Plan(d.store.intent(), v)
	problems := d.problems(p)
	out := make([]NetworkStatus, 0, len(p.Segments))
	for _, s := range p.Segments {
		n := NetworkStatus{
			ID: s.Cluster, Docker: s.docker, Pools: s.Pools, Mode: s.Def.Mode, VNI: s.Def.VNI, Device: s.Device,
			Attach: s.Options.Attach, MTU: s.MTU, ARP: cmp.Or(s.Def.ARP, "suppress"), BUM: cmp.Or(s.Def.BUM, "replicate"),
			Gateway: s.gatewayStatus(v), Internal: s.Options.Internal, Foreign: s.Options.Foreign,
			Local: len(s.Local),
		}
		if !s.fenced() {
			kin := tenureOf(s.Def)
			n.Attach, n.ARP, n.BUM, n.Gateway = kin.mode, "", "", s.routers()
			if kin.flag != "" && kin.flag != "bridge" {
				n.Attach += "," + kin.flag
			}
			if len(s.Gateways) == 0 && n.Gateway == "docker" && d.served(s.Pools) {
				n.Gateway = "dhcp"
			}
			n.Parent, n.VLAN, n.Host = s.Options.Parent, s.Def.VLAN, s.HostAddrs
		}
		if s.led() {
			n.NAT, n.Host = onOff(!s.Options.NoNAT && !s.Options.Internal), s.HostAddrs
		}
		if s.direct() {
			n.Attach, n.ARP, n.BUM, n.Gateway = "veth", "", "", ""
			n.Fallback, n.Ways = s.Def.Fallback, s.Ways
		}
		hosts := map[string]bool{v.name(v.Host): true}
		for _, peer := range s.Peers {
			hosts[v.name(peer.host)] = true
			if !peer.onlyHolds() {
				n.Remote++
			}
		}
		n.Hosts = slices.Sorted(maps.Keys(hosts))
		for _, problem := range problems {
			if problem.Network == poolNames(s.Pools) {
				n.Problems = append(n.Problems, problem)
			}
		}
		out = append(out, n)
	}
	return out
}

// routers names the way out of a network in a LAN.
func (n Network) routers() string {
	switch {
	case n.Options.Internal:
		return "none"
	case n.routed():
		return "host"
	case len(n.Gateways) == 0:
		return "docker"
	}
	var names []string
	for _, g := range n.Gateways {
		names = append(names, g.String())
	}
	return strings.Join(names, ",")
}

// Endpoints lists the endpoints of the networks that this host holds, its own
// first, as they are recorded: duplicates are among them.
func (d *Driver) Endpoints() []EndpointStatus {
	v := d.world()
	in := d.store.intent()
	networks := v.adopt(in.held(), &Desired{Left: map[string]bool{}})
	peers := v.peers(networks, &Desired{})
	out := []EndpointStatus{}
	for _, n := range networks {
		lost := v.lost(n, holdings{}, &Desired{})
		for _, e := range n.endpoints {
			state := e.state()
			if lost[e.ID] {
				state = "cut off"
			}
			out = append(out, EndpointStatus{
				Network: poolNames(n.Pools), VNI: n.Def.VNI, ID: cluster.EndpointIDOf(e.ID).String(), Host: v.name(v.Host), VTEP: v.VTEP,
				MAC: e.MAC, IPv4: e.IPv4.Addr(), IPv6: e.IPv6.Addr(), State: state, Inside: e.Inside, Sandbox: e.Sandbox,
			})
		}
	}
	local := len(out)
	for _, n := range networks {
		for _, p := range peers[n.Cluster] {
			if p.onlyHolds() {
				continue
			}
			out = append(out, EndpointStatus{
				Network: poolNames(n.Pools), VNI: n.Def.VNI, ID: p.Endpoint.String(), Host: v.name(p.host), VTEP: p.vtep,
				MAC: p.MAC, IPv4: p.IPv4, IPv6: p.IPv6, Name: p.Name, State: string(v.state(p.host)),
			})
		}
	}
	slices.SortFunc(out[local:], func(a, b EndpointStatus) int {
		return cmp.Or(cmp.Compare(a.VNI, b.VNI), a.IPv4.Compare(b.IPv4), a.IPv6.Compare(b.IPv6), strings.Compare(a.ID, b.ID))
	})
	return out
}

func (e Endpoint) state() string {
	switch {
	case e.found:
		return "found"
	case e.Gone:
		return "gone"
	case e.Sandbox != "":
		return "joined"
	}
	return "created"
}

// Live reports whether an endpoint of this host has the address, or the host
// itself, or an interface that was found in a sandbox.
func (d *Driver) Live(pool cluster.PoolKey, addr netip.Addr) bool {
	if d.houses(pool, addr) {
		return true
	}
	in := d.store.intent()
	if in.hosts(pool, addr) {
		return true
	}
	for _, e := range in.Endpoints {
		if (e.IPv4.Addr() == addr || e.IPv6.Addr() == addr) && slices.Contains(in.Networks[e.Network].Pools, pool) {
			return true
		}
	}
	return false
}

// Networked reports whether a network of this host uses the pool.
func (d *Driver) Networked(pool cluster.PoolKey) bool { return d.store.intent().networked(pool) }

// WhoHolds names the host whose endpoint is known to have the address, for
// error texts; empty when none is known.
func (d *Driver) WhoHolds(pool cluster.PoolKey, addr netip.Addr) string {
	if d.Live(pool, addr) {
		return d.view().name(d.cfg.Host)
	}
	return d.remoteHolder(pool, addr)
}

// remoteHolder names the other host whose endpoint has the address.
func (d *Driver) remoteHolder(pool cluster.PoolKey, addr netip.Addr) string {
	networks := map[uint32]bool{}
	for id, n := range d.cfg.Ledger.Registry().Networks {
		if slices.Contains(n.Pools, pool) {
			networks[id] = true
		}
	}
	v := d.view()
	for _, s := range v.Streams {
		for _, r := range s.Records {
			if v.admits(s.Owner) && networks[r.Network] && (r.IPv4 == addr || r.IPv6 == addr) {
				return v.name(s.Owner)
			}
		}
	}
	return ""
}

// ErrNoNetwork is the cause when Forget is told of a network that this host does
// not have.
var ErrNoNetwork = errors.New("this host has no such network: name a Docker network id, a VNI or a subnet as isthmus networks lists them")

// Forget drops networks that Docker no longer knows, with their endpoints: what
// is a Docker network id (or its beginning), a VNI or a pool. It returns the
// pools that no network of this host uses any more.
func (d *Driver) Forget(ctx context.Context, what string) ([]cluster.PoolKey, error) {
	in := d.store.intent()
	var found []Network
	clusters := map[uint32]bool{}
	for _, id := range slices.Sorted(maps.Keys(in.Networks)) {
		n := in.Networks[id]
		named := slices.ContainsFunc(n.Pools, func(p cluster.PoolKey) bool { return p.String() == what || p.Prefix.String() == what })
		if named || n.Def.VNI != 0 && fmt.Sprint(n.Def.VNI) == what || len(what) >= 4 && strings.HasPrefix(id, what) {
			found = append(found, n)
			clusters[n.Cluster] = true
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("forget network %s: %w", what, ErrNoNetwork)
	case len(clusters) > 1:
		return nil, fmt.Errorf("forget network %s: %d networks are meant: name one by its VNI or its subnet", what, len(clusters))
	}
	for _, e := range in.Endpoints {
		if e.Joined() && slices.ContainsFunc(found, func(n Network) bool { return n.ID == e.Network }) {
			return nil, fmt.Errorf("forget network %s: a container is on it (endpoint %s): stop it first", what, short(e.ID))
		}
	}
	var pools []cluster.PoolKey
	for _, n := range found {
		if err := d.dropNetwork(n); err != nil {
			return nil, fmt.Errorf("forget network %s: %w", what, err)
		}
		pools = append(pools, n.Pools...)
	}
	pools = slices.DeleteFunc(cluster.PoolSet(pools), d.Networked)
	err := d.Sync(ctx, found[0].Cluster)
	for _, n := range found {
		d.releaseHost(ctx, n.Pools, n.HostAddrs)
	}
	return pools, err
}

// Reset drops all intent and clears the kernel, of interfaces that Docker gave
// back or never took too. Containers on the networks lose them.
func (d *Driver) Reset(ctx context.Context) error {
	networks := d.store.intent().Networks
	for _, n := range networks {
		if err := d.dropNetwork(n); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	if err := d.store.edit(func(in *Intent) error { clear(in.Endpoints); return nil }); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	d.mu.Lock()
	d.leaving = true
	d.mu.Unlock()
	if err := d.Sync(ctx, 0); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	for _, n := range networks {
		d.releaseHost(ctx, n.Pools, n.HostAddrs)
	}
	return nil
}
