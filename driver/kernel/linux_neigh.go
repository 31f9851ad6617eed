package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// tunnelIndex finds a link of ours by name; 0 when there is none.
func (k *Linux) tunnelIndex(name string) (int, error) {
	l, err := k.ownLink(name)
	if err != nil || l == nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// dumpEntries adds the permanent entries of our VXLAN devices to state.
func (k *Linux) dumpEntries(ctx context.Context, state State, tunnels map[int]string) error {
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		list, err := retry(ctx, func() ([]netlink.Neigh, error) {
			return k.h.NeighList(0, family)
		})
		if err != nil && !(family == unix.AF_INET6 && isNoFamily(err)) {
			return fmt.Errorf("neighbours of family %d: %w", family, err)
		}
		for _, n := range list {
			dev, ok := tunnels[n.LinkIndex]
			ip := addrOf(n.IP)
			// A VXLAN device reports entries without a destination, and its
			// bridge reports entries of its own for the same device.
			if !ok || n.State&netlink.NUD_PERMANENT == 0 || !ip.IsValid() || len(n.HardwareAddr) != 6 {
				continue
			}
			mac := cluster.MAC(n.HardwareAddr)
			switch {
			case family != unix.AF_BRIDGE:
				state.Put(Neigh{Dev: dev, IP: ip, MAC: mac})
			case n.Flags&netlink.NTF_SELF != 0:
				state.Put(FDB{Dev: dev, MAC: mac, Dst: ip})
			}
		}
	}
	return nil
}

// entry does one operation on an FDB or neighbour entry of the link at index.
func (k *Linux) entry(op Op, index int) error {
	n := netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT}
	put := k.h.NeighSet
	switch o := op.Object.(type) {
	case FDB:
		n.Family = unix.AF_BRIDGE
		n.Flags = netlink.NTF_SELF
		n.IP = o.Dst.AsSlice()
		n.HardwareAddr = net.HardwareAddr(o.MAC[:])
		if o.MAC.IsZero() {
			put = k.h.NeighAppend // one of many
		}
	case Neigh:
		n.IP = o.IP.AsSlice()
		n.HardwareAddr = net.HardwareAddr(o.MAC[:])
	}
	if op.Action != Remove {
		return put(&n)
	}
	if err := k.h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// isNoFamily recognises a kernel that was booted without IPv6.
func isNoFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
