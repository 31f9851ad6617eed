package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Prefix begins the name of every link that isthmus makes, and Group is its
// link group (the bytes "is"; the kernel sets it in the act of creation). A
// restarted plugin with no memory recognises its links by both together, so
// that a user's own link that happens to be called is-something is not touched.
const (
	Prefix = "is-"
	Group  = 0x6973
)

// Key identifies an object in the kernel.
type Key struct {
	Type string // "link", "addr", "fdb", "neigh", "fib", "guard", and those in routing.go
	Dev  string // link name; empty of a fib, since a destination has one route
	Sub  string // address, or empty
}

func (k Key) String() string { return strings.Join(strings.Fields(k.Type+" "+k.Dev+" "+k.Sub), " ") }

// Object is one thing in the kernel: Link, Addr, FDB, Neigh, FIB or Guard, or what
// routes (Gateway, Uplink, Source, Pool, Passage, Publish). All are comparable, so
// that Diff is ==.
type Object interface {
	Key() Key
	// String prints the object as the ip, bridge or nft command would show it.
	String() string
}

// FDB is a permanent forwarding entry of a VXLAN device: frames to MAC go to
// the VTEP Dst. A zero MAC is one copy of all broadcast, multicast and unknown
// frames; there may be many of those, one for each Dst.
type FDB struct {
	Dev string
	MAC cluster.MAC
	Dst netip.Addr
}

// Neigh is a permanent neighbour entry on a VXLAN device.
type Neigh struct {
	Dev string
	IP  netip.Addr
	MAC cluster.MAC
}

// Guard is the firewall's share for one link, for all tunnels, or for one other
// host: an element of a set or a rule in our own nftables tables, or an accept rule in Docker's.
type Guard struct {
	Dev    string // empty in a dump: a table of ours that guards nothing
	Rule   GuardRule
	Tunnel netip.AddrPort // of NoTrack and DropStrangers, instead of Dev: VTEP of this host and UDP port
	Peer   netip.Addr     // of Admit, instead of Dev: VTEP of another host
	Out    string         // of AcceptForward: the link that it leaves by, if another one
	Kind   Kind           // of NoTrack: IPIP or GRE, whose Tunnel has no port; empty: VXLAN
	// Broken says, in a dump, that only a part of it is there (somebody flushed
	// a chain). Nobody wants that, so Diff sets it right.
	Broken bool
}

// GuardRule says what a Guard does.
type GuardRule string

const (
	// DropInput drops all that arrives on Dev and would enter the host's own
	// stack: table inet isthmus, chain prerouting at priority -310, and table
	// arp isthmus, chain input, by iifname. For VXLAN devices with macvlan
	// children, and for their announcer.
	DropInput GuardRule = "drop-input"
	// DropBridgeInput does the same for a bridge: table inet isthmus, chains
	// input and forward, and table arp isthmus, by iifname. Not in prerouting:
	// with br_netfilter on, that also sees frames that are only bridged. Not by
	// meta ibrname in a bridge table: kernels lack it.
	DropBridgeInput GuardRule = "drop-bridge-input"
	// NoTrack keeps the packets of tunnels out of connection tracking: table inet
	// isthmus, chain prerouting by destination address and UDP port, and chain
	// output by source address and UDP destination port. What is not from or to
	// this host's own VTEP is tracked as before; so is what others send by tunnels of a
	// Kind, which is asked for admitted peers.
	NoTrack GuardRule = "notrack"
	// DropStrangers drops UDP packets to the port of Tunnel, at whatever address
	// of this host, that do not come from an admitted VTEP: table inet isthmus,
	// chain input. What others send through this host is not looked at.
	DropStrangers GuardRule = "drop-strangers"
	// Admit takes the VTEP Peer out of DropStrangers, and its tunnels of a Kind into
	// NoTrack: sets admitted4 and admitted6 of table inet isthmus.
	Admit GuardRule = "admit"
	// AcceptForward lets pass what is forwarded from Dev to Out, where Docker's FORWARD
	// chain with policy DROP would not: iifname Dev oifname Out accept, in DOCKER-USER
	// where FORWARD leads to it, else FORWARD, of tables ip filter and ip6 filter. A
	// name that ends with + stands for all that begin so. Without Out it is from Dev to
	// itself: frames of a bridge, which br_netfilter shows there.
	AcceptForward GuardRule = "accept-forward"
)

