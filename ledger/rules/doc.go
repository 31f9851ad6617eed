// Package rules says what each command does to the registry. It is the whole
// meaning of the replicated log, as one pure function:
//
//	registry, result = Apply(registry, command, index)
//
// The voter runs it when a command is committed, every other host runs it
// again on its own copy, and both get the same bytes. Hence the rules of the
// rules:
//
//   - no clock, no randomness, no I/O, no map order in any result or text;
//   - total: each command has an answer, and nonsense is refused, never a panic;
//   - copy on write: a registry that was handed out is never changed, so that
//     readers share it without locks;
//   - a refused command changes nothing but the index and the memory of the
//     answer.
//
// A change of these rules changes what old log entries mean: hosts of two
// versions that replay one log must not differ. Add fields and commands; do not
// reinterpret the present ones.
//
// Blocks follow the block lease protocol: there is no time in a lease, it ends
// only by Release. What a host may do with a leased block is the business of
// package ipam.
package rules
