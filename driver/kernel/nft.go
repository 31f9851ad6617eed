package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// guard does a run of operations on guards and on what routes: our tables are
// replaced in one transaction, so that there is no moment without them. The first
// error is one of the tables; the second of what is not in them, and of objects
// that make no sense.
func (k *Linux) guard(ops []Op) (tables, others error) {
	have := State{}
	if err := k.dumpTables(have); err != nil {
		return fmt.Errorf("read nftables: %w", err), nil
	}
	want := State{}
	for _, o := range have {
		if o != nothing {
			want.Put(mended(o))
		}
	}
	var accepts []Op
	var names []string
	for _, op := range ops {
		names = append(names, fmt.Sprintf("%s %s", op.Action, op.Object.Key()))
		switch g, ok := op.Object.(Guard); {
		case ok && g.Rule == AcceptForward:
			accepts = append(accepts, op)
		case op.Action == Remove:
			delete(want, op.Object.Key())
		default:
			want.Put(mended(op.Object))
		}
	}
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(want), CompareKeys) {
		if err := checkObject(want[key], want); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			delete(want, key)
		}
	}
	if !maps.Equal(have, want) {
		if err := k.writeTables(want); err != nil {
			tables = fmt.Errorf("write nftables tables %s (%s): %w", TableName, strings.Join(names, ", "), err)
		}
	}
	if err := k.configured(ops, have); err != nil {
		errs = append(errs, err)
	}
	if err := k.acceptForward(accepts); err != nil {
		errs = append(errs, err)
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
	if err := k.dumpTables(state); err != nil {
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
