// Package gossip holds what the cluster heard: which hosts are there, and
// what each of them says of itself.
//
// # Model
//
// Every host owns one stream: a set of entries (its HostInfo, one Record per
// endpoint or network that it holds) at a version (epoch, seq). Only the owner
// writes it, so there are no conflicts to resolve: of two versions of a stream
// the higher one replaces the lower. Each version is signed by the owner over
// a hash of its whole content, so any host may pass on any stream, as a delta
// or as a snapshot, and none can forge one. A deleted entry is one that a
// newer version lacks; there are no tombstones. The epoch rises at every start
// of the plugin and whenever a host hears a version of its own stream that it
// does not know (a disk that was rolled back).
//
// Truth travels by anti-entropy: two hosts compare a root hash, then digests,
// and send each other what the other lacks, over authenticated streams. An
// idle host compares roots with one random host per second, by a datagram. The
// rest is speed: a change is told at once, by one datagram to each host
// (a hint), and through memberlist's gossip. What a hint did not reach, the
// next comparison does.
//
// Membership is memberlist's, with two things that it lacks: it never heals a
// partition by itself and remembers a dead host for half a minute. So the
// address book is kept here, on disk, and hosts that are known and do not
// answer are dialed for ever, unless Config.Admit refuses them: such a host is
// not heard, by no way, and what it said is dropped. A host that fails keeps its
// stream: its records are suspended in name only, since the data plane may
// well be fine.
//
// # Files
//
// table.go is the pure core: versions, merging, digests. record.go says what
// an entry means. wire.go encodes. exchange.go is one anti-entropy exchange,
// sync.go when to have one. hint.go is the fast path. book.go is the address
// book, join.go dials from it. admit.go keeps out whom the cluster refuses.
// member.go and delegate.go put memberlist on top of network.go, which is what
// is needed of the transport. cluster.go is the door.
//
// # Traps
//
//   - memberlist calls its delegates while it holds its own lock, so no method
//     of memberlist may be called while Cluster.mu is held.
//   - A broadcast larger than memberlist's packet is never sent and never
//     leaves its queue: hints are bounded by the packet size.
//   - memberlist keeps the order of no two messages (its queue is a stack) and
//     drops them under load. Merging commutes, and hints are only hints.
//   - A dead host that answers again is ignored until it has refuted its death
//     with a higher incarnation: it hears of its death in a join, and the
//     refutation arrives by gossip or with the next join.
//   - A host that has not published yet in this run says nothing: others keep
//     what it said before it restarted. An empty Publish says "I hold nothing".
//   - A stream is one message on the wire, of at most 4 MiB (about 50,000
//     records).
package gossip
