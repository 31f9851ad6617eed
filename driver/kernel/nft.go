package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
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
const layout = "isthmus layout 1"

// setNames are the sets of link names in each of our tables.
var setNames = map[GuardRule]string{DropInput: "drop_links", DropBridgeInput: "drop_bridges"}

// chain is a base chain of ours; each of its rules is a list of conditions on
// interface names, and drops.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]nameIn
}

// nameIn holds when the name of the input (or output) interface is in the set,
// or, if not, when it is not.
type nameIn struct {
	key expr.MetaKey
	set string
	not bool
}

// ownTables is what we keep in nftables. Arriving frames that a macvlan child
// or a bridge port takes never come here; what does come here would enter the
// host's own stack: its sockets, its neighbour table, its routing.
var ownTables = map[nftables.TableFamily][]chain{
	nftables.TableFamilyINet: {
		{"prerouting", nftables.ChainHookPrerouting, -310, [][]nameIn{{{expr.MetaKeyIIFNAME, "drop_links", false}}}},
		{"input", nftables.ChainHookInput, -310, [][]nameIn{{{expr.MetaKeyIIFNAME, "drop_bridges", false}}}},
		// What br_netfilter shows of bridged frames has the bridge on both sides.
		{"forward", nftables.ChainHookForward, -310, [][]nameIn{{{expr.MetaKeyIIFNAME, "drop_bridges", false}, {expr.MetaKeyOIFNAME, "drop_bridges", true}}}},
	},
	nftables.TableFamilyARP: {
		{"input", nftables.ChainHookRef(0), 0, [][]nameIn{
			{{expr.MetaKeyIIFNAME, "drop_links", false}},
			{{expr.MetaKeyIIFNAME, "drop_bridges", false}},
		}},
	},
}

var ownFamilies = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP}

// guard does a run of operations on guards: our tables are replaced in one
// transaction, so that there is no moment without them.
func (k *Linux) guard(ops []Op) error {
	have := State{}
	if err := k.dumpOwnTables(have); err != nil {
		return fmt.Errorf("read nftables: %w", err)
	}
	want := State{}
	for _, g := range have {
		if g := g.(Guard); g.Dev != "" {
			want.Put(Guard{Dev: g.Dev, Rule: g.Rule})
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
		case setNames[g.Rule] == "":
			return fmt.Errorf("%s %s: unknown rule", op.Action, g.Key())
		case op.Action == Remove:
			delete(want, g.Key())
		default:
			want.Put(Guard{Dev: g.Dev, Rule: g.Rule})
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

// dumpOwnTables adds the guards in our tables to state. What is not in both
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
	whole, found := 0, false
	seen := map[Key]int{}
	for _, t := range tables {
		if t.Name != TableName || ownTables[t.Family] == nil {
			continue
		}
		found = true
		intact, err := readTable(conn, t, seen)
		if err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		if intact {
			whole++
		}
	}
	for key, n := range seen {
		state.Put(Guard{Dev: key.Dev, Rule: GuardRule(key.Sub), Broken: whole < len(ownFamilies) || n < len(ownFamilies)})
	}
	if found && len(seen) == 0 {
		state.Put(Guard{Rule: DropInput, Broken: true})
	}
	return nil
}

// readTable counts the guards of one of our tables, and reports whether it has
// all chains and rules.
func readTable(conn *nftables.Conn, t *nftables.Table, seen map[Key]int) (bool, error) {
	sets, err := conn.GetSets(t)
	if err != nil {
		return false, err
	}
	for rule, name := range setNames {
		i := slices.IndexFunc(sets, func(s *nftables.Set) bool { return s.Name == name })
		if i < 0 {
			continue
		}
		elements, err := conn.GetSetElements(sets[i])
		if err != nil {
			return false, err
		}
		for _, e := range elements {
			dev, _, _ := bytes.Cut(e.Key, []byte{0})
			seen[Guard{Dev: string(dev), Rule: rule}.Key()]++
		}
	}
	for _, c := range ownTables[t.Family] {
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
	members := map[string][]nftables.SetElement{}
	for _, key := range slices.SortedFunc(maps.Keys(guards), CompareKeys) {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name[:unix.IFNAMSIZ-1], key.Dev)
		set := setNames[GuardRule(key.Sub)]
		members[set] = append(members[set], nftables.SetElement{Key: name})
	}
	id := uint32(0)
	for _, family := range ownFamilies {
		table := &nftables.Table{Name: TableName, Family: family}
		conn.AddTable(table) // deleting what is not there would fail
		conn.DelTable(table)
		if len(guards) == 0 {
			continue
		}
		conn.AddTable(table)
		sets := map[string]*nftables.Set{}
		for _, name := range setNames {
			id++
			set := &nftables.Set{ID: id, Table: table, Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
			if err := conn.AddSet(set, nil); err != nil {
				return err
			}
			for part := range slices.Chunk(members[name], 500) { // an attribute holds 64 kB
				if err := conn.SetAddElements(set, part); err != nil {
					return err
				}
			}
			sets[name] = set
		}
		policy := nftables.ChainPolicyAccept
		for _, c := range ownTables[family] {
			added := conn.AddChain(&nftables.Chain{Name: c.name, Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: c.hook, Priority: nftables.ChainPriorityRef(c.priority), Policy: &policy})
			for _, conditions := range c.rules {
				rule := &nftables.Rule{Table: table, Chain: added, UserData: userdata.AppendString(nil, userdata.TypeComment, layout)}
				for _, is := range conditions {
					rule.Exprs = append(rule.Exprs,
						&expr.Meta{Key: is.key, Register: 1},
						&expr.Lookup{SourceRegister: 1, SetName: is.set, SetID: sets[is.set].ID, Invert: is.not})
				}
				rule.Exprs = append(rule.Exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
				conn.AddRule(rule)
			}
		}
	}
	return conn.Flush()
}
