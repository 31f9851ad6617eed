package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// writeTables replaces our tables by what want says, in one transaction; where that
// is nothing, there is no table.
func (k *Linux) writeTables(want State) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return err
	}
	for _, r := range render(want) {
		t := &nftables.Table{Name: TableName, Family: r.family}
		conn.AddTable(t) // deleting what is not there would fail
		conn.DelTable(t)
		if r.empty() {
			continue
		}
		conn.AddTable(t)
		if err := r.write(conn, t); err != nil {
			return err
		}
	}
	return conn.Flush()
}

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
		made.ID = uint32(t.Family)<<8 + uint32(i) // of its own in the transaction
		if err := conn.AddSet(made, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		var elements []nftables.SetElement
		for _, e := range s.elements {
			one := nftables.SetElement{Key: e.key, Val: e.val, IntervalEnd: e.end}
			if e.to != "" {
				one.VerdictData = &expr.Verdict{Kind: e.kind, Chain: e.to}
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
			for _, l := range rule.lookups() {
				l.SetID = ids[l.SetName]
			}
			var exprs []expr.Any
			for _, s := range rule.statements {
				exprs = append(exprs, s.exprs...)
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

// nothing is in a dump where there is a table of ours that guards nothing, or one
// that is not as we make it.
var nothing = Guard{Rule: DropInput, Broken: true}

// dumpTables adds what is in our tables to state. Where they are not in all as the
// objects found would make them, the guards are broken, or if there are none, there
// is nothing.
func (k *Linux) dumpTables(state State) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)), nftables.AsLasting())
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	read, found := map[nftables.TableFamily]content{}, State{}
	for _, t := range tables {
		if t.Name != TableName || t.Family != nftables.TableFamilyINet && t.Family != nftables.TableFamilyARP {
			continue
		}
		c, err := k.readTable(conn, t)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		c.objects(found)
		read[t.Family] = c
	}
	intact := true
	for _, want := range render(found) {
		c, there := read[want.family]
		intact = intact && there != want.empty() && c.is(want)
	}
	guarded := false
	for _, o := range found {
		if g, ok := o.(Guard); ok {
			g.Broken, guarded = !intact, true
			o = g
		}
		state.Put(o)
	}
	if !intact && !guarded {
		state.Put(nothing)
	}
	return nil
}

// content is what one of our tables holds: the elements of sets, and the comments of
// the rules of chains.
type content struct {
	elements map[string][]nftables.SetElement
	comments map[string][]string
}

func (k *Linux) readTable(conn *nftables.Conn, t *nftables.Table) (content, error) {
	c := content{map[string][]nftables.SetElement{}, map[string][]string{}}
	sets, err := conn.GetSets(t)
	if err != nil {
		return c, err
	}
	for _, s := range sets {
		if c.elements[s.Name], err = conn.GetSetElements(&nftables.Set{Table: t, Name: s.Name}); err != nil {
			return c, fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return c, err
	}
	for _, chain := range chains {
		if chain.Table.Name != t.Name {
			continue
		}
		rules, err := k.rules(uint8(t.Family), t.Name, chain.Name)
		if err != nil {
			return c, fmt.Errorf("chain %s: %w", chain.Name, err)
		}
		c.comments[chain.Name] = []string{}
		for _, r := range rules {
			c.comments[chain.Name] = append(c.comments[chain.Name], r.comment)
		}
	}
	return c, nil
}

// is reports whether c is what r makes.
func (c content) is(r ruleset) bool {
	if len(r.chains) != len(c.comments) || len(r.sets) != len(c.elements) {
		return false
	}
	for _, chain := range r.chains {
		var want []string
		for _, rule := range chain.rules {
			want = append(want, rule.comment())
		}
		if have, ok := c.comments[chain.name]; !ok || !slices.Equal(have, want) {
			return false
		}
	}
	for _, s := range r.sets {
		if have, ok := c.elements[s.name]; !ok || !s.sameElements(have) {
			return false
		}
	}
	return true
}

// objects adds those that c holds, in comments or as elements.
func (c content) objects(out State) {
	for _, comments := range c.comments {
		for _, comment := range comments {
			if text, ok := strings.CutPrefix(comment, layout+" "); ok {
				if o, err := readObject(text); err == nil {
					out.Put(o)
				}
			}
		}
	}
	names := func(set string) map[string]bool {
		out := map[string]bool{}
		for _, e := range c.elements[set] {
			name, _, _ := bytes.Cut(e.Key, []byte{0})
			out[string(name)] = true
		}
		return out
	}
	for dev := range names("drop_links") {
		out.Put(Guard{Rule: DropInput, Dev: dev})
	}
	for dev := range names("drop_bridges") {
		out.Put(Guard{Rule: DropBridgeInput, Dev: dev})
	}
	six, up6, forwarded := names("gateways6"), names("uplinks6"), names("forwarded")
	for dev := range names("gateways") {
		out.Put(Gateway{Dev: dev, IPv6: six[dev]})
	}
	for dev := range names("uplinks") {
		out.Put(Uplink{Dev: dev, IPv6: up6[dev], Forward: forwarded[dev]})
	}
	for _, f := range families {
		for _, e := range c.elements["admitted"+f.digit] {
			if ip, ok := netip.AddrFromSlice(e.Key); ok {
				out.Put(Guard{Rule: Admit, Peer: ip})
			}
		}
		for _, e := range c.elements["sources"+f.digit] {
			if ip, ok := netip.AddrFromSlice(e.Key[min(16, len(e.Key)):]); ok {
				name, _, _ := bytes.Cut(e.Key[:16], []byte{0})
				out.Put(Source{Dev: string(name), IP: ip})
			}
		}
		any := netip.IPv4Unspecified()
		if f.size == 16 {
			any = netip.IPv6Unspecified()
		}
		for _, e := range c.elements["ports"+f.digit] {
			if host, ok := netip.AddrFromSlice(e.Key[:min(int(f.size), len(e.Key))]); ok {
				putPublish(out, host, e.Key[f.size:], e.Val)
			}
		}
		for _, e := range c.elements["every"+f.digit] {
			putPublish(out, any, e.Key, e.Val)
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
