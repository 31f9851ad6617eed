package driver

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// View is what Plan knows of the world beyond this host's intent: plain
// values, taken once at the start of a pass.
type View struct {
	Host    cluster.HostID
	VTEP    netip.Addr
	Port    uint16
	MTU     int  // of this host's underlay link; 0: only Members tell
	Forward bool // the user wants uplinks to forward
	Members []cluster.Member
	Streams []cluster.Stream
	// Registry is what the cluster agreed, nil for nothing.
	Registry  *cluster.Registry
	Claims    []cluster.Claim                           // blocks that this host keeps
	Strangers []Tenant                                  // in the sandboxes here, unknown to intent when it was looked
	Lost      map[cluster.PoolKey]map[netip.Addr]string // addresses in use here without a right to them, with the container's name
	Detached  string                                    // why endpoints of this host are cut off; empty: they are not
	// Links are those of this host, by name; only where a network in a LAN needs
	// to know.
	Links []kernel.Device
	// Ways says how other hosts are reached without a tunnel, and Foreign which routes
	// others have on this host; only where this host routes a network.
	Ways    map[cluster.HostID]Way
	Foreign []kernel.Foreign
	// Imported is what routers lead to, by BGP.
	Imported []kernel.FIB
	// Deaf holds hosts that answered probes and do no more; only those that are the
	// gateway of a network.
	Deaf map[cluster.HostID]bool
	// Paths holds the hosts whose path was probed and found narrower than the
	// links say, with the largest IP packet that passes whole.
	Paths map[cluster.HostID]int
}

// Desired is what a Plan comes to. Slices are sorted.
type Desired struct {
	State     kernel.State
	Handovers []handover
	Muted     []handover              // to be cut off inside their sandboxes
	Records   []cluster.Record        // all that this host publishes
	Bindings  map[binding]cluster.MAC // who is who in the networks held here
	Segments  []*segment              // by cluster network id
	Devices   map[string]*segment     // by link
	Heed      []string                // links of others that the plan depends on
	Problems  []Problem
	Announced []netip.Prefix // that routers shall lead to this host
	// Left holds the links of networks that nothing is known of, below running
	// containers: they stay as they are.
	Left map[string]bool
	// Refused holds the VTEPs of hosts that are not admitted.
	Refused map[netip.Addr]bool
	blind   bool                // nobody looked into the sandboxes yet: there may be other networks
	ends    map[string]handover // all endpoints here, joined or not, by id
}

// handover is a joined endpoint with all that it takes to make its interface.
type handover struct {
	kernel.Handover
	Endpoint Endpoint
	lan      bool   // it stands on a link that need not be ours
	seen     bool   // of one in a LAN: it is in its sandbox, as of the newest look there
	on       int    // of one in a LAN: the index of what it stands on
	blocked  *fault // of one in a LAN: why it cannot be made now
}

// attach says how an endpoint meets its network.
func (d *Desired) attach(e Endpoint, h handover) {
	h.Endpoint = e
	d.ends[e.ID] = h
	if h.Link.Down && e.Sandbox != "" {
		d.Muted = append(d.Muted, h)
	}
	if e.Sandbox != "" && !e.found {
		d.Handovers = append(d.Handovers, h)
	}
}

// binding is an address in a cluster network.
type binding struct {
	Network uint32
	IP      netip.Addr
}

// segment is one cluster network as it lies on this host. Plan fills it but
// for Device and Speaker, and MTU in a LAN, which are the mode's.
type segment struct {
	held
	before  []held // networks of this host that were there first
	MTU     int
	Peers   []peer                   // what other hosts run in it, duplicates resolved
	Local   []cluster.MAC            // of the joined endpoints
	Device  string                   // link that leads to the other hosts
	Speaker string                   // link that the host itself announces from; empty: it does not
	lost    map[string]bool          // endpoints here that are cut off, by id
	Router  cluster.HostID           // that is the gateway for all, where one is
	Gates   []string                 // links on which this host is the containers' router
	Detours []string                 // tunnels to hosts that are not reached directly
	Sources map[string][]netip.Addr  // that may send, by gate
	Ways    []PeerWay                // how others' blocks are reached
	own     []netip.Addr             // of this host itself, where it routes
	ownIP   map[netip.Addr]*Endpoint // of all other endpoints here, joined or not
	ownMAC  map[cluster.MAC]*Endpoint
}

