package ipam

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// definition returns the newest that is known of an attached pool: from the
// registry's copy, or from the answer to the host's own newer command. The
// caller holds i.mu.
func (i *IPAM) definition(p *pool) cluster.Pool {
	if p.rec == nil {
		return cluster.Pool{Key: p.key}
	}
	r := i.cfg.Ledger.Registry()
	if def, ok := r.Pools[p.key]; ok && r.Index >= p.rec.Index {
		return def
	}
	return p.rec.Pool
}

// learned is a pool's record with what an own command made of the pool.
func (p *pool) learned(res cluster.Result) record {
	rec := *p.rec
	if res.Index > rec.Index {
		rec.Pool, rec.Index = res.Pool, res.Index
	}
	return rec
}

// learn stores what an own command made of the pool. The caller holds i.mu.
func (i *IPAM) learn(p *pool, res cluster.Result) error { return i.record(p, p.learned(res)) }

// record stores and then sets the pool's record. The caller holds i.mu.
func (i *IPAM) record(p *pool, rec record) error {
	if err := i.store.commit(put(poolBucket, poolKey(p.key), rec)); err != nil {
		return err
	}
	p.rec = &rec
	return nil
}

// scope returns the choice that a pool offers within a range; the whole pool
// when the range is invalid. The caller holds i.mu.
func (i *IPAM) scope(p *pool, within netip.Prefix) lease.Scope {
	def := i.definition(p)
	if !within.IsValid() {
		within = p.key.Prefix
	}
	return lease.Scope{Pool: p.key.Prefix, Within: within, Gateway: def.Gateway, Reserved: def.Reserved}
}

// ranges lists what the Docker networks here choose addresses from: their
// --ip-range, or the whole pool as an invalid prefix; nothing where the LAN's
// server chooses.
func (p *pool) ranges() []netip.Prefix {
	var out []netip.Prefix
	for id, n := range p.rec.Uses {
		if pid, err := parsePoolID(id); err == nil && n > 0 && !pid.dhcp && !slices.Contains(out, pid.within) {
			out = append(out, pid.within)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}

// scopes are the ranges as scopes. The caller holds i.mu.
func (i *IPAM) scopes(p *pool) []lease.Scope {
	var out []lease.Scope
	for _, within := range p.ranges() {
		out = append(out, i.scope(p, within))
	}
	return out
}

func (p *pool) parked() bool { return p.rec != nil && p.rec.uses() == 0 }

// creating reports whether Docker is in the middle of making a network on the
// pool: what it requests now are gateway and auxiliary addresses.
func (p *pool) creating(now time.Time) bool {
	return p.opening > 0 && now.Sub(p.opened) < openTime
}

// alarm notes what should not be, for status, and reports whether it is new.
// The caller holds i.mu.
func (p *pool) alarm(text string, now time.Time) bool {
	_, known := p.alarms[text]
	p.alarms[text] = now
	return !known
}

// raised lists the alarms that still count.
func (p *pool) raised(now time.Time) []string {
	maps.DeleteFunc(p.alarms, func(_ string, at time.Time) bool { return now.Sub(at) >= alarmTime })
	return slices.Sorted(maps.Keys(p.alarms))
}

func (i *IPAM) networked(key cluster.PoolKey) bool {
	return i.cfg.Networked != nil && i.cfg.Networked(key)
}

func (i *IPAM) live(p *pool, a netip.Addr) bool {
	return i.cfg.Live != nil && i.cfg.Live(p.key, a)
}
