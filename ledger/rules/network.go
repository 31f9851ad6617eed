package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

func (d *draft) attachNetwork(host cluster.HostID, c cluster.AttachNetwork) cluster.Result {
	set := make([]cluster.PoolKey, len(c.Pools))
	for i, k := range c.Pools {
		set[i] = masked(k)
		if _, ok := d.Pools[set[i]]; !ok {
			return unknownPool(k)
		}
	}
	set = cluster.PoolSet(set)
	n, ok := d.NetworkOf(set)
	switch {
	case !ok:
		if why := d.shared(set); why != nil {
			return cluster.Result{Refused: why}
		}
		n = cluster.Network{ID: d.nextNetwork(), Pools: set}
		fallthrough
	case len(n.Holders) == 0:
		// A network that nobody holds lives on only for the sake of its
		// leases: it keeps its identity, but defines nothing for anybody.
		def, why := d.define(host, n, c.Def)
		if why != nil {
			return cluster.Result{Refused: why}
		}
		n.Def, n.Creator = def, host
	default:
		if why := d.contradicts(host, n, c.Def); why != nil {
			return cluster.Result{Refused: why}
		}
	}
	n.Holders = with(n.Holders, host)
	d.networks()[n.ID] = n
	return cluster.Result{Network: n}
}

// shared refuses pools of which some belong to another network.
func (d *draft) shared(set []cluster.PoolKey) *cluster.Refusal {
	for _, n := range networksByID(d.Registry) {
		for _, k := range set {
			if !slices.Contains(n.Pools, k) {
				continue
			}
			held := n.Holders
			for _, other := range n.Pools {
				for _, id := range d.holdersOf(other) {
					held = with(held, id)
				}
			}
			why := cluster.Refuse(cluster.Overlap, "the subnets %s share %s with the network on %s, created on %s: use exactly its subnets to join it, or others",
				prefixes(set), k, prefixes(n.Pools), d.called(n.Creator))
			why.Holders = held
			return why
		}
	}
	return nil
}

// define fills a definition for a network that has none.
func (d *draft) define(host cluster.HostID, n cluster.Network, def cluster.Definition) (cluster.Definition, *cluster.Refusal) {
	fill := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	fill(&def.Mode, "vxlan")
	fill(&def.Encrypt, "off")
	switch def.Mode {
	case "macvlan":
		fill(&def.Submode, "bridge")
	case "ipvlan":
		fill(&def.Submode, "l2")
		fill(&def.Flag, "bridge")
	case "host-gw":
		fill(&def.Fallback, "vxlan")
	}
	if def.Mode == "vxlan" {
		fill(&def.Underlay, "ipv4")
		fill(&def.ARP, "suppress")
		fill(&def.BUM, "replicate")
		fill(&def.Gateway, "docker")
	} else {
		def.Underlay = "" // no family is its own
	}
	if def.Mode != "vxlan" && def.Fallback != "vxlan" {
		return def, nil
	}
	used := map[uint32]cluster.Network{}
	for _, other := range d.Networks {
		if other.ID != n.ID && other.Def.VNI != 0 {
			used[other.Def.VNI] = other
		}
	}
	if other, ok := used[def.VNI]; ok {
		return def, cluster.Refuse(cluster.Contradiction, "VNI %d belongs to the network on %s, created on %s: choose another -o vni, or leave it out",
			def.VNI, prefixes(other.Pools), d.called(other.Creator))
	}
	if def.VNI != 0 {
		return def, nil
	}
	if def.VNI = n.Def.VNI; def.VNI != 0 {
		return def, nil
	}
	for range len(used) + 1 {
		if _, ok := used[d.NextVNI]; !ok {
			def.VNI = d.NextVNI
		}
		if d.NextVNI++; d.NextVNI > MaxVNI {
			d.NextVNI = FirstVNI
		}
		if def.VNI != 0 {
			return def, nil
		}
	}
	return def, cluster.Refuse(cluster.Full, "no free VNI is left among %d networks: remove some", len(used))
}

