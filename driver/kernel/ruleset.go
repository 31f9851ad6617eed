package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// This file is pure: what our table holds for the networks that are routed here,
// as values that print themselves as nft does. statement.go has their words, and
// nft_routing.go writes and reads them.

// ruleset is that part of table inet isthmus.
type ruleset struct {
	sets   []ruleSet
	chains []ruleChain
}

// ruleSet is a set or map.
type ruleSet struct {
	name     string
	key      []nftables.SetDatatype
	data     []nftables.SetDatatype // of a map
	native   bool                   // keys are in the order of the machine
	interval bool
	elements []element
}

type element struct {
	text     string // empty of the end of an interval
	key, val []byte
	end      bool
	jump     string // of a verdict map: to this chain
}

// ruleChain is a base chain, or one that others jump to.
type ruleChain struct {
	name     string
	typ      nftables.ChainType // empty: no base chain
	hook     *nftables.ChainHook
	hookName string
	priority nftables.ChainPriority
	rules    []rule
}

type rule struct {
	statements []statement
	object     string // of an object that is found by it
}

// comment is what a dump knows a rule by.
func (r rule) comment() string { return strings.TrimSpace(layout + " " + r.object) }

// protocols are those that a port can be published of.
var protocols = map[string]byte{"tcp": 6, "udp": 17, "sctp": 132}

// RenderRouting prints the part of table inet isthmus that holds the Gateways,
// Uplinks, Sources, Pools, Passages and Publishes of state, as nft does: empty
// for none. Guards matter for the ports of tunnels only.
func RenderRouting(state State) string { return renderRouting(state).String() }

// renderRouting says what the objects of state mean.
func renderRouting(state State) ruleset {
	s := sorted(state)
	if len(s.gateways)+len(s.uplinks)+len(s.sources)+len(s.pools)+len(s.publishes) == 0 {
		return ruleset{}
	}
	var r ruleset
	r.sets = append(r.sets, s.linkSets()...)
	for _, f := range families {
		r.sets = append(r.sets, s.addressSets(f)...)
	}
	// -305: behind the guards, before all others.
	for _, c := range []ruleChain{
		{name: "arrive", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, hookName: "prerouting", priority: -305, rules: s.arrive()},
		{name: "deliver", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, hookName: "input", priority: -305, rules: s.spoofed()},
		{name: "outward", rules: s.outward()},
		{name: "pass", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, hookName: "forward", priority: -305, rules: s.route()},
		{name: "leave", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, hookName: "postrouting", priority: -305, rules: s.leave()},
		// Before those of others, at -100 and 100: the first one that translates counts.
		{name: "published", rules: s.published()},
		{name: "publish", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, hookName: "prerouting", priority: -105, rules: s.publish()},
		{name: "publish_own", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, hookName: "output", priority: -105, rules: s.publishOwn()},
		{name: "translate", rules: s.masquerade()},
		{name: "egress", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, hookName: "postrouting", priority: 95, rules: s.egress()},
	} {
		if len(c.rules) > 0 {
			r.chains = append(r.chains, c)
		}
	}
	r.chains = append(r.chains, s.networkChains()...)
	return r
}

// routing is a state by kinds, each sorted.
type routing struct {
	gateways  []Gateway
	uplinks   []Uplink
	sources   []Source
	pools     []Pool
	passages  []Passage
	publishes []Publish
	tunnels   []uint16 // UDP ports of the host's tunnels
}

