package ipam

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
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
	Holes    []netip.Addr `json:"holes,omitempty"`    // given back one by one
	Used     int          `json:"used"`
	Free     int          `json:"free"`
}

// Share is what one host has of a pool, by this host's copy of the registry.
type Share struct {
	Host      cluster.HostID `json:"host"`
	Name      string         `json:"name"`
	Blocks    int            `json:"blocks"`
	Addresses int            `json:"addresses"`           // that endpoints can have
	Forgotten bool           `json:"forgotten,omitempty"` // kept in quarantine for a host that was removed
}

// PoolStatus is what this host holds of one pool.
type PoolStatus struct {
	Pool      cluster.PoolKey `json:"pool"`
	Name      string          `json:"name,omitempty"` // of --ipam-opt network=NAME
	Gateway   netip.Addr      `json:"gateway"`
	Reserved  []netip.Addr    `json:"reserved"`
	Uses      int             `json:"uses"` // Docker networks on it here; 0: parked
	Size      int             `json:"size"` // addresses that endpoints can have
	Used      []Use           `json:"used"`
	Free      int             `json:"free"` // addresses at hand without asking anyone
	Blocks    []BlockStatus   `json:"blocks"`
	Shares    []Share         `json:"shares"`              // of all hosts, by name
	Problem   string          `json:"problem,omitempty"`   // why no block could be leased, or what was lost
	Conflicts []Conflict      `json:"conflicts,omitempty"` // addresses that nobody gets, since strangers on the LAN answer for them
	Alarms    []string        `json:"alarms,omitempty"`    // what should not be, of the last hour: contested blocks, addresses without a lease
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
		b, _ := p.Covering(a)
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
	for _, a := range slices.SortedFunc(maps.Keys(p.Used), netip.Addr.Compare) {
		b, _ := p.Covering(a)
		u := p.Used[a]
		out = append(out, Use{Addr: a, Name: u.Name, Since: u.Since, Lease: b.Lease})
	}
	return out
}

// Status describes all pools that this host holds or keeps parked, sorted.
func (i *IPAM) Status() []PoolStatus {
	r := i.cfg.Ledger.Registry()
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []PoolStatus
	for _, key := range slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools) {
		p := i.pools[key]
		if p.rec == nil && len(p.Blocks) == 0 && len(p.Used) == 0 {
			continue
		}
		def, s := i.definition(p), i.scope(p, netip.Prefix{})
		st := PoolStatus{
			Pool: key, Name: def.Name, Gateway: def.Gateway, Reserved: def.Reserved, Size: s.Size(key.Prefix),
			Used: p.uses(), Shares: shares(r, key, s), Problem: p.problem, Alarms: p.raised(i.cfg.Now()), Conflicts: p.strangers(),
		}
		if p.rec != nil {
			st.Uses = p.rec.uses()
		}
		for _, b := range p.Sorted() {
			bs := BlockStatus{Lease: b.Lease, Block: b.Prefix, Draining: b.Draining, Exact: b.Exact, Holes: b.Holes}
			for a := range p.Used {
				if b.Covers(a) {
					bs.Used++
				}
			}
			bs.Free, _ = p.CountIn(b, s, time.Time{})
			st.Blocks = append(st.Blocks, bs)
			st.Free += bs.Free
		}
		out = append(out, st)
	}
	return out
}

// shares counts what each host has of a pool.
func shares(r *cluster.Registry, key cluster.PoolKey, s lease.Scope) []Share {
	by := map[cluster.HostID]Share{}
	for _, l := range r.LeasesOf(key, "") {
		sh := by[l.Holder]
		sh.Host, sh.Name, sh.Forgotten = l.Holder, r.HostName(l.Holder), r.Hosts[l.Holder].Tombstone
		sh.Blocks++
		sh.Addresses += leased(s, l)
		by[l.Holder] = sh
	}
	return slices.SortedFunc(maps.Values(by), func(a, b Share) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Host), string(b.Host)))
	})
}
