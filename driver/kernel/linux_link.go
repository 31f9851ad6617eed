package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// addrGenNone keeps IPv6 link-local addresses off a link: without one, the host
// takes no part in what happens there.
const addrGenNone = 1 // IN6_ADDR_GEN_MODE_NONE

func ours(a *netlink.LinkAttrs) bool {
	return a.Group == Group && strings.HasPrefix(a.Name, Prefix)
}

// dumpLinks adds our links to state, and returns our VXLAN devices by index.
func (k *Linux) dumpLinks(ctx context.Context, state State) (map[int]string, error) {
	links, err := retry(ctx, k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	tunnels := map[int]string{}
	for _, l := range links {
		if !ours(l.Attrs()) {
			continue
		}
		if o, ok := linkOf(l, names); ok {
			state.Put(o)
			if o.Kind == VXLAN {
				tunnels[l.Attrs().Index] = o.Name
			}
		}
	}
	return tunnels, nil
}

// linkOf reads a link of the library; names are by index.
func linkOf(l netlink.Link, names map[int]string) (Link, bool) {
	a := l.Attrs()
	o := Link{Name: a.Name, MTU: a.MTU, Master: names[a.MasterIndex], Down: a.RawFlags&unix.IFF_UP == 0}
	if len(a.HardwareAddr) == len(o.MAC) {
		o.MAC = cluster.MAC(a.HardwareAddr)
	}
	switch l := l.(type) {
	case *netlink.Vxlan:
		o.Kind = VXLAN
		o.VNI = uint32(l.VxlanId)
		o.Port = uint16(l.Port)
		o.Proxy = l.Proxy
		o.Local = addrOf(l.SrcAddr)
	case *netlink.Bridge:
		o.Kind = Bridge
	case *netlink.Macvlan:
		o.Kind = Macvlan
		o.Parent = names[a.ParentIndex]
	case *netlink.Veth:
		o.Kind = Veth
		if a.NetNsID < 0 { // else the index is of another namespace
			o.Peer = names[a.ParentIndex]
		}
	default:
		return Link{}, false
	}
	return o, true
}

// link does one operation on a link.
func (k *Linux) link(action Action, l Link) error {
	switch action {
	case Add:
		return k.addLink(l)
	case Set:
		return k.setLink(l)
	case Remove:
		return k.removeLink(l.Name)
	}
	return fmt.Errorf("unknown action %q", action)
}

func (k *Linux) addLink(l Link) error {
	made, err := k.describe(l)
	if err != nil {
		return err
	}
	err = k.h.LinkAdd(made)
	if errors.Is(err, unix.EEXIST) {
		if _, gone := k.h.LinkByName(l.Name); gone == nil {
			return k.setLink(l) // present already
		}
		if l.Kind == VXLAN {
			return fmt.Errorf("VNI %d on UDP port %d is in use by another VXLAN device of this host: delete that one (ip -d link show type vxlan), or choose another vni: %w", l.VNI, l.Port, err)
		}
	}
	if err != nil {
		return err
	}
	if err := k.setLink(l); err != nil {
		// Better absent than half made: the next pass starts anew.
		return errors.Join(err, k.removeLink(l.Name))
	}
	return nil
}

// describe turns l into what the library creates, down.
func (k *Linux) describe(l Link) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Group = l.Name, l.MTU, Group
	if !l.MAC.IsZero() {
		a.HardwareAddr = net.HardwareAddr(l.MAC[:])
	}
	switch l.Kind {
	case VXLAN:
		// No lower device: the tunnel would die with it, and be clamped to its
		// MTU. TTL 0 is the host's default. Learning and miss notifications
		// stay off: what the device knows, it knows from us.
		return &netlink.Vxlan{LinkAttrs: a, VxlanId: int(l.VNI), SrcAddr: l.Local.AsSlice(), Port: int(l.Port), Proxy: l.Proxy, UDPCSum: true}, nil
	case Bridge:
		// Its MTU follows the smallest of its ports until somebody sets it;
		// given in the act of creation, it does not count as set.
		a.MTU = 0
		snooping := false // multicast reaches all, with or without a querier
		return &netlink.Bridge{LinkAttrs: a, MulticastSnooping: &snooping}, nil
	case Macvlan:
		parent, err := k.h.LinkByName(l.Parent)
		if err != nil {
			return nil, fmt.Errorf("find parent %s: %w", l.Parent, err)
		}
		a.ParentIndex = parent.Attrs().Index
		return &netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}, nil
	}
	return nil, fmt.Errorf("cannot make a link of kind %q by itself", l.Kind)
}

