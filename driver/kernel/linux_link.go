package kernel

import (
	"cmp"
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

// ours reports whether l bears our marks. names are by index: a VLAN device is
// ours by its group with its alias, or with its name, which is complete before
// the alias is and stays when its parent is renamed.
func ours(l netlink.Link, names map[int]string) bool {
	a := l.Attrs()
	if a.Group != Group {
		return false
	}
	if v, ok := l.(*netlink.Vlan); ok {
		return a.Alias == Alias || a.Name == fmt.Sprintf("%s.%d", names[a.ParentIndex], v.VlanId)
	}
	return strings.HasPrefix(a.Name, Prefix)
}

// indexed is what the rest of a dump needs of the links: names by index.
type indexed struct {
	all       map[int]string
	tunnels   map[int]string // our VXLAN devices
	addressed map[int]string // our other links, which may have addresses
}

// dumpLinks adds our links to state.
func (k *Linux) dumpLinks(ctx context.Context, state State) (indexed, error) {
	links, err := retry(ctx, k.h.LinkList)
	if err != nil {
		return indexed{}, fmt.Errorf("links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	found := indexed{names, map[int]string{}, map[int]string{}}
	for _, l := range links {
		if !ours(l, names) {
			continue
		}
		if o, ok := linkOf(l, names); ok {
			state.Put(o)
			switch o.Kind {
			case VXLAN:
				found.tunnels[l.Attrs().Index] = o.Name
			default:
				found.addressed[l.Attrs().Index] = o.Name
			}
		}
	}
	return found, nil
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
		readStation(l, &o)
	case *netlink.IPVlan:
		o.Kind = IPvlan
		o.Parent = names[a.ParentIndex]
		readStation(l, &o)
	case *netlink.Vlan:
		o.Kind = VLAN
		o.Parent = names[a.ParentIndex]
		o.VID, o.Proto = uint16(l.VlanId), wordOf(vlanProtos, l.VlanProtocol)
		o = o.normal()
	case *netlink.Dummy:
		o.Kind = Dummy
	case *netlink.Iptun:
		o.Kind, o.Local, o.Remote, o.MAC = IPIP, addrOf(l.Local), addrOf(l.Remote), cluster.MAC{}
	case *netlink.Ip6tnl:
		o.Kind, o.Local, o.Remote, o.MAC = IPIP, addrOf(l.Local), addrOf(l.Remote), cluster.MAC{}
	case *netlink.Gretun:
		o.Kind, o.Local, o.Remote, o.MAC = GRE, addrOf(l.Local), addrOf(l.Remote), cluster.MAC{}
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
	if l.Kind == Veth {
		err = k.addPair(made)
	} else {
		err = k.h.LinkAdd(made)
	}
	if errors.Is(err, unix.EEXIST) {
		if _, gone := k.h.LinkByName(l.Name); gone == nil {
			return k.setLink(l) // present already
		}
		if l.Kind == VLAN {
			return fmt.Errorf("VLAN %d of %s is in use by another device of this host: name that one as the parent (ip -d link show type vlan), or delete it: %w", l.VID, l.Parent, err)
		}
		if l.Kind == VXLAN {
			return fmt.Errorf("VNI %d on UDP port %d is in use by another VXLAN device of this host: delete that one (ip -d link show type vxlan), or choose another vni: %w", l.VNI, l.Port, err)
		}
	}
	if err != nil {
		return k.explain(l, err)
	}
	err = k.quiet(l)
	if err == nil {
		err = k.setLink(l)
	}
	if err != nil {
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
	case Macvlan, IPvlan, VLAN:
		parent, err := k.h.LinkByName(l.Parent)
		if err != nil {
			return nil, fmt.Errorf("find parent %s: %w", l.Parent, err)
		}
		a.ParentIndex = parent.Attrs().Index
		if l.Kind != VLAN {
			return stationOf(l, a)
		}
		proto, ok := vlanProtos[cmp.Or(l.Proto, "802.1q")]
		if !ok {
			return nil, fmt.Errorf("no such VLAN protocol: %q", l.Proto)
		}
		return &netlink.Vlan{LinkAttrs: a, VlanId: int(l.VID), VlanProtocol: proto}, nil
	case Dummy:
		return &netlink.Dummy{LinkAttrs: a}, nil
	case IPIP, GRE:
		return tunnelOf(l, a)
	case Veth:
		if l.Peer != "" {
			v := netlink.NewVeth(a)
			v.PeerName, v.PeerMTU = l.Peer, uint32(l.MTU)
			return v, nil
		}
	}
	return nil, fmt.Errorf("cannot make a link of kind %q by itself", l.Kind)
}

// addPair makes a veth pair that stays in the host's namespace. The near end
// becomes ours last, so that a pair of which only one end is marked is made anew.
func (k *Linux) addPair(made netlink.Link) error {
	v := made.(*netlink.Veth)
	group := v.Group
	v.Group = unfinished
	if half, err := k.h.LinkByName(v.Name); err == nil && half.Attrs().Group == unfinished {
		if err := k.h.LinkDel(half); err != nil {
			return err
		}
	}
	if err := k.h.LinkAdd(v); err != nil {
		return err
	}
	for _, end := range []string{v.PeerName, v.Name} {
		l, err := k.h.LinkByName(end)
		if err == nil {
			err = k.h.LinkSetGroup(l, int(group))
		}
		if err != nil {
			return fmt.Errorf("set group of %s: %w", end, err)
		}
	}
	return nil
}

// quiet keeps a fresh link on somebody's LAN from taking part there by itself: a
// router's advertisement must not give the host a route through it.
func (k *Linux) quiet(l Link) error {
	switch l.Kind {
	case VLAN, Macvlan, IPvlan:
		return inside(int(k.ns), func() error { return setIPv6(l.Name, "accept_ra", "0") })
	case VXLAN, IPIP, GRE:
		// What another host routes here may come by a way that ours to it is not (a
		// peer changes over first), which a strict host would take for spoofed. The
		// larger value counts, that of all links or of this one.
		return inside(int(k.ns), func() error {
			if readConf("ipv4", "all", "rp_filter") == "1" || readConf("ipv4", l.Name, "rp_filter") == "1" {
				return writeConf("ipv4", l.Name, "rp_filter", "2")
			}
			return nil
		})
	}
	return nil
}

// setLink makes the existing link like l, up or down. It touches only
// what differs: setting the MAC that a device has already would flush its
// neighbours.
func (k *Linux) setLink(l Link) error {
	cur, err := k.h.LinkByName(l.Name)
	if err != nil {
		return err
	}
	names, err := k.namesOf(cur.Attrs().ParentIndex, cur.Attrs().MasterIndex)
	if err != nil {
		return err
	}
	if !ours(cur, names) {
		return fmt.Errorf("a link of this name stands in the way that isthmus did not make: delete it (ip link delete %s) or rename it", l.Name)
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
	if l.Kind == VLAN && cur.Attrs().Alias != Alias {
		if err := k.h.LinkSetAlias(cur, Alias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	if err := setMode(k.request, k.h, cur, have, l); err != nil {
		return err
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
		err := k.h.LinkSetUp(cur)
		if errors.Is(err, unix.ENETDOWN) && l.Kind == VLAN {
			return fmt.Errorf("set up: its parent %[1]s is down: set that up (ip link set %[1]s up): %[2]w", l.Parent, err)
		}
		if err != nil {
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
	l, err := k.ownLink(name)
	if err != nil || l == nil {
		return err
	}
	if err := k.h.LinkDel(l); err != nil && !isNotFound(err) {
		return err
	}
	return nil
}

// ownLink finds a link of ours by name; nil when there is none.
func (k *Linux) ownLink(name string) (netlink.Link, error) {
	l, err := k.h.LinkByName(name)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := k.namesOf(l.Attrs().ParentIndex)
	if err != nil || !ours(l, names) {
		return nil, err
	}
	return l, nil
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
