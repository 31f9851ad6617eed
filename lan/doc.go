// Package lan asks the network that a host stands in, rather than the cluster:
// who answers for an address there (Prober), and, in package dhcp, which
// address the LAN's own server gives.
//
// # Model
//
// Networks whose containers stand in the LAN itself (macvlan, ipvlan) share
// their subnet with machines that know nothing of the cluster. A Prober looks
// for those before an address is handed out: it sends the probes of RFC 5227
// (ARP with the sender 0.0.0.0) and RFC 4862 (a neighbour solicitation from
// ::), which no machine learns anything from, and listens for whoever holds the
// address or is about to take it. An address that was answered for is
// remembered as conflicting until a later probe finds it gone; Run looks every
// minute.
//
// # Traps
//
//   - A probe that nobody answers proves little: a machine may sleep, or lie
//     behind a switch that drops it. It is a courtesy to strangers, not what
//     keeps the cluster's addresses distinct.
//   - RFC 5227 waits for seconds. A container start does not: three probes,
//     350 ms in all.
//   - The host never hears its own answers, nor those of macvlan and ipvlan
//     children of the same parent. The host's own addresses are looked up; of
//     the children, whoever made them knows.
//   - Sockets listen to all protocols (ETH_P_ALL), since a macvlan or ipvlan
//     parent hands the frames of its children over before the sockets of one
//     protocol see them. Frames of a VLAN above the interface are seen there
//     too, without their tag: the filter drops them.
//   - Some routers answer for every address (proxy ARP). Linux does not when
//     the sender is 0.0.0.0; of others the caller must give up at some point.
package lan
