// Command isthmus is the Docker plugin and its command line, in one binary.
//
// As a plugin (isthmus serve) it opens its socket first and everything else
// after: dockerd disables a plugin that does not listen within ten seconds, and
// nothing here may make a boot wait. A call that comes before the parts are
// ready waits for them within its own bound.
//
// The parts (transport, ledger, gossip, ipam, driver) know nothing of one
// another. A node plugs them together, for one underlay address: where that
// address changes, the node ends and another begins, below the same socket.
// What stands in the kernel is not touched by either.
//
//	settings.go  what the user may set, checked before anything is touched
//	socket.go    the listener, and what it serves before a node is there
//	rpc.go       one call of Docker: decode, bound, recover, encode
//	routes.go    the calls of both protocols, one line each
//	node.go      the wiring
//	lan.go       who else has an address in the LANs of networks here
//	dhcp.go      addresses of these LANs' own servers
//	underlay.go  which address and MTU the tunnels stand on, and when they change
//	probe.go     whether full-sized packets reach each peer
//	sweep.go     networks that Docker forgot to tell us about
//	report.go    the plugin's own API, /isthmus/v1
//	client.go    the command line's side of it; render.go draws tables
//
// Traps: the engine's API is never called inside a driver call (it deadlocks
// at boot); a retried request of the engine may have an empty body; in a
// managed plugin /run/docker/plugins is a mount of its own, and /proc/sys is
// read-only.
package main
