// Package founding decides how a host that belongs to no cluster comes to one:
// whether it founds it, asks another host to, or enters one that it hears of.
// It is a pure step machine: events in, effects out, no clock, no network, no
// randomness but what events carry.
//
// # Rules
//
//   - Nothing is founded before somebody wants a cluster ([Want]).
//   - A host with an empty JOIN founds its own. With a JOIN list the first
//     entry founds; any other host asks that one to. FOUND=force lets any host.
//   - A founder first hears a majority of the list (of its first five entries)
//     say that they have no cluster, and has them record the id of the new one
//     durably ([Promise]). Then it founds. Whoever is in reach is asked, and one
//     that has a cluster, or a promise to somebody else, is an objection.
//   - A host that hears of a cluster enters it, whether it wants one or not. Of
//     several clusters it enters the only one that has networks; else, of empty
//     ones, that of the lowest id; else none.
//   - A host that is asked by a member of a cluster asks that member back: it
//     does not found beside it.
//
// # Promises
//
// A promise names the cluster and its founder. It is given once, replaced by a
// newer one of the same founder, and dropped when that founder, asked after the
// promise was made, says that it is founding no such cluster. A founder keeps no
// promise of its own: an attempt that a crash ended is never taken up again, so
// what others recorded of it is void. Of two founders at once the one with the
// higher id gives way.
//
// So a founder that lost its disk meets the promises, or the cluster, of those
// that it founded with. It founds a second one only when it reaches a majority
// of the list without any of them; the two clusters then refuse each other. The
// same can come of lists that differ, and of lists of more than five entries in
// different orders.
package founding
