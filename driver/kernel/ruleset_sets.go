package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// This file is the sets and maps of our tables.

// linkSet holds the names of links, which objects are read from.
func linkSet(name string, devs []string) ruleSet {
	set := ruleSet{name: name, key: []nftables.SetDatatype{nftables.TypeIFName}, native: true}
	for _, dev := range devs {
		set.elements = append(set.elements, element{text: fmt.Sprintf("%q", dev), key: ifname(dev)})
	}
	return set
}

// linkSets are those, and a map from them to what is done with what arrives there:
// one look for all of them.
func (s routing) linkSets() []ruleSet {
	var gateways, gateways6, uplinks, uplinks6, forwarded []string
	for _, g := range s.gateways {
		gateways = append(gateways, g.Dev)
		if g.IPv6 {
			gateways6 = append(gateways6, g.Dev)
		}
	}
	for _, u := range s.uplinks {
		uplinks = append(uplinks, u.Dev)
		if u.IPv6 {
			uplinks6 = append(uplinks6, u.Dev)
		}
		if u.Forward {
			forwarded = append(forwarded, u.Dev)
		}
	}
	arriving := s.arriving()
	links := linkSet("links", nil)
	links.data = []nftables.SetDatatype{nftables.TypeVerdict}
	for _, dev := range slices.Sorted(maps.Keys(arriving)) {
		links.elements = append(links.elements, verdictElement(fmt.Sprintf("%q", dev), ifname(dev), expr.VerdictGoto, arriving[dev]))
	}
	return []ruleSet{linkSet("drop_links", s.dropLinks), linkSet("drop_bridges", s.dropBridges), linkSet("gateways", gateways), linkSet("gateways6", gateways6),
		linkSet("uplinks", uplinks), linkSet("uplinks6", uplinks6), linkSet("forwarded", forwarded), links}
}

// arriving says by which chain what arrives on a link goes on.
func (s routing) arriving() map[string]string {
	out := map[string]string{}
	for _, g := range s.gateways {
		out[g.Dev] = "sent"
	}
	for _, a := range s.sources {
		out[a.Dev] = "checked"
	}
	for _, dev := range s.dropLinks {
		out[dev] = "refused"
	}
	return out
}

// peerSets hold the peers that are admitted, by family.
func (s routing) peerSets() (out []ruleSet) {
	for _, f := range families {
		set := ruleSet{name: "admitted" + f.digit, key: []nftables.SetDatatype{f.typ}}
		for _, p := range s.peers {
			if f.has(p) {
				set.elements = append(set.elements, element{text: p.String(), key: p.AsSlice()})
			}
		}
		out = append(out, set)
	}
	return out
}

// addressSets are the sets of one family.
func (s routing) addressSets(f ipFamily) []ruleSet {
	sources := ruleSet{name: "sources" + f.digit, key: []nftables.SetDatatype{nftables.TypeIFName, f.typ}, native: true}
	for _, a := range s.sources {
		if f.has(a.IP) {
			sources.elements = append(sources.elements, element{text: fmt.Sprintf("%q . %s", a.Dev, a.IP), key: append(ifname(a.Dev), a.IP.AsSlice()...)})
		}
	}
	ports := ruleSet{name: "ports" + f.digit, data: []nftables.SetDatatype{f.typ, nftables.TypeInetService},
		key: []nftables.SetDatatype{f.typ, nftables.TypeInetProto, nftables.TypeInetService}}
	every := ruleSet{name: "every" + f.digit, key: ports.key[1:], data: ports.data}
	for _, p := range s.publishes {
		if !f.has(p.Host.Addr()) {
			continue
		}
		e := element{key: portKey(p.Proto, p.Host.Port()), val: append(p.To.Addr().AsSlice(), word16(p.To.Port())...),
			text: fmt.Sprintf("%s . %d : %s . %d", p.Proto, p.Host.Port(), p.To.Addr(), p.To.Port())}
		if p.Host.Addr().IsUnspecified() {
			every.elements = append(every.elements, e)
			continue
		}
		e.key = append(p.Host.Addr().AsSlice(), e.key...)
		e.text = p.Host.Addr().String() + " . " + e.text
		ports.elements = append(ports.elements, e)
	}
	pools := ruleSet{name: "pools" + f.digit, key: []nftables.SetDatatype{f.typ}, interval: true}
	from := ruleSet{name: "from" + f.digit, key: pools.key, data: []nftables.SetDatatype{nftables.TypeVerdict}, interval: true}
	into := ruleSet{name: "into" + f.digit, key: pools.key, data: from.data, interval: true}
	apart := s.apart(f)
	pools.elements = intervals(apart, func(Pool) string { return "" })
	from.elements = intervals(apart, func(p Pool) string { return chainFrom(p.Network) })
	into.elements = intervals(slices.DeleteFunc(apart, func(p Pool) bool { return !s.internal(p.Network) }),
		func(p Pool) string { return chainInto(p.Network) })
	return []ruleSet{sources, ports, every, pools, from, into}
}

// apart lists the pools of a family that lie in no other one. Those that do,
// which takes networks of different address spaces, are one with that to the
// firewall: no packet says which of the two it is of.
func (s routing) apart(f ipFamily) (out []Pool) {
	for _, p := range s.pools {
		if !f.has(p.Prefix.Addr()) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Prefix.Overlaps(p.Prefix) {
			continue
		}
		out = append(out, p)
	}
	return out
}

// internal reports whether a network is.
func (s routing) internal(network uint32) bool {
	return slices.ContainsFunc(s.pools, func(p Pool) bool { return p.Network == network && p.Internal })
}

// intervals turns pools, sorted and apart, into elements. The kernel wants the end
// of each said, even if the next one begins there.
func intervals(pools []Pool, jump func(Pool) string) (out []element) {
	for _, p := range pools {
		first, after := p.Prefix.Addr(), lastOf(p.Prefix).Next()
		e := element{text: p.Prefix.String(), key: first.AsSlice()}
		if to := jump(p); to != "" {
			e = verdictElement(e.text, e.key, expr.VerdictJump, to)
		}
		out = append(out, e)
		if after.IsValid() {
			out = append(out, element{key: after.AsSlice(), end: true})
		}
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func ifname(dev string) []byte {
	key := make([]byte, 16)
	copy(key[:15], dev)
	return key
}

// portKey fills whole registers, as all parts of a concatenation do.
func portKey(proto string, port uint16) []byte {
	return append([]byte{protocols[proto], 0, 0, 0}, word16(port)...)
}

func word16(port uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, port), 0, 0) }

func chainFrom(network uint32) string { return fmt.Sprintf("from_%d", network) }
func chainInto(network uint32) string { return fmt.Sprintf("into_%d", network) }
