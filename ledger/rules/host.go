package rules

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

func (d *draft) found(c cluster.Found) *cluster.Refusal {
	switch d.Cluster {
	case "":
		d.Cluster, d.Gen, d.NextVNI, d.NextNet = c.Cluster, 1, FirstVNI, 1
	case c.Cluster:
	default:
		return cluster.Refuse(cluster.Contradiction, "this log belongs to cluster %s already, not to %s", d.Cluster, c.Cluster)
	}
	return nil
}

// hello opens a session and returns it.
func (d *draft) hello(id cluster.HostID, c cluster.Hello) (uint64, *cluster.Refusal) {
	old, known := d.Hosts[id]
	if known && old.Tombstone {
		return 0, forgotten(old)
	}
	if known && old.Session != 0 && old.Nonce == c.Nonce {
		return old.Session, nil
	}
	for _, other := range hostsByID(d.Registry) {
		if other.ID == id || other.Tombstone || other.Name != c.Name {
			continue
		}
		// Two hosts cannot serve one address: the other one was installed
		// anew there, with a new identity. The name passes on; the old
		// identity keeps its leases, because its containers may still run.
		if !c.Address.IsValid() || other.Address != c.Address {
			return 0, taken(other)
		}
		d.retire(other)
	}
	d.hosts()[id] = cluster.Host{
		ID: id, Name: c.Name, PublicKey: c.PublicKey, Session: d.Index, Nonce: c.Nonce,
		VTEP: c.VTEP, Address: c.Address, Machine: c.Machine,
	}
	delete(d.requests(), id)
	return d.Index, nil
}

// retire takes the name, the address and the session from an identity that
// was replaced by another on its machine.
func (d *draft) retire(h cluster.Host) {
	name := h.Name + "-" + h.ID.Short()
	for _, other := range d.Hosts {
		if other.Name == name {
			name = h.Name + "-" + string(h.ID)
		}
	}
	h.Name, h.Address, h.Session = name, cluster.Host{}.Address, 0
	d.hosts()[h.ID] = h
}

func taken(h cluster.Host) *cluster.Refusal {
	why := cluster.Refuse(cluster.NameTaken,
		"the name %s belongs to the host %s at %s already: set another NODE_NAME on one of the two", h.Name, h.ID.Short(), h.Address)
	why.Holders = []cluster.HostID{h.ID}
	return why
}

func forgotten(h cluster.Host) *cluster.Refusal {
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

// with and without keep a sorted set of hosts. The set passed in is not
// changed; the empty set is nil.
func with(set []cluster.HostID, id cluster.HostID) []cluster.HostID {
	at, found := slices.BinarySearch(set, id)
	if found {
		return set
	}
	return slices.Insert(slices.Clone(set), at, id)
}

func without(set []cluster.HostID, id cluster.HostID) []cluster.HostID {
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
func names(r *cluster.Registry, ids []cluster.HostID) string {
	var out []string
	for _, id := range ids {
		out = append(out, r.HostName(id))
	}
	slices.Sort(out)
	switch n := len(out); n {
	case 0:
		return "no host"
	case 1:
		return out[0]
	default:
		return fmt.Sprintf("%s and %s", strings.Join(out[:n-1], ", "), out[n-1])
	}
}