// peer is one record of another host in a held network. Addresses that
// another endpoint won are zero, and so is the MAC.
type peer struct {
	cluster.Record
	host  cluster.HostID
	vtep  netip.Addr
	alive bool
}

// Plan computes what this host should hold. It is pure and total: what cannot
// be planned becomes a Problem.
func Plan(in *Intent, v View) Desired {
	d := Desired{Bindings: map[binding]cluster.MAC{}, Devices: map[string]*segment{}, Left: map[string]bool{}, ends: map[string]handover{}}
	networks := v.adopt(in.held(), &d)
	admitted, refused := v.vteps()
	d.Refused = refused
	peers := map[uint32][]peer{}
	tunnels := slices.ContainsFunc(networks, held.tunnels)
	if v.Detached == "" {
		peers = v.peers(networks, &d)
	} else {
		d.Problems = append(d.Problems, Problem{Cause: "containers of this host are cut off from other hosts", Remedy: v.Detached})
	}
	agreed := v.holdings(networks)
	remote := 0
	for _, list := range peers {
		remote += len(list)
	}
	d.State = make(kernel.State, 3*remote) // about what they come to
	for i, n := range networks {
		mode := modeOf(n.Def.Mode)
		s := &segment{held: n, before: networks[:i], lost: v.lost(n, agreed, &d), ownIP: map[netip.Addr]*Endpoint{}, ownMAC: map[cluster.MAC]*Endpoint{}}
		d.Segments = append(d.Segments, s)
		holds := len(d.Records)
		d.Records = append(d.Records, cluster.Record{Network: n.Cluster})
		for i := range n.endpoints {
			e := &n.endpoints[i]
			if s.lost[e.ID] {
				continue
			}
			if !e.MAC.IsZero() {
				s.ownMAC[e.MAC] = e
			}
			for _, a := range e.Addrs() {
				s.ownIP[a.Addr()] = e
			}
			if e.Joined() {
				s.Local = append(s.Local, e.MAC)
			}
			if e.Joined() && v.Detached == "" {
				d.Records = append(d.Records, e.record(n.Cluster))
			}
		}
		agreed.checkOwn(s, v, &d)
		s.Peers = resolve(s, agreed.entitled(s, peers[n.Cluster], v, &d), v, &d)
		if fenced(n.Def.Mode) {
			s.MTU = v.mtu(n)
			v.checkMTU(s, &d)
		}
		mode.Plan(s, v, &d)
		for _, a := range s.own {
			if a.Is4() {
				d.Records[holds].IPv4 = a
			} else {
				d.Records[holds].IPv6 = a
			}
		}
		if n.led() {
			v.conflicts(s, &d)
		}
	}
	v.planGates(in, &d)
	v.planBGP(&d)
	slices.Sort(d.Heed)
	d.Heed = slices.Compact(d.Heed)
	if v.Detached == "" {
		for _, c := range v.Claims {
			d.Records = append(d.Records, cluster.Record{Claim: c})
		}
	}
	if tunnels || slices.ContainsFunc(slices.Collect(maps.Keys(d.Left)), func(link string) bool { return strings.HasPrefix(link, "is-v") }) {
		planTunnels(admitted, v, &d)
	}
	if !tunnels {
		v.checkPaths(modes[0].Overhead(v), v.underlay(), &d)
	}
	slices.SortFunc(d.Problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Cause, b.Cause))
	})
	d.Problems = slices.Compact(d.Problems)
	return d
}

