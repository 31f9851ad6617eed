package kerneltest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// This file holds the links of others, and how links stand on each other.

// SetDevice does what somebody does by hand: a link of his appears, or changes.
// Its Children are those that Fake knows nothing else of. As with Linux, a lower
// MTU lowers that of what stands on it, and ipvlan links follow a higher one too.
func (f *Fake) SetDevice(d kernel.Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices[d.Name] = d
	f.lower(d.Name, d.MTU)
	if !d.Up {
		f.flushDown(d.Name)
	}
	f.carry(d.Name, !d.Up)
	f.wake()
}

// RemoveDevice does what somebody does by hand, or a cable: a link of his goes,
// and with it all that stands on it.
func (f *Fake) RemoveDevice(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, name)
	f.died(kernel.Link{Name: name})
	f.wake()
}

// RenameDevice does what somebody does by hand; what stands on the link stays.
func (f *Fake) RenameDevice(from, to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devices[from]
	delete(f.devices, from)
	d.Name = to
	f.devices[to] = d
	f.indexes[to] = f.index(from)
	delete(f.indexes, from)
	for k, o := range f.state {
		switch o := o.(type) {
		case kernel.Link:
			if o.Parent == from {
				o.Parent = to
				f.state[k] = o
			}
		case kernel.FIB:
			if o.Dev == from {
				o.Dev = to
				f.state[k] = o
			}
		}
	}
	for _, inside := range f.sandboxes {
		for _, in := range inside {
			if in.Link.Parent == from {
				in.Link.Parent = to
			}
		}
	}
	f.wake()
}

// Links implements kernel.Kernel.
func (f *Fake) Links(ctx context.Context) ([]kernel.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "links"); err != nil {
		return nil, err
	}
	all := map[string]kernel.Device{}
	for name, d := range f.devices {
		d.Addrs = slices.Clone(d.Addrs)
		d.Children = slices.DeleteFunc(slices.Clone(d.Children), func(c kernel.Child) bool { return c.Sandbox != "" })
		all[name] = d
	}
	for _, k := range slices.SortedFunc(maps.Keys(f.state), kernel.CompareKeys) {
		l, ok := f.state[k].(kernel.Link)
		if !ok {
			continue
		}
		d := kernel.Device{Name: l.Name, Kind: l.Kind, MTU: l.MTU, MAC: l.MAC, Up: !l.Down, Carrier: !l.Down, Parent: l.Parent, Master: l.Master, VID: l.VID, Ours: true}
		if l.Master != "" {
			d.MasterKind = kernel.Bridge
		}
		if d.Kind == kernel.VLAN {
			d.Proto = "802.1q"
			if l.Proto != "" {
				d.Proto = l.Proto
			}
		}
		for _, o := range f.state {
			if a, ok := o.(kernel.Addr); ok && a.Dev == l.Name {
				d.Addrs = append(d.Addrs, a.Prefix)
			}
		}
		slices.SortFunc(d.Addrs, netip.Prefix.Compare)
		all[l.Name] = d
	}
	for _, k := range slices.SortedFunc(maps.Keys(f.state), kernel.CompareKeys) {
		l, ok := f.state[k].(kernel.Link)
		if !ok {
			continue
		}
		c, child := childOf(l, l.Name, "")
		if d, ok := all[l.Parent]; ok && child {
			d.Children = append(d.Children, c)
			all[l.Parent] = d
		}
	}
	var out []kernel.Device
	for _, name := range slices.Sorted(maps.Keys(all)) {
		d := all[name]
		d.Index = f.index(name)
		out = append(out, d)
	}
	return out, nil
}

// Lodgers implements kernel.Kernel; all sandboxes are in Docker's directory.
func (f *Fake) Lodgers(ctx context.Context) (map[int][]kernel.Child, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lodged++
	if err := f.fails(ctx, "lodgers"); err != nil {
		return nil, err
	}
	out := map[int][]kernel.Child{}
	for _, name := range slices.Sorted(maps.Keys(f.devices)) {
		for _, c := range f.devices[name].Children {
			if c.Sandbox != "" {
				out[f.index(name)] = append(out[f.index(name)], c)
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(f.sandboxes)) {
		for _, name := range slices.Sorted(maps.Keys(f.sandboxes[path])) {
			l := f.sandboxes[path][name].Link
			if c, ok := childOf(l, name, path); ok {
				i := f.index(l.Parent)
				out[i] = append(out[i], c)
			}
		}
	}
	return out, nil
}

// Lodged counts the calls of Lodgers.
func (f *Fake) Lodged() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lodged
}

// childOf describes a link as its parent sees it.
func childOf(l kernel.Link, name, sandbox string) (kernel.Child, bool) {
	c := kernel.Child{Name: name, Kind: l.Kind, Mode: cmp.Or(l.Mode, "bridge"), Ours: true, Sandbox: sandbox}
	if l.Kind == kernel.IPvlan {
		c.Mode, c.Flag = cmp.Or(l.Mode, "l2"), cmp.Or(l.Flag, "bridge")
	}
	return c, l.Kind == kernel.Macvlan || l.Kind == kernel.IPvlan
}

// index numbers a link, as long as it is there.
func (f *Fake) index(name string) int {
	if f.indexes[name] == 0 {
		f.newest++
		f.indexes[name] = f.newest
	}
	return f.indexes[name]
}

// Heed implements kernel.Kernel; Watch signals every change anyhow.
func (f *Fake) Heed(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heeded = slices.Clone(names)
}

// Heeded lists what Heed was last told.
func (f *Fake) Heeded() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.heeded)
}

