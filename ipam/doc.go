// Package ipam answers Docker's IpamDriver calls: pools, gateways, addresses.
//
// # Model
//
// The cluster's log decides about few and rare things: which pools exist,
// their gateways and auxiliary addresses, and which host leases which block of
// a pool. Inside a leased block the host chooses alone, and has the choice on
// disk before Docker is answered. So a container start asks nobody while a
// free address is left here, and no two hosts can choose the same one.
//
// What a host decides about blocks and addresses is package lease: a pure
// machine. This package is the shell around it: locks, one bbolt database, the
// proposals, and the calls of Docker. DESIGN.md has the rules, and what was
// chosen where the specification is silent.
//
// A pool that no Docker network uses any more is parked, not left: `compose
// down` and `up` need no other host. Parked pools go back when a pool in their
// way is wanted here, when another host recalls them (Recalled), when
// `networks forget` says so, or after a day.
//
// In a pool whose networks stand in a LAN, addresses that strangers answer for
// are passed over (probe.go), or the LAN's own DHCP server chooses (dhcp.go). The
// host itself can have an address there (host.go).
//
// # Traps
//
//   - Docker does not say whether an address is an auxiliary one or an
//     endpoint's --ip. The former come between RequestPool and the network
//     driver's Prepare; from engine 29 on only the latter carry a name.
//   - Docker releases gateway and auxiliary addresses with each network. They
//     belong to the pool on all hosts, and are never in use in the sense of
//     this package: the release finds nothing to do.
//   - Docker keeps a PoolID for ever and never asks again after a restart. It
//     must be readable without any state. An address of another subnet of the
//     same network may come under it (sibling.go).
//   - An answer to a proposal can be lost while the command is done. Whoever
//     adds a command here must have a rule for what reconcile finds then.
//   - A copy of the registry counts as fresh only when it is taken after
//     Fresh said so, see copy.
//   - An address in use that no lease covers stays in use here, and is never handed
//     out; the network driver cuts its endpoint off (Lost).
//   - Before a Hello to a registry that was rebuilt, Rebuilt must have returned.
//   - A recall may reach a host that waits for a recall itself: Recalled must
//     not take the turn of a pool in use.
//   - IPAM.mu is held over fsync for rare changes, but not for addresses:
//     their writes queue under it and share the next fsync (store).
package ipam
