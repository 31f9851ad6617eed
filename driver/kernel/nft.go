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

// layout begins the comment of each rule of ours; that of a tunnel's rules
// goes on with " tunnel ADDRESS:PORT". Tables of another layout, or with other
// rules, are replaced.
const layout = "isthmus layout 2"

// table is a table of ours.
type table struct {
	family nftables.TableFamily
	chains []chain
}

// chain is a base chain of ours.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	drops    [][]nameIn // each a list of conditions
	tunnel   func(netip.AddrPort) []expr.Any
}

// nameIn holds when the name of the input (or output) interface is in the set
// of a rule, or, if not, when it is not.
type nameIn struct {
	key expr.MetaKey
	set GuardRule
	not bool
}

// setNames are the sets of link names in each of our tables.
var setNames = map[GuardRule]string{DropInput: "drop_links", DropBridgeInput: "drop_bridges"}

var (
	fromLink   = nameIn{expr.MetaKeyIIFNAME, DropInput, false}
	fromBridge = nameIn{expr.MetaKeyIIFNAME, DropBridgeInput, false}
	notToOne   = nameIn{expr.MetaKeyOIFNAME, DropBridgeInput, true}
)

// ownTables is what we keep in nftables. Arriving frames that a macvlan child
// or a bridge port takes never come here; what does come here would enter the
// host's own stack: its sockets, its neighbour table, its routing.
//
// Each rule costs every packet of the host something: those that match nothing
// are left out, with their chains.
var ownTables = []table{
	{nftables.TableFamilyINet, []chain{
		{"prerouting", nftables.ChainHookPrerouting, -310, [][]nameIn{{fromLink}}, tunnelTo},
		{"output", nftables.ChainHookOutput, -310, nil, tunnelFrom},
		{"input", nftables.ChainHookInput, -310, [][]nameIn{{fromBridge}}, nil},
		// What br_netfilter shows of bridged frames has the bridge on both sides.
		{"forward", nftables.ChainHookForward, -310, [][]nameIn{{fromBridge, notToOne}}, nil},
	}},
	{nftables.TableFamilyARP, []chain{
		{"input", nftables.ChainHookRef(0), 0, [][]nameIn{{fromLink}, {fromBridge}}, nil},
	}},
}

// tunnelTo and tunnelFrom keep the packets of a tunnel that arrive and leave
// out of connection tracking, which begins at priority -200. They have a source
// port for each flow inside and none that answers it, so that tracking them
// costs an entry each and is of no use.
func tunnelTo(end netip.AddrPort) []expr.Any   { return noTrack(end, 16, 24) }
func tunnelFrom(end netip.AddrPort) []expr.Any { return noTrack(end, 12, 8) }

// noTrack matches the UDP packets to the port of end that have its address at
// an offset of the IP header. What most packets lack is asked first.
func noTrack(end netip.AddrPort, offset4, offset6 uint32) []expr.Any {
	ip, proto, offset := end.Addr().AsSlice(), byte(unix.NFPROTO_IPV4), offset4
	if end.Addr().Is6() {
		proto, offset = unix.NFPROTO_IPV6, offset6
	}
	is := func(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		is(binary.BigEndian.AppendUint16(nil, end.Port())...),
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(ip))}, is(ip...),
		&expr.Notrack{},
	}
}

// comments lists those of the rules that c has for guards, in order.
func (c chain) comments(guards State) []string {
	var out []string
	for _, conditions := range c.drops {
		if len(linksOf(guards, conditions[0].set)) > 0 {
			out = append(out, layout)
		}
	}
	for _, end := range tunnelsOf(guards) {
		if c.tunnel != nil {
			out = append(out, layout+tunnelMark+end.String())
		}
	}
	return out
}

const tunnelMark = " tunnel "

// linksOf and tunnelsOf list what guards are for, sorted.
func linksOf(guards State, rule GuardRule) (out []string) {
	for key := range guards {
		if key.Sub == string(rule) {
			out = append(out, key.Dev)
		}
	}
	slices.Sort(out)
	return out
}

