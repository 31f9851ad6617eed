package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// nothing is in a dump where there is a table of ours that guards nothing.
var nothing = Guard{Rule: DropInput, Broken: true}

// guard does a run of operations on guards and on what routes: our tables are
// replaced in one transaction, so that there is no moment without them. The first
// error is one of the tables; the second of what is not in them, and of objects
// that make no sense.
func (k *Linux) guard(ops []Op) (tables, others error) {
	have := State{}
	if err := k.dumpOwnTables(have); err != nil {
		return fmt.Errorf("read nftables: %w", err), nil
	}
	want := State{}
	for _, o := range have {
		if o != nothing {
			want.Put(mended(o))
		}
	}
	var accept []Op
	var names []string
	for _, op := range ops {
		names = append(names, fmt.Sprintf("%s %s", op.Action, op.Object.Key()))
		g, ok := op.Object.(Guard)
		switch {
		case !ok && op.Action == Remove:
			delete(want, op.Object.Key())
		case !ok:
			want.Put(mended(op.Object))
		case g.Rule == AcceptForward, g.Rule == AcceptRouted:
			accept = append(accept, op)
		case !placed(g):
			return fmt.Errorf("%s %s: unknown rule", op.Action, g.Key()), nil
		case op.Action == Remove:
			delete(want, g.Key())
		default:
			g.Broken = false
			want.Put(g)
		}
	}
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(want), CompareKeys) {
		if err := checkRouting(want[key], want); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			delete(want, key)
		}
	}
	if !maps.Equal(have, want) {
		if err := k.writeOwnTables(want); err != nil {
			tables = fmt.Errorf("write nftables tables %s (%s): %w", TableName, strings.Join(names, ", "), err)
		}
	}
	if err := k.configured(ops, have); err != nil {
		errs = append(errs, err)
	}
	for _, op := range accept {
		if err := k.acceptForward(op.Action, acceptName(op.Object.(Guard))); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", op.Action, op.Object.Key(), err))
		}
	}
	return tables, errors.Join(errs...)
}

// mended is o as it is wanted.
func mended(o Object) Object {
	switch o := o.(type) {
	case Guard:
		o.Broken = false
		return o
	case Gateway:
		o.Broken = false
		return o
	case Uplink:
		o.Broken = false
		return o
	}
	return o
}

func (k *Linux) dumpGuards(state State) error {
	if err := k.dumpOwnTables(state); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := k.dumpConfigured(state); err != nil {
		return err
	}
	if err := k.dumpAccepts(state); err != nil {
		return fmt.Errorf("nftables chain of Docker: %w", err)
	}
	return nil
}

// dumpOwnTables adds the guards in our tables to state, and what routes. A guard
// that is not in all of them, or in one that is not as we make it, is broken; where
// what routes is not as we make it, there is nothing.
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
	found, routed, comments := false, State{}, map[string][]string{}
	whole := true
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
		if t.Family == nftables.TableFamilyINet {
			if routed, whole, err = k.readRouting(conn, t, held[t.Family]); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			maps.Copy(state, routed)
		}
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
			belongs := slices.ContainsFunc(own.sets, func(s set) bool { return s.put(g) != nil })
			g.Broken = g.Broken || belongs && held[own.family][key] == nil
		}
		state.Put(g)
	}
	if found && len(all)+len(routed) == 0 || !whole {
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
	for _, s := range own.sets {
		i := slices.IndexFunc(sets, func(o *nftables.Set) bool { return o.Name == s.name })
		if i < 0 {
			continue
		}
		elements, err := conn.GetSetElements(sets[i])
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			guards.Put(s.get(e.Key))
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
			if end, ok := strings.CutPrefix(text, c.mark()); ok {
				if end, err := netip.ParseAddrPort(end); err == nil {
					guards.Put(Guard{Rule: c.tunnel, Tunnel: end})
				}
			}
		}
	}
	return guards, nil
}

// writeOwnTables replaces our tables by what want says; where that is nothing,
// there is no table.
func (k *Linux) writeOwnTables(want State) error {
	guards := guardsOf(want)
	routed := renderRouting(want)
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return err
	}
	for _, own := range ownTables {
		t := &nftables.Table{Name: TableName, Family: own.family}
		conn.AddTable(t) // deleting what is not there would fail
		conn.DelTable(t)
		routes := own.family == nftables.TableFamilyINet && len(routed.sets) > 0
		if len(guards) == 0 && !routes {
			continue
		}
		conn.AddTable(t)
		if err := own.write(conn, t, guards); err != nil {
			return err
		}
		if routes {
			if err := routed.write(conn, t); err != nil {
				return err
			}
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
			Table: t, Name: s.name, KeyType: s.key, KeyByteOrder: s.order,
		}
		if err := conn.AddSet(made, nil); err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, key := range s.elements(guards) {
			elements = append(elements, nftables.SetElement{Key: key})
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
		comments := c.comments(guards)
		if len(comments) == 0 {
			continue
		}
		added := conn.AddChain(&nftables.Chain{Name: c.name, Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: c.hook, Priority: nftables.ChainPriorityRef(c.priority), Policy: &policy})
		add := func(comment string, exprs []expr.Any) {
			for _, e := range exprs {
				if l, ok := e.(*expr.Lookup); ok {
					l.SetID = ids[l.SetName]
				}
			}
			conn.AddRule(&nftables.Rule{Table: t, Chain: added, Exprs: exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
		}
		for _, conditions := range c.drops {
			if len(conditions[0].set.elements(guards)) == 0 {
				continue
			}
			var exprs []expr.Any
			for _, is := range conditions {
				exprs = append(exprs, &expr.Meta{Key: is.key, Register: 1},
					&expr.Lookup{SourceRegister: 1, SetName: is.set.name, Invert: is.not})
			}
			add(layout, append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}))
		}
		for _, end := range c.tunnels(guards) {
			add(c.mark()+end.String(), c.rule(end))
		}
	}
	return nil
}
