package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// fenced lists the modes in which the other hosts can drop what a forgotten
// host still sends: by the address of its VTEP.
var fenced = []string{"vxlan"}

func (d *draft) forget(by cluster.HostID, c cluster.Forget) cluster.Result {
	h, ok := d.Hosts[c.Host]
	switch {
	case !ok:
		return refused(cluster.Invalid, "the cluster knows no host %s: `isthmus status` names those that it knows", c.Host.Short())
	case c.Host == by:
		return refused(cluster.Invalid, "host %s cannot remove itself: run `isthmus leave` on it, or `isthmus node rm %s` on another host", d.called(by), d.called(by))
	}
	// What is kept is decided when the host is forgotten. Later the network may
	// be another one under the same subnets.
	if !h.Tombstone || c.Dead {
		d.part(c.Host, func(l cluster.Lease) bool { return !c.Dead && d.unfenced(l.Pool) })
	}
	h.Unheard = !c.Dead && (h.Unheard || !h.Tombstone && h.Gen < d.Gen)
	h.Tombstone, h.Session = true, 0
	d.hosts()[h.ID] = h
	delete(d.requests(), h.ID)
	return cluster.Result{Leases: leasesOfHost(d.Registry, h.ID)}
}

// unfenced reports a pool on whose network frames of a forgotten host arrive.
func (d *draft) unfenced(key cluster.PoolKey) bool {
	for _, n := range d.Networks {
		if slices.Contains(n.Pools, key) {
			return !slices.Contains(fenced, n.Def.Mode)
		}
	}
	return false
}

// unheard refuses to lease of a pool whose network does not fence, while a host
// was not heard since the registry was rebuilt. What the lost log leased to it
// is not known, and what its containers send arrives.
func (d *draft) unheard(key cluster.PoolKey) *cluster.Refusal {
	if d.Gen <= 1 || !d.unfenced(key) {
		return nil
	}
	var ids []cluster.HostID
	var remedies []string
	for _, h := range hostsByID(d.Registry) {
		if h.Gen < d.Gen && (!h.Tombstone || h.Unheard) {
			ids = append(ids, h.ID)
			remedies = append(remedies, fmt.Sprintf("`isthmus node rm %s --dead`", d.called(h.ID)))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	why := cluster.Refuse(cluster.Unheard,
		"nothing new is leased of pool %s: %s %s not heard since the registry was rebuilt, and may use addresses of it that the lost log leased. Start %s, or say that %s off for good: %s",
		key, d.names(ids), verb(ids, "was", "were"), verb(ids, "that host", "those hosts"), verb(ids, "it is", "they are"), list(remedies))
	why.Holders = ids
	return why
}

func (d *draft) confirm(id cluster.HostID, c cluster.Confirm) cluster.Result {
	switch h, ok := d.Hosts[id]; {
	case !ok:
		return cluster.Result{}
	case !h.Tombstone:
		return refused(cluster.Invalid, "host %s was not removed from the cluster, so it has nothing to confirm: to take it out, run `isthmus leave` on it", d.called(id))
	}
	if why := clone(d.Hosts[id], c.Machine); why != "" {
		return refused(cluster.Clone, "host %s was removed, and the one that confirms it is another machine: it belongs to a machine with %s, which may still run", d.called(id), why)
	}
	d.part(id, nil)
	if h := d.Hosts[id]; h.Unheard {
		h.Unheard = false
		d.hosts()[id] = h
	}
	return cluster.Result{}
}

func (d *draft) leave(id cluster.HostID) cluster.Result {
	var held []string
	for _, n := range networksByID(d.Registry) {
		if slices.Contains(n.Holders, id) {
			held = append(held, prefixes(n.Pools))
		}
	}
	if len(held) > 0 {
		res := refused(cluster.InUse, "host %s still holds the network on %s: remove it there with `docker network rm`, then leave", d.called(id), strings.Join(held, "; and the one on "))
		res.Refused.Holders = []cluster.HostID{id}
		return res
	}
	d.part(id, nil)
	delete(d.hosts(), id)
	delete(d.requests(), id)
	return cluster.Result{}
}

// part takes a host off all pools and networks and frees its leases, but for
// those that are kept. A nil keep keeps none.
func (d *draft) part(id cluster.HostID, keep func(cluster.Lease) bool) {
	var touched []cluster.PoolKey
	for _, l := range leasesOfHost(d.Registry, id) {
		if keep == nil || !keep(l) {
			delete(d.leases(), l.ID)
			touched = append(touched, l.Pool)
		}
	}
	for _, key := range poolsByKey(d.Registry) {
		if p := d.Pools[key]; slices.Contains(p.Holders, id) {
			p.Holders = less(p.Holders, id)
			d.pools()[key] = p
			touched = append(touched, key)
		}
	}
	for _, n := range networksByID(d.Registry) {
		if slices.Contains(n.Holders, id) {
			n.Holders = less(n.Holders, id)
			d.networks()[n.ID] = n
			touched = append(touched, n.Pools...)
		}
	}
	slices.SortFunc(touched, cluster.ComparePools)
	d.sweep(slices.Compact(touched)...)
}

func (d *draft) dissolve(c cluster.Dissolve) cluster.Result {
	if c.Into == d.Cluster {
		return refused(cluster.Invalid, "cluster %s cannot be dissolved into itself", d.Cluster)
	}
	if !d.Empty() {
		var holders []cluster.HostID
		keys := poolsByKey(d.Registry)
		for _, key := range keys {
			for _, id := range d.holdersOf(key) {
				holders = with(holders, id)
			}
		}
		res := refused(cluster.InUse, "cluster %s cannot be dissolved into cluster %s: %s still %s the networks on %s: remove them there, or run `isthmus reset` on the hosts that are to change sides",
			d.Cluster, c.Into, d.names(holders), verb(holders, "holds", "hold"), prefixes(keys))
		res.Refused.Holders = holders
		return res
	}
	d.Dissolved, d.Members = c.Into, slices.Clone(c.At)
	return cluster.Result{}
}

func places(at []netip.AddrPort) string {
	if len(at) == 0 {
		return ""
	}
	var out []string
	for _, a := range at {
		out = append(out, a.String())
	}
	return ", which is at " + list(out)
}
