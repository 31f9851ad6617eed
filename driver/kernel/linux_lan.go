package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file is what the host itself has on our links: addresses and routes.

// dumpAddrs adds the addresses of our links to state.
func (k *Linux) dumpAddrs(ctx context.Context, state State, links map[int]string) error {
	list, err := retry(ctx, func() ([]netlink.Addr, error) { return k.h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range list {
		dev, ok := links[a.LinkIndex]
		bits, _ := a.Mask.Size()
		if ip := addrOf(a.IP); ok && ip.IsValid() && (!ip.IsLinkLocalUnicast() || isLinkGateway(ip)) {
			state.Put(Addr{dev, netip.PrefixFrom(ip, bits)})
		}
	}
	return nil
}

// isLinkGateway reports a link-local address that is of our making.
func isLinkGateway(ip netip.Addr) bool {
	if !ip.IsLinkLocalUnicast() {
		return false
	}
	b := ip.As16()
	return ip.Is4() || [6]byte(b[8:14]) == [6]byte{4: Group >> 8, 5: Group & 0xff}
}

// dumpRoutes adds our routes to state; names of links are by index.
func (k *Linux) dumpRoutes(ctx context.Context, state State, names map[int]string) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := retry(ctx, func() ([]netlink.Route, error) {
			return k.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: Protocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil && !(family == netlink.FAMILY_V6 && isNoFamily(err)) {
			return fmt.Errorf("routes of family %d: %w", family, err)
		}
		for _, r := range list {
			dst := prefixOf(r.Dst)
			if r.Priority != Metric || !dst.IsValid() {
				continue
			}
			switch r.Type {
			case unix.RTN_BLACKHOLE: // one of IPv6 has a link all the same
				state.Put(FIB{Dst: dst})
			case unix.RTN_UNICAST:
				state.Put(FIB{dst, addrOf(r.Gw), names[r.LinkIndex], addrOf(r.Src), r.MTU, r.Flags&int(netlink.FLAG_ONLINK) != 0})
			}
		}
	}
	return nil
}

// addr does one operation on an address.
func (k *Linux) addr(op Op, a Addr) error {
	l, err := k.ownLink(a.Dev)
	if err != nil {
		return err
	}
	if l == nil {
		if op.Action == Remove {
			return nil
		}
		return errNoLink
	}
	n := netlink.Addr{IPNet: ipNet(a.Prefix), Flags: unix.IFA_F_NOPREFIXROUTE}
	if isLinkGateway(a.Prefix.Addr()) {
		n.Flags, n.Scope = 0, unix.RT_SCOPE_LINK // its neighbours are reached by their link-local addresses
	}
	if op.Action == Remove {
		if err := k.h.AddrDel(l, &n); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	}
	if a.Prefix.Addr().Is6() {
		n.Flags |= unix.IFA_F_NODAD // the cluster gave it to this host alone
		if err := inside(int(k.ns), func() error { return allowIPv6(a.Dev) }); err != nil {
			return err
		}
	}
	err = k.h.AddrReplace(l, &n)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("another ipvlan link of its parent has this address: %w", err)
	}
	return err
}

// route does one operation on a route of ours.
func (k *Linux) route(op Op, f FIB) error {
	r := netlink.Route{Dst: ipNet(f.Dst.Masked()), Table: unix.RT_TABLE_MAIN, Protocol: Protocol, Priority: Metric}
	if f.Dev == "" {
		r.Type = unix.RTN_BLACKHOLE
		return k.applyRoute(op, r)
	}
	l, err := k.h.LinkByName(f.Dev)
	if isNotFound(err) && op.Action == Remove {
		return nil // it went with its link
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", f.Dev, err)
	}
	r.LinkIndex, r.Scope, r.MTU = l.Attrs().Index, netlink.SCOPE_LINK, f.MTU
	if f.Onlink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	if f.Via.IsValid() {
		r.Gw, r.Scope = f.Via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if f.Src.IsValid() {
		r.Src = f.Src.AsSlice()
	}
	return k.applyRoute(op, r)
}

func (k *Linux) applyRoute(op Op, r netlink.Route) error {
	if op.Action != Remove {
		return k.h.RouteReplace(&r)
	}
	if err := k.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
