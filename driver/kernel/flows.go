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
	byFamily := map[bool]movedPorts{}
	for _, p := range ports {
		if p.Proto != "tcp" {
			byFamily[p.Host.Addr().Is4()] = append(byFamily[p.Host.Addr().Is4()], p)
		}
	}
	if len(byFamily) == 0 {
		return nil
	}
	return inside(int(k.ns), func() error {
		var errs []error
		for four, moved := range byFamily {
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

// movedPorts matches the flows to any of them that do not go to its target.
type movedPorts []Publish

func (m movedPorts) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, p := range m {
		host, to := addrOf(flow.Forward.DstIP), netip.AddrPortFrom(addrOf(flow.Reverse.SrcIP), flow.Reverse.SrcPort)
		if flow.Forward.Protocol != protocols[p.Proto] || flow.Forward.DstPort != p.Host.Port() || to == p.To {
			continue
		}
		// Of a port at all addresses, what was translated elsewhere is somebody
		// else's, unless it was ours before.
		if host == p.Host.Addr() || p.Host.Addr().IsUnspecified() {
			return true
		}
	}
	return false
}
