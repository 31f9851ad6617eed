package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Check tests what must hold in every registry that Apply can produce, and
// returns all that does not.
func Check(r *cluster.Registry) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	checkHosts(r, bad)
	checkPools(r, bad)
	checkLeases(r, bad)
	checkNetworks(r, bad)
	return errors.Join(errs...)
}

func checkHosts(r *cluster.Registry, bad func(string, ...any)) {
	byName := map[string]cluster.HostID{}
	sessions := map[uint64]cluster.HostID{}
	for id, h := range r.Hosts {
		if h.ID != id || cluster.HostIDOf(h.PublicKey) != id {
			bad("host %s is filed as %s", h.ID, id)
		}
		if h.Session > r.Index {
			bad("host %s has session %d, after index %d", id, h.Session, r.Index)
		}
		if other, ok := sessions[h.Session]; ok && h.Session != 0 {
			bad("hosts %s and %s share session %d", id, other, h.Session)
		}
		sessions[h.Session] = id
		if h.Tombstone {
			if h.Session != 0 {
				bad("host %s is forgotten and has session %d", id, h.Session)
			}
			continue
		}
		if other, ok := byName[h.Name]; ok {
			bad("hosts %s and %s share the name %s", id, other, h.Name)
		}
		byName[h.Name] = id
	}
	for id := range r.Requests {
		if _, ok := r.Hosts[id]; !ok {
			bad("host %s has answers, but is unknown", id)
		}
	}
}

func checkPools(r *cluster.Registry, bad func(string, ...any)) {
	d := edit(r, r.Index)
	keys := poolsByKey(r)
	for i, key := range keys {
		p := r.Pools[key]
		if p.Key != key || key.Prefix != key.Prefix.Masked() {
			bad("pool %s is filed as %s", p.Key, key)
		}
		for _, other := range keys[:i] {
			if other.Space == key.Space && other.Prefix.Overlaps(key.Prefix) {
				bad("pools %s and %s overlap", other, key)
			}
		}
		if p.Gateway.IsValid() && !key.Prefix.Contains(p.Gateway) {
			bad("pool %s has its gateway %s outside", key, p.Gateway)
		}
		if p.Cursor.IsValid() && !key.Prefix.Contains(p.Cursor) {
			bad("pool %s has its cursor %s outside", key, p.Cursor)
		}
		if !slices.IsSortedFunc(p.Reserved, netip.Addr.Compare) || len(slices.Compact(slices.Clone(p.Reserved))) != len(p.Reserved) {
			bad("pool %s has its reserved addresses unsorted", key)
		}
		for _, a := range p.Reserved {
			if !key.Prefix.Contains(a) || a == p.Gateway {
				bad("pool %s has reserved %s, which is outside or its gateway", key, a)
			}
		}
		checkSet(r, "pool "+key.String(), p.Holders, bad)
		if d.idle(key) {
			bad("pool %s is kept for nobody", key)
		}
	}
}

func checkLeases(r *cluster.Registry, bad func(string, ...any)) {
	byPool := map[cluster.PoolKey]bool{}
	for id, l := range r.Leases {
		if l.ID != id || id > r.Index {
			bad("lease %d is filed as %d at index %d", l.ID, id, r.Index)
		}
		if _, ok := r.Hosts[l.Holder]; !ok {
			bad("lease %d is held by the unknown host %s", id, l.Holder)
		}
		if _, ok := r.Pools[l.Pool]; !ok {
			bad("lease %d lies in the unknown pool %s", id, l.Pool)
			continue
		}
		byPool[l.Pool] = true
		if l.Block != l.Block.Masked() || l.Block.Bits() < l.Pool.Prefix.Bits() || !l.Pool.Prefix.Contains(l.Block.Addr()) {
			bad("lease %d: block %s is not aligned inside pool %s", id, l.Block, l.Pool)
		}
		if k := l.Block.Addr().BitLen() - l.Block.Bits(); k > maxBlock {
			bad("lease %d: block %s is larger than %d addresses", id, l.Block, 1<<maxBlock)
		}
	}
	for key := range byPool {
		leases := r.LeasesOf(key, "")
		for i := 1; i < len(leases); i++ {
			if leases[i-1].Block.Overlaps(leases[i].Block) {
				bad("pool %s: blocks %s of %s and %s of %s overlap", key,
					leases[i-1].Block, r.HostName(leases[i-1].Holder), leases[i].Block, r.HostName(leases[i].Holder))
			}
		}
	}
}

func checkNetworks(r *cluster.Registry, bad func(string, ...any)) {
	d := edit(r, r.Index)
	vnis := map[uint32]uint32{}
	pools := map[cluster.PoolKey]uint32{}
	for id, n := range r.Networks {
		if n.ID != id || id == 0 {
			bad("network %d is filed as %d", n.ID, id)
		}
		if !slices.Equal(n.Pools, cluster.PoolSet(n.Pools)) || len(n.Pools) == 0 {
			bad("network %d has its pools out of order: %v", id, n.Pools)
		}
		for _, k := range n.Pools {
			if _, ok := r.Pools[k]; !ok {
				bad("network %d has the unknown pool %s", id, k)
			}
			if other, ok := pools[k]; ok {
				bad("networks %d and %d share pool %s", id, other, k)
			}
			pools[k] = id
		}
		if n.Def.Mode == "" || n.Def.Encrypt == "" || n.Def.Underlay == "" {
			bad("network %d is not fully defined: %+v", id, n.Def)
		}
		if v := n.Def.VNI; v > MaxVNI || v == 0 && n.Def.Mode == "vxlan" {
			bad("network %d has VNI %d", id, v)
		} else if other, ok := vnis[v]; ok && v != 0 {
			bad("networks %d and %d share VNI %d", id, other, v)
		}
		vnis[n.Def.VNI] = id
		checkSet(r, fmt.Sprintf("network %d", id), n.Holders, bad)
		if len(n.Holders) == 0 && !slices.ContainsFunc(n.Pools, d.leased) {
			bad("network %d is kept for nobody", id)
		}
	}
}

func checkSet(r *cluster.Registry, what string, set []cluster.HostID, bad func(string, ...any)) {
	if !slices.IsSorted(set) || len(slices.Compact(slices.Clone(set))) != len(set) {
		bad("%s has its holders out of order: %v", what, set)
	}
	for _, id := range set {
		if _, ok := r.Hosts[id]; !ok {
			bad("%s is held by the unknown host %s", what, id)
		}
	}
}
