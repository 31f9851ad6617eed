package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// write adds r to the new table t. Chains come first, since elements and rules
// jump to them.
func (r ruleset) write(conn *nftables.Conn, t *nftables.Table) error {
	chains := map[string]*nftables.Chain{}
	policy := nftables.ChainPolicyAccept
	for _, c := range r.chains {
		made := &nftables.Chain{Name: c.name, Table: t}
		if c.typ != "" {
			made.Type, made.Hooknum, made.Priority, made.Policy = c.typ, c.hook, nftables.ChainPriorityRef(c.priority), &policy
		}
		chains[c.name] = conn.AddChain(made)
	}
	ids := map[string]uint32{}
	for i, s := range r.sets {
		made, err := s.describe(t)
		if err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		made.ID = uint32(t.Family)<<8 + 128 + uint32(i) // behind those of the guards
		if err := conn.AddSet(made, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		var elements []nftables.SetElement
		for _, e := range s.elements {
			one := nftables.SetElement{Key: e.key, Val: e.val, IntervalEnd: e.end}
			if e.jump != "" {
				one.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.jump}
			}
			elements = append(elements, one)
		}
		for part := range slices.Chunk(elements, 400) { // an attribute holds 64 kB
			if err := conn.SetAddElements(made, part); err != nil {
				return fmt.Errorf("set %s: %w", s.name, err)
			}
		}
		ids[s.name] = made.ID
	}
	for _, c := range r.chains {
		for _, rule := range c.rules {
			var exprs []expr.Any
			for _, s := range rule.statements {
				exprs = append(exprs, s.exprs...)
			}
			for _, e := range exprs {
				if l, ok := e.(*expr.Lookup); ok {
					l.SetID = ids[l.SetName]
				}
			}
			conn.AddRule(&nftables.Rule{Table: t, Chain: chains[c.name], Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, rule.comment())})
		}
	}
	return nil
}

// describe is s as the library creates it.
func (s ruleSet) describe(t *nftables.Table) (*nftables.Set, error) {
	made := &nftables.Set{Table: t, Name: s.name, Interval: s.interval, KeyByteOrder: binaryutil.BigEndian}
	if s.native {
		made.KeyByteOrder = binaryutil.NativeEndian
	}
	var err error
	if made.KeyType, err = typeOf(s.key); err != nil {
		return nil, err
	}
	made.Concatenation = len(s.key) > 1
	if s.data != nil {
		made.IsMap = true
		made.DataType, err = typeOf(s.data)
	}
	return made, err
}

func typeOf(types []nftables.SetDatatype) (nftables.SetDatatype, error) {
	if len(types) == 1 {
		return types[0], nil
	}
	return nftables.ConcatSetType(types...)
}

