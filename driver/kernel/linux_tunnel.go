package kernel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// tunnelTTL is that of the outer packets, as of the host's own.
const tunnelTTL = 64

// Flags of linux/ip6_tunnel.h: no destination option of 8 bytes in each packet, and
// its traffic class is that of the packet inside.
const (
	ignoreEncapLimit = 0x1 // IP6_TNL_F_IGN_ENCAP_LIMIT
	keepClass        = 0x2 // IP6_TNL_F_USE_ORIG_TCLASS
)

// tunnelOf turns an IPIP or GRE link into what the library creates. Traffic class
// is that of the packet inside, but for GRE over IPv6, of which the library cannot say
// it; a packet that is too large is an ICMP error, and no fragments.
func tunnelOf(l Link, a netlink.LinkAttrs) (netlink.Link, error) {
	if !l.Local.IsValid() || !l.Remote.IsValid() || l.Local.Is4() != l.Remote.Is4() {
		return nil, fmt.Errorf("a tunnel needs two addresses of one family, not %q and %q", l.Local, l.Remote)
	}
	if !l.MAC.IsZero() {
		return nil, errors.New("a tunnel has no MAC")
	}
	local, remote := l.Local.AsSlice(), l.Remote.AsSlice()
	switch {
	case l.Kind == GRE && l.Local.Is4():
		return &netlink.Gretun{LinkAttrs: a, Local: local, Remote: remote, Ttl: tunnelTTL, Tos: 1, PMtuDisc: 1}, nil
	case l.Kind == GRE:
		return &netlink.Gretun{LinkAttrs: a, Local: local, Remote: remote, Ttl: tunnelTTL}, nil
	case l.Local.Is4():
		return &netlink.Iptun{LinkAttrs: a, Local: local, Remote: remote, Ttl: tunnelTTL, Tos: 1, PMtuDisc: 1}, nil
	}
	return &netlink.Ip6tnl{LinkAttrs: a, Local: local, Remote: remote, Ttl: tunnelTTL, Flags: ignoreEncapLimit | keepClass}, nil
}
