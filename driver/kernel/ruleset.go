package kernel

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// This file is pure: what our tables hold, as values that print themselves as nft
// does. ruleset_sets.go has the sets, ruleset_chains.go the rules, statement.go their
// words, and nft_tables.go writes and reads them.

// TableName is the name of our nftables tables, in the families inet and arp.
const TableName = "isthmus"

// layout begins the comment of each rule of ours, and the object that is found by it
// follows. Tables of another layout, or with other rules, are replaced.
const layout = "isthmus layout 5"

// ruleset is a table of ours.
type ruleset struct {
	family nftables.TableFamily
	word   string // of nft, for the family
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
	to       string // of a verdict map: this chain
	kind     expr.VerdictKind
}

// verdictElement leads to a chain: goto, or jump and back.
func verdictElement(text string, key []byte, kind expr.VerdictKind, to string) element {
	return element{text: fmt.Sprintf("%s : %s %s", text, map[expr.VerdictKind]string{expr.VerdictGoto: "goto", expr.VerdictJump: "jump"}[kind], to), key: key, to: to, kind: kind}
}

// ruleChain is a base chain, or one that others jump to.
type ruleChain struct {
	name     string
	typ      nftables.ChainType // empty: no base chain
	hook     *nftables.ChainHook
	word     string // of nft, for the hook; empty: as the chain
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

// Render prints our tables as nft does, for what of state is in them: empty for
// nothing.
func Render(state State) string {
	var b strings.Builder
	for _, r := range render(state) {
		b.WriteString(r.String())
	}
	return b.String()
}

// render says what the objects of state mean.
func render(state State) []ruleset {
	s := sorted(state)
	inet, arp := ruleset{family: nftables.TableFamilyINet, word: "inet"}, ruleset{family: nftables.TableFamilyARP, word: "arp"}
	inet.sets = append(s.linkSets(), s.peerSets()...)
	for _, f := range families {
		inet.sets = append(inet.sets, s.addressSets(f)...)
	}
	filter := func(name string, hook *nftables.ChainHook, rules []rule) ruleChain {
		// Before all others, and before connections are tracked at -200.
		return ruleChain{name: name, typ: nftables.ChainTypeFilter, hook: hook, priority: -310, rules: rules}
	}
	nat := func(name string, hook *nftables.ChainHook, word string, priority nftables.ChainPriority, rules []rule) ruleChain {
		return ruleChain{name: name, typ: nftables.ChainTypeNAT, hook: hook, word: word, priority: priority, rules: rules}
	}
	inet.keep(
		filter("prerouting", nftables.ChainHookPrerouting, s.prerouting()),
		ruleChain{name: "refused", rules: s.refused()},
		ruleChain{name: "checked", rules: s.checked()},
		ruleChain{name: "sent", rules: s.sent()},
		filter("input", nftables.ChainHookInput, s.input()),
		filter("forward", nftables.ChainHookForward, s.forward()),
		ruleChain{name: "clamp", rules: s.clamp()},
		filter("output", nftables.ChainHookOutput, s.output()),
		// Before those of others, at -100 and 100: the first one that translates counts.
		ruleChain{name: "published", rules: s.published()},
		nat("publish", nftables.ChainHookPrerouting, "prerouting", -105, s.publish()),
		nat("publish_own", nftables.ChainHookOutput, "output", -105, s.publishOwn()),
		ruleChain{name: "translate", rules: s.masquerade()},
		nat("egress", nftables.ChainHookPostrouting, "postrouting", 95, s.egress()),
	)
	inet.keep(s.networkChains()...)
	arp.sets = []ruleSet{linkSet("drop_links", s.dropLinks), linkSet("drop_bridges", s.dropBridges)}
	arp.keep(ruleChain{name: "input", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookRef(0), rules: s.inputARP()})
	return []ruleset{inet.trimmed(), arp.trimmed()}
}

// keep adds the chains that have rules: each that is entered costs every packet of
// the host something.
func (r *ruleset) keep(chains ...ruleChain) {
	for _, c := range chains {
		if len(c.rules) > 0 {
			r.chains = append(r.chains, c)
		}
	}
}

// trimmed leaves out the sets that hold nothing, and that no rule asks.
func (r ruleset) trimmed() ruleset {
	asked := map[string]bool{}
	for _, c := range r.chains {
		for _, rule := range c.rules {
			for _, l := range rule.lookups() {
				asked[l.SetName] = true
			}
		}
	}
	r.sets = slices.DeleteFunc(r.sets, func(s ruleSet) bool { return len(s.elements) == 0 && !asked[s.name] })
	return r
}

// lookups are the questions of r to sets.
func (r rule) lookups() (out []*expr.Lookup) {
	for _, s := range r.statements {
		for _, e := range s.exprs {
			if l, ok := e.(*expr.Lookup); ok {
				out = append(out, l)
			}
		}
	}
	return out
}

func (r ruleset) empty() bool { return len(r.sets)+len(r.chains) == 0 }

// routing is a state by kinds, each sorted.
type routing struct {
	gateways  []Gateway
	uplinks   []Uplink
	sources   []Source
	pools     []Pool
	passages  []Passage
	publishes []Publish

	dropLinks, dropBridges []string
	peers                  []netip.Addr
	untracked, fenced      []Guard
}

// tunnelPorts are the UDP ports of the host's tunnels.
func (s routing) tunnelPorts() (out []uint16) {
	for _, g := range s.untracked {
		if g.Kind == "" {
			out = append(out, g.Tunnel.Port())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
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
			switch o.Rule {
			case DropInput:
				s.dropLinks = append(s.dropLinks, o.Dev)
			case DropBridgeInput:
				s.dropBridges = append(s.dropBridges, o.Dev)
			case Admit:
				s.peers = append(s.peers, o.Peer)
			case NoTrack:
				s.untracked = append(s.untracked, o)
			case DropStrangers:
				s.fenced = append(s.fenced, o)
			}
		}
	}
	slices.SortFunc(s.pools, func(a, b Pool) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(s.publishes, func(a, b Publish) int {
		return cmp.Or(a.Host.Compare(b.Host), cmp.Compare(a.Proto, b.Proto))
	})
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

// String prints the table as nft list does, without comments but those of objects.
func (r ruleset) String() string {
	if r.empty() {
		return ""
	}
	var b strings.Builder
	for _, s := range r.sets {
		kind, types := "set", typeNames(s.key)
		if s.data != nil {
			kind, types = "map", types+" : "+typeNames(s.data)
		}
		fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s\n", kind, s.name, types)
		if s.interval {
			b.WriteString("\t\tflags interval\n")
		}
		if len(s.elements) > 0 {
			b.WriteString("\t\telements = {\n")
			for _, e := range s.elements {
				if !e.end {
					fmt.Fprintf(&b, "\t\t\t%s,\n", e.text)
				}
			}
			b.WriteString("\t\t}\n")
		}
		b.WriteString("\t}\n")
	}
	for _, c := range r.chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.typ != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.typ, cmp.Or(c.word, c.name), c.priority)
		}
		for _, rule := range c.rules {
			var words []string
			for _, s := range rule.statements {
				if s.text != "" {
					words = append(words, s.text)
				}
			}
			fmt.Fprintf(&b, "\t\t%s", strings.Join(words, " "))
			if rule.object != "" {
				fmt.Fprintf(&b, " comment %q", rule.object)
			}
			b.WriteString("\n")
		}
		b.WriteString("\t}\n")
	}
	return fmt.Sprintf("table %s %s {\n%s}\n", r.word, TableName, b.String())
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