// readRouting returns the objects of our table that are no guards, and whether it
// is in all as they, and the tunnels of guards, make it.
func (k *Linux) readRouting(conn *nftables.Conn, t *nftables.Table, guards State) (objects State, intact bool, err error) {
	list, err := conn.GetSets(t)
	if err != nil {
		return nil, false, err
	}
	elements := map[string][]nftables.SetElement{}
	objects = State{}
	for _, s := range list {
		if slices.Contains(ownSets, s.Name) {
			continue // of the guards
		}
		if elements[s.Name], err = conn.GetSetElements(&nftables.Set{Table: t, Name: s.Name}); err != nil {
			return nil, false, fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, false, err
	}
	comments := map[string][]string{}
	for _, c := range chains {
		if c.Table.Name != t.Name || slices.Contains(ownChains, c.Name) {
			continue
		}
		rules, err := k.rules(uint8(t.Family), t.Name, c.Name)
		if err != nil {
			return nil, false, fmt.Errorf("chain %s: %w", c.Name, err)
		}
		comments[c.Name] = []string{}
		for _, r := range rules {
			comments[c.Name] = append(comments[c.Name], r.comment)
			if text, ok := strings.CutPrefix(r.comment, layout+" "); ok {
				if o, err := readObject(text); err == nil {
					objects.Put(o)
				}
			}
		}
	}
	readElements(elements, objects)
	all := maps.Clone(guards)
	maps.Copy(all, objects)
	want := renderRouting(all)
	intact = len(want.chains) == len(comments) && len(want.sets) == len(elements)
	for _, c := range want.chains {
		var expected []string
		for _, r := range c.rules {
			expected = append(expected, r.comment())
		}
		have, ok := comments[c.name]
		intact = intact && ok && slices.Equal(have, expected)
	}
	for _, s := range want.sets {
		have, ok := elements[s.name]
		intact = intact && ok && s.sameElements(have)
	}
	return objects, intact, nil
}

// readElements adds the objects that sets hold.
func readElements(elements map[string][]nftables.SetElement, objects State) {
	names := func(set string) map[string]bool {
		out := map[string]bool{}
		for _, e := range elements[set] {
			name, _, _ := bytes.Cut(e.Key, []byte{0})
			out[string(name)] = true
		}
		return out
	}
	six, up6, forwarded := names("gateways6"), names("uplinks6"), names("forwarded")
	for dev := range names("gateways") {
		objects.Put(Gateway{Dev: dev, IPv6: six[dev]})
	}
	for dev := range names("uplinks") {
		objects.Put(Uplink{Dev: dev, IPv6: up6[dev], Forward: forwarded[dev]})
	}
	for _, f := range families {
		for _, e := range elements["sources"+f.digit] {
			if ip, ok := netip.AddrFromSlice(e.Key[min(16, len(e.Key)):]); ok {
				name, _, _ := bytes.Cut(e.Key[:16], []byte{0})
				objects.Put(Source{Dev: string(name), IP: ip})
			}
		}
		any := netip.IPv4Unspecified()
		if f.size == 16 {
			any = netip.IPv6Unspecified()
		}
		for _, e := range elements["ports"+f.digit] {
			if host, ok := netip.AddrFromSlice(e.Key[:min(int(f.size), len(e.Key))]); ok {
				putPublish(objects, host, e.Key[f.size:], e.Val)
			}
		}
		for _, e := range elements["every"+f.digit] {
			putPublish(objects, any, e.Key, e.Val)
		}
	}
}

// putPublish adds what an element says: key is of portKey, val an address and a port.
func putPublish(objects State, host netip.Addr, key, val []byte) {
	n := host.BitLen() / 8
	if len(key) != 8 || len(val) < n+2 {
		return
	}
	to, _ := netip.AddrFromSlice(val[:n])
	port := func(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
	for proto, number := range protocols {
		if number == key[0] {
			objects.Put(Publish{Proto: proto, Host: netip.AddrPortFrom(host, port(key[4:])), To: netip.AddrPortFrom(to, port(val[n:]))})
		}
	}
}

// ownSets and ownChains are those of the guards in our table of family inet.
var ownSets, ownChains = func() (sets, chains []string) {
	for _, t := range ownTables {
		if t.family == nftables.TableFamilyINet {
			for _, s := range t.sets {
				sets = append(sets, s.name)
			}
			for _, c := range t.chains {
				chains = append(chains, c.name)
			}
		}
	}
	return sets, chains
}()

// guardsOf leaves out what is no guard.
func guardsOf(state State) State {
	guards := State{}
	for k, o := range state {
		if _, ok := o.(Guard); ok {
			guards[k] = o
		}
	}
	return guards
}

// configured sets right, of a run of operations, what is no rule: sysctls, and
// the connections that follow an earlier rule. In a dump those come as Broken.
func (k *Linux) configured(ops []Op, before State) error {
	var errs []error
	var moved []Publish
	for _, op := range ops {
		var err error
		switch o := op.Object.(type) {
		case Gateway:
			err = k.setGateway(op.Action, o)
		case Uplink:
			old, _ := before[o.Key()].(Uplink)
			err = k.setUplink(op.Action, o, old)
		case Publish:
			if op.Action == Remove {
				o.To = netip.AddrPort{}
			}
			moved = append(moved, o)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", op.Action, op.Object.Key(), err))
		}
	}
	if err := k.forgetFlows(moved); err != nil {
		errs = append(errs, fmt.Errorf("forget connections to published ports: %w", err))
	}
	return errors.Join(errs...)
}

// dumpConfigured marks as broken what lacks its sysctls, or ports that lack their mode.
func (k *Linux) dumpConfigured(state State) error {
	routing := sorted(state)
	if len(routing.gateways)+len(routing.uplinks) == 0 {
		return nil
	}
	lacks, err := k.lacksHairpin(routing.gateways)
	if err != nil {
		return err
	}
	return inside(int(k.ns), func() error {
		for _, g := range routing.gateways {
			g.Broken = !forwards(g.Dev, g.IPv6) || readConf("ipv4", g.Dev, "route_localnet") != "1" || len(lacks[g.Dev]) > 0
			state.Put(g)
		}
		for _, u := range routing.uplinks {
			u.Broken = !forwards(u.Dev, u.IPv6)
			state.Put(u)
		}
		return nil
	})
}