func (l Link) Key() Key { return Key{"link", l.Name, ""} }
func (f FDB) Key() Key {
	if f.MAC.IsZero() {
		return Key{"fdb", f.Dev, f.MAC.String() + " " + f.Dst.String()}
	}
	return Key{"fdb", f.Dev, f.MAC.String()}
}
func (n Neigh) Key() Key { return Key{"neigh", n.Dev, n.IP.String()} }
func (g Guard) Key() Key {
	switch {
	case g.Tunnel.IsValid():
		return Key{"guard", g.Dev, g.text()}
	case g.Peer.IsValid():
		return Key{"guard", g.Dev, string(g.Rule) + " " + g.Peer.String()}
	}
	return Key{"guard", g.Dev, strings.TrimSpace(string(g.Rule) + " " + g.Out)}
}

func (f FDB) String() string   { return fmt.Sprintf("fdb %s dev %s dst %s", f.MAC, f.Dev, f.Dst) }
func (n Neigh) String() string { return fmt.Sprintf("neigh %s dev %s lladdr %s", n.IP, n.Dev, n.MAC) }
func (g Guard) String() string {
	text := fmt.Sprintf("guard %s dev %s", g.Rule, g.Dev)
	switch {
	case g.Tunnel.IsValid():
		text = fmt.Sprintf("guard %s tunnel %s", g.Rule, g.end())
	case g.Peer.IsValid():
		text = fmt.Sprintf("guard %s peer %s", g.Rule, g.Peer)
	case g.Out != "":
		text += " out " + g.Out
	}
	if g.Broken {
		text += " broken"
	}
	return text
}

// State is a set of objects: what the kernel holds, or what it should hold.
type State map[Key]Object

// Put adds or replaces objects.
func (s State) Put(objects ...Object) {
	for _, o := range objects {
		s[o.Key()] = o
	}
}

// CompareKeys orders keys by type, link and address, for printing. (The order
// of dependency is Diff's.)
func CompareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Dev, b.Dev), cmp.Compare(a.Sub, b.Sub))
}

// Announcement tells one of the host's own containers, or a LAN, that an address
// has another MAC now: a gratuitous ARP reply, or an unsolicited neighbour
// advertisement with the override flag.
type Announcement struct {
	Dev string      // link that it is sent from: the network's announcer, its bridge, or its parent
	To  cluster.MAC // the local container; zero: all of the LAN, whose switches learn where MAC is
	IP  netip.Addr
	MAC cluster.MAC // zero: that of Dev
}

// ErrNoSandbox says that the path of a sandbox is not, or is no longer, a
// mounted network namespace.
var ErrNoSandbox = errors.New("sandbox is gone")

