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
// A pool has at most four kinds of state on a host, all in one bbolt database:
// the attachment with the Docker networks that requested it (by PoolID), the
// blocks, the addresses in use, and those freed before, which are handed out
// again oldest first, or to a container of the name that had them.
//
// A pool that no Docker network uses any more is parked, not left: `compose
// down` and `up` need no other host. Parked pools go back when a pool in their
// way is wanted here, when another host recalls them (Recalled), when
// `networks forget` says so, or after a day.
//
// # Rules of a block
//
// A lease is kept until the host gives it back; there is no time in it.
//
//   - A block becomes active when it is on disk, and addresses are handed out
//     of active blocks only.
//   - To give a block back: it is empty; it is stored as draining; the cluster
//     is told; it is forgotten. A draining block is never used again, not after
//     a crash either.
//   - A fresh copy of the registry (one that has seen this run's Hello) settles
//     what a crash or a lost answer left open: see compare. A lease that this
//     run gave back is not taken up again, and one granted after the copy was
//     made is not missed.
//   - A crash between two steps leaks an address or a block for a while; it
//     never makes one free that is in use. Leaked addresses are found by sweep,
//     leaked blocks and pools by reconcile.
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
//     must be readable without any state.
//   - An answer to a proposal can be lost while the command is done. Whoever
//     adds a command here must have a rule for what reconcile finds then.
//   - IPAM.mu is held over fsync for rare changes, but not for addresses:
//     their writes queue under it and share the next fsync (store).
package ipam
