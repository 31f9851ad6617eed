// Package kernel is the only door to Linux: comparable objects that say what
// the network stack holds (State), a pure Diff between two states, and a
// narrow interface (Kernel) that reads and applies them by netlink and
// nftables.
//
// # The model
//
//	Dump     what there is, as far as it carries our marks
//	Diff     pure: Dump and the wanted State in, operations out (diff.go)
//	Do       applies them; what is present is not added again, what is absent
//	         not deleted again; tries everything, joins the errors
//
// A pass of the caller's loop is these three. Nothing is remembered between
// passes, so a plugin that was just started, one whose last pass failed
// half-way, and one whose device somebody deleted by hand do the same thing.
// (One exception, which is no state of the kernel: accept.go remembers which
// bridges asked for a rule in a chain that does not exist.)
//
// What belongs to Docker is outside that model, and has calls of its own: Hand
// makes the interface that Docker will move into a sandbox, Observe finds out
// what Docker called it there (by its MAC, or where that is the parent's by its
// alias), Mend makes it again in the sandbox after the link below it died and
// took it along, Mute keeps it off the network there, and Tenants lists what of
// ours is in any sandbox, so that local truth outlives the caller's memory.
//
// # Marks
//
// Links: name prefix and link group, both; of a VLAN device, whose name is the
// user's word, the group, with the alias "isthmus" or a name that is PARENT.VID.
// Addresses: those on our links, but VXLAN devices; of link-local ones those of our making. FDB and neighbour entries:
// permanent ones on our VXLAN devices. Routes: protocol 105 and metric 26995 in the
// main table. Guards: our own tables "isthmus" in nftables, and
// the comment "isthmus LINK" in Docker's chains. Whatever lacks them is not
// ours, does not appear in a Dump and is not changed; a link of theirs under a
// name that we need is an error that says so.
//
// Of what belongs to others, Links says all that somebody must know who wants
// to stand on it, and Watch signals what happens to the links named to Heed. A
// parent of somebody else is never changed; not even set up.
//
// # Routed networks
//
// What a host holds of networks that it is the router of (routing.go) is in the
// same tables and transaction as the guards:
//
//	Gateway   a link of ours, on which its containers are
//	Uplink    a link of somebody else, by which they reach the world
//	Pool      a subnet of the cluster: what is apart, and keeps its addresses
//	Passage   two networks that are not apart
//	Source    what may be sent from
//	Publish   a port of the host that is a container's
//
// ruleset.go and ruleset_chains.go say purely which rules that makes
// (testdata/tables.nft holds those of a typical host), statement.go has the words,
// nft_tables.go writes and reads. Links, peers, sources and ports are read from the
// sets, tunnels, pools and passages from the comments of rules; what is found must be
// all that these would make, or the tables are written again.
//
// Each packet of the host pays for each chain that is entered and each set that is
// asked. So there is one chain of ours in a hook, only where it has something to
// match; names of links are compared with what those of ours begin with before a set
// is asked; and what says that something may pass is no mark, which would have to be
// set and cleared, but the names of links: Docker's chain accepts what goes between
// gateways and uplinks by them (AcceptForward). So Docker's FORWARD policy and its
// rules for its own networks stay what they are. In a backend without such chains, as
// Docker's own tables in nftables are, nothing drops what Docker does not know, and
// there is no rule; in iptables-legacy, which is out of reach, the operator adds those
// rules.
//
// Forwarding is switched on for single links, never for all (forwarding.go). A
// gateway has besides it route_localnet, which makes 127.0.0.1 of the host lead to
// published ports; nothing that comes in by it reaches 127.0.0.0/8. IPv6 has nothing
// like it: ::1 leads nowhere.
//
// # Traps
//
//   - Removing a link removes all that stands on it: macvlan, ipvlan and VLAN links,
//     inside containers too. So everything that can change in place does, and
//     Recreated names what could not. Renaming a link harms nothing.
//   - A VLAN goes down with its parent, and up with it; it cannot go up alone.
//   - The mode and flag of ipvlan are the parent's: creating a link of another
//     mode changes all that are there, whoever made them. Hand does not ask; look
//     at Links first.
//   - An ipvlan link's MTU follows its parent's up and down, whatever it was set to.
//   - A macvlan link in mode passthru has its parent's MAC, and giving it another
//     one gives that to the parent.
//   - An alias and a link group survive the move into a sandbox and back. Addresses
//     and routes do not.
//   - The kernel deletes IPv4 routes whose source address goes, and takes the
//     source from IPv6 ones.
//   - Kernels before 6.2 refuse to be told the name of a link that is up, even if
//     it is the same; the library repeats it wherever it changes a link.
//   - macvlan links above one that goes down lose their carrier, not their
//     addresses and routes.
//   - A link that goes down, or gets another MAC, loses its neighbours,
//     permanent ones too, but not its FDB. Diff adds them again after a MAC
//     that it changes itself.
//   - Lowering a link's MTU lowers that of the macvlan links above it. Raising
//     it does not.
//   - A VXLAN device receives at all addresses of the host, not only at its own:
//     strangers are dropped by port and source, whatever the destination. They
//     are dropped in chain input, where fragments are whole again.
//   - nft shows a set's elements by the byte order that the set was made with;
//     the kernel compares bytes.
//   - A VXLAN device must not be bound to a lower device: it would be deleted
//     with it, and its MTU clamped.
//   - proxy on a VXLAN device swallows every ARP packet, replies included; two
//     hosts of one network must agree about it.
//   - What a guarded device receives is dropped in nftables, not by the link:
//     the macvlan children, which take their frames before that, still get
//     theirs. A device whose guard cannot be set is not brought up.
//   - A gateway for IPv6 needs a link-local address on its link: without one the
//     kernel solicits no neighbour for what it forwards, and says nothing.
//   - With br_netfilter, addresses are translated while frames are still bridged. A
//     container that asks for its own published port needs its bridge port in
//     hairpin mode then; Gateway sees to it.
//   - Forwarding is asked of the link that a packet comes in by: without that of the
//     Uplink, answers are lost.
//   - A set of intervals wants the end of each, even where the next one begins, and
//     takes no interval inside another.
//   - A masqueraded flow may keep its source port, and that of a tunnel must not be
//     one: its answers would be untracked, and the tunnel's.
//   - Replacing the table does not touch connections: their translation is with
//     connection tracking. UDP to a port with a new target is made to forget.
//   - An accept in a table of ours does not override a drop in another one;
//     hence the rule in Docker's chain.
//   - Rules of others are never parsed beyond their comment: libraries fail on
//     matches that they do not know.
//   - A thread that entered a sandbox is thrown away. The process's first
//     thread never enters one, since /proc/self is its view.
//   - The kernel takes no IPv6 neighbours on a link that has IPv6 off or an MTU
//     below 1280. Do switches it on for our own links.
package kernel
