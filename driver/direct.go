package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Networks without frames between hosts: each host is the router of its own
// containers, and leads what is for others to the host that leases their block.
//
// host-gw has a bridge, and on it the network's gateway: the same address on every
// host, as Docker asks for it before the mode is known. routed has none: the end of
// each container's link is a gateway of its own, at link-local addresses. In both
// a container's address has no neighbours (/32, /128), so that it asks for nobody
// but its gateway.
var (
	hostGW = Mode{Name: modeHostGW, Plan: planDirect, Overhead: none}
	routes = Mode{Name: modeRouted, Plan: planDirect, Overhead: none}
)

const (
	modeHostGW = "host-gw"
	modeRouted = "routed"
)

// directDevice is the bridge of host-gw; in mode routed nothing is on it but this
// host's own addresses.
func directDevice(pools []cluster.PoolKey) string { return lanDevice("is-g", pools) }

func planDirect(s *segment, v View, d *Desired) {
	bridge := kernel.Link{Name: directDevice(s.Pools), Kind: kernel.Bridge, MTU: s.MTU}
	bridge.MAC = deriveMAC(v.Host, bridge.Name)
	d.State.Put(bridge)
	d.Devices[bridge.Name] = s
	s.Device = bridge.Name

	put := func(dev string, a netip.Addr) {
		d.State.Put(kernel.Addr{Dev: dev, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	gateways := func(dev string, list ...netip.Addr) {
		for _, a := range list {
			put(dev, a)
		}
		if six := s.linkGateway(false); s.has(false) && !slices.Contains(list, six) {
			put(dev, six) // neighbours are asked from a link-local address
		}
		s.Gates = append(s.Gates, dev)
	}
	if v.Detached == "" {
		s.own = s.rightfulHost(v, d)
	}
	for _, a := range s.own {
		put(bridge.Name, a)
	}
	if s.Def.Mode == modeHostGW {
		gateways(bridge.Name, s.Gateways...)
	} else if s.has(false) && len(s.own) > 0 {
		put(bridge.Name, s.linkGateway(false))
	}
	for _, pool := range s.Pools {
		for _, c := range v.Claims {
			if c.Pool == pool && v.Detached == "" {
				d.route(s, kernel.FIB{Dst: c.Block})
			}
		}
	}
	s.Sources = map[string][]netip.Addr{}
	for _, e := range s.endpoints {
		down := s.lost[e.ID] || v.Detached != ""
		h := kernel.Handover{
			Link:    kernel.Link{Name: e.link(), Kind: kernel.Veth, Standing: kernel.HandedOver, Peer: e.hostEnd(), MAC: e.MAC, MTU: s.MTU, Down: down && e.Sandbox == ""},
			Host:    kernel.Link{Name: e.hostEnd(), Kind: kernel.Veth, Standing: kernel.Adopted, Peer: e.link(), MTU: s.MTU, Down: down},
			Sandbox: e.Sandbox, Name: e.Inside, Addrs: e.Addrs(), Routes: v.ledRoutes(s.Network, e),
		}
		at := e.hostEnd()
		if s.Def.Mode == modeHostGW {
			h.Host.Master, at = bridge.Name, bridge.Name
		} else {
			h.Host.MAC = deriveMAC(v.Host, at)
			gateways(at, s.linkGateways()...)
		}
		d.attach(e, handover{Handover: h})
		d.State.Put(h.Link, h.Host)
		d.Devices[h.Link.Name], d.Devices[h.Host.Name] = s, s
		for _, p := range e.Addrs() {
			s.Sources[at] = append(s.Sources[at], p.Addr())
			if !down && e.Joined() {
				d.host(s, kernel.FIB{Dst: netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), Dev: at, Src: s.ownOf(p.Addr())})
			}
		}
	}
	if v.Detached == "" {
		planWays(s, v, d)
	}
}

// host adds the route to one endpoint, in place of the blackhole of a block that is
// no more than its address.
func (d *Desired) host(s *segment, r kernel.FIB) {
	if have, ok := d.State[r.Key()].(kernel.FIB); ok && have.Dev == "" {
		delete(d.State, r.Key())
	}
	d.route(s, r)
}

// Routed reports whether the containers of a pool's network on this host have no
// neighbours, but a gateway only.
func (d *Driver) Routed(pool cluster.PoolKey) bool {
	for _, n := range d.store.intent().Networks {
		if direct(n.Def.Mode) && slices.Contains(n.Pools, pool) {
			return true
		}
	}
	return false
}

// ownOf returns this host's own address in the network, of the family of a.
func (s *segment) ownOf(a netip.Addr) netip.Addr {
	for _, own := range s.own {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

// has reports whether the network has a pool of a family.
func (n Network) has(v4 bool) bool {
	return slices.ContainsFunc(n.Pools, func(p cluster.PoolKey) bool { return p.Prefix.Addr().Is4() == v4 })
}

// linkGateway is the gateway of a container on its own link. It is another one in
// each network, since a container may be in several: there the kernel has one route
// to an address, by one interface.
func (n Network) linkGateway(v4 bool) netip.Addr {
	sum := sha256.Sum256([]byte("isthmus gateway\x00" + poolNames(n.Pools)))
	if v4 {
		return netip.AddrFrom4([4]byte{169, 254, 1 + sum[0]%100, 1 + sum[1]%254}) // not where clouds have their services
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 12: 0x69, 13: 0x73, 14: sum[2], 15: sum[3]})
}

func (n Network) linkGateways() (out []netip.Addr) {
	for _, v4 := range []bool{true, false} {
		if n.has(v4) {
			out = append(out, n.linkGateway(v4))
		}
	}
	return out
}

// planWays leads the blocks of other hosts to them.
func planWays(s *segment, v View, d *Desired) {
	if v.Registry == nil {
		return
	}
	routers := s.routerAddrs()
	probed := map[netip.Addr]bool{}
	for _, pool := range s.Pools {
		for _, l := range v.Registry.LeasesOf(pool, "") {
			if l.Holder == v.Host || !v.admits(l.Holder) {
				continue
			}
			v4 := l.Block.Addr().Is4()
			router := routers[station{l.Holder, v4}]
			v.lay(s, l.Holder, d)
			w, known := v.Ways[l.Holder]
			fits := known && w.Via.IsValid() && w.Via.Is4() == v4 && (!w.Routed || s.Options.BGP)
			if fits && router.IsValid() && !probed[router] {
				// Always by the direct way, so that a probe of it tells what packets would meet.
				probed[router] = true
				d.host(s, kernel.FIB{Dst: netip.PrefixFrom(router, router.BitLen()), Via: w.Via, Dev: w.Dev, Src: s.ownOf(router)})
			}
			if fits && (w.Native || s.fallback() == "none") {
				d.host(s, kernel.FIB{Dst: l.Block, Via: w.Via, Dev: w.Dev, Src: s.ownOf(l.Block.Addr())})
				s.Ways = append(s.Ways, PeerWay{Host: v.name(l.Holder), Block: l.Block, By: "native", Via: w.Via, Dev: w.Dev})
				if !w.Native && w.Why != "" {
					d.missing(s, v, l.Holder, w.Why)
				}
				continue
			}
			why := w.why(v, l.Holder, v4)
			if by, ok := v.detour(s, l, router, d); ok {
				s.Ways = append(s.Ways, PeerWay{Host: v.name(l.Holder), Block: l.Block, By: by, Why: why})
				continue
			}
			d.missing(s, v, l.Holder, why)
		}
	}
	if s.fallback() == "vxlan" {
		d.State.Put(kernel.Link{
			Name: vxlanDevice(s.Def.VNI), Kind: kernel.VXLAN, MTU: s.MTU - vxlanOverhead(v), MAC: detourMAC(v.Host, s.Def.VNI),
			VNI: s.Def.VNI, Local: v.VTEP, Port: v.Port,
		})
		d.Devices[vxlanDevice(s.Def.VNI)] = s
		s.Detours = append(s.Detours, vxlanDevice(s.Def.VNI))
	}
	slices.Sort(s.Detours)
	s.Detours = slices.Compact(s.Detours)
}

// missing reports a host whose containers are out of reach.
func (d *Desired) missing(s *segment, v View, host cluster.HostID, why string) {
	remedy := "put the hosts into one subnet, have ICMP pass between them, or create the network with -o fallback=vxlan"
	if s.Def.Mode == modeRouted {
		remedy = "put the hosts into one subnet and have ICMP pass between them, use -o bgp=on with a router that speaks BGP, or -o mode=host-gw with a fallback"
	}
	d.Problems = append(d.Problems, Problem{
		Network: poolNames(s.Pools), Cause: fmt.Sprintf("containers on %s are not reached: %s", v.name(host), cmp.Or(why, "it was not asked yet")), Remedy: remedy,
	})
}

// fallback is how hosts without a direct way are reached.
func (s *segment) fallback() string { return cmp.Or(s.Def.Fallback, "none") }

// station is a host in an address family.
type station struct {
	host cluster.HostID
	v4   bool
}

// routerAddrs lists the other hosts' own addresses in the network, from the records
// by which they say that they hold it.
func (s *segment) routerAddrs() map[station]netip.Addr {
	out := map[station]netip.Addr{}
	for _, p := range s.Peers {
		if !p.onlyHolds() {
			continue
		}
		for _, a := range p.addrs() {
			out[station{p.host, a.Is4()}] = a
		}
	}
	return out
}

// detourMAC is the MAC of a host on the VXLAN device that is the fallback of a
// network: known to all others without a word.
func detourMAC(host cluster.HostID, vni uint32) cluster.MAC {
	return deriveMAC(host, fmt.Sprintf("fallback %d", vni))
}

func tunnelDevice(kind string, host cluster.HostID) string {
	sum := sha256.Sum256([]byte("isthmus tunnel\x00" + string(host)))
	return "is-" + map[string]string{"ipip": "i", "gre": "t"}[kind] + hex.EncodeToString(sum[:4])
}

// tunnelOverhead is what a tunnel of a kind takes from the underlay's MTU: the
// outer IP header, and GRE's (RFC 2784), which over IPv6 comes with a destination
// option of 8 bytes (RFC 2473, section 5.1).
func tunnelOverhead(kind string, vtep netip.Addr) int {
	v6 := family(vtep) == "ipv6"
	switch {
	case v6 && kind == "gre":
		return 40 + 8 + 4
	case v6:
		return 40
	case kind == "gre":
		return 20 + 4
	}
	return 20
}

// lay puts this host's end of the tunnel to another one, where each peer has its own.
// It lies there whether or not it is used here: the other host may use its end.
func (v View) lay(s *segment, host cluster.HostID, d *Desired) {
	kind, vtep := s.fallback(), v.vtepOf(host)
	if kind != "ipip" && kind != "gre" || !vtep.IsValid() || family(vtep) != family(v.VTEP) || vtep == v.VTEP {
		return
	}
	l := kernel.Link{Name: tunnelDevice(kind, host), Kind: kernel.Kind(kind), MTU: v.underlay() - tunnelOverhead(kind, v.VTEP), Local: v.VTEP, Remote: vtep}
	// It takes packets of that host alone, which is what the kernel has it for.
	d.State.Put(l, kernel.Guard{Rule: kernel.NoTrack, Kind: l.Kind, Tunnel: netip.AddrPortFrom(v.VTEP, 0)}, kernel.Guard{Rule: kernel.Admit, Peer: vtep})
	d.Devices[l.Name] = s
	s.Detours = append(s.Detours, l.Name)
}

// detour leads a block to its host by the network's fallback, if that can be.
func (v View) detour(s *segment, l cluster.Lease, router netip.Addr, d *Desired) (by string, ok bool) {
	vtep := v.vtepOf(l.Holder)
	if !vtep.IsValid() || family(vtep) != family(v.VTEP) || vtep == v.VTEP {
		return "", false
	}
	to := kernel.FIB{Dst: l.Block, Src: s.ownOf(l.Block.Addr())}
	switch kind := s.fallback(); kind {
	case "vxlan":
		if !router.IsValid() {
			return "", false // it is what the tunnel's far end is called
		}
		to.Dev, to.Via, to.Onlink, to.MTU = vxlanDevice(s.Def.VNI), router, true, s.MTU-vxlanOverhead(v)
		mac := detourMAC(l.Holder, s.Def.VNI)
		d.State.Put(kernel.FDB{Dev: to.Dev, MAC: mac, Dst: vtep}, kernel.Neigh{Dev: to.Dev, IP: router, MAC: mac})
	case "ipip", "gre":
		to.Dev, to.MTU = tunnelDevice(kind, l.Holder), s.MTU-tunnelOverhead(kind, v.VTEP)
	default:
		return "", false
	}
	d.host(s, to)
	return s.fallback(), true
}
