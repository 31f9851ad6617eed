package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Underlay implements Kernel. For an address of this host itself it describes
// the link that holds it, not the loopback that the kernel would route by.
func (k *Linux) Underlay(ctx context.Context, to netip.Addr) (Underlay, error) {
	u, err := k.underlay(ctx, to.Unmap())
	if err != nil {
		what := "default route"
		if to.IsValid() {
			what = to.String()
		}
		return Underlay{}, fmt.Errorf("find link towards %s: %w", what, err)
	}
	return u, nil
}

func (k *Linux) underlay(ctx context.Context, to netip.Addr) (Underlay, error) {
	if to.IsValid() {
		own, err := retry(ctx, func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return Underlay{}, err
		}
		for _, a := range own {
			if addrOf(a.IP) == to {
				return k.describeUnderlay(ctx, a.LinkIndex, to, 0, to)
			}
		}
		routes, err := k.h.RouteGet(to.AsSlice())
		if err != nil {
			return Underlay{}, err
		}
		if len(routes) == 0 {
			return Underlay{}, unix.ENETUNREACH
		}
		return k.describeUnderlay(ctx, linkIndex(routes[0]), addrOf(routes[0].Src), routes[0].MTU, to)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := k.routes(ctx, family, unix.RT_TABLE_MAIN)
		if err != nil && !isNoFamily(err) {
			return Underlay{}, err
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
			return !isDefault(r) || r.Type != unix.RTN_UNICAST
		})
		if len(routes) == 0 {
			continue
		}
		best := slices.MinFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		any := netip.IPv4Unspecified()
		if family == netlink.FAMILY_V6 {
			any = netip.IPv6Unspecified()
		}
		return k.describeUnderlay(ctx, linkIndex(best), addrOf(best.Src), best.MTU, any)
	}
	return Underlay{}, errors.New("there is none: add one, or set ADVERTISE to an address, an interface or a prefix of this host")
}

func linkIndex(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}

// describeUnderlay describes a link. Without a source address of the route's
// own it takes the first global one of like's family. A route's MTU counts
// where it is smaller than the link's.
func (k *Linux) describeUnderlay(ctx context.Context, index int, src netip.Addr, mtu int, like netip.Addr) (Underlay, error) {
	l, err := k.h.LinkByIndex(index)
	if err != nil {
		return Underlay{}, err
	}
	u := Underlay{Name: l.Attrs().Name, MTU: l.Attrs().MTU, Addr: src, MAC: l.Attrs().HardwareAddr.String()}
	if mtu > 0 && mtu < u.MTU {
		u.MTU = mtu
	}
	if u.Addr.IsValid() {
		return u, nil
	}
	family := netlink.FAMILY_V4
	if like.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := retry(ctx, func() ([]netlink.Addr, error) { return k.h.AddrList(l, family) })
	if err != nil {
		return Underlay{}, err
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&(unix.IFA_F_SECONDARY|unix.IFA_F_DEPRECATED) == 0 {
			u.Addr = addrOf(a.IP)
			return u, nil
		}
	}
	return Underlay{}, fmt.Errorf("link %s has no global address of that family", u.Name)
}

// Routes implements Kernel. The host's own addresses are among them, link-local
// ones are not.
func (k *Linux) Routes(ctx context.Context) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		for _, table := range []int{unix.RT_TABLE_MAIN, unix.RT_TABLE_LOCAL} {
			routes, err := k.routes(ctx, family, table)
			if err != nil && !isNoFamily(err) {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			for _, r := range routes {
				if isDefault(r) || r.Type != unix.RTN_UNICAST && r.Type != unix.RTN_LOCAL {
					continue
				}
				if p := prefixOf(r.Dst); p.IsValid() && !p.Addr().IsLinkLocalUnicast() {
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

func (k *Linux) routes(ctx context.Context, family, table int) ([]netlink.Route, error) {
	return retry(ctx, func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
}

func isDefault(r netlink.Route) bool {
	p := prefixOf(r.Dst)
	return p.IsValid() && p.Bits() == 0
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), bits)
}
