package kernel

import (
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// Handover describes a container's interface completely, so that it can be
// made in the host's namespace for Docker to take, and made again inside the
// sandbox when the device below it died.
//
// In the sandbox it is known by its MAC. Where it has none of its own (ipvlan,
// and macvlan in mode passthru, which have that of their parent), Link.MAC is
// zero, and it is known by Link.Name, which it bears as its alias (ip link
// shows it), whatever Docker calls it.
type Handover struct {
	Link    Link   // Macvlan or IPvlan (with Parent), or Veth whose Peer is the host end
	Host    Link   // of a veth: the host end (Adopted, with Master); else zero
	Sandbox string // path of the sandbox's network namespace, empty before Join
	Name    string // its name inside the sandbox, empty while not yet seen there
	Addrs   []netip.Prefix
	Routes  []Route
	// Follow: an interface that is in the sandbox already gets a higher MTU as
	// well, not only a lower one, since the LAN below is of one MTU anyhow.
	Follow bool
}

// Below returns the link whose death takes the container's interface with it.
func (h Handover) Below() string {
	if h.Link.Kind == Veth {
		return h.Host.Name
	}
	return h.Link.Parent
}

// Tenant is an interface inside a sandbox that stands on a link of ours, or
// that is marked as ours and stands on a link of somebody else.
type Tenant struct {
	Sandbox string // path of its network namespace
	Name    string // of the interface, inside
	Link    string // its Handover.Link.Name, where MAC is zero
	MAC     cluster.MAC
	Addrs   []netip.Prefix // all but link-local ones
	Kind    Kind           // Macvlan, IPvlan or Veth
	Below   string         // link in the host's namespace: the VXLAN device, the parent, or the host end
	Master  string         // of a host end: its bridge
	Muted   bool           // see Kernel.Mute
}

// Route is a route inside a sandbox. An invalid Via means connected.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}