func sorted(state State) (s routing) {
	for _, k := range slices.SortedFunc(maps.Keys(state), CompareKeys) {
		switch o := state[k].(type) {
		case Gateway:
			s.gateways = append(s.gateways, o)
		case Uplink:
			s.uplinks = append(s.uplinks, o)
		case Source:
			s.sources = append(s.sources, o)
		case Pool:
			s.pools = append(s.pools, o)
		case Passage:
			s.passages = append(s.passages, o)
		case Publish:
			s.publishes = append(s.publishes, o)
		case Guard:
			if o.Rule == NoTrack {
				s.tunnels = append(s.tunnels, o.Tunnel.Port())
			}
		}
	}
	slices.SortFunc(s.pools, func(a, b Pool) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(s.publishes, func(a, b Publish) int {
		return cmp.Or(a.Host.Compare(b.Host), cmp.Compare(a.Proto, b.Proto))
	})
	slices.Sort(s.tunnels)
	s.tunnels = slices.Compact(s.tunnels)
	return s
}

// ipFamily is what differs between IPv4 and IPv6.
type ipFamily struct {
	digit    string // ends the names of its sets
	proto    byte   // NFPROTO_*
	word     string // of nft, for its header
	typ      nftables.SetDatatype
	src, dst uint32 // offsets of the addresses in its header
	size     uint32
	// notRouted are destinations that are not masqueraded.
	notRouted []netip.Prefix
}

var families = []ipFamily{
	{"4", 2, "ip", nftables.TypeIPAddr, 12, 16, 4, []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4")}},
	{"6", 10, "ip6", nftables.TypeIP6Addr, 8, 24, 16, []netip.Prefix{netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10")}},
}

func (f ipFamily) has(a netip.Addr) bool { return a.IsValid() && a.BitLen() == int(f.size)*8 }

// linkSets are the sets of links, which objects are read from.
func (s routing) linkSets() []ruleSet {
	list := func(name string, devs []string) ruleSet {
		set := ruleSet{name: name, key: []nftables.SetDatatype{nftables.TypeIFName}, native: true}
		slices.Sort(devs)
		for _, dev := range slices.Compact(devs) {
			set.elements = append(set.elements, element{text: fmt.Sprintf("%q", dev), key: ifname(dev)})
		}
		return set
	}
	var gateways, gateways6, uplinks, uplinks6, forwarded, checked []string
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
	for _, a := range s.sources {
		checked = append(checked, a.Dev)
	}
	return []ruleSet{list("gateways", gateways), list("gateways6", gateways6), list("uplinks", uplinks),
		list("uplinks6", uplinks6), list("forwarded", forwarded), list("checked", checked)}
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
		e := element{text: p.Prefix.String(), key: first.AsSlice(), jump: jump(p)}
		if e.jump != "" {
			e.text += " : jump " + e.jump
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

// String prints all as nft list does, without comments but those of objects.
func (r ruleset) String() string {
	var b strings.Builder
	for _, s := range r.sets {
		if len(s.elements) == 0 {
			continue
		}
		kind, types := "set", typeNames(s.key)
		if s.data != nil {
			kind, types = "map", types+" : "+typeNames(s.data)
		}
		fmt.Fprintf(&b, "%s %s {\n\ttype %s\n", kind, s.name, types)
		if s.interval {
			b.WriteString("\tflags interval\n")
		}
		b.WriteString("\telements = {\n")
		for _, e := range s.elements {
			if !e.end {
				fmt.Fprintf(&b, "\t\t%s,\n", e.text)
			}
		}
		b.WriteString("\t}\n}\n")
	}
	for _, c := range r.chains {
		fmt.Fprintf(&b, "chain %s {\n", c.name)
		if c.typ != "" {
			fmt.Fprintf(&b, "\ttype %s hook %s priority %d; policy accept;\n", c.typ, c.hookName, c.priority)
		}
		for _, rule := range c.rules {
			var words []string
			for _, s := range rule.statements {
				words = append(words, s.text)
			}
			fmt.Fprintf(&b, "\t%s", strings.Join(words, " "))
			if rule.object != "" {
				fmt.Fprintf(&b, " comment %q", rule.object)
			}
			b.WriteString("\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func typeNames(types []nftables.SetDatatype) string {
	var names []string
	for _, t := range types {
		names = append(names, t.Name)
	}
	return strings.Join(names, " . ")
}

// sameElements compares a set with what was read of it, in whatever order.
func (s ruleSet) sameElements(read []nftables.SetElement) bool {
	text := func(key, val []byte, end bool) string { return fmt.Sprintf("%x %x %t", key, val, end) }
	verdicts := len(s.data) == 1 && s.data[0].Name == nftables.TypeVerdict.Name
	var want, have []string
	for _, e := range s.elements {
		want = append(want, text(e.key, e.val, e.end))
	}
	for _, e := range read {
		if e.IntervalEnd && bytes.Count(e.Key, []byte{0}) == len(e.Key) {
			continue // nft puts one there
		}
		if verdicts {
			e.Val = nil
		}
		have = append(have, text(e.Key, e.Val, e.IntervalEnd))
	}
	slices.Sort(want)
	slices.Sort(have)
	return slices.Equal(want, have)
}
