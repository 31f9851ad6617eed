// Package sim drives the rules by which addresses never collide through
// everything that can go wrong, and looks after every step whether they did.
//
// What it drives is the code that runs in the product: the registry's rules
// (ledger/rules), the lease machine of a host (ipam/lease) and the rules of
// founding (ledger/founding). What it makes up is the world around them: hosts
// that crash, disks that are set back or copied, a network that delays, orders
// anew, repeats and loses, copies of the registry and claims that lag,
// operators who forget hosts that are alive. The replicated log is one registry
// that messages reach, since raft makes it look like one.
//
// # Choices and traces
//
// One step is one event, drawn by a seed. A seed and the same code give the
// same events, the same registry and the same disks. A run is kept as the list
// of its events, in words: that list can be done again, and shortened, since
// an event that is not possible any more is passed over. What fails is
// printed with its seed, the shortest list that fails as well, and the state.
//
// # What is taken for granted
//
// Three things no rule can mend, so the world here does not do them:
//
//   - A disk that was set back behind the end of a lease does not start where
//     no host can be asked that saw that end, nor while the message that ends it
//     is still on its way, unless STRICT_BOOT is on.
//   - A registry that lost its end is rebuilt under networks that fence by the
//     VTEP only: elsewhere a holder that was not heard cannot be kept apart.
//   - A log that forgets what it committed forgets no host and no Forget, and
//     claims have been heard everywhere.
//
// # Mutations
//
// A rule that is never missed is not needed. So each protective rule, or pair
// of rules that back each other up, can be defeated from outside, by altering
// a message, an order, a disk or the registry between two steps; with it
// defeated, a trace in testdata must end in a duplicate, and a random search
// must find another.
//
// There is nothing here but tests.
package sim
