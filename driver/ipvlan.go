package driver

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// ipvlan puts containers into the LAN of the parent under the parent's MAC: by
// frames (l2), or by packets that this host routes (l3, l3s).
var ipvlan = Mode{Name: "ipvlan", Plan: planIPvlan, Overhead: none}

func planIPvlan(s *segment, v View, d *Desired) {
	planLAN(s, v, d)
	if g := v.ground(s.Network); s.routed() && !s.Options.Internal && (g.Dev.Up || g.Fault != nil) && len(g.Alone) == 0 && v.Detached == "" {
		planBlocks(s, g, v, d)
	}
}

// planBlocks routes what other hosts lease of the network's pools to them. The
// kernel looks for a container's way on its parent, so that a host has to be in
// the same LAN; what another router knows needs no route of ours. While the
// parent is missing it may only be called otherwise: then what is on-link anywhere
// counts.
func planBlocks(s *segment, g ground, v View, d *Desired) {
	if v.Registry == nil {
		return
	}
	parent := g.Link
	if g.Fault != nil {
		parent = ""
	}
	away := map[cluster.HostID]string{} // why hosts are not in reach
	for _, pool := range s.Pools {
		for _, l := range v.Registry.LeasesOf(pool, "") {
			if l.Holder == v.Host || !v.admits(l.Holder) {
				continue
			}
			via := v.vtepOf(l.Holder)
			dev := v.onLink(via, parent)
			switch {
			case via.IsValid() && via.Is4() != l.Block.Addr().Is4():
				away[l.Holder] = fmt.Sprintf("%s is not of the family of %s", via, pool)
				continue
			case dev == "" && g.Fault != nil:
				continue
			case dev == "":
				away[l.Holder] = fmt.Sprintf("%s is in no subnet of parent %s", addrText(via), parent)
				continue
			}
			d.route(s, kernel.FIB{Dst: l.Block, Via: via, Dev: dev})
		}
	}
	for _, host := range slices.SortedFunc(maps.Keys(away), func(a, b cluster.HostID) int { return cmp.Compare(v.name(a), v.name(b)) }) {
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(s.Pools),
			Cause:   fmt.Sprintf("this host routes nothing to the containers on %s: its address %s", v.name(host), away[host]),
			Remedy:  "have the router of the LAN lead the blocks there that isthmus ipam lists",
		})
	}
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

// vtepOf returns the underlay address of a host: as it is heard, else as the
// registry has it.
func (v View) vtepOf(host cluster.HostID) netip.Addr {
	for _, m := range v.Members {
		if m.ID == host && m.Info.VTEP.IsValid() {
			return m.Info.VTEP.Unmap()
		}
	}
	h, _ := v.registered(host)
	return h.VTEP.Unmap()
}

// onLink names the link by which an address is reached without a router: the
// preferred one (any if that is empty), or that of this host's underlay; empty
// for none.
func (v View) onLink(a netip.Addr, preferred string) string {
	found := ""
	for _, dev := range v.Links {
		near, underlay := false, false
		for _, p := range dev.Addrs {
			near = near || dev.Up && p.Contains(a)
			underlay = underlay || p.Addr() == v.VTEP
		}
		switch {
		case !near:
		case dev.Name == preferred:
			return dev.Name
		case underlay || preferred == "":
			found = dev.Name
		}
	}
	return found
}
