package kernel

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// Protocol marks our routes in the host's main table, and Metric is theirs: a
// route of somebody else to the same destination is usually of a lower one,
// and then it is his that counts.
const (
	Protocol = 0x69
	Metric   = 0x6973
)

// Alias is what a VLAN device of ours bears, so that ip link shows whose it is.
// Its name is the one that the user gave ("eth0.50"), and cannot be the mark.
const Alias = "isthmus"

// FIB is a route of the host's own, in its main table.
type FIB struct {
	Dst    netip.Prefix
	Via    netip.Addr // another host, on-link on Dev; invalid: Dst itself is on-link
	Dev    string     // of ours or not; empty: what goes there is dropped (a blackhole)
	Src    netip.Addr // address that the host sends from; invalid: the kernel chooses
	MTU    int        // of the path, in bytes; 0: that of Dev
	Onlink bool       // Via is on Dev, whatever the other routes say
}

// Addr is an address of the host on a link of ours, but not on a VXLAN device.
// It brings no route along, whatever its length. A link-local one of IPv6 has the
// bytes "is" before its last two, so that it is told from those of the kernel's making.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
}

func (f FIB) Key() Key  { return Key{"fib", "", f.Dst.String()} }
func (a Addr) Key() Key { return Key{"addr", a.Dev, a.Prefix.String()} }

func (f FIB) String() string {
	text := "fib " + f.Dst.String()
	if f.Dev == "" {
		return text + " blackhole"
	}
	if f.Via.IsValid() {
		text += " via " + f.Via.String()
	}
	text += " dev " + f.Dev + word(f.Onlink, " onlink")
	if f.Src.IsValid() {
		text += " src " + f.Src.String()
	}
	if f.MTU != 0 {
		text += fmt.Sprintf(" mtu %d", f.MTU)
	}
	return text
}
func (a Addr) String() string { return fmt.Sprintf("addr %s dev %s", a.Prefix, a.Dev) }

// Device is a link of the host's namespace as somebody needs to know it who
// wants to stand on it: ours, or anybody's.
type Device struct {
	Name       string
	Index      int  // another one when it was made anew
	Kind       Kind // as ip shows it; "device" for what is no software
	MTU        int
	MAC        cluster.MAC // zero: it is no Ethernet
	Loopback   bool
	Up         bool   // administratively
	Carrier    bool   // there is a peer: a cable, a switch
	Parent     string // link below, if it is in this namespace
	Master     string // bridge, bond or other link that it is a port of
	MasterKind Kind
	VID        uint16 // of a VLAN
	Proto      string // of a VLAN: 802.1q or 802.1ad
	Ours       bool   // it bears our marks
	Wireless   bool
	Promisc    bool   // somebody made it promiscuous
	Driver     string // "virtio_net", "ena"; empty: unknown
	Addrs      []netip.Prefix
	Children   []Child // macvlan and ipvlan links that stand on it, see Kernel.Links
}

// Child is a macvlan or ipvlan link on a Device.
type Child struct {
	Name    string
	Kind    Kind
	Mode    string // in words, never empty: see Link.Mode
	Flag    string // of an ipvlan, never empty
	Ours    bool
	Sandbox string // path of its namespace; empty: the host's
}
