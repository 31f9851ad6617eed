package driver

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// This file is how containers of networks that this host routes for meet the rest
// of the world: pure, as Plan is, and for the modes whose Join answer has a gateway.

// routed is a network that this host is the router of.
type routed struct {
	Cluster  uint32 // id
	Pools    []netip.Prefix
	NAT      bool
	Internal bool
	// Gateways are the links on which its containers are: its bridge, or the host
	// ends of their veths.
	Gateways []string
	// Sources are the addresses that containers may send from, by gateway. Where
	// there are none, nothing is checked: so for a bridge with a tunnel in it, since
	// br_netfilter shows there what other hosts' containers send.
	Sources map[string][]netip.Addr
	// Detours are its tunnels to other hosts: what comes from there is for Gateways.
	Detours []string
	// Elsewhere says that containers may have another host for their gateway: what
	// comes to their published ports here must return here.
	Elsewhere bool
	Ports     []kernel.Publish // of its containers, as ports.hold returned them
}

// planGates puts in what the firewall holds for the networks that were planned, and
// that this host routes for.
func (v View) planGates(in *Intent, d *Desired) {
	var here []routed
	for _, s := range d.Segments {
		if s.led() {
			// Where another host is the gateway, what goes there is bridged: br_netfilter
			// shows that to the firewall, which has to leave it alone.
			nat := !s.Options.NoNAT && (central(s.Def) == "" || s.Router == v.Host)
			here = append(here, routed{
				Cluster: s.Cluster, Pools: s.prefixes(), NAT: nat, Internal: s.Options.Internal,
				Gateways: s.Gates, Detours: s.Detours, Sources: s.Sources, Ports: in.publishes(s), Elsewhere: central(s.Def) != "",
			})
		}
	}
	v.planEgress(here, v.passages(d), d.State)
}

func (n Network) prefixes() (out []netip.Prefix) {
	for _, p := range n.Pools {
		out = append(out, p.Prefix)
	}
	return out
}

// planEgress puts into state what the firewall holds for the networks that this
// host routes for. The pools of all networks of the cluster, held here or not, keep
// their addresses towards each other, and are apart unless a passage joins them
// (pairs of ids).
func (v View) planEgress(here []routed, passages [][2]uint32, state kernel.State) {
	if len(here) == 0 {
		return
	}
	known := map[uint32]bool{}
	ipv6 := false
	for _, n := range here {
		known[n.Cluster] = true
		six := slices.ContainsFunc(n.Pools, func(p netip.Prefix) bool { return p.Addr().Is6() })
		ipv6 = ipv6 || six
		for _, p := range n.Pools {
			state.Put(kernel.Pool{Prefix: p, Network: n.Cluster, NAT: n.NAT && !n.Internal, Internal: n.Internal, Return: n.Elsewhere})
		}
		for _, dev := range n.Gateways {
			state.Put(kernel.Gateway{Dev: dev, IPv6: six})
			for _, ip := range n.Sources[dev] {
				state.Put(kernel.Source{Dev: dev, IP: ip})
			}
		}
		for _, dev := range n.Detours {
			state.Put(kernel.Uplink{Dev: dev, IPv6: six, Forward: true})
		}
		if n.Internal { // it has no outside, as with the engine's own networks
			continue
		}
		for _, p := range n.Ports {
			state.Put(p)
		}
	}
	if v.Registry != nil {
		for _, id := range slices.Sorted(maps.Keys(v.Registry.Networks)) {
			n := v.Registry.Networks[id]
			if known[n.ID] {
				continue
			}
			known[n.ID] = true
			for _, p := range n.Pools {
				if o := (kernel.Pool{Prefix: p.Prefix, Network: n.ID}); state[o.Key()] == nil {
					state.Put(o)
				}
			}
		}
	}
	for _, p := range passages {
		a, b := min(p[0], p[1]), max(p[0], p[1])
		if a != b && known[a] && known[b] {
			state.Put(kernel.Passage{A: a, B: b})
		}
	}
	for _, l := range uplinks(v.Links, v.VTEP) {
		six := slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() })
		state.Put(kernel.Uplink{Dev: l.Name, IPv6: ipv6 && six, Forward: v.Forward})
	}
	state.Put(accepts(state)...)
}

// accepts are the rules in Docker's chain by which what goes between gateways, and
// between those and uplinks, passes. Every packet that is forwarded is held against
// them, so they are few: all links of ours are one there, by what their names begin
// with, or each kind of them, where this host has an address in a LAN on one that is
// no gateway.
func accepts(state kernel.State) (out []kernel.Object) {
	begin := len(kernel.Prefix)
	for k := range state {
		if strings.HasPrefix(k.Dev, shimBegin) {
			begin = len(shimBegin)
		}
	}
	alike := func(dev string) string {
		if strings.HasPrefix(dev, kernel.Prefix) && len(dev) > begin {
			return dev[:begin] + "+"
		}
		return dev
	}
	ours, others := map[string]bool{}, map[string]bool{}
	for _, o := range state {
		switch o := o.(type) {
		case kernel.Gateway:
			ours[alike(o.Dev)] = true
		case kernel.Uplink:
			others[alike(o.Dev)] = true
		}
	}
	for g := range ours {
		for other := range ours {
			out = append(out, kernel.Guard{Rule: kernel.AcceptForward, Dev: g, Out: other})
		}
		for u := range others {
			out = append(out, kernel.Guard{Rule: kernel.AcceptForward, Dev: g, Out: u}, kernel.Guard{Rule: kernel.AcceptForward, Dev: u, Out: g})
		}
	}
	return out
}

// uplinks are the links by which the world is reached: those of others that are up,
// have an address and are no port of another one, but not the bridges of others'
// containers, which have no port that is more than the end of a container's link.
// Who may reach those is for their own rules to say.
func uplinks(links []kernel.Device, underlay netip.Addr) (out []kernel.Device) {
	for _, l := range links {
		if l.Ours || l.Loopback || !l.Up || l.Master != "" || !slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() }) {
			continue
		}
		hosts := func(p kernel.Device) bool {
			return p.Master == l.Name && p.Kind != kernel.Veth && p.Kind != "tun" && p.Kind != kernel.Dummy
		}
		carries := underlay.IsValid() && slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr() == underlay })
		if l.Kind == kernel.Bridge && !carries && !slices.ContainsFunc(links, hosts) {
			continue
		}
		out = append(out, l)
	}
	return out
}
