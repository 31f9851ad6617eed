package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// Use is one address that this host has handed out to an endpoint.
type Use struct {
	Addr  netip.Addr `json:"addr"`
	Name  string     `json:"name,omitempty"` // container, where the engine tells it
	Since time.Time  `json:"since"`
	Lease uint64     `json:"lease"` // that covers Addr; 0: the cluster took it away
}

// BlockStatus is one leased block of a pool, with counts of its addresses.
type BlockStatus struct {
	Lease    uint64       `json:"lease"`
	Block    netip.Prefix `json:"block"`
	Draining bool         `json:"draining,omitempty"` // being given back
	Exact    bool         `json:"exact,omitempty"`    // leased for one --ip
	Used     int          `json:"used"`
	Free     int          `json:"free"`
}

// PoolStatus is what this host holds of one pool.
type PoolStatus struct {
	Pool     cluster.PoolKey `json:"pool"`
	Name     string          `json:"name,omitempty"` // of --ipam-opt network=NAME
	Gateway  netip.Addr      `json:"gateway"`
	Reserved []netip.Addr    `json:"reserved"`
	Uses     int             `json:"uses"` // Docker networks on it here; 0: parked
	Used     []Use           `json:"used"`
	Free     int             `json:"free"` // addresses at hand without asking anyone
	Blocks   []BlockStatus   `json:"blocks"`
	Problem  string          `json:"problem,omitempty"` // why no block could be leased, or what was lost
}

// Holds reports whether a Docker network of this host has requested the pool
// and not released it.
func (i *IPAM) Holds(key cluster.PoolKey) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	p, ok := i.pools[key]
	return ok && p.rec != nil && p.rec.uses() > 0
}

// LeaseOf returns the lease of this host that covers an address, or 0.
func (i *IPAM) LeaseOf(key cluster.PoolKey, a netip.Addr) uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p, ok := i.pools[key]; ok {
		b, _ := p.covering(a)
		return b.Lease
	}
	return 0
}

// Used lists the addresses of a pool that this host has handed out, sorted.
func (i *IPAM) Used(key cluster.PoolKey) []Use {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p, ok := i.pools[key]; ok {
		return p.uses()
	}
	return nil
}

func (p *pool) uses() []Use {
	var out []Use
	for _, a := range slices.SortedFunc(maps.Keys(p.used), netip.Addr.Compare) {
		b, _ := p.covering(a)
		out = append(out, Use{Addr: a, Name: p.used[a].Name, Since: p.used[a].Since, Lease: b.Lease})
	}
	return out
}

// Status describes all pools that this host holds or keeps parked, sorted.
func (i *IPAM) Status() []PoolStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []PoolStatus
	for _, key := range slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools) {
		p := i.pools[key]
		if p.rec == nil && len(p.blocks) == 0 && len(p.used) == 0 {
			continue
		}
		def, s := i.definition(p), i.scope(p, netip.Prefix{})
		st := PoolStatus{
			Pool: key, Name: def.Name, Gateway: def.Gateway, Reserved: def.Reserved,
			Used: p.uses(), Problem: p.problem,
		}
		if p.rec != nil {
			st.Uses = p.rec.uses()
		}
		for _, b := range p.sorted() {
			bs := BlockStatus{Lease: b.Lease, Block: b.Prefix, Draining: b.Draining, Exact: b.Exact}
			for a := range p.used {
				if b.Prefix.Contains(a) {
					bs.Used++
				}
			}
			if !b.Draining {
				bs.Free, _ = count(s, []netip.Prefix{b.Prefix}, p.taken, p.freed, time.Time{})
			}
			st.Blocks = append(st.Blocks, bs)
			st.Free += bs.Free
		}
		out = append(out, st)
	}
	return out
}
