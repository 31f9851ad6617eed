package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// PoolKey identifies an address pool: one prefix in one address space. The
// same prefix in another space is another pool.
type PoolKey struct {
	Space  string       `json:"space"` // "" is the default space
	Prefix netip.Prefix `json:"prefix"`
}

func (k PoolKey) String() string {
	if k.Space == "" {
		return k.Prefix.String()
	}
	return k.Prefix.String() + " in space " + k.Space
}

// MarshalText writes the prefix, behind "space|" when the space is not the
// default one: a value for programs, and a JSON map key.
func (k PoolKey) MarshalText() ([]byte, error) {
	if k.Space == "" {
		return []byte(k.Prefix.String()), nil
	}
	return []byte(k.Space + "|" + k.Prefix.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (k *PoolKey) UnmarshalText(b []byte) error {
	space, prefix, named := strings.Cut(string(b), "|")
	if !named {
		space, prefix = "", space
	}
	p, err := netip.ParsePrefix(prefix)
	*k = PoolKey{Space: space, Prefix: p}
	return err
}

// ComparePools orders pools by space, family, address and length.
func ComparePools(a, b PoolKey) int {
	return cmp.Or(
		strings.Compare(a.Space, b.Space),
		a.Prefix.Addr().Compare(b.Prefix.Addr()),
		cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
	)
}

// PoolSet returns the canonical order of pools, the identity of a network.
func PoolSet(pools []PoolKey) []PoolKey {
	set := slices.Clone(pools)
	slices.SortFunc(set, ComparePools)
	return slices.Compact(set)
}

// Pool is an address pool as the cluster agreed on it.
type Pool struct {
	Key      PoolKey      `json:"key"`
	Name     string       `json:"name,omitempty"` // of --ipam-opt network=NAME
	Gateway  netip.Addr   `json:"gateway"`        // zero until the first host asked for one
	Reserved []netip.Addr `json:"reserved"`       // auxiliary addresses, sorted; never handed to an endpoint
	Holders  []HostID     `json:"holders"`        // hosts that attached the pool, sorted
	Cursor   netip.Addr   `json:"cursor"`         // where the next block is looked for (next fit)
}

// Lease is a block of a pool that one host alone hands out. Blocks are aligned
// powers of two. There is no time in a lease. No two leases cover one address,
// but a block may lie inside another that does not cover it any more.
type Lease struct {
	ID     uint64       `json:"id"` // log index of the grant
	Pool   PoolKey      `json:"pool"`
	Block  netip.Prefix `json:"block"`
	Holder HostID       `json:"holder"`
	// Without lists addresses of the block, sorted, that the holder gave back
	// for others to lease one by one. They stay out until the lease ends.
	Without []netip.Addr `json:"without,omitempty"`
}

// Covers reports whether the lease entitles its holder to an address.
func (l Lease) Covers(a netip.Addr) bool {
	return l.Block.Contains(a) && !slices.Contains(l.Without, a)
}

// Equal reports whether two leases are the same in every field.
func (l Lease) Equal(m Lease) bool {
	return l.ID == m.ID && l.Pool == m.Pool && l.Block == m.Block && l.Holder == m.Holder && slices.Equal(l.Without, m.Without)
}

// Claim returns what the holder of a lease says of it.
func (l Lease) Claim() Claim {
	c := Claim{Lease: l.ID, Pool: l.Pool, Block: l.Block}
	for i, a := 0, l.Block.Addr(); i < BlockMax && l.Block.Contains(a); i, a = i+1, a.Next() {
		if slices.Contains(l.Without, a) {
			c.Without |= 1 << i
		}
	}
	return c
}

// BlockMax is the size of the largest block, in addresses.
const BlockMax = 64

// Claim is a block that a host keeps as its own, as the host says itself. It
// is a comparable value.
type Claim struct {
	Lease uint64       `json:"lease"` // zero value: no claim
	Pool  PoolKey      `json:"pool"`
	Block netip.Prefix `json:"block"`
	// Without has bit i set when the host gave back the i-th address of the
	// block, counted from 0: see Lease.Without.
	Without uint64 `json:"without,omitempty"`
}

// Given lists the addresses of the block that the host gave back, in order.
func (c Claim) Given() []netip.Addr {
	var out []netip.Addr
	for i, a := 0, c.Block.Addr(); i < BlockMax && c.Block.Contains(a); i, a = i+1, a.Next() {
		if c.Without>>i&1 != 0 {
			out = append(out, a)
		}
	}
	return out
}

// Covers reports whether the host keeps an address as its own.
func (c Claim) Covers(a netip.Addr) bool {
	return c.Block.Contains(a) && !slices.Contains(c.Given(), a)
}

// Overlaps reports whether two claims are about one address of one pool.
func (c Claim) Overlaps(o Claim) bool {
	if c.Pool != o.Pool || !c.Block.Overlaps(o.Block) {
		return false
	}
	if c.Without == 0 && o.Without == 0 {
		return true
	}
	within := c.Block
	if o.Block.Bits() > within.Bits() {
		within = o.Block
	}
	for i, a := 0, within.Addr(); i < BlockMax && within.Contains(a); i, a = i+1, a.Next() {
		if c.Covers(a) && o.Covers(a) {
			return true
		}
	}
	return false
}

// Definition is what the hosts of a network must agree about. An empty field
// of a request means "whatever the cluster has"; in the Registry all fields
// are filled, but for MTU, where 0 means computed.
type Definition struct {
	Mode     string `json:"mode"`
	VNI      uint32 `json:"vni,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	ARP      string `json:"arp,omitempty"`
	BUM      string `json:"bum,omitempty"`
	Encrypt  string `json:"encrypt,omitempty"`
	Underlay string `json:"underlay,omitempty"` // "ipv4" or "ipv6"
	// Of networks in a LAN: what kind of macvlan or ipvlan, and the VLAN that they
	// are ("50", or "50.7", outer before inner). Without a VLAN tag of the host, a
	// switch may still say which VLAN that is, so an empty one contradicts none.
	Submode string `json:"submode,omitempty"`
	Flag    string `json:"flag,omitempty"` // of ipvlan
	VLAN    string `json:"vlan,omitempty"`
	// Fallback of host-gw is how hosts that are in no common subnet reach each other:
	// vxlan (with a VNI), ipip, gre or none.
	Fallback string `json:"fallback,omitempty"`
	// Gateway of vxlan is who routes for its containers: docker (or nobody),
	// distributed (each host for its own) or host:NAME.
	Gateway string `json:"gateway,omitempty"`
	// RouteTo lists subnets of other networks that this one and they are routed
	// between, sorted, joined by commas.
	RouteTo string `json:"routeTo,omitempty"`
}

// Network is a network as the cluster agreed on it. Its identity is its set of
// pools.
type Network struct {
	ID      uint32     `json:"id"`
	Pools   []PoolKey  `json:"pools"` // canonical order, see PoolSet
	Def     Definition `json:"definition"`
	Holders []HostID   `json:"holders"` // hosts that created it, sorted
	Creator HostID     `json:"creator"` // whose definition won
}

// Registry is the replicated state at one log index. A Registry that was
// handed out is never changed again; readers share it without locks.
type Registry struct {
	Cluster ID     `json:"cluster"`
	Gen     uint64 `json:"gen"` // raised when the registry is rebuilt
	Index   uint64 `json:"index"`
	// Offset is added to the indexes of the log that goes on from a rebuilt
	// registry, so that the numbers of leases and sessions, and Index itself,
	// only rise: the log's own position is Index - Offset.
	Offset    uint64             `json:"offset,omitempty"`
	Dissolved ID                 `json:"dissolved,omitempty"` // cluster that took this one's place
	Members   []netip.AddrPort   `json:"members,omitempty"`   // of that cluster, to join it at
	Hosts     map[HostID]Host    `json:"hosts"`
	Pools     map[PoolKey]Pool   `json:"pools"`
	Networks  map[uint32]Network `json:"networks"`
	Leases    map[uint64]Lease   `json:"leases"`
	NextVNI   uint32             `json:"nextVNI"`
	NextNet   uint32             `json:"nextNet"`
	// Requests remembers the newest answer per host, so that a repeated
	// command is answered, not done again.
	Requests map[HostID]Answered `json:"requests"`
}

// Answered is the newest request of a host and what it was told.
type Answered struct {
	Request uint64 `json:"request"`
	Result  Result `json:"result"`
}

// Empty reports whether the cluster has nothing that another would have to
// take over: no pools, hence no networks and no leases.
func (r *Registry) Empty() bool {
	return len(r.Pools) == 0 && len(r.Leases) == 0 && len(r.Networks) == 0
}

// NetworkOf finds the network with exactly these pools, in any order.
func (r *Registry) NetworkOf(pools []PoolKey) (Network, bool) {
	set := PoolSet(pools)
	for _, n := range r.Networks {
		if slices.Equal(n.Pools, set) {
			return n, true
		}
	}
	return Network{}, false
}

// LeasesOf lists the leases of a pool that a host holds, by block. An empty
// host means all hosts.
func (r *Registry) LeasesOf(pool PoolKey, host HostID) []Lease {
	var out []Lease
	for _, l := range r.Leases {
		if l.Pool == pool && (host == "" || l.Holder == host) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Lease) int { return a.Block.Addr().Compare(b.Block.Addr()) })
	return out
}

// HostName returns the name of a host for people: its name, else its short id.
func (r *Registry) HostName(id HostID) string {
	if h, ok := r.Hosts[id]; ok && h.Name != "" {
		return h.Name
	}
	return id.Short()
}

// HostsCalled finds the hosts that an operator means by a name, an identity or
// the Short form of one: members before those that were forgotten, and by
// identity. More than one answer is for the operator to decide about.
func (r *Registry) HostsCalled(name string) []Host {
	var out []Host
	for id, h := range r.Hosts {
		if h.Name == name || string(id) == name || id.Short() == name {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b Host) int {
		if a.Tombstone != b.Tombstone {
			if b.Tombstone {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return out
}