// peers lists the other hosts' records of each held network, but those of
// hosts that no tunnel of ours can reach where that takes one.
func (v View) peers(networks []held, d *Desired) map[uint32][]peer {
	out, tunnel := make(map[uint32][]peer, len(networks)), make(map[uint32]bool, len(networks))
	for _, n := range networks {
		out[n.Cluster], tunnel[n.Cluster] = nil, n.tunnels()
	}
	for _, s := range v.Streams {
		if s.Owner == v.Host {
			continue
		}
		vtep := s.Info.VTEP.Unmap()
		reachable := vtep.IsValid() && family(vtep) == family(v.VTEP) && vtep != v.VTEP
		alive := v.state(s.Owner) == cluster.Alive
		admitted := v.admits(s.Owner)
		useful, wanted := false, false // by a tunnel
		for _, r := range s.Records {
			list, ok := out[r.Network]
			if !ok {
				continue
			}
			useful, wanted = true, wanted || tunnel[r.Network]
			if (reachable || !tunnel[r.Network]) && admitted {
				out[r.Network] = append(list, peer{Record: r, host: s.Owner, vtep: vtep, alive: alive})
			}
		}
		switch {
		case useful && !admitted:
			d.Problems = append(d.Problems, v.fenced(s.Owner, wanted))
		case wanted && !reachable:
			d.Problems = append(d.Problems, v.unreachable(s))
		}
	}
	return out
}

func (v View) unreachable(s cluster.Stream) Problem {
	name := v.name(s.Owner)
	switch {
	case !s.Info.VTEP.IsValid():
		return Problem{Cause: fmt.Sprintf("host %s does not say its underlay address", name), Remedy: "look at its status"}
	case s.Info.VTEP.Unmap() == v.VTEP:
		return Problem{Cause: fmt.Sprintf("host %s says that it has this host's underlay address %s", name, v.VTEP), Remedy: "set ADVERTISE on it to its own address"}
	}
	return Problem{
		Cause:  fmt.Sprintf("host %s has an %s underlay (%s), this host an %s one (%s)", name, family(s.Info.VTEP), s.Info.VTEP, family(v.VTEP), v.VTEP),
		Remedy: "set ADVERTISE to addresses of one family on all hosts",
	}
}

// resolve settles who holds an address or a MAC that is claimed twice: an own
// endpoint before all others on this host, then the higher lease, then a host
// that is alive, then the lower id. Others' claims are zeroed in the result.
func resolve(s *segment, peers []peer, v View, d *Desired) []peer {
	byIP, byMAC := make(map[netip.Addr]*peer, len(peers)), make(map[cluster.MAC]*peer, len(peers))
	for i := range peers {
		p := &peers[i]
		if p.onlyHolds() {
			continue
		}
		if w := byMAC[p.MAC]; !p.MAC.IsZero() && (w == nil || p.beats(w, max(p.Lease4, p.Lease6), max(w.Lease4, w.Lease6))) {
			byMAC[p.MAC] = p
		}
		for _, ip := range p.addrs() {
			if w := byIP[ip]; w == nil || p.beats(w, p.lease(ip), w.lease(ip)) {
				byIP[ip] = p
			}
		}
	}
	// lost reports whether p must give up a claim, and says so.
	lost := func(p *peer, own *Endpoint, winner *peer, what fmt.Stringer) bool {
		switch {
		case own != nil:
			d.Problems = append(d.Problems, duplicate(s, what, party(v.name(v.Host), cluster.EndpointIDOf(own.ID), ""), p.party(v)))
		case winner == p:
			return false
		case winner.host != p.host:
			d.Problems = append(d.Problems, duplicate(s, what, winner.party(v), p.party(v)))
		}
		return true
	}
	out := slices.Clone(peers)
	for i := range peers {
		p, o := &peers[i], &out[i]
		if p.onlyHolds() {
			continue
		}
		if !p.MAC.IsZero() && lost(p, s.ownMAC[p.MAC], byMAC[p.MAC], p.MAC) {
			o.MAC = cluster.MAC{}
		}
		for _, ip := range p.addrs() {
			switch {
			case !lost(p, s.ownIP[ip], byIP[ip], ip):
				d.Bindings[binding{s.Cluster, ip}] = p.MAC
			case ip == p.IPv4:
				o.IPv4 = netip.Addr{}
			default:
				o.IPv6 = netip.Addr{}
			}
		}
	}
	for _, e := range s.endpoints {
		for _, a := range e.Addrs() {
			if e.Joined() && !s.lost[e.ID] {
				d.Bindings[binding{s.Cluster, a.Addr()}] = e.MAC
			}
		}
	}
	return out
}

