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

// This file is the gateway of the containers, where hosts of the cluster are it: what
// it takes of the kernel, who it is, and what it leads to beside the world.

// Values of -o gateway, for networks that are one segment over all hosts. The address
// is the same on all of them, as Docker asks for it before the mode is known.
const (
	gatewayDocker      = "docker"      // Docker's own bridge is the way out
	gatewayDistributed = "distributed" // each host is the gateway of its own containers
	gatewayHost        = "host:"       // and a name: that host is it for all, or who stands in for it
)

// ours reports a gateway that is a host of the cluster.
func ours(gateway string) bool {
	return gateway == gatewayDistributed || strings.HasPrefix(gateway, gatewayHost)
}

// central names the host that is the gateway for all; empty where each is.
func central(def cluster.Definition) string {
	name, _ := strings.CutPrefix(def.Gateway, gatewayHost)
	if name == def.Gateway {
		return ""
	}
	return name
}

// ledBy returns the gateway that a container with an address of the network has;
// invalid where Docker asked for none.
func (n Network) ledBy(a netip.Addr) netip.Addr {
	if n.Def.Mode == modeRouted {
		return n.linkGateway(a.Is4())
	}
	pool, _ := n.covers(a)
	for _, g := range n.Gateways {
		if pool.Prefix.IsValid() && pool.Prefix.Contains(g) {
			return g
		}
	}
	return netip.Addr{}
}

