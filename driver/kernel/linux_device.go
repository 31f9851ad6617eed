package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// Links implements Kernel.
func (k *Linux) Links(ctx context.Context) ([]Device, error) {
	k.mu.Lock()
	links, err := retry(ctx, k.h.LinkList)
	var addrs []netlink.Addr
	if err == nil {
		addrs, err = retry(ctx, func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	}
	var wireless map[int]bool
	if err == nil {
		wireless, err = k.wireless()
	}
	k.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names, kinds := map[int]string{}, map[int]Kind{}
	for _, l := range links {
		names[l.Attrs().Index], kinds[l.Attrs().Index] = l.Attrs().Name, Kind(l.Type())
	}
	held := map[int][]netip.Prefix{}
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); p.IsValid() {
			held[a.LinkIndex] = append(held[a.LinkIndex], p)
		}
	}
	children := map[int][]Child{}
	for _, l := range links {
		if c, ok := childOf(l, ""); ok && names[l.Attrs().ParentIndex] != "" && l.Attrs().NetNsID < 0 {
			children[l.Attrs().ParentIndex] = append(children[l.Attrs().ParentIndex], c)
		}
	}
	var out []Device
	for _, l := range links {
		a := l.Attrs()
		d := Device{
			Name: a.Name, Index: a.Index, Kind: kinds[a.Index], MTU: a.MTU, Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0,
			Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
			Master: names[a.MasterIndex], MasterKind: kinds[a.MasterIndex], Ours: ours(l, names),
			Wireless: wireless[a.Index], Promisc: a.Promisc != 0, Driver: k.driverOf(a.Name),
			Addrs: held[a.Index], Children: children[a.Index],
		}
		if len(a.HardwareAddr) == len(d.MAC) && a.EncapType == "ether" {
			d.MAC = cluster.MAC(a.HardwareAddr)
		}
		if a.NetNsID < 0 {
			d.Parent = names[a.ParentIndex]
		}
		if v, ok := l.(*netlink.Vlan); ok {
			d.VID, d.Proto = uint16(v.VlanId), wordOf(vlanProtos, v.VlanProtocol)
		}
		slices.SortFunc(d.Addrs, netip.Prefix.Compare)
		slices.SortFunc(d.Children, compareChildren)
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// childOf reads a macvlan or ipvlan link. (A macvtap or ipvtap one counts as such.)
func childOf(l netlink.Link, sandbox string) (Child, bool) {
	a := l.Attrs()
	c := Child{Name: a.Name, Ours: a.Group == Group || a.Group == unfinished, Sandbox: sandbox}
	switch l := l.(type) {
	case *netlink.Macvlan:
		c.Kind, c.Mode = Macvlan, wordOf(macvlanModes, l.Mode)
	case *netlink.Macvtap:
		c.Kind, c.Mode = Macvlan, wordOf(macvlanModes, l.Mode)
	case *netlink.IPVlan:
		c.Kind, c.Mode, c.Flag = IPvlan, wordOf(ipvlanModes, l.Mode), wordOf(ipvlanFlags, l.Flag)
	case *netlink.IPVtap:
		c.Kind, c.Mode, c.Flag = IPvlan, wordOf(ipvlanModes, l.Mode), wordOf(ipvlanFlags, l.Flag)
	default:
		return c, false
	}
	return c, true
}

func compareChildren(a, b Child) int {
	return cmp.Or(cmp.Compare(a.Sandbox, b.Sandbox), cmp.Compare(a.Name, b.Name))
}

// Lodgers implements Kernel. A namespace that is none of Docker's holds none, as
// far as this can tell.
func (k *Linux) Lodgers(ctx context.Context) (map[int][]Child, error) {
	children := map[int][]Child{}
	if err := k.sandboxed(ctx, children); err != nil {
		return nil, fmt.Errorf("look for links of the host's in sandboxes: %w", err)
	}
	for _, list := range children {
		slices.SortFunc(list, compareChildren)
	}
	return children, nil
}

// sandboxed adds the children that are in sandboxes to those of each parent.
func (k *Linux) sandboxed(ctx context.Context, children map[int][]Child) error {
	var own unix.Stat_t
	if err := unix.Fstat(int(k.ns), &own); err != nil {
		return err
	}
	seen := map[uint64]bool{own.Ino: true}
	entries, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(k.dir, e.Name())
		err := k.lodgers(ctx, path, seen, func(in *netlink.Handle, l netlink.Link) error {
			if c, ok := childOf(l, path); ok {
				children[l.Attrs().ParentIndex] = append(children[l.Attrs().ParentIndex], c)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrNoSandbox) {
			k.log.WithError(err).WithField("sandbox", path).Debug("cannot look for links of a parent in a sandbox")
		}
	}
	return nil
}

// driverOf asks for the name of a link's driver; empty when it has none to say.
func (k *Linux) driverOf(name string) string {
	info, err := unix.IoctlGetEthtoolDrvinfo(k.send, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}
