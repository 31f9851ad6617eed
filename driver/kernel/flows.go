package kernel

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows drops what connection tracking knows of UDP and SCTP to ports whose
// target is another one now, or none: a client that goes on sending would reach
// the old one, or the host itself, as long as it does. (TCP finds out by itself.)
// A zero To is none.
func (k *Linux) forgetFlows(ports []Publish) error {
	byFamily := map[bool][]Publish{}
	for _, p := range ports {
		if p.Proto != "tcp" {
			byFamily[p.Host.Addr().Is4()] = append(byFamily[p.Host.Addr().Is4()], p)
		}
	}
	if len(byFamily) == 0 {
		return nil
	}
	return inside(int(k.ns), func() error {
		own, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		local := map[netip.Addr]bool{}
		for _, a := range own {
			local[addrOf(a.IP)] = true
		}
		var errs []error
		for four, list := range byFamily {
			moved := movedPorts{list, local}
			family := netlink.InetFamily(unix.AF_INET6)
			if four {
				family = unix.AF_INET
			}
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, moved)
			if err != nil && !errors.Is(err, unix.ENOENT) { // gone by itself meanwhile
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// movedPorts matches the flows to ports of this host that do not go to their target.
type movedPorts struct {
	ports []Publish
	local map[netip.Addr]bool // addresses of this host
}

func (m movedPorts) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, p := range m.ports {
		host, to := addrOf(flow.Forward.DstIP), netip.AddrPortFrom(addrOf(flow.Reverse.SrcIP), flow.Reverse.SrcPort)
		if flow.Forward.Protocol != protocols[p.Proto] || flow.Forward.DstPort != p.Host.Port() || to == p.To {
			continue
		}
		// What others send through this host to the same port elsewhere goes on.
		if host == p.Host.Addr() || p.Host.Addr().IsUnspecified() && (m.local[host] || host.IsLoopback()) {
			return true
		}
	}
	return false
}