// ledRoutes lists what a container's interface needs beside its subnet: everything
// through the gateway, or of an internal network what it may be routed to. Without
// neighbours it needs the gateway itself, and its own subnets through it.
func (v View) ledRoutes(n Network, e Endpoint) (out []kernel.Route) {
	if !led(n.Def) {
		return nil
	}
	for _, p := range e.Addrs() {
		via := n.ledBy(p.Addr())
		if !via.IsValid() {
			continue
		}
		var beyond []netip.Prefix
		if direct(n.Def.Mode) {
			out = append(out, kernel.Route{Dst: netip.PrefixFrom(via, via.BitLen())})
			beyond = n.prefixes()
		}
		if n.Options.Internal {
			beyond = append(beyond, v.joined(n)...)
		} else if via.Is4() {
			beyond = append(beyond, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		} else {
			beyond = append(beyond, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		}
		for _, dst := range beyond {
			if dst.Addr().Is4() == via.Is4() {
				out = append(out, kernel.Route{Dst: dst, Via: via})
			}
		}
	}
	return out
}

// joined lists the subnets of the networks that a network may reach, since it or they
// said so.
func (v View) joined(n Network) []netip.Prefix {
	out := splitPrefixes(n.Def.RouteTo)
	if v.Registry == nil {
		return out
	}
	for _, other := range v.Registry.Networks {
		if other.Pools[0].Space != n.Pools[0].Space || !slices.ContainsFunc(splitPrefixes(other.Def.RouteTo), func(p netip.Prefix) bool { return slices.Contains(n.prefixes(), p) }) {
			continue
		}
		for _, p := range other.Pools {
			out = append(out, p.Prefix)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// planGateway makes this host the router of a segment's containers, or says where
// theirs is. The bridge is where it meets them; device leads to the other hosts.
func (v View) planGateway(s *segment, device kernel.Link, bridge *kernel.Link, d *Desired) {
	here := true
	var src []netip.Addr
	if central(s.Def) != "" {
		s.own = s.rightfulHost(v, d)
		src = s.own
		for _, a := range s.own {
			d.State.Put(kernel.Addr{Dev: bridge.Name, Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
		s.Router = v.routerOf(s, d)
		here = s.Router == v.Host
		// Containers know one MAC, and go on by it when another host takes over.
		mac := deriveMAC("", "gateway "+poolNames(s.Pools))
		if vtep := v.vtepOf(s.Router); here {
			bridge.MAC = mac
		} else if s.Router != "" && vtep.IsValid() {
			d.State.Put(kernel.FDB{Dev: device.Name, MAC: mac, Dst: vtep})
			for _, g := range s.Gateways {
				if device.Proxy {
					d.State.Put(kernel.Neigh{Dev: device.Name, IP: g, MAC: mac})
				}
			}
		}
	}
	if here {
		src = append(slices.Clone(s.Gateways), src...)
		for _, g := range s.Gateways {
			d.State.Put(kernel.Addr{Dev: bridge.Name, Prefix: netip.PrefixFrom(g, g.BitLen())})
		}
	}
	if six := s.linkGateway(false); s.has(false) { // neighbours are asked from a link-local address
		d.State.Put(kernel.Addr{Dev: bridge.Name, Prefix: netip.PrefixFrom(six, six.BitLen())})
	}
	s.Gates = []string{bridge.Name}
	for _, p := range s.prefixes() {
		r := kernel.FIB{Dst: p, Dev: bridge.Name}
		for _, a := range src {
			if p.Contains(a) {
				r.Src = a
				break
			}
		}
		d.route(s, r)
	}
}

// routerOf chooses the host that is the gateway for all: the one that was named, or
// while that is away the first, by id, of the others that hold the network. All hosts
// come to the same unless they see different hosts alive. It is empty where there is
// none.
func (v View) routerOf(s *segment, d *Desired) cluster.HostID {
	name := central(s.Def)
	hosts := map[cluster.HostID]bool{v.Host: v.Detached == ""}
	for _, p := range s.Peers {
		hosts[p.host] = p.alive && !v.Deaf[p.host]
	}
	why := "does not hold the network"
	var stands cluster.HostID
	for _, h := range slices.Sorted(maps.Keys(hosts)) {
		switch {
		case v.name(h) == name && hosts[h]:
			return h
		case v.name(h) == name:
			why = "is not reached"
		case hosts[h] && stands == "":
			stands = h
		}
	}
	p := Problem{Network: poolNames(s.Pools), Cause: fmt.Sprintf("its gateway, host %s, %s", name, why), Remedy: "start that host, and create the network there"}
	if stands != "" {
		p.Cause += fmt.Sprintf(": %s stands in", v.name(stands))
	}
	d.Problems = append(d.Problems, p)
	return stands
}

// passages lists the networks of the cluster that may reach each other, as pairs of
// ids, and reports what one that is held here lacks for it.
func (v View) passages(d *Desired) (out [][2]uint32) {
	if v.Registry == nil {
		return nil
	}
	here := map[uint32]*segment{}
	for _, s := range d.Segments {
		here[s.Cluster] = s
	}
	report := func(s *segment, cause, remedy string) {
		d.Problems = append(d.Problems, Problem{Network: poolNames(s.Pools), Cause: cause, Remedy: remedy})
	}
	for _, id := range slices.Sorted(maps.Keys(v.Registry.Networks)) {
		from := v.Registry.Networks[id]
		for _, p := range splitPrefixes(from.Def.RouteTo) {
			to, known := v.subnet(cluster.PoolKey{Space: from.Pools[0].Space, Prefix: p})
			a, b := here[from.ID], here[to.ID]
			switch {
			case !known && a != nil:
				report(a, fmt.Sprintf("route_to: %s is no subnet of a network of the cluster", p), "create that network, or this one without it")
			case !known:
			case !led(to.Def) && a != nil:
				report(a, fmt.Sprintf("route_to: hosts do not route for the network on %s", poolNames(to.Pools)), "create that with -o gateway=distributed, or in mode host-gw or routed")
			case a != nil && b != nil:
				out = append(out, [2]uint32{from.ID, to.ID})
			case a != nil && len(a.Local) > 0:
				report(a, fmt.Sprintf("containers here do not reach the network on %s, which this host does not hold", poolNames(to.Pools)), "create that network here, too")
			case b != nil && len(b.Local) > 0:
				report(b, fmt.Sprintf("containers here do not reach the network on %s, which this host does not hold", poolNames(from.Pools)), "create that network here, too")
			}
		}
	}
	return out
}

// subnet finds the network that has a pool.
func (v View) subnet(p cluster.PoolKey) (cluster.Network, bool) {
	for _, n := range v.Registry.Networks {
		if slices.Contains(n.Pools, p) {
			return n, true
		}
	}
	return cluster.Network{}, false
}

func joinPrefixes(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// splitPrefixes is the reverse; what is no prefix is left out.
func splitPrefixes(text string) (out []netip.Prefix) {
	for part := range strings.SplitSeq(text, ",") {
		if p, err := netip.ParsePrefix(part); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// checkLed refuses a network that this host cannot route for.
func (d *Driver) checkLed(n Network, def cluster.Definition, by string) error {
	n.Def = def
	if err := d.checkMTU(n, def, by); err != nil {
		return err
	}
	kind := "mode " + def.Mode
	if !direct(def.Mode) {
		kind = "gateway=" + def.Gateway
	}
	if d.cfg.Hosts == nil && (direct(def.Mode) || central(def) != "") {
		return fmt.Errorf("%s: this host has no addresses to give to itself", kind)
	}
	for _, p := range n.Pools {
		if !n.ledBy(p.Prefix.Addr()).IsValid() {
			return fmt.Errorf("%s needs a gateway in %s, and Docker asked for none: add --gateway, or use -o mode=routed", kind, p)
		}
		if p.Prefix.Addr().Is6() && def.Fallback == "ipip" && family(d.view().VTEP) == "ipv4" {
			return fmt.Errorf("fallback=ipip over IPv4 carries no IPv6 (%s): use -o fallback=gre or vxlan", p)
		}
		for _, other := range d.store.intent().Networks {
			for _, q := range other.Pools {
				if led(other.Def) && q.Space != p.Space && q.Prefix.Overlaps(p.Prefix) {
					return fmt.Errorf("%s overlaps %s of another network of this host, which has one table of routes for both: use other subnets here", p, q)
				}
			}
		}
	}
	if def.Fallback != "ipip" && def.Fallback != "gre" {
		return nil
	}
	tunnel := kernel.Kind(def.Fallback).Over(d.view().VTEP)
	able, err := d.cfg.Kernel.Makes(noWait, tunnel)
	if err == nil && !able {
		err = fmt.Errorf("fallback=%s: %w", def.Fallback, kernel.Lacks(tunnel))
	}
	return err
}

// gatewayStatus says who the way out of a network is, for people.
func (s *segment) gatewayStatus(v View) string {
	usual := cmp.Or(s.Def.Gateway, gatewayDocker)
	if s.Options.Gateway == "none" {
		usual = "none"
	}
	if name := central(s.Def); name != "" && s.Router != "" && v.name(s.Router) != name {
		return usual + ", now " + v.name(s.Router)
	}
	return usual
}