// setLink makes the existing link like l, up or down. It touches only
// what differs: setting the MAC that a device has already would flush its
// neighbours.
func (k *Linux) setLink(l Link) error {
	cur, err := k.h.LinkByName(l.Name)
	if err != nil {
		return err
	}
	if !ours(cur.Attrs()) {
		return fmt.Errorf("a link of this name stands in the way that isthmus did not make: delete it (ip link delete %s) or rename it", l.Name)
	}
	names, err := k.namesOf(cur.Attrs().ParentIndex, cur.Attrs().MasterIndex)
	if err != nil {
		return err
	}
	have, ok := linkOf(cur, names)
	if !ok || !changeable(have, l) {
		return fmt.Errorf("have %s: it cannot be changed in place", have)
	}
	if err := k.h.LinkSetIP6AddrGenMode(cur, addrGenNone); err != nil &&
		!errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) { // a host without IPv6
		return fmt.Errorf("set addrgenmode none: %w", err)
	}
	if !l.MAC.IsZero() && have.MAC != l.MAC {
		if err := k.h.LinkSetHardwareAddr(cur, net.HardwareAddr(l.MAC[:])); err != nil {
			return fmt.Errorf("set address %s: %w", l.MAC, err)
		}
	}
	if l.MTU != 0 && have.MTU != l.MTU {
		if err := k.h.LinkSetMTU(cur, l.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", l.MTU, err)
		}
	}
	if have.Local != l.Local {
		if err := k.setLocal(cur.Attrs().Index, l.Local); err != nil {
			return fmt.Errorf("set local %s: %w", l.Local, err)
		}
	}
	if have.Master != l.Master {
		if err := k.setMaster(cur, l.Master); err != nil {
			return fmt.Errorf("set master %q: %w", l.Master, err)
		}
	}
	switch {
	case have.Down && !l.Down:
		if err := k.h.LinkSetUp(cur); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	case l.Down && !have.Down:
		if err := k.h.LinkSetDown(cur); err != nil {
			return fmt.Errorf("set down: %w", err)
		}
	}
	return nil
}

func (k *Linux) setMaster(l netlink.Link, master string) error {
	if master == "" {
		return k.h.LinkSetNoMaster(l)
	}
	m, err := k.h.LinkByName(master)
	if err != nil {
		return err
	}
	return k.h.LinkSetMasterByIndex(l, m.Attrs().Index)
}

// removeLink deletes a link of ours; any other one of this name is left alone.
func (k *Linux) removeLink(name string) error {
	l, err := k.h.LinkByName(name)
	if isNotFound(err) || err == nil && !ours(l.Attrs()) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.h.LinkDel(l); err != nil && !isNotFound(err) {
		return err
	}
	return nil
}

// namesOf looks up links by index; indexes of other namespaces have no name.
func (k *Linux) namesOf(indexes ...int) (map[int]string, error) {
	names := map[int]string{}
	for _, i := range indexes {
		if i == 0 {
			continue
		}
		l, err := k.h.LinkByIndex(i)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names[i] = l.Attrs().Name
	}
	return names, nil
}

func isNotFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// Makes implements Kernel. A macvlan without a link below is refused as invalid
// (EINVAL) by a kernel that knows the kind, and as not supported by one that
// does not, after it tried to load the module (rtnl_newlink in
// net/core/rtnetlink.c).
func (k *Linux) Makes(_ context.Context, kind Kind) (bool, error) {
	if kind != Macvlan {
		return true, nil // without the others nothing works at all
	}
	err := k.h.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: Prefix + "probe"}, Mode: netlink.MACVLAN_MODE_BRIDGE})
	switch {
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err == nil:
		err = errors.New("it made one without a link below")
	}
	return false, fmt.Errorf("ask the kernel for %s: %w", kind, err)
}
