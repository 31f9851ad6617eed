package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// This file is the rules of each chain. Those that could match nothing are left
// out: each costs every packet of the host something. What most packets lack and
// is cheap to ask comes first: a look into a set costs as much as several comparisons.

func is(statements ...statement) rule { return rule{statements: statements} }

// prerouting is about what arrives, before it is known whether this host takes or
// forwards it. Frames that a macvlan child or a bridge port takes never come here,
// unless br_netfilter shows them.
func (s routing) prerouting() (out []rule) {
	if links := slices.Sorted(maps.Keys(s.arriving())); len(links) > 0 {
		out = append(out, is(iifnameLike(links), verdictOfLink("links")))
	}
	return append(out, s.untrack(true)...)
}

// untrack is about packets of tunnels that arrive, or leave. Kinds without a port of
// our own may be others' too, who have other peers.
func (s routing) untrack(arrive bool) (out []rule) {
	for _, g := range s.untracked {
		f := familyOf(g.Tunnel.Addr())
		here, peer := g.at("saddr"), f.daddrIn("admitted"+f.digit, true)
		if arrive {
			here, peer = g.at("daddr"), f.saddrIn("admitted"+f.digit, true)
		}
		for _, outer := range g.outer() {
			r := rule{[]statement{outer, here}, g.text()}
			if g.Kind != "" {
				r.statements = append(r.statements, peer)
			}
			r.statements = append(r.statements, noTrack())
			out = append(out, r)
		}
	}
	return out
}

// refused is for links on which this host takes part in nothing.
func (s routing) refused() []rule {
	if len(s.dropLinks) == 0 {
		return nil
	}
	return []rule{is(drop())}
}

// checked drops what bears the address of somebody else. Translation of addresses
// comes later, for answers too.
func (s routing) checked() (out []rule) {
	if len(s.sources) == 0 {
		return nil
	}
	for _, f := range families {
		if slices.ContainsFunc(s.sources, func(a Source) bool { return f.has(a.IP) }) {
			out = append(out, is(f.from("sources"+f.digit), goTo("sent")))
		}
	}
	v6 := families[1]
	return append(out, is(v6.saddr(netip.MustParsePrefix("fe80::/10"), true), goTo("sent")), is(v6.saddr(netip.MustParsePrefix("::/128"), true), goTo("sent")), is(drop()))
}

// sent keeps containers from the host's loopback addresses: route_localnet lets
// them in. Answers to what came from there still bear the link's own address here.
func (s routing) sent() []rule {
	if len(s.gateways)+len(s.sources) == 0 {
		return nil
	}
	return []rule{is(families[0].daddr(netip.MustParsePrefix("127.0.0.0/8"), true), drop())}
}

// input is about what enters the host's own stack: its sockets, its neighbour table.
func (s routing) input() (out []rule) {
	if len(s.dropBridges) > 0 {
		out = append(out, is(iifnameLike(s.dropBridges), iifname("drop_bridges"), drop()))
	}
	// Whatever their destination: the kernel takes packets of tunnels at all of its addresses.
	for _, g := range s.fenced {
		f := familyOf(g.Tunnel.Addr())
		out = append(out, rule{append(g.outer(), f.saddrIn("admitted"+f.digit, false), drop()), g.text()})
	}
	return out
}

// inputARP is the same of ARP.
func (s routing) inputARP() (out []rule) {
	if len(s.dropLinks) > 0 {
		out = append(out, is(iifname("drop_links"), drop()))
	}
	if len(s.dropBridges) > 0 {
		out = append(out, is(iifname("drop_bridges"), drop()))
	}
	return out
}

// forward decides about what this host forwards, or what br_netfilter shows of
// frames that are bridged: those have the bridge on both sides.
func (s routing) forward() (out []rule) {
	if len(s.dropBridges) > 0 {
		out = append(out, is(iifnameLike(s.dropBridges), iifname("drop_bridges"), oifnameNot("drop_bridges"), drop()))
	}
	for _, f := range families {
		if pools := s.apart(f); len(pools) > 0 {
			out = append(out, is(f.verdictOf("saddr", "from"+f.digit)))
			if slices.ContainsFunc(pools, func(p Pool) bool { return s.internal(p.Network) }) {
				out = append(out, is(f.verdictOf("daddr", "into"+f.digit)))
			}
		}
	}
	if len(s.gateways) > 0 {
		out = append(out, is(syn(), jump("clamp")))
	}
	return out
}

// clamp keeps segments as small as what their route carries.
func (s routing) clamp() []rule {
	if len(s.gateways) == 0 {
		return nil
	}
	return []rule{is(iifname("gateways"), maxSegment()), is(oifname("gateways"), maxSegment())}
}

// output also keeps the host from telling a container that another one is its
// neighbour: that one may be on another host soon, and the container would ask for it
// in vain for minutes. (send_redirects of a link counts for nothing where that of
// "all" is on.)
func (s routing) output() []rule {
	out := s.untrack(false)
	if len(s.gateways) > 0 {
		out = append(out, is(message(1, 5, "icmp type redirect"), oifname("gateways"), drop()),
			is(message(58, 137, "icmpv6 type nd-redirect"), oifname("gateways"), drop()))
	}
	return out
}