// below finds what a link stands on, ours or not.
func (f *Fake) below(name string) (kernel.Link, bool) {
	if d, ok := f.devices[name]; ok {
		return kernel.Link{Name: name, Kind: d.Kind, MTU: d.MTU, MAC: d.MAC, Down: !d.Up, Master: d.Master}, true
	}
	return f.link(name)
}

// local reports whether the host has an address.
func (f *Fake) local(ip netip.Addr) bool {
	has := func(p netip.Prefix) bool { return p.Addr() == ip }
	for _, d := range f.devices {
		if slices.ContainsFunc(d.Addrs, has) {
			return true
		}
	}
	for _, o := range f.state {
		if a, ok := o.(kernel.Addr); ok && has(a.Prefix) {
			return true
		}
	}
	return false
}

// admits says why a parent does not take a link: it serves macvlan or ipvlan, a
// passthru link alone, and a VLAN once.
func (f *Fake) admits(l kernel.Link) error {
	check := func(other kernel.Link, where string) error {
		switch {
		case other.Parent != l.Parent || other.Name == l.Name:
		case l.Kind == kernel.VLAN && other.Kind == kernel.VLAN && l.VID == other.VID && l.Proto == other.Proto:
			return fmt.Errorf("VLAN %d exists as %s", l.VID, where)
		case l.Kind == kernel.VLAN || other.Kind == kernel.VLAN:
		case l.Kind != other.Kind:
			return fmt.Errorf("parent %s is busy", l.Parent)
		case l.Mode == "passthru" || other.Mode == "passthru":
			return errors.New("a passthru link is alone on its parent")
		}
		return nil
	}
	for _, o := range f.state {
		if other, ok := o.(kernel.Link); ok {
			if err := check(other, other.Name); err != nil {
				return err
			}
		}
	}
	for path, inside := range f.sandboxes {
		for _, in := range inside {
			if err := check(in.Link, path); err != nil {
				return err
			}
		}
	}
	for _, c := range f.devices[l.Parent].Children {
		if err := check(kernel.Link{Name: c.Name + "/" + c.Sandbox, Kind: c.Kind, Mode: c.Mode, Parent: l.Parent}, c.Sandbox); err != nil {
			return err
		}
	}
	return nil
}

// flip gives all ipvlan links on a parent the mode of the newest.
func (f *Fake) flip(l kernel.Link) {
	for k, o := range f.state {
		if other, ok := o.(kernel.Link); ok && other.Kind == kernel.IPvlan && other.Parent == l.Parent {
			other.Mode, other.Flag = l.Mode, l.Flag
			f.state[k] = other
		}
	}
	for _, inside := range f.sandboxes {
		for _, in := range inside {
			if in.Link.Kind == kernel.IPvlan && in.Link.Parent == l.Parent {
				in.Link.Mode, in.Link.Flag = l.Mode, l.Flag
			}
		}
	}
}

// lower gives what stands on a link no higher an MTU than it has. An ipvlan
// link follows a higher one too.
func (f *Fake) lower(name string, mtu int) {
	if mtu == 0 {
		return
	}
	for k, o := range f.state {
		l, ok := o.(kernel.Link)
		if ok && l.Parent == name && (l.MTU > mtu || l.Kind == kernel.IPvlan) {
			l.MTU = mtu
			f.state[k] = l
			f.lower(l.Name, mtu)
		}
	}
	for _, inside := range f.sandboxes {
		for _, in := range inside {
			if in.Link.Parent == name && (in.Link.MTU > mtu || in.Link.Kind == kernel.IPvlan) {
				in.Link.MTU = mtu
			}
		}
	}
}

// carry takes VLANs down and up with what they stand on.
func (f *Fake) carry(name string, down bool) {
	for _, o := range f.state {
		l, ok := o.(kernel.Link)
		if !ok || l.Kind != kernel.VLAN || l.Parent != name || l.Down == down {
			continue
		}
		l.Down = down
		f.state.Put(l)
		if down {
			f.flushDown(l.Name)
		}
		f.carry(l.Name, down)
	}
}

// unaddress drops what a route owes to an address that is gone: an IPv4 one goes
// altogether, an IPv6 one forgets its source.
func (f *Fake) unaddress(a kernel.Addr) {
	for k, o := range f.state {
		r, ok := o.(kernel.FIB)
		if !ok || r.Src != a.Prefix.Addr() {
			continue
		}
		if r.Src.Is4() {
			delete(f.state, k)
			continue
		}
		r.Src = netip.Addr{}
		f.state[k] = r
	}
}

// flushDown drops what a link loses as it goes down.
func (f *Fake) flushDown(name string) {
	for k, o := range f.state {
		switch o := o.(type) {
		case kernel.FIB:
			if o.Dev == name {
				delete(f.state, k)
			}
		case kernel.Addr:
			if o.Dev == name && o.Prefix.Addr().Is6() {
				delete(f.state, k)
				f.unaddress(o)
			}
		}
	}
}

// canonical is l as a dump shows it.
func canonical(l kernel.Link) kernel.Link {
	switch {
	case l.Kind == kernel.Macvlan && l.Mode == "bridge", l.Kind == kernel.IPvlan && l.Mode == "l2":
		l.Mode = ""
	}
	l.Flag = strings.TrimPrefix(l.Flag, "bridge")
	l.Proto = strings.TrimPrefix(l.Proto, "802.1q")
	if l.Kind == kernel.IPvlan || l.Mode == "passthru" {
		l.MAC = kernel.Link{}.MAC
	}
	return l
}
