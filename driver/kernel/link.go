package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Kind is the kind of a link.
type Kind string

const (
	VXLAN   Kind = "vxlan"
	Bridge  Kind = "bridge"
	Macvlan Kind = "macvlan"
	Veth    Kind = "veth"
	IPvlan  Kind = "ipvlan"
	VLAN    Kind = "vlan"
	Dummy   Kind = "dummy"
	// IPIP and GRE are point-to-point tunnels between two hosts; over IPv6 their
	// kinds are ip6tnl and ip6gre. IPIP over IPv4 carries IPv4 only.
	IPIP Kind = "ipip"
	GRE  Kind = "gre"
)

// Over is the kind that the kernel makes of a tunnel between addresses like vtep.
func (k Kind) Over(vtep netip.Addr) Kind {
	switch {
	case vtep.Is6() && k == IPIP:
		return "ip6tnl"
	case vtep.Is6() && k == GRE:
		return "ip6gre"
	}
	return k
}

// Module names the kernel module that makes links of a kind.
func (k Kind) Module() string {
	switch k {
	case VLAN:
		return "8021q"
	case GRE:
		return "ip_gre"
	case "ip6tnl":
		return "ip6_tunnel"
	case "ip6gre":
		return "ip6_gre"
	}
	return string(k)
}

// Lacks is the error of a kernel that cannot make links of a kind.
func Lacks(kind Kind) error {
	return fmt.Errorf("kernel lacks %[1]s: load the module %[2]s (modprobe %[2]s), or boot a kernel that has it", kind, kind.Module())
}

// Standing says what Diff may do with a link.
type Standing uint8

const (
	// Kept links are created, repaired and pruned.
	Kept Standing = iota
	// Adopted links (the host end of a veth pair) are repaired and pruned but
	// never created by themselves: they come with the end that was handed over.
	Adopted
	// HandedOver links (the container's end) belong to Docker once Join made
	// them. Absence from the host's namespace is their normal state; presence
	// is normal too, before Docker took them and after it gave them back.
	HandedOver
)

// Link is a network device of ours in the host's namespace. Zero fields that a
// kind does not have stay zero in a dump as well, so that links compare by ==.
type Link struct {
	Name     string
	Kind     Kind
	Standing Standing    // not read back from the kernel; ignored in comparison
	MAC      cluster.MAC // zero: any
	MTU      int
	Master   string // bridge that it is a port of
	Parent   string // of a macvlan, ipvlan or vlan: the link below, which need not be ours
	Peer     string // of a veth: the name of the other end, ignored in comparison
	Down     bool   // administratively down: what stands on it is cut off, and recovers

	// VXLAN only.
	VNI   uint32
	Local netip.Addr // VTEP of this host, of IPIP and GRE too; its family is the underlay's
	Port  uint16     // UDP
	Proxy bool       // answer ARP and ND from the neighbour table, drop what it lacks

	// IPIP and GRE: VTEP of the other host.
	Remote netip.Addr

	// Macvlan: bridge, private, vepa, passthru or source; empty: bridge. A passthru
	// link has the MAC of its parent, so MAC stays zero.
	// IPvlan: l2, l3 or l3s; empty: l2. It is that of the parent, so that a new
	// link, or a Set, changes it for all ipvlan links there, whoever made them.
	Mode string
	// Flag of IPvlan: bridge, private or vepa; empty: bridge. That of the parent, too.
	Flag string
	// BCQueue of Macvlan is how many broadcast frames may wait in its parent's
	// queue; the parent takes the largest of its links. 0: 1000.
	BCQueue int
	// Sources of a Macvlan in mode source lists the MACs whose frames it takes,
	// see JoinMACs. Empty: it takes none.
	Sources string

	// VLAN only. Its name is "PARENT.VID".
	VID   uint16 // 1 to 4094
	Proto string // 802.1q or 802.1ad; empty: 802.1q
}

// JoinMACs puts MACs into the form of Link.Sources: sorted, each once, joined by commas.
func JoinMACs(macs []cluster.MAC) string {
	texts := make([]string, len(macs))
	for i, m := range macs {
		texts[i] = m.String()
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), ",")
}

// normal replaces words for what is the default anyhow by nothing, as in a dump.
func (l Link) normal() Link {
	switch {
	case l.Kind == Macvlan && l.Mode == "bridge", l.Kind == IPvlan && l.Mode == "l2":
		l.Mode = ""
	}
	if l.Flag == "bridge" {
		l.Flag = ""
	}
	if l.BCQueue == defaultBCQueue {
		l.BCQueue = 0
	}
	if l.Proto == "802.1q" {
		l.Proto = ""
	}
	return l
}

// defaultBCQueue is MACVLAN_DEFAULT_BC_QUEUE_LEN of drivers/net/macvlan.c.
const defaultBCQueue = 1000

func (l Link) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "link %s type %s", l.Name, l.Kind)
	if l.Parent != "" {
		fmt.Fprintf(&b, " link %s", l.Parent)
	}
	if l.Kind == VXLAN {
		fmt.Fprintf(&b, " id %d local %s dstport %d", l.VNI, l.Local, l.Port)
		if l.Proxy {
			b.WriteString(" proxy")
		}
	}
	switch n := l.normal(); l.Kind {
	case IPIP, GRE:
		fmt.Fprintf(&b, " local %s remote %s", l.Local, l.Remote)
	case VLAN:
		fmt.Fprintf(&b, " protocol %s id %d", cmp.Or(strings.TrimSuffix(n.Proto, "802.1q"), "802.1Q"), n.VID)
	case IPvlan:
		fmt.Fprintf(&b, " mode %s %s", cmp.Or(n.Mode, "l2"), cmp.Or(n.Flag, "bridge"))
	case Macvlan:
		if n.Mode != "" {
			fmt.Fprintf(&b, " mode %s", n.Mode)
		}
		if n.BCQueue != 0 {
			fmt.Fprintf(&b, " bcqueuelen %d", n.BCQueue)
		}
		if n.Sources != "" {
			fmt.Fprintf(&b, " sources %s", n.Sources)
		}
	}
	if l.Master != "" {
		fmt.Fprintf(&b, " master %s", l.Master)
	}
	if !l.MAC.IsZero() {
		fmt.Fprintf(&b, " address %s", l.MAC)
	}
	if l.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", l.MTU)
	}
	switch l.Standing {
	case Adopted:
		b.WriteString(" (adopted)")
	case HandedOver:
		b.WriteString(" (handed over)")
	}
	if l.Down {
		b.WriteString(" down")
	}
	return b.String()
}
