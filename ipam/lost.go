package ipam

import (
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// Lost lists the addresses in use here that this host has no right to: no lease
// of it covers them, or one that it gives back (rule H4). Their endpoints are to
// be kept off the network until the address is leased again, or freed. The
// values are the names of the containers, where the engine tells them.
//
// What was found in a container of which the disk knows nothing is listed once
// the cluster has said what this host holds: the disk may have been set back to
// before the lease.
func (i *IPAM) Lost() map[cluster.PoolKey]map[netip.Addr]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := map[cluster.PoolKey]map[netip.Addr]string{}
	for key, p := range i.pools {
		for _, a := range p.Uncovered() {
			if p.found[a] && !i.m.Confirmed {
				continue
			}
			if out[key] == nil {
				out[key] = map[netip.Addr]string{}
			}
			out[key][a] = p.Used[a].Name
		}
	}
	return out
}

// shows reports whether what a write changed may be seen in Claims, LeaseOf or
// Lost. The caller holds i.mu.
func (i *IPAM) shows(w lease.Write) bool {
	switch {
	case w.Lease != 0:
		return true
	case w.Standing != nil:
		return false
	}
	b, ok := i.m.Pool(w.Pool).Covering(w.Addr)
	return !ok || b.Draining
}
