// Package bgp announces prefixes of this host to the routers of its network,
// and hears from them, on request, a few prefixes.
//
// # Model
//
// A [Speaker] holds one session to each router of its [Config]. The caller
// states the full set of prefixes that this host answers for
// ([Speaker.Announce]); the speaker sends the difference to what the routers
// know. What routers say is ignored but for the prefixes of Config.Import; of
// these the caller gets the full set whenever it changes (Config.Imported).
// The package never touches the kernel's routes: who sets them is the caller.
//
// [Parse] turns the text of the user's settings into a Config and touches
// nothing. [Speaker.Status] says of each session what it is, since when, what
// was announced, and what is wrong with it in words that name the remedy. No
// password is ever part of a status, an error or a log line.
//
// # What a router can do to this host
//
// Nothing by default: the import policy rejects. Routes that Config.Import lets
// in are at most Config.ImportMax, the shortest prefixes first, and the session
// says how many were left out. Rejected routes are kept by the library and
// cost memory, so each session takes at most Config.ReceiveMax of either
// family: a router that sends more is cut off, its session reported, and tried
// again after five minutes. Below that a full table sent by mistake costs some
// memory and nothing else; the session and what is announced stay. Routes of
// one router are never passed on to another: this host is no transit.
//
// # End and restart
//
// The end of [Speaker.Run] is silent, as if the process were killed: sessions
// close without a notification, and routers that agreed to graceful restart
// keep the routes for Config.Restart, during which the next process of this
// host takes over. For that, it starts with Config.Restarting, which tells
// routers that forwarding went on. [Speaker.Withdraw] is the farewell of a host
// that leaves for good: all routers forget its routes at once.
//
// No session is opened before the first Announce, and no import is delivered
// before all routers have said all (or [Settle] is over): a set that is not
// yet whole would remove routes that are in use.
//
// # Sources
//
// The protocol is spoken by gobgp: RFC 4271 (BGP-4), 4760 (IPv6), 5549 (IPv4
// prefixes behind IPv6 addresses), 4724 (graceful restart), 2385 (MD5), 5082
// (TTL security), 5880 and 5881 (BFD).
//
// # Traps
//
//   - BFD defeats graceful restart: it reports the death of a process within
//     seconds, and routers drop its routes although the kernel forwards. [Parse]
//     refuses both together.
//   - A router without graceful restart for the family drops all routes when
//     this process restarts. Session.Graceful says what was agreed.
//   - A wrong password looks like a router that is switched off: the kernel
//     drops what is not signed as expected, without an answer.
//   - A router is found on an interface by its router advertisements. This host
//     sends none: name its link-local address at the router, or a listen range.
//   - Only the best of several routes to a prefix is imported.
//   - gobgp keeps some of its options in variables of the process: all
//     speakers of one process share them. Only tests run two.
//   - With Config.Listen, port 179 belongs to one process of the host. Without
//     it the host connects, and routers may be passive.
package bgp