// duplicate is what all hosts of the network say, in the same words.
func duplicate(s *segment, what fmt.Stringer, a, b string) Problem {
	return Problem{
		Network: poolNames(s.Pools),
		Cause:   fmt.Sprintf("%s is held twice: by %s and by %s", what, min(a, b), max(a, b)),
		Remedy:  "remove one of the two",
		alarm:   true,
	}
}

// party names an endpoint for people, so that sorting puts hosts first.
func party(host string, id cluster.EndpointID, name string) string {
	text := fmt.Sprintf("%s with endpoint %s", host, id.String()[:12])
	if name != "" {
		text += " (container " + name + ")"
	}
	return text
}

func (p *peer) party(v View) string { return party(v.name(p.host), p.Endpoint, p.Name) }

// onlyHolds reports whether the record says no more than that its host holds
// the network.
func (p *peer) onlyHolds() bool { return p.Endpoint == cluster.EndpointID{} }

func (p *peer) addrs() []netip.Addr {
	out := make([]netip.Addr, 0, 2)
	for _, ip := range [2]netip.Addr{p.IPv4, p.IPv6} {
		if ip.IsValid() {
			out = append(out, ip)
		}
	}
	return out
}

func (p *peer) lease(ip netip.Addr) uint64 {
	if ip == p.IPv4 {
		return p.Lease4
	}
	return p.Lease6
}

func (p *peer) beats(q *peer, mine, theirs uint64) bool {
	if mine != theirs {
		return mine > theirs
	}
	if p.alive != q.alive {
		return p.alive
	}
	return cmp.Or(cmp.Compare(p.host, q.host), slices.Compare(p.Endpoint[:], q.Endpoint[:])) < 0
}

func (v View) state(host cluster.HostID) cluster.MemberState {
	for _, m := range v.Members {
		if m.ID == host {
			return m.State
		}
	}
	return cluster.Failed
}

// name returns the name of a host for people.
func (v View) name(host cluster.HostID) string {
	for _, m := range v.Members {
		if m.ID == host && m.Info.Name != "" {
			return m.Info.Name
		}
	}
	return host.Short()
}

// underlay returns the smallest MTU of the cluster's underlay links of our
// family: a network is one segment, and has one MTU.
func (v View) underlay() int {
	least := v.MTU
	for _, m := range v.Members {
		if m.State != cluster.Left && m.Info.MTU > 0 && family(m.Info.VTEP) == family(v.VTEP) && (least == 0 || m.Info.MTU < least) {
			least = m.Info.MTU
		}
	}
	return cmp.Or(least, 1500)
}

// inside returns the MTU that fits a network's containers.
func (v View) inside(mode string) int { return v.underlay() - modeOf(mode).Overhead(v) }

// mtu returns the MTU of a network's links.
func (v View) mtu(n held) int { return cmp.Or(n.Def.MTU, v.inside(n.Def.Mode)) }

// checkMTU reports a network whose packets do not fit a link or a path.
func (v View) checkMTU(s *segment, d *Desired) {
	over := modeOf(s.Def.Mode).Overhead(v)
	if fits := v.inside(s.Def.Mode); s.MTU > fits {
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(s.Pools),
			Cause:   fmt.Sprintf("its MTU of %d does not fit an underlay of %d", s.MTU, v.underlay()),
			Remedy:  fmt.Sprintf("create the network with -o mtu=%d", fits),
		})
	}
	v.checkPaths(over, s.MTU+over, d)
}

// checkPaths reports the paths to living hosts that carry less than need.
func (v View) checkPaths(overhead, need int, d *Desired) {
	for _, host := range slices.Sorted(maps.Keys(v.Paths)) {
		if carries := v.Paths[host]; carries < need && v.state(host) == cluster.Alive {
			d.Problems = append(d.Problems, Problem{
				Cause:  fmt.Sprintf("path to %s carries %d bytes, not %d", v.name(host), carries, v.underlay()),
				Remedy: fmt.Sprintf("create the network with -o mtu=%d", carries-overhead),
			})
		}
	}
}
