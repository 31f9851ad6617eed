// Package lease is what one host knows and decides about its address blocks:
// a machine of plain state and step functions, without I/O, clock and locks.
// Package ipam drives it in production; a simulation can drive it over a
// hostile network and disk.
//
// # Steps
//
// A step function decides and returns a [Step]; the state that others see is
// unchanged until [Machine.Done]. The order is always the same:
//
//  1. s := m.Drain(...), or any other step;
//  2. s.Writes go to disk, all or none of them ([Disk.Apply] says what they
//     mean), in the order in which the steps were decided;
//  3. m.Done(s, err) makes them count, or drops them; until then other steps
//     leave alone what this one is about;
//  4. only then s.Send leaves, and whoever asked is answered.
//
// A crash may come between any two of these. What is on disk then is all that
// is left: [Load] starts from a [Disk], and [Machine.Disk] is a copy of what
// must be on it.
//
// Commands are numbered when they are sent ([Machine.Ask]); an answer is taken
// up under that number once, by the run that asked ([Machine.Answered]). The
// sender stamps the session; the log refuses older ones.
//
// # Rules and where they are
//
//   - An address is on disk as used before it is answered, and off the disk
//     before another gets it: the order of Writes and Done; [Machine.Allocate],
//     [Machine.Take], [Machine.Free].
//   - Only the answer to an outstanding request counts: [Machine.Answered]. A
//     lease that this run gave back is not taken up again: Machine.Returned,
//     asked by keep.
//   - A block is stored as draining before its Release leaves, and is never
//     used again: [Machine.Drain]. A hole likewise: [Machine.Carve].
//   - A Release names the lease, not the block: releaseOf.
//   - A fresh registry settles what is open: [Machine.Reconcile].
//   - A registry that was put together again is trusted with the blocks of this
//     host after they were held against it: [Machine.Rebuilt].
//   - Stored blocks are not used while there is doubt about the disk:
//     [Machine.Boot] and [Machine.Gate].
//   - A granted block that another host claims is not used: the contest
//     passed to [Machine.Answered] and [Machine.Reconcile]. What a step is just
//     taking up is claimed as well: [Machine.Claims], [Machine.Keeps].
package lease
