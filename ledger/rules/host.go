package rules

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

func (d *draft) found(c cluster.Found) cluster.Result {
	switch d.Cluster {
	case "":
		d.Cluster, d.Gen, d.NextVNI, d.NextNet = c.Cluster, 1, FirstVNI, 1
	case c.Cluster:
	default:
		return refused(cluster.Contradiction, "this log belongs to cluster %s already, not to %s", d.Cluster, c.Cluster)
	}
	return cluster.Result{}
}

// hello opens a session. The Index of its result is the session.
func (d *draft) hello(id cluster.HostID, c cluster.Hello) cluster.Result {
	old, known := d.Hosts[id]
	if known && old.Tombstone {
		return cluster.Result{Refused: Forgotten(old)}
	}
	if why := clone(old, c.Machine); why != "" {
		res := refused(cluster.Clone,
			"the identity %s (host %s) belongs to a machine with %s: the state of this host was copied from there. Run `isthmus reset` on the copy, so that it joins as a new host; if that machine is gone for good, `isthmus node rm %s` on another host frees what it held",
			id.Short(), old.Name, why, d.called(id))
		res.Refused.Holders = []cluster.HostID{id}
		return res
	}
	if max(c.Gen, 1) != d.Gen {
		return cluster.Result{Refused: otherGen(d.Gen, max(c.Gen, 1), c.Name)}
	}
	if known && old.Session != 0 && old.Nonce == c.Nonce {
		return cluster.Result{Index: old.Session, Leases: leasesOfHost(d.Registry, id)}
	}
	for _, other := range hostsByID(d.Registry) {
		if other.ID == id || other.Tombstone || other.Name != c.Name {
			continue
		}
		// Two hosts cannot serve one address: the other one was installed
		// anew there, with a new identity. The name passes on; the old
		// identity keeps its leases, because its containers may still run.
		if !c.Address.IsValid() || other.Address != c.Address {
			return cluster.Result{Refused: taken(other)}
		}
		d.retire(other, id)
	}
	if d.Gen > 1 && old.Gen < d.Gen {
		d.adopt(id, c.Claims)
	}
	d.hosts()[id] = cluster.Host{
		ID: id, Name: c.Name, PublicKey: c.PublicKey, Session: d.Index, Gen: d.Gen, Nonce: c.Nonce,
		VTEP: c.VTEP, Address: c.Address, Machine: seen(old.Machine, c.Machine),
	}
	delete(d.requests(), id)
	return cluster.Result{Leases: leasesOfHost(d.Registry, id)}
}

// clone tells by what a machine is not the one on which a host was registered,
// "" if it may be. The MAC address, which changes with a network card, counts
// only where there is no UUID to compare.
func clone(old cluster.Host, m cluster.Machine) string {
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	was := old.Machine
	switch {
	case differ(was.ID, m.ID):
		return fmt.Sprintf("the machine id %s, not %s", was.ID, m.ID)
	case differ(was.UUID, m.UUID):
		return fmt.Sprintf("the product UUID %s, not %s", was.UUID, m.UUID)
	case (was.UUID == "" || m.UUID == "") && differ(was.MAC, m.MAC):
		return fmt.Sprintf("the MAC address %s, not %s", was.MAC, m.MAC)
	}
	return ""
}

// seen keeps what was known of a machine where it cannot be read any more, so
// that a clone is told by it all the same.
func seen(was, is cluster.Machine) cluster.Machine {
	return cluster.Machine{ID: cmp.Or(is.ID, was.ID), UUID: cmp.Or(is.UUID, was.UUID), MAC: cmp.Or(is.MAC, was.MAC)}
}

// retire takes the name, the address and the session from an identity that
// was replaced by another on its machine. Without a session its VTEP is not
// admitted; its leases stay until it is forgotten under its new name.
func (d *draft) retire(h cluster.Host, by cluster.HostID) {
	name := h.Name + "-" + h.ID.Short()
	for len(d.HostsCalled(name)) > 0 {
		name += "-" + string(h.ID)
	}
	h.Name, h.Address, h.Session, h.Replaced = name, netip.AddrPort{}, 0, by
	d.hosts()[h.ID] = h
	delete(d.requests(), h.ID)
}