// Kernel is the only door to the network stack of a host. The real one is
// Linux; kerneltest.Fake is the other. Implementations are safe for
// concurrent use; calls block for netlink only.
type Kernel interface {
	// Dump returns the objects that carry our marks, and no other.
	Dump(ctx context.Context) (State, error)
	// Do applies operations in order. The present is not added again, the
	// absent not deleted again: both are success. It tries all, and joins the
	// errors, each tagged with its key.
	Do(ctx context.Context, ops []Op) error
	// Hand makes h's interface in the host's namespace, down, under
	// h.Link.Name; of a veth also the host end, up and in its bridge. What of
	// ours stands there under these names already is replaced.
	Hand(ctx context.Context, h Handover) error
	// Mend makes h's interface again inside its sandbox, with name, MAC, MTU,
	// addresses and routes, unless it is there. It
	// reports whether it made one, or finished one that an earlier Mend left
	// half made. One that is there may have an MTU above that of h: it is lowered
	// (and with h.Follow raised); its mode and sources are set as in h.
	// If h.Name is empty or taken, the lowest free number of its
	// row is used (eth0, eth1 ...): Observe tells. If h.Link.Down is set, none is
	// made or finished. ErrNoSandbox: the sandbox is gone, or not there yet.
	Mend(ctx context.Context, h Handover) (bool, error)
	// Mute takes h's interface down inside its sandbox and marks it; Unmute sets
	// one up again that has the mark, with h's addresses and routes. (Other routes
	// that somebody added there are lost.) Both report whether they changed anything, and need of
	// h what Observe does. One that is not there is left alone, and one that Docker
	// has moved there and not renamed yet is not muted. ErrNoSandbox as above.
	Mute(ctx context.Context, h Handover) (bool, error)
	Unmute(ctx context.Context, h Handover) (bool, error)
	// Observe returns the name that h's interface has inside its sandbox;
	// empty when there is none, or when Docker moved it but did not rename it
	// yet. Of h it needs Sandbox, and Link's MAC or else its Name. ErrNoSandbox as above.
	Observe(ctx context.Context, h Handover) (string, error)
	// Tenants lists the interfaces of ours in all sandboxes that are in reach:
	// those in Docker's usual directory, and in the directories named. What
	// cannot be looked into is left out, and an error names it.
	Tenants(ctx context.Context, dirs ...string) ([]Tenant, error)
	// Links describes all links of the host's namespace, whoever made them, sorted
	// by name, with what stands on them there. It changes nothing.
	Links(ctx context.Context) ([]Device, error)
	// Lodgers lists what stands on links of the host's namespace from inside the
	// sandboxes of Docker's usual directory, by Device.Index, sorted. It visits all of
	// them, and what cannot be looked into is left out. It changes nothing.
	Lodgers(ctx context.Context) (map[int][]Child, error)
	// Heed names the links of others that Watch shall signal as well, in place of
	// those named before: parents, and what their VLANs stand on. They need not exist.
	Heed(names ...string)
	// Announce sends; it does not wait for anything.
	Announce(ctx context.Context, a []Announcement) error
	// Underlay describes the link by which this host reaches the address
	// (or, for an invalid address, the default route; for an address of this
	// host, the link that holds it): name, MTU in bytes (the route's if that is
	// smaller), own address on it and hardware address.
	Underlay(ctx context.Context, to netip.Addr) (Underlay, error)
	// Routes lists the destinations of all unicast routes of the main and
	// local tables, sorted, without the default routes and link-local ones:
	// what a new pool must avoid.
	Routes(ctx context.Context) ([]netip.Prefix, error)
	// Hop returns the first step of the way to another host, as the kernel would
	// route now; an error where there is none, or where the address is this host's.
	Hop(ctx context.Context, to netip.Addr) (Hop, error)
	// Echo asks all probes at once by ICMP, and reports in their order which were
	// answered. It ends when all were, or with ctx, which must end; it fails only
	// where this host cannot ask at all.
	Echo(ctx context.Context, probes []Probe) ([]bool, error)
	// Foreigns lists the routes of others in the main table but the default
	// routes, link-local and multicast ones, sorted.
	Foreigns(ctx context.Context) ([]Foreign, error)
	// Makes reports whether the kernel can make links of a kind: it is built in,
	// or its module could be loaded.
	Makes(ctx context.Context, kind Kind) (bool, error)
	// Watch signals, by a one-slot channel, that something under our marks or
	// of the underlay may have changed (link, FDB, neighbour and nftables
	// notifications; global addresses, link MTU, default route; an overrun).
	// Of the links named to Heed it signals that they appear, vanish, are renamed,
	// go up or down, or get another carrier, MTU, MAC or master.
	// It signals once at the start. It returns nil when ctx ends, and not
	// before.
	Watch(ctx context.Context, changed chan<- struct{}) error
}

// Hop is the first step of the way to another host.
type Hop struct {
	Via netip.Addr // a router; invalid: the host is on-link
	Dev string
	Src netip.Addr // that the kernel would send from
}

// Probe asks whether what is sent from Src to Dst is answered.
type Probe struct{ Src, Dst netip.Addr }

// Foreign is a route of somebody else in the host's main table.
type Foreign struct {
	Dst      netip.Prefix
	Via      netip.Addr
	Dev      string
	Protocol string // as ip calls it: kernel, boot, static, bird, or a number
}

func (f Foreign) String() string {
	text := f.Dst.String()
	if f.Via.IsValid() {
		text += " via " + f.Via.String()
	}
	if f.Dev != "" {
		text += " dev " + f.Dev
	}
	return text + " proto " + f.Protocol
}

// Underlay is the link below the tunnels.
type Underlay struct {
	Name string
	MTU  int
	Addr netip.Addr
	MAC  string
}

// Action is what an Op does with its object.
type Action string

const (
	Add    Action = "add"
	Set    Action = "set" // make the existing object equal, without recreating it
	Remove Action = "del"
)

// Op is one change of the kernel.
type Op struct {
	Action Action
	Object Object
}

func (o Op) String() string { return string(o.Action) + " " + o.Object.String() }
