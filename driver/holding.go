package driver

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// holdings answers who may hold an address, by the cluster's word.
type holdings struct {
	index uint64 // of the registry
	pools map[cluster.PoolKey]blocks
}

// blocks is the leases of one pool. No two cover one address, but one may lie
// inside another.
type blocks struct {
	lengths []int // of prefixes, the longest first
	leases  map[netip.Prefix]cluster.Lease
}

// holdings takes the leases of the networks' pools out of the registry.
func (v View) holdings(networks []held) holdings {
	h := holdings{pools: map[cluster.PoolKey]blocks{}}
	if v.Registry == nil {
		return h
	}
	h.index = v.Registry.Index
	for _, n := range networks {
		for _, p := range n.Pools {
			h.pools[p] = blocks{leases: map[netip.Prefix]cluster.Lease{}}
		}
	}
	for _, l := range v.Registry.Leases {
		b, ok := h.pools[l.Pool]
		if !ok {
			continue
		}
		b.leases[l.Block] = l
		if !slices.Contains(b.lengths, l.Block.Bits()) {
			b.lengths = append(b.lengths, l.Block.Bits())
			slices.SortFunc(b.lengths, func(x, y int) int { return y - x })
			h.pools[l.Pool] = b
		}
	}
	return h
}

// holder returns who leases an address; empty for nobody.
func (h holdings) holder(pool cluster.PoolKey, ip netip.Addr) cluster.HostID {
	b := h.pools[pool]
	for _, bits := range b.lengths {
		p, err := ip.Prefix(bits)
		if err != nil {
			continue // of the other family
		}
		if l, ok := b.leases[p]; ok && l.Covers(ip) {
			return l.Holder
		}
	}
	return ""
}

// entitles reports whether a host may use an address, which it says is of a
// lease; else who holds it. A lease newer than the registry's copy is believed.
// Without one (another IPAM driver's) an address is free to use, unless
// somebody leases it.
func (h holdings) entitles(host cluster.HostID, pool cluster.PoolKey, ip netip.Addr, lease uint64) (holder cluster.HostID, ok bool) {
	holder = h.holder(pool, ip)
	return holder, holder == host || h.index < lease || holder == "" && lease == 0
}

// entitled returns the peers without the addresses that they may not use. One
// without any is only heard to hold the network.
func (h holdings) entitled(s *segment, peers []peer, v View, d *Desired) []peer {
	if s.Options.Foreign || h.index == 0 {
		return peers
	}
	out := slices.Clone(peers)
	for i := range out {
		p := &out[i]
		for _, ip := range p.addrs() {
			pool, inside := s.covers(ip)
			holder, ok := h.entitles(p.host, pool, ip, p.lease(ip))
			if inside && ok {
				continue
			}
			d.Problems = append(d.Problems, usurped(s, ip, peers[i].party(v), v.holderName(holder)))
			if ip == p.IPv4 {
				p.IPv4 = netip.Addr{}
			} else {
				p.IPv6 = netip.Addr{}
			}
		}
		if had := &peers[i]; len(had.addrs()) > 0 && len(p.addrs()) == 0 {
			p.Endpoint, p.MAC = cluster.EndpointID{}, cluster.MAC{}
		}
	}
	return out
}

// checkOwn reports this host's own endpoints with addresses that others lease,
// as far as they are not cut off for that.
func (h holdings) checkOwn(s *segment, v View, d *Desired) {
	if s.Options.Foreign {
		return
	}
	for _, e := range s.endpoints {
		if s.lost[e.ID] {
			continue
		}
		for _, a := range e.Addrs() {
			lease := e.Lease4
			if a == e.IPv6 {
				lease = e.Lease6
			}
			pool, _ := s.covers(a.Addr())
			if holder, ok := h.entitles(v.Host, pool, a.Addr(), lease); !ok && holder != "" && e.Joined() {
				d.Problems = append(d.Problems, usurped(s, a.Addr(), party(v.name(v.Host), cluster.EndpointIDOf(e.ID), ""), v.holderName(holder)))
			}
		}
	}
}

func (v View) holderName(host cluster.HostID) string {
	if host == "" {
		return ""
	}
	if h, ok := v.registered(host); ok && h.Name != "" {
		return h.Name
	}
	return v.name(host)
}

// usurped is what all hosts of the network say of an address that is in use
// without a lease.
func usurped(s *segment, ip netip.Addr, by, holder string) Problem {
	lease := "which has no lease of it"
	if holder != "" {
		lease = "but leased to " + holder
	}
	return Problem{
		Network: poolNames(s.Pools),
		Cause:   fmt.Sprintf("%s is used by %s, %s: others do not send to it there", ip, by, lease),
		Remedy:  "restart that container, so that it gets another address",
		alarm:   true,
	}
}
