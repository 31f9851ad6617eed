package rules

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// rebuild makes a registry the state of an empty log.
func (d *draft) rebuild(r *cluster.Registry) cluster.Result {
	if d.Cluster != "" {
		return refused(cluster.Contradiction, "this log belongs to cluster %s already, in its generation %d: a registry is rebuilt into an empty log only", d.Cluster, d.Gen)
	}
	next := edit(whole(r), d.at)
	if why := rebuilt(r, next.Index); why != nil {
		return cluster.Result{Refused: why}
	}
	*d = *next
	return cluster.Result{}
}

// rebuilt tells why a registry cannot begin a log, with its first number.
func rebuilt(r *cluster.Registry, first uint64) *cluster.Refusal {
	no := func(format string, args ...any) *cluster.Refusal {
		return cluster.Refuse(cluster.Invalid, "the registry of cluster %s cannot be rebuilt: "+format, append([]any{r.Cluster}, args...)...)
	}
	switch {
	case r.Cluster == "":
		return no("it names no cluster")
	case r.Gen < 2:
		return no("its generation is %d, and must be higher than the one that was lost", r.Gen)
	case r.Index >= first:
		return no("it ends at number %d, and its log would go on from %d: its offset is too low", r.Index, first)
	case r.Dissolved != "":
		return no("that cluster was dissolved into cluster %s: join that one", r.Dissolved)
	}
	for _, h := range hostsByID(r) {
		if h.Session != 0 {
			return no("host %s has a session in it", h.Name)
		}
		if h.Gen >= r.Gen {
			return no("host %s was heard in generation %d, and it is of %d", h.Name, h.Gen, r.Gen)
		}
	}
	if len(r.Requests) > 0 {
		return no("it has answers to the hosts of the lost log")
	}
	if err := Check(r); err != nil {
		return no("%v", err)
	}
	return nil
}

// adopt leases to a host what it claims to have leased before the registry was
// rebuilt, as far as nobody else has it now. A pool that is not known any more
// is made again; its holders attach it again themselves.
func (d *draft) adopt(host cluster.HostID, claims []cluster.Claim) {
	for _, c := range claims {
		l := cluster.Lease{ID: c.Lease, Pool: c.Pool, Block: c.Block, Holder: host, Without: c.Given()}
		if l.ID < d.Index && d.unfit(l) == "" && !touch(pieces(l), d.covered(l.Pool, nil)) {
			d.lease(l)
		}
	}
}

// lease enters a claimed lease, and its pool if that is not known.
func (d *draft) lease(l cluster.Lease) {
	d.leases()[l.ID] = l
	if _, ok := d.Pools[l.Pool]; !ok {
		d.pools()[l.Pool] = cluster.Pool{Key: l.Pool}
	}
}

// unfit tells why nobody can have a claimed lease, whoever holds the others.
func (d *draft) unfit(l cluster.Lease) string {
	if l.ID == 0 || validKey(l.Pool) != nil || masked(l.Pool) != l.Pool || !fits(l.Pool.Prefix, l.Block) || len(pieces(l)) == 0 {
		return fmt.Sprintf("%s is no block of pool %s", l.Block, l.Pool)
	}
	if other, used := d.Leases[l.ID]; used {
		return fmt.Sprintf("lease %d is the block %s of host %s", l.ID, other.Block, d.called(other.Holder))
	}
	if _, ok := d.Pools[l.Pool]; ok {
		return ""
	}
	for _, key := range poolsByKey(d.Registry) {
		if key.Space == l.Pool.Space && key.Prefix.Overlaps(l.Pool.Prefix) {
			return fmt.Sprintf("its pool %s is not known, and overlaps the pool %s", l.Pool, key)
		}
	}
	return ""
}

// fits reports a block that can be leased of a pool.
func fits(pool, block netip.Prefix) bool {
	return block.IsValid() && block == block.Masked() && block.Addr().BitLen()-block.Bits() <= maxBlock &&
		block.Bits() >= pool.Bits() && pool.Contains(block.Addr())
}
