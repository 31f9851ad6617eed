package kernel

import (
	"bytes"
	"encoding/binary"
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
	"golang.org/x/sys/unix"
)

// TableName is the name of our nftables tables, in the families inet and arp.
const TableName = "isthmus"

// layout is written into each rule of ours. Tables of another layout, or with
// another number of rules, are replaced.
const layout = "isthmus layout 2"

// table is a table of ours.
type table struct {
	family nftables.TableFamily
	sets   []set
	chains []chain
}

// set holds the guards of one rule: names of links, or the address and port of
// tunnels of one family.
type set struct {
	name string
	rule GuardRule
	key  nftables.SetDatatype
}

// chain is a base chain of ours.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []rule
}

// rule does something to packets for which all conditions hold.
type rule struct {
	is []in
	do []expr.Any
}

// in holds when what load puts into register 1 is in the set, or, if not, when
// it is not.
type in struct {
	load []expr.Any
	set  set
	not  bool
}

var (
	dropLinks   = set{"drop_links", DropInput, nftables.TypeIFName}
	dropBridges = set{"drop_bridges", DropBridgeInput, nftables.TypeIFName}
	tunnels4    = set{"tunnels4", NoTrack, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)}
	tunnels6    = set{"tunnels6", NoTrack, nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)}

	from = []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}}
	to   = []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}}

	drop    = []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	noTrack = []expr.Any{&expr.Notrack{}}
)

// ownTables is what we keep in nftables. Arriving frames that a macvlan child
// or a bridge port takes never come here; what does come here would enter the
// host's own stack: its sockets, its neighbour table, its routing.
//
// Connection tracking begins at priority -200, where Docker's NAT has it loaded.
// The packets of a tunnel have a source port for each flow inside and none that
// answers it, so that tracking them costs an entry each and is of no use.
var ownTables = []table{
	{nftables.TableFamilyINet, []set{dropLinks, dropBridges, tunnels4, tunnels6}, []chain{
		{"prerouting", nftables.ChainHookPrerouting, -310, []rule{
			{[]in{{from, dropLinks, false}}, drop},
			{[]in{{udpAt(unix.NFPROTO_IPV4, 16, 4), tunnels4, false}}, noTrack}, // destination
			{[]in{{udpAt(unix.NFPROTO_IPV6, 24, 16), tunnels6, false}}, noTrack},
		}},
		{"output", nftables.ChainHookOutput, -310, []rule{
			{[]in{{udpAt(unix.NFPROTO_IPV4, 12, 4), tunnels4, false}}, noTrack}, // source
			{[]in{{udpAt(unix.NFPROTO_IPV6, 8, 16), tunnels6, false}}, noTrack},
		}},
		{"input", nftables.ChainHookInput, -310, []rule{{[]in{{from, dropBridges, false}}, drop}}},
		// What br_netfilter shows of bridged frames has the bridge on both sides.
		{"forward", nftables.ChainHookForward, -310, []rule{{[]in{{from, dropBridges, false}, {to, dropBridges, true}}, drop}}},
	}},
	{nftables.TableFamilyARP, []set{dropLinks, dropBridges}, []chain{
		{"input", nftables.ChainHookRef(0), 0, []rule{
			{[]in{{from, dropLinks, false}}, drop},
			{[]in{{from, dropBridges, false}}, drop},
		}},
	}},
}

// udpAt loads, of UDP packets, the address at an offset of the IP header and
// the destination port. Others do not match.
func udpAt(proto byte, offset, size uint32) []expr.Any {
	behind := uint32(unix.NFT_REG32_00) + size/4 // registers of 4 bytes; number 1 is the first four
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Payload{DestRegister: behind, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// element returns g as an element of s; false if it has no place there.
func (s set) element(g Guard) (nftables.SetElement, bool) {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key[:unix.IFNAMSIZ-1], g.Dev)
	if g.Rule == NoTrack {
		key = binary.BigEndian.AppendUint16(g.Tunnel.Addr().AsSlice(), g.Tunnel.Port())
		key = append(key, 0, 0) // all parts fill registers
	}
	return nftables.SetElement{Key: key}, g.Rule == s.rule && len(key) == int(s.key.Bytes)
}

// guard is the reverse of element.
func (s set) guard(e nftables.SetElement) Guard {
	if at := len(e.Key) - 4; s.rule == NoTrack && at > 0 {
		ip, _ := netip.AddrFromSlice(e.Key[:at])
		return Guard{Rule: s.rule, Tunnel: netip.AddrPortFrom(ip, binary.BigEndian.Uint16(e.Key[at:]))}
	}
	dev, _, _ := bytes.Cut(e.Key, []byte{0})
	return Guard{Rule: s.rule, Dev: string(dev)}
}

// places counts the tables that g belongs into.
func places(g Guard) (n int) {
	for _, t := range ownTables {
		for _, s := range t.sets {
			if _, ok := s.element(g); ok {
				n++
			}
		}
	}
	return n
}

// nothing is in a dump where there is a table of ours that guards nothing.
var nothing = Guard{Rule: DropInput, Broken: true}

// guard does a run of operations on guards: our tables are replaced in one
// transaction, so that there is no moment without them.
func (k *Linux) guard(ops []Op) error {
	have := State{}
	if err := k.dumpOwnTables(have); err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	want := State{}
	for _, g := range have {
		if g := g.(Guard); g != nothing {
			g.Broken = false
			want.Put(g)
		}
	}
	var accept []Op
	var names []string
	for _, op := range ops {
		g := op.Object.(Guard)
		names = append(names, fmt.Sprintf("%s %s", op.Action, g.Key()))
		switch {
		case g.Rule == AcceptForward:
			accept = append(accept, op)
		case places(g) == 0:
			return fmt.Errorf("%s %s: unknown rule", op.Action, g.Key())
		case op.Action == Remove:
			delete(want, g.Key())
		default:
			g.Broken = false
			want.Put(g)
		}
	}
	var errs []error
	if !maps.Equal(have, want) {
		if err := k.writeOwnTables(want); err != nil {
			errs = append(errs, fmt.Errorf("write nftables tables %s (%s): %w", TableName, strings.Join(names, ", "), err))
		}
	}
	for _, op := range accept {
		if err := k.acceptForward(op.Action, op.Object.(Guard).Dev); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", op.Action, op.Object.Key(), err))
		}
	}
	return errors.Join(errs...)
}

