package rules

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Check tests what must hold in every registry that Apply can produce, and
// returns all that does not, in the same words on every host. The invariants
// that the protocol of block leases stands on are among it: no address is
// leased twice, and every lease lies in its pool (I1); a VNI, a host's name and
// a pool's name mean one thing (I2); leases and answers belong to known hosts
// and were numbered by this registry (I4); a forgotten host has no session, no
// answers, no pool and no network (I5), though leases in quarantine.
func Check(r *cluster.Registry) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	checkHistory(r, bad)
	checkHosts(r, bad)
	checkPools(r, bad)
	checkLeases(r, bad)
	checkNetworks(r, bad)
	return errors.Join(errs...)
}

func checkHistory(r *cluster.Registry, bad func(string, ...any)) {
	if r.Cluster == "" {
		if r.Gen != 0 || r.Offset != 0 || len(r.Hosts) > 0 || !r.Empty() || r.Dissolved != "" {
			bad("no cluster was founded, and there is something in it")
		}
		return
	}
	if r.Gen == 0 || r.Gen == 1 && r.Offset != 0 {
		bad("the registry has generation %d and offset %d", r.Gen, r.Offset)
	}
	if r.NextVNI < FirstVNI || r.NextVNI > MaxVNI || r.NextNet == 0 {
		bad("the next VNI is %d, the next network %d", r.NextVNI, r.NextNet)
	}
	if r.Dissolved != "" && (r.Dissolved == r.Cluster || !r.Empty()) {
		bad("cluster %s was dissolved into %s with %d pools", r.Cluster, r.Dissolved, len(r.Pools))
	}
}

func checkHosts(r *cluster.Registry, bad func(string, ...any)) {
	byName := map[string]cluster.HostID{}
	sessions := map[uint64]cluster.HostID{}
	for _, id := range slices.Sorted(maps.Keys(r.Hosts)) {
		h := r.Hosts[id]
		if h.ID != id || cluster.HostIDOf(h.PublicKey) != id {
			bad("host %s is filed as %s", h.ID, id)
		}
		if h.Gen > r.Gen {
			bad("host %s was heard in generation %d, after %d", id, h.Gen, r.Gen)
		}
		if h.Unheard && (!h.Tombstone || h.Gen >= r.Gen) {
			bad("host %s is a member, or was heard in generation %d, and is marked as unheard", id, h.Gen)
		}
		if h.Session != 0 {
			if h.Session > r.Index || h.Session <= r.Offset || h.Gen != r.Gen {
				bad("host %s has session %d of generation %d, not after %d, up to %d, of generation %d", id, h.Session, h.Gen, r.Offset, r.Index, r.Gen)
			}
			if other, ok := sessions[h.Session]; ok {
				bad("hosts %s and %s share session %d", other, id, h.Session)
			}
			sessions[h.Session] = id
			if h.Replaced != "" {
				bad("host %s was replaced by %s and has session %d", id, h.Replaced, h.Session)
			}
		}
		if h.Tombstone {
			if h.Session != 0 {
				bad("host %s is forgotten and has session %d", id, h.Session)
			}
			continue
		}
		if other, ok := byName[h.Name]; ok {
			bad("hosts %s and %s share the name %s", other, id, h.Name)
		}
		byName[h.Name] = id
	}
	for _, id := range slices.Sorted(maps.Keys(r.Requests)) {
		h, ok := r.Hosts[id]
		if !ok || h.Session == 0 {
			bad("host %s has answers, but no session", id)
			continue
		}
		if at := r.Requests[id].Result.Index; at <= h.Session || at > r.Index {
			bad("host %s has an answer of number %d, outside of its session %d", id, at, h.Session)
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
		if why := validKey(key); why != nil {
			bad("pool %s cannot be: %w", key, why)
		}
		if other, ok := named(r, key.Space, p.Name, key.Prefix.Addr().Is6()); ok && other.Key != key {
			bad("pools %s and %s share the name %s", other.Key, key, p.Name)
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
		if !sortedSet(p.Reserved, netip.Addr.Compare) {
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
	type piece struct {
		span
		of cluster.Lease
	}
	d := edit(r, r.Index)
	pools := map[cluster.PoolKey][]piece{}
	for _, id := range slices.Sorted(maps.Keys(r.Leases)) {
		l := r.Leases[id]
		if l.ID != id || id == 0 || id > r.Index {
			bad("lease %d is filed as %d at index %d", l.ID, id, r.Index)
		}
		if h, ok := r.Hosts[l.Holder]; !ok {
			bad("lease %d is held by the unknown host %s", id, l.Holder)
		} else if h.Tombstone && !d.networked(l.Pool) {
			bad("lease %d of the forgotten host %s is in quarantine for no network", id, l.Holder)
		}
		if _, ok := r.Pools[l.Pool]; !ok {
			bad("lease %d lies in the unknown pool %s", id, l.Pool)
			continue
		}
		if !fits(l.Pool.Prefix, l.Block) {
			bad("lease %d: block %s is not aligned inside pool %s, or larger than %d addresses", id, l.Block, l.Pool, 1<<maxBlock)
			continue
		}
		if !sortedSet(l.Without, netip.Addr.Compare) || !all(l.Without, l.Block.Contains) {
			bad("lease %d: the addresses %v of block %s are unsorted, or outside", id, l.Without, l.Block)
			continue
		}
		own := pieces(l)
		if len(own) == 0 {
			bad("lease %d: nothing is left of block %s", id, l.Block)
		}
		for _, s := range own {
			pools[l.Pool] = append(pools[l.Pool], piece{s, l})
		}
	}
	for _, key := range poolsByKey(r) {
		leased := pools[key]
		slices.SortStableFunc(leased, func(a, b piece) int { return a.first.compare(b.first) })
		for i := 1; i < len(leased); i++ {
			if a, b := leased[i-1], leased[i]; a.last.compare(b.first) >= 0 {
				bad("pool %s: blocks %s of %s and %s of %s overlap", key, a.of.Block, r.HostName(a.of.Holder), b.of.Block, r.HostName(b.of.Holder))
				break
			}
		}
	}
}

func checkNetworks(r *cluster.Registry, bad func(string, ...any)) {
	d := edit(r, r.Index)
	vnis := map[uint32]uint32{}
	pools := map[cluster.PoolKey]uint32{}
	for _, id := range slices.Sorted(maps.Keys(r.Networks)) {
		n := r.Networks[id]
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
		if n.Def.Mode == "" || n.Def.Encrypt == "" || (n.Def.Underlay == "") == (n.Def.Mode == "vxlan") {
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
	if !sortedSet(set, cmp.Compare[cluster.HostID]) {
		bad("%s has its holders out of order: %v", what, set)
	}
	for _, id := range set {
		if h, ok := r.Hosts[id]; !ok || h.Tombstone {
			bad("%s is held by the host %s, which is unknown or forgotten", what, id)
		}
	}
}

func sortedSet[T any](set []T, compare func(a, b T) int) bool {
	for i := 1; i < len(set); i++ {
		if compare(set[i-1], set[i]) >= 0 {
			return false
		}
	}
	return true
}

func all[T any](set []T, ok func(T) bool) bool {
	return !slices.ContainsFunc(set, func(v T) bool { return !ok(v) })
}
