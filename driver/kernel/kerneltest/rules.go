package kerneltest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// This file is how the kernel behaves. The lock is held.

func (f *Fake) link(name string) (kernel.Link, bool) {
	l, ok := f.state[kernel.Link{Name: name}.Key()].(kernel.Link)
	return l, ok
}

func (f *Fake) do(op kernel.Op) error {
	if op.Action == kernel.Remove {
		f.remove(op.Object.Key())
		return nil
	}
	switch o := op.Object.(type) {
	case kernel.Link:
		_, present := f.link(o.Name)
		if !present && op.Action == kernel.Set {
			return errors.New("no such link")
		}
		if !present && o.Kind == kernel.Veth {
			if o.Peer == "" {
				return errors.New("cannot make a veth by itself")
			}
			f.state.Put(kernel.Link{Name: o.Peer, Kind: kernel.Veth, MTU: o.MTU, Peer: o.Name, Down: true})
		}
		return f.putLink(o)
	case kernel.Addr:
		if l, ok := f.link(o.Dev); !ok || l.Kind == kernel.VXLAN {
			return errors.New("no such link but a VXLAN device")
		}
	case kernel.FIB:
		if o.Dev == "" {
			break
		}
		if l, ok := f.below(o.Dev); !ok {
			return fmt.Errorf("no such link %s", o.Dev)
		} else if l.Down {
			return errors.New("network is down")
		}
		if o.Src.IsValid() && !f.local(o.Src) {
			return fmt.Errorf("no such address %s", o.Src)
		}
	case kernel.FDB:
		l, ok := f.link(o.Dev)
		if !ok || l.Kind != kernel.VXLAN {
			return errors.New("no such VXLAN device")
		}
		if l.Local.Is4() != o.Dst.Is4() {
			return errors.New("address family not supported")
		}
	case kernel.Neigh:
		if l, ok := f.link(o.Dev); !ok {
			return errors.New("no such link")
		} else if l.Down {
			return errors.New("network is down")
		}
	case kernel.Guard:
		o.Broken = false
		f.state.Put(o)
		return nil
	case kernel.Gateway:
		o.Broken = false
		f.state.Put(o)
		if _, ok := f.link(o.Dev); !ok {
			return errors.New("no such link")
		}
		return nil
	case kernel.Uplink:
		o.Broken = false
		f.state.Put(o)
		if _, ok := f.below(o.Dev); !ok {
			return errors.New("no such link")
		}
		return nil
	}
	f.state.Put(op.Object)
	return nil
}

// putLink makes a link or changes it in place, up or down.
func (f *Fake) putLink(l kernel.Link) error {
	old, present := f.link(l.Name)
	_, foreign := f.devices[l.Name]
	switch {
	case foreign:
		return errors.New("a link of this name stands in the way that isthmus did not make")
	case present:
		if old.Kind != l.Kind || old.Parent != l.Parent || old.VNI != l.VNI || old.Port != l.Port ||
			old.Proxy != l.Proxy || old.Local.Is4() != l.Local.Is4() || old.VID != l.VID || old.Proto != canonical(l).Proto ||
			(old.Mode == "passthru") != (l.Mode == "passthru") || old.Remote != l.Remote || l.Remote.IsValid() && old.Local != l.Local {
			return fmt.Errorf("have %s: it cannot be changed in place", old)
		}
		if l.MAC.IsZero() {
			l.MAC = old.MAC
		}
		if l.MTU == 0 {
			l.MTU = old.MTU
		}
		l.Peer = old.Peer
	case slices.Contains(f.lacks, l.Kind):
		return kernel.Lacks(l.Kind)
	}
	l = canonical(l)
	if m, ok := f.link(l.Master); l.Master != "" && (!ok || m.Kind != kernel.Bridge) {
		return fmt.Errorf("no such bridge %s", l.Master)
	}
	if l.Parent != "" {
		p, ok := f.below(l.Parent)
		if l.MTU == 0 {
			l.MTU = p.MTU
		}
		switch {
		case !ok:
			return fmt.Errorf("no such parent %s", l.Parent)
		case l.Kind != kernel.VLAN && p.Master != "":
			return fmt.Errorf("parent %s is busy", l.Parent)
		case l.Kind == kernel.VLAN && p.Down && !l.Down:
			return fmt.Errorf("parent %s is down", l.Parent)
		case l.MTU > p.MTU && p.MTU != 0:
			return fmt.Errorf("mtu %d is above that of %s", l.MTU, l.Parent)
		}
		if err := f.admits(l); err != nil {
			return err
		}
	}
	for _, o := range f.state {
		other, ok := o.(kernel.Link)
		if !ok || other.Name == l.Name {
			continue
		}
		switch {
		case l.Kind == kernel.VXLAN && other.Kind == kernel.VXLAN && l.VNI == other.VNI && l.Port == other.Port && l.Local.Is4() == other.Local.Is4():
			return fmt.Errorf("VNI %d exists as %s", l.VNI, other.Name)
		case l.Kind == kernel.Macvlan && other.Kind == kernel.Macvlan && l.Parent == other.Parent && l.MAC == other.MAC && !l.MAC.IsZero():
			return fmt.Errorf("address %s is busy", l.MAC)
		case l.Master != "" && other.Kind != kernel.VLAN && other.Parent == l.Name:
			return fmt.Errorf("%s is busy", l.Name)
		}
	}
	f.lower(l.Name, l.MTU)
	if present && old.MAC != l.MAC || l.Down {
		f.flushNeigh(l.Name)
	}
	if l.Down {
		f.flushDown(l.Name)
	}
	if l.Kind == kernel.IPvlan {
		f.flip(l)
	}
	l.Standing = kernel.Kept
	f.state.Put(l)
	if present && old.Down != l.Down {
		f.carry(l.Name, l.Down)
	}
	return nil
}