func tunnelsOf(guards State) (out []netip.AddrPort) {
	for _, g := range guards {
		if g := g.(Guard); g.Rule == NoTrack {
			out = append(out, g.Tunnel)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
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
		case setNames[g.Rule] == "" && (g.Rule != NoTrack || !g.Tunnel.IsValid()):
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

// dumpOwnTables adds the guards in our tables to state. What is not in all of
// them, or in one that is not as we make it, is broken.
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
	found, comments := false, map[string][]string{}
	held, all := map[nftables.TableFamily]State{}, State{}
	for _, t := range tables {
		i := slices.IndexFunc(ownTables, func(own table) bool { return t.Name == TableName && t.Family == own.family })
		if i < 0 {
			continue
		}
		found = true
		if held[t.Family], err = ownTables[i].read(conn, t, comments); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		maps.Copy(all, held[t.Family])
	}
	intact := true
	for _, own := range ownTables {
		for _, c := range own.chains {
			intact = intact && slices.Equal(comments[own.path(c)], c.comments(all))
		}
	}
	for key, g := range all {
		g := g.(Guard)
		g.Broken = !intact
		for _, own := range ownTables {
			g.Broken = g.Broken || g.Rule != NoTrack && held[own.family][key] == nil
		}
		state.Put(g)
	}
	if found && len(all) == 0 {
		state.Put(nothing)
	}
	return nil
}

func (own table) path(c chain) string { return fmt.Sprint(own.family, " ", c.name) }

// read returns the guards of one of our tables, and adds the comments of all
// rules in each of its chains.
func (own table) read(conn *nftables.Conn, t *nftables.Table, comments map[string][]string) (State, error) {
	guards := State{}
	sets, err := conn.GetSets(t)
	if err != nil {
		return nil, err
	}
	for rule, name := range setNames {
		i := slices.IndexFunc(sets, func(s *nftables.Set) bool { return s.Name == name })
		if i < 0 {
			continue
		}
		elements, err := conn.GetSetElements(sets[i])
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			dev, _, _ := bytes.Cut(e.Key, []byte{0})
			guards.Put(Guard{Dev: string(dev), Rule: rule})
		}
	}
	for _, c := range own.chains {
		rules, err := conn.GetRules(t, &nftables.Chain{Name: c.name, Table: t})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			comments[own.path(c)] = append(comments[own.path(c)], text)
			if _, end, ok := strings.Cut(text, tunnelMark); ok {
				if end, err := netip.ParseAddrPort(end); err == nil {
					guards.Put(Guard{Rule: NoTrack, Tunnel: end})
				}
			}
		}
	}
	return guards, nil
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
	sets := map[GuardRule]*nftables.Set{}
	for i, rule := range []GuardRule{DropInput, DropBridgeInput} {
		set := &nftables.Set{
			ID:    uint32(own.family)<<8 + uint32(i), // of its own in the transaction
			Table: t, Name: setNames[rule], KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		}
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, dev := range linksOf(guards, rule) {
			name := make([]byte, unix.IFNAMSIZ)
			copy(name[:unix.IFNAMSIZ-1], dev)
			elements = append(elements, nftables.SetElement{Key: name})
		}
		for part := range slices.Chunk(elements, 500) { // an attribute holds 64 kB
			if err := conn.SetAddElements(set, part); err != nil {
				return err
			}
		}
		sets[rule] = set
	}
	policy := nftables.ChainPolicyAccept
	for _, c := range own.chains {
		comments := c.comments(guards)
		if len(comments) == 0 {
			continue
		}
		added := conn.AddChain(&nftables.Chain{Name: c.name, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: c.hook, Priority: nftables.ChainPriorityRef(c.priority), Policy: &policy})
		add := func(comment string, exprs []expr.Any) {
			conn.AddRule(&nftables.Rule{Table: t, Chain: added, Exprs: exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
		}
		for _, conditions := range c.drops {
			if len(linksOf(guards, conditions[0].set)) == 0 {
				continue
			}
			var exprs []expr.Any
			for _, is := range conditions {
				exprs = append(exprs, &expr.Meta{Key: is.key, Register: 1},
					&expr.Lookup{SourceRegister: 1, SetName: sets[is.set].Name, SetID: sets[is.set].ID, Invert: is.not})
			}
			add(layout, append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}))
		}
		if c.tunnel != nil {
			for _, end := range tunnelsOf(guards) {
				add(layout+tunnelMark+end.String(), c.tunnel(end))
			}
		}
	}
	return nil
}
