// Package dhcp is a DHCPv4 client (RFC 2131) for others: it obtains addresses
// for containers from the server of the LAN that they are about to join, and
// keeps them while they run.
//
// # Model
//
// A Client speaks: one exchange of messages over a lan.Wire of the parent
// interface, no state. A Keeper remembers: leases by group and address, on disk
// before they are answered, each renewed under Run when due says so. due is
// pure. Messages are built and read by functions without I/O (message.go,
// packet.go), on github.com/insomniacslk/dhcp.
//
// The client runs in the host's namespace, before the container's interface
// exists and whether the container is up or not:
//
//   - Frames are sent from the parent with the container's MAC (chaddr) as
//     their source, as switches that snoop DHCP want it. For ipvlan, whose
//     children have the parent's MAC, that is the parent's.
//   - The broadcast flag is set always, and the parent is told to accept
//     frames for chaddr, since there are servers that do not mind the flag.
//   - Answers to a renewal go to the leased address, which is the container's.
//     They are seen on the parent as they pass. When the container does not
//     answer ARP, the server cannot reach it: then the lease is extended by the
//     question that a machine asks after a reboot, whose answer is broadcast.
//
// Clients that share a MAC are told apart by the client identifier (option 61).
//
// # Traps
//
//   - A server on this very host is not reached: what is sent from an
//     interface does not come back up its own stack.
//   - dnsmasq gives a client the lease of another one with the same MAC that
//     sent no identifier. With the MAC of the parent that is the host itself:
//     such an offer is refused (ErrOwn).
//   - The container's own stack refuses the answer to a renewal that passes by
//     (ICMP port unreachable), which servers ignore.
//   - UDP checksums are not verified: those of a server on the same machine
//     are filled in by nobody (checksum offload).
//   - A lease that expired or was taken back cannot be taken from a running
//     container here: the Keeper goes on asking for the very address, and says
//     so in its status.
package dhcp
