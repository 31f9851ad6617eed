// Package ledger keeps what the cluster agreed about: its hosts, pools,
// address blocks and networks. It is a replicated log (hashicorp/raft) of
// commands, whose meaning is in package rules.
//
// # Model
//
// One, three or five hosts are voters, chosen and replaced by the leader among
// them (package council); all others are clients. Every host but the leader
// holds a stream to the leader, which sends the registry and then each committed
// command, and runs the same rules on its own copy ([Ledger.Registry]). The copy
// is on disk, so that a host that boots alone still knows every definition. To
// change something a host asks the leader ([Ledger.Propose]), wherever it is;
// to read what is newest, it brings its copy up to date first ([Ledger.Sync]).
// A host becomes a voter, and ceases to be one, while it runs.
//
// # Which cluster
//
// A host belongs to one cluster from its first Hello on, and keeps it until its
// state is deleted. A host with no state founds a cluster when JOIN is empty.
// With a JOIN list only the first entry may found, and only when a majority of
// the list answers that it has no cluster either; all others wait for it, and
// whoever hears of a cluster joins that one. The same list on all hosts, started
// in any order, therefore gives one cluster. Lists that differ in their first
// entry may give two, which then refuse each other.
//
// # Sessions and requests
//
// Each run of a host opens a session by Hello, and a later Hello ends it: what
// an earlier run left in the network is refused. Within a session requests are
// numbered and sent one after the other. A request whose answer was lost is sent again
// under its number, and the rules answer it without doing it twice. When Propose gives up, the
// command may still be applied later, but never after a later one.
//
// # Traps
//
//   - The copy lags. After a successful Propose it normally includes the
//     change, but a caller that needs the outcome takes it from the Result.
//   - A copy only moves forward. A voter that comes back with an older log (its
//     disk was restored) is not followed. Of several voters it takes part anew.
//   - The registry's Index is not raft's last index: raft has entries of its
//     own.
//   - A voter's raft.ServerID is random per log directory, never the address
//     or the host alone: a voter that lost its log must not vote as its old self.
//     It is what raft takes for the server's address, too.
//   - The leader hands over when Run's context ends, for which the transport must
//     run on for a moment. End the ledger first.
//
// DESIGN.md says why.
package ledger
