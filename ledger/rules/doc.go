// Package rules says what each command does to the registry. It is the whole
// meaning of the replicated log, as one pure function:
//
//	registry, result = Apply(registry, command, index)
//
// A voter runs it when a command is committed, every other host runs it again
// on its own copy, and both get the same bytes. Hence the rules of the rules:
//
//   - no clock, no randomness, no I/O, no map order in any result or text;
//   - total: each command has an answer, and nonsense is refused, never a panic;
//   - copy on write: a registry that was handed out is never changed, so that
//     readers share it without locks;
//   - a refused command changes nothing but the index and the memory of the
//     answer;
//   - a command that is repeated, under its host, session and request, is
//     answered as before, and not done again.
//
// A change of these rules changes what old log entries mean: hosts of two
// versions that replay one log must not differ. Add fields and commands; do not
// reinterpret the present ones.
//
// # Leases
//
// Blocks follow the block lease protocol: there is no time in a lease. It ends
// by the word of its holder (Release, Leave, Confirm), or with a holder that
// others remove (Forget). What a host may do with a leased block is the
// business of package ipam.
//
// A lease covers its block, but for the addresses that its holder gave back one
// by one (Lease.Without). The free space of a pool is what no lease covers. So
// a block may lie inside another, and a carved address may be leased again
// alone, or in a larger block if all of that is free. A lease that covers no
// address for an endpoint any more ends by itself.
//
// A block is at most the host's share of the pool, so that the hosts of a small
// pool hold single addresses. A grant that finds nothing free names those who
// hold the pool; each can carve out an address that it does not use, and the
// last address is served.
//
// # Hosts that go
//
// A forgotten host stays in the registry as a tombstone: it is never let in
// again, and has no session, no pool and no network. Its name is free. Its
// leases are free at once where the others can drop the frames of its VTEP.
// Elsewhere they stay in quarantine, held by the tombstone, until the host says
// Confirm or an operator says Dead; that is decided when it is forgotten, and
// saying it again changes nothing. A host that was installed anew is known by
// its address: it takes over the name, and the former identity stays under
// another name (Host.Replaced), without a session, with its leases. Every
// refusal that such a holder causes names the `isthmus node rm` that helps.
//
// # A log that was lost
//
// Renew puts a registry together from the highest copy and what hosts testify;
// Rebuild, the first command of a new log, makes it the state. No host has a
// session in it: each is fenced until it says Hello, and then gets what it
// claims as far as no other lease covers it, once per generation. The Hello must
// say that the host has let go of what the lost log leased (Hello.Gen). In pools
// whose network does not fence, nothing is leased until all were heard. Hosts that
// were forgotten in the lost end of the log are known again, and are to be
// forgotten again.
//
// Numbers (Registry.Index, sessions, leases, Result.Index) are the log's index
// plus Registry.Offset, and so rise over all generations. The sum is made in
// edit alone: whoever calls Apply counts from the log's own first index, and
// reads its position in the log as Index - Offset.
package rules