func (s routing) published() (out []rule) {
	for _, f := range families {
		var one, every bool
		for _, p := range s.publishes {
			if f.has(p.Host.Addr()) {
				every = every || p.Host.Addr().IsUnspecified()
				one = one || !p.Host.Addr().IsUnspecified()
			}
		}
		if one {
			out = append(out, is(f.dnat("ports"+f.digit, false)))
		}
		if every {
			out = append(out, is(f.dnat("every"+f.digit, true)))
		}
	}
	return out
}

func (s routing) publish() []rule {
	if len(s.publishes) == 0 {
		return nil
	}
	return []rule{is(jump("published"))}
}

// publishOwn is for what the host itself sends. From ::1 the kernel would send
// nothing to a container.
func (s routing) publishOwn() []rule {
	if len(s.publishes) == 0 {
		return nil
	}
	return []rule{is(families[1].daddr(netip.MustParsePrefix("::1/128"), true), back()), is(jump("published"))}
}

// masquerade leaves no flow the port of the host's tunnels: its answers would be
// taken for packets of a tunnel.
func (s routing) masquerade() (out []rule) {
	if !slices.ContainsFunc(s.pools, translated) && len(s.publishes) == 0 {
		return nil
	}
	for _, port := range s.tunnelPorts() {
		out = append(out, is(masqueradeFrom(port)))
	}
	return append(out, is(masquerade()))
}

func translated(p Pool) bool { return p.NAT && !p.Internal }

// egress translates what leaves.
func (s routing) egress() (out []rule) {
	if len(s.publishes) > 0 {
		out = append(out, is(oifname("gateways"), families[0].saddr(netip.MustParsePrefix("127.0.0.0/8"), true), dnatted(), jump("translate")))
	}
	for _, p := range s.pools {
		f := familyOf(p.Prefix.Addr())
		if len(s.publishes) > 0 && p.Return && !p.Internal {
			out = append(out, is(f.daddr(p.Prefix, true), dnatted(), jump("translate")))
		} else if len(s.publishes) > 0 && !p.Internal {
			// By its host's address to a neighbour, who would answer directly.
			out = append(out, is(f.saddr(p.Prefix, true), f.daddr(p.Prefix, true), dnatted(), jump("translate")))
		}
		if translated(p) {
			r := is(f.saddr(p.Prefix, true), f.daddrIn("pools"+f.digit, false))
			for _, not := range f.notRouted {
				r.statements = append(r.statements, f.daddr(not, false))
			}
			r.statements = append(r.statements, jump("translate"))
			out = append(out, r)
		}
	}
	return out
}

func familyOf(a netip.Addr) ipFamily {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// networkChains say what a network may send to, and, of internal ones, what it
// may receive from. All objects are found by them.
func (s routing) networkChains() (out []ruleChain) {
	networks := map[uint32][]Pool{}
	for _, p := range s.pools {
		networks[p.Network] = append(networks[p.Network], p)
	}
	var into []ruleChain
	for _, id := range slices.Sorted(maps.Keys(networks)) {
		from := ruleChain{name: chainFrom(id)}
		to := ruleChain{name: chainInto(id)}
		let := func(p Pool, object string) {
			f := familyOf(p.Prefix.Addr())
			from.rules = append(from.rules, rule{[]statement{f.daddr(p.Prefix, true), back()}, object})
			to.rules = append(to.rules, is(f.saddr(p.Prefix, true), back()))
		}
		for _, p := range networks[id] {
			let(p, p.String())
		}
		for _, w := range s.passages {
			other := w.A
			switch id {
			case w.A:
				other = w.B
			case w.B:
			default:
				continue
			}
			for _, p := range networks[other] {
				let(p, w.String())
			}
		}
		if s.internal(id) {
			from.rules = append(from.rules, is(multicast(), back()), is(drop()))
			to.rules = append(to.rules, is(multicast(), back()), is(drop()))
			into = append(into, to)
		} else {
			from.rules = append(from.rules, is(dnatted(), back()))
			for _, f := range families {
				if len(s.apart(f)) > 0 {
					from.rules = append(from.rules, is(f.daddrIn("pools"+f.digit, true), drop()))
				}
			}
		}
		out = append(out, from)
	}
	return append(out, into...)
}

// readObject is the reverse of the comments of objects.
func readObject(text string) (Object, error) {
	if p, ok := parsePool(text); ok {
		return p, nil
	}
	if p, ok := parsePassage(text); ok {
		return p, nil
	}
	word, end, _ := strings.Cut(text, " ")
	if kind, tunnel, err := readEnd(end); err == nil && (word == string(NoTrack) || word == string(DropStrangers)) {
		return Guard{Rule: GuardRule(word), Kind: kind, Tunnel: tunnel}, nil
	}
	return nil, fmt.Errorf("unknown object %q", text)
}