func (k *Linux) dumpGuards(state State) error {
	if err := k.dumpOwnTables(state); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := k.dumpAccepts(state); err != nil {
		return fmt.Errorf("nftables chain of Docker: %w", err)
	}
	return nil
}

// dumpOwnTables adds the guards in our tables to state. What is not in all its
// tables, or in a table that is not as we make it, is broken.
func (k *Linux) dumpOwnTables(state State) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)), nftables.AsLasting())
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	whole, found := true, false
	seen := map[Guard]int{}
	for _, own := range ownTables {
		i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName && t.Family == own.family })
		if i < 0 {
			whole = false
			continue
		}
		found = true
		intact, err := own.read(conn, tables[i], seen)
		if err != nil {
			return fmt.Errorf("table %s: %w", TableName, err)
		}
		whole = whole && intact
	}
	for g, n := range seen {
		g.Broken = !whole || n < places(g)
		state.Put(g)
	}
	if found && len(seen) == 0 {
		state.Put(nothing)
	}
	return nil
}

// read counts the guards of one of our tables, and reports whether it has all
// chains and rules.
func (own table) read(conn *nftables.Conn, t *nftables.Table, seen map[Guard]int) (bool, error) {
	sets, err := conn.GetSets(t)
	if err != nil {
		return false, err
	}
	for _, s := range own.sets {
		i := slices.IndexFunc(sets, func(o *nftables.Set) bool { return o.Name == s.name })
		if i < 0 {
			continue
		}
		elements, err := conn.GetSetElements(sets[i])
		if err != nil {
			return false, err
		}
		for _, e := range elements {
			seen[s.guard(e)]++
		}
	}
	for _, c := range own.chains {
		rules, err := conn.GetRules(t, &nftables.Chain{Name: c.name, Table: t})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, err
		}
		n := 0
		for _, r := range rules {
			if text, _ := userdata.GetString(r.UserData, userdata.TypeComment); text == layout {
				n++
			}
		}
		if n != len(c.rules) || n != len(rules) {
			return false, nil
		}
	}
	return true, nil
}

// writeOwnTables replaces our tables by what guards says; without any guard
// there is no table.
func (k *Linux) writeOwnTables(guards State) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return err
	}
	for _, own := range ownTables {
		t := &nftables.Table{Name: TableName, Family: own.family}
		conn.AddTable(t) // deleting what is not there would fail
		conn.DelTable(t)
		if len(guards) == 0 {
			continue
		}
		conn.AddTable(t)
		if err := own.write(conn, t, guards); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// write fills the new table t.
func (own table) write(conn *nftables.Conn, t *nftables.Table, guards State) error {
	ids := map[string]uint32{}
	for i, s := range own.sets {
		made := &nftables.Set{
			ID:    uint32(own.family)<<8 + uint32(i), // of its own in the transaction
			Table: t, Name: s.name, KeyType: s.key, KeyByteOrder: binaryutil.NativeEndian,
		}
		if err := conn.AddSet(made, nil); err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, key := range slices.SortedFunc(maps.Keys(guards), CompareKeys) {
			if e, ok := s.element(guards[key].(Guard)); ok {
				elements = append(elements, e)
			}
		}
		for part := range slices.Chunk(elements, 500) { // an attribute holds 64 kB
			if err := conn.SetAddElements(made, part); err != nil {
				return err
			}
		}
		ids[s.name] = made.ID
	}
	policy := nftables.ChainPolicyAccept
	for _, c := range own.chains {
		added := conn.AddChain(&nftables.Chain{Name: c.name, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: c.hook, Priority: nftables.ChainPriorityRef(c.priority), Policy: &policy})
		for _, r := range c.rules {
			made := &nftables.Rule{Table: t, Chain: added, UserData: userdata.AppendString(nil, userdata.TypeComment, layout)}
			for _, is := range r.is {
				made.Exprs = append(made.Exprs, is.load...)
				made.Exprs = append(made.Exprs, &expr.Lookup{SourceRegister: 1, SetName: is.set.name, SetID: ids[is.set.name], Invert: is.not})
			}
			made.Exprs = append(made.Exprs, r.do...)
			conn.AddRule(made)
		}
	}
	return nil
}
