// Package council decides which hosts hold the cluster's log: one of up to two
// hosts, three of up to six, five of seven and more.
//
// [Next] is pure. The leader tells it who is a server, who could be one and who
// is well, does the one change that it names, and asks again. It names none
// that would leave less than a majority of healthy voters, adds before it
// removes, and goes from one odd number of voters to the next without stopping
// in between, since an even number bears no more losses than the odd one below.
//
// # Why not raft-autopilot
//
// It is a running object that asks raft, a clock and delegates, so that it can
// be tested only as a whole; it promotes every server, and a cap has to be built
// into a promoter of one's own; and it knows servers only, while the question
// here is mostly which host should become one. What is left of it is smaller
// than its adapter. Its lessons are kept: stabilise before promoting, never
// remove what the quorum needs, change one server at a time.
package council
