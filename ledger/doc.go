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
// state is deleted or the cluster dissolves. A host without a cluster looks for
// one, and enters any that it hears of. None is founded before a command waits
// for it; who founds, and who must agree, is in package founding.
//
// Clusters that meet never merge. One without pools dissolves into the other by
// an entry in its log; Run then returns [ErrDissolved], and a new Ledger over
// the same state joins the other. Two clusters with networks go on, refuse each
// other, and say so.
//
// # What is lost
//
// [Ledger.Boot] says what the disk is worth after a start, by what the others
// testify. A log that is lost is rebuilt from the copies and the claims of all
// hosts in reach, in the next generation ([Ledger.Recover], [Ledger.Restore]; by
// itself when the only voter was set back). A later generation wins over logs
// and copies of an earlier one, and lets in only who has prepared for it
// ([Config].Prepare).
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