// remove deletes an object with all that dies with it.
func (f *Fake) remove(k kernel.Key) {
	o := f.state[k]
	delete(f.state, k)
	switch o := o.(type) {
	case kernel.Link:
		f.died(o)
	case kernel.Addr:
		f.unaddress(o)
	}
}

// died takes along what stood on a link: its entries, addresses and routes, the
// links above it, wherever they are, and the other end of a veth pair.
func (f *Fake) died(l kernel.Link) {
	delete(f.indexes, l.Name)
	for k, o := range f.state {
		switch o := o.(type) {
		case kernel.FDB, kernel.Neigh:
			if k.Dev == l.Name {
				delete(f.state, k)
			}
		case kernel.Gateway: // its rules stay, its sysctls went
			if o.Dev == l.Name {
				o.Broken = true
				f.state[k] = o
			}
		case kernel.Addr:
			if k.Dev == l.Name {
				f.remove(k)
			}
		case kernel.FIB:
			if o.Dev == l.Name {
				delete(f.state, k)
			}
		case kernel.Link:
			switch {
			case stands(o, l):
				f.remove(k)
			case o.Master == l.Name:
				o.Master = ""
				f.state[k] = o
			}
		}
	}
	for _, inside := range f.sandboxes {
		for name, in := range inside {
			if stands(in.Link, l) {
				delete(inside, name)
			}
		}
	}
}

func stands(o, on kernel.Link) bool {
	return o.Parent != "" && o.Parent == on.Name ||
		o.Kind == kernel.Veth && on.Kind == kernel.Veth && o.Peer == on.Name
}

func (f *Fake) flushNeigh(dev string) {
	for k := range f.state {
		if k.Type == "neigh" && k.Dev == dev {
			delete(f.state, k)
		}
	}
}

func (f *Fake) hand(h kernel.Handover) error {
	f.remove(h.Link.Key())
	if err := f.makeEndpoint(h); err != nil {
		return err
	}
	f.handed[h.Link.Name] = h
	l, _ := f.link(h.Link.Name)
	l.Down = true
	f.state.Put(l)
	return nil
}

// makeEndpoint makes the container's end, and a veth's host end with it.
func (f *Fake) makeEndpoint(h kernel.Handover) error {
	l := h.Link
	if l.Kind != kernel.Veth {
		return f.putLink(l)
	}
	host := h.Host
	host.Peer, l.Peer = l.Name, host.Name
	f.remove(host.Key())
	if err := f.putLink(host); err != nil {
		return err
	}
	return f.putLink(l)
}

func (f *Fake) mend(h kernel.Handover) (bool, error) {
	inside := f.sandboxes[h.Sandbox]
	if inside == nil {
		return false, kernel.ErrNoSandbox
	}
	if name := f.find(h); name != "" {
		in, l := inside[name], canonical(h.Link)
		if l.MTU != 0 && (in.Link.MTU > l.MTU || h.Follow) {
			in.Link.MTU = l.MTU
		}
		in.Link.Mode, in.Link.Flag, in.Link.Sources = l.Mode, l.Flag, l.Sources
		return false, nil
	}
	if h.Link.Down {
		return false, nil
	}
	if err := f.makeEndpoint(h); err != nil {
		return false, err
	}
	l, _ := f.link(h.Link.Name)
	delete(f.state, l.Key())
	name := h.Name
	row := strings.TrimRight(name, "0123456789")
	if row == "" {
		row = "eth"
	}
	for n := 0; name == "" || inside[name] != nil; n++ {
		name = fmt.Sprint(row, n)
	}
	inside[name] = &Inside{Link: l, Addrs: h.Addrs, Routes: h.Routes}
	return true, nil
}

// find returns the name of h's interface in its sandbox.
func (f *Fake) find(h kernel.Handover) string {
	for name, in := range f.sandboxes[h.Sandbox] {
		if in.Link.MAC == h.Link.MAC && (!h.Link.MAC.IsZero() || in.Link.Name == h.Link.Name) {
			return name
		}
	}
	return ""
}

func (f *Fake) sandbox(path string) {
	if f.sandboxes[path] == nil {
		f.sandboxes[path] = map[string]*Inside{}
	}
}