func (d *draft) known(id cluster.HostID) bool {
	_, ok := d.Hosts[id]
	return ok
}

// called is how people name a host: by its name, or by the short form of its
// identity when a forgotten host had the same name.
func (d *draft) called(id cluster.HostID) string {
	name := d.HostName(id)
	if len(d.HostsCalled(name)) > 1 {
		return id.Short()
	}
	return name
}

// remedies tells, for those of the hosts that cannot give back what they hold,
// what an operator can do. It begins with "; " if there is any.
func (d *draft) remedies(ids []cluster.HostID) string {
	var out strings.Builder
	for _, id := range ids {
		h, name := d.Hosts[id], d.called(id)
		switch {
		case h.Tombstone:
			fmt.Fprintf(&out, "; host %s was removed, but its containers may still use its addresses: once it is off for good, `isthmus node rm %s --dead` frees them", name, name)
		case h.Replaced != "":
			fmt.Fprintf(&out, "; %s is the former installation of host %s: `isthmus node rm %s` frees its addresses", name, d.called(h.Replaced), name)
		case h.Session == 0:
			fmt.Fprintf(&out, "; host %s was not heard since the registry was rebuilt: start it, or free its addresses with `isthmus node rm %s`", name, name)
		}
	}
	return out.String()
}

func taken(h cluster.Host) *cluster.Refusal {
	why := cluster.Refuse(cluster.NameTaken,
		"the name %s belongs to the host %s at %s already: set another NODE_NAME on one of the two", h.Name, h.ID.Short(), h.Address)
	why.Holders = []cluster.HostID{h.ID}
	return why
}

// otherGen refuses a host that is not prepared for this registry. One that is
// prepared for a later one has seen it rebuilt, and this log has not.
func otherGen(gen, prepared uint64, name string) *cluster.Refusal {
	var why *cluster.Refusal
	if prepared < gen {
		why = cluster.Refuse(cluster.OtherGen,
			"the registry was rebuilt (generation %d), and host %s is prepared for generation %d: it is let in once it has let go of what the lost log leased to it; if that takes long, see `isthmus status` on it", gen, name, prepared)
	} else {
		why = cluster.Refuse(cluster.OtherGen,
			"this log is of generation %d, and host %s has seen generation %d: the registry was rebuilt elsewhere; bring a host into reach that keeps the later log, or run `isthmus recover` on host %s if none is left", gen, name, prepared, name)
	}
	why.Gen = gen
	return why
}

// Forgotten refuses a host that was removed.
func Forgotten(h cluster.Host) *cluster.Refusal {
	return cluster.Refuse(cluster.Forgotten,
		"host %s (%s) was removed from the cluster: run `isthmus reset` on it, then start it again as a new host", h.Name, h.ID.Short())
}

func hostsByID(r *cluster.Registry) []cluster.Host {
	return slices.SortedFunc(maps.Values(r.Hosts), func(a, b cluster.Host) int { return cmp.Compare(a.ID, b.ID) })
}

// leasesOfHost lists what a host holds, by lease id.
func leasesOfHost(r *cluster.Registry, id cluster.HostID) []cluster.Lease {
	var out []cluster.Lease
	for _, l := range r.Leases {
		if l.Holder == id {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// with and less keep a sorted set of hosts. The set passed in is not
// changed; the empty set is nil.
func with(set []cluster.HostID, id cluster.HostID) []cluster.HostID {
	at, found := slices.BinarySearch(set, id)
	if found {
		return set
	}
	return slices.Insert(slices.Clone(set), at, id)
}

func less(set []cluster.HostID, id cluster.HostID) []cluster.HostID {
	at, found := slices.BinarySearch(set, id)
	if !found {
		return set
	}
	if len(set) == 1 {
		return nil
	}
	return slices.Delete(slices.Clone(set), at, at+1)
}

// names lists hosts for people.
func (d *draft) names(ids []cluster.HostID) string {
	var out []string
	for _, id := range ids {
		out = append(out, d.called(id))
	}
	slices.Sort(out)
	return list(out)
}

func list(out []string) string {
	switch n := len(out); n {
	case 0:
		return "no host"
	case 1:
		return out[0]
	default:
		return fmt.Sprintf("%s and %s", strings.Join(out[:n-1], ", "), out[n-1])
	}
}