// contradicts compares what a host asks for with what the network is.
func (d *draft) contradicts(host cluster.HostID, n cluster.Network, ask cluster.Definition) *cluster.Refusal {
	var wants, has, keys []string
	check := func(key, a, b string) {
		if a != "" && a != b {
			wants, has, keys = append(wants, key+"="+a), append(has, key+"="+b), append(keys, "-o "+key)
		}
	}
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	check("mode", ask.Mode, n.Def.Mode)
	check("vni", number(int(ask.VNI)), number(int(n.Def.VNI)))
	mtu := number(n.Def.MTU)
	if mtu == "" {
		mtu = "computed"
	}
	check("mtu", number(ask.MTU), mtu)
	check("arp", ask.ARP, n.Def.ARP)
	check("bum", ask.BUM, n.Def.BUM)
	check("encrypt", ask.Encrypt, n.Def.Encrypt)
	check("fallback", ask.Fallback, n.Def.Fallback)
	check("gateway", ask.Gateway, cmp.Or(n.Def.Gateway, "docker"))
	check("route_to", ask.RouteTo, cmp.Or(n.Def.RouteTo, "nothing"))
	if ask.Mode == n.Def.Mode { // else they mean nothing
		check(ask.Mode+"_mode", ask.Submode, n.Def.Submode)
		check("ipvlan_flag", ask.Flag, n.Def.Flag)
	}
	if len(keys) > 0 {
		why := cluster.Refuse(cluster.Contradiction, "the network on %s was created on %s with %s, and this one asks for %s: leave %s out, or use the same",
			prefixes(n.Pools), d.called(n.Creator), strings.Join(has, " "), strings.Join(wants, " "), strings.Join(keys, ", "))
		why.Holders = n.Holders
		return why
	}
	if ask.VLAN != "" && n.Def.VLAN != "" && ask.VLAN != n.Def.VLAN {
		why := cluster.Refuse(cluster.Contradiction, "the network on %s, created on %s, is in VLAN %s, and the parent on host %s in VLAN %s: use a parent in VLAN %s here",
			prefixes(n.Pools), d.called(n.Creator), n.Def.VLAN, d.called(host), ask.VLAN, n.Def.VLAN)
		why.Holders = n.Holders
		return why
	}
	if n.Def.Underlay != "" && ask.Underlay != "" && ask.Underlay != n.Def.Underlay {
		why := cluster.Refuse(cluster.Contradiction, "the network on %s, created on %s, runs over %s, and host %s over %s: set ADVERTISE to an %s address here, or create the network anew",
			prefixes(n.Pools), d.called(n.Creator), family(n.Def.Underlay), d.called(host), family(ask.Underlay), family(n.Def.Underlay))
		why.Holders = n.Holders
		return why
	}
	return nil
}

func (d *draft) detachNetwork(host cluster.HostID, c cluster.DetachNetwork) cluster.Result {
	n, ok := d.Networks[c.Network]
	if !ok {
		return cluster.Result{}
	}
	n.Holders = less(n.Holders, host)
	d.networks()[n.ID] = n
	d.sweep(n.Pools...)
	return cluster.Result{Network: n}
}

func (d *draft) nextNetwork() uint32 {
	for {
		id := d.NextNet
		if d.NextNet++; d.NextNet == 0 {
			d.NextNet = 1
		}
		if _, used := d.Networks[id]; !used && id != 0 {
			return id
		}
	}
}

func networksByID(r *cluster.Registry) []cluster.Network {
	var out []cluster.Network
	for _, n := range r.Networks {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b cluster.Network) int { return int(int64(a.ID) - int64(b.ID)) })
	return out
}

func prefixes(keys []cluster.PoolKey) string {
	var out []string
	for _, k := range keys {
		out = append(out, k.Prefix.String())
	}
	s := strings.Join(out, ", ")
	if len(keys) > 0 && keys[0].Space != "" {
		s += " in space " + keys[0].Space
	}
	return s
}

func family(s string) string {
	return strings.Replace(s, "ipv", "IPv", 1)
}
