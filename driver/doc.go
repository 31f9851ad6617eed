// Package driver is what networks mean: it answers Docker's NetworkDriver
// calls and keeps the kernel as they, the cluster's agreement and the cluster's
// news together require.
//
// # The model
//
// Three inputs, one output:
//
//	Intent    what Docker said: networks and endpoints (store.go, on disk)
//	View      what the cluster agreed and what it is heard to hold
//	Plan      pure: Intent and View in; objects, handovers, records, problems out
//	loop      Plan, Dump, Diff, Do (loop.go); then mend what died inside
//	          sandboxes (mend.go), publish, announce who moved (speak.go), and
//	          cut off what has no right to its address (lost.go)
//	agree     tells the cluster which networks this host holds (agree.go)
//	look      finds in the sandboxes what intent does not know (tenant.go)
//
// No call touches the kernel by itself, except that Join has the kernel make
// the one interface that Docker will take. Everything else edits Intent and
// waits for a pass of the loop that includes the edit (Sync). A restart, a
// crash between any two steps, a device deleted by hand and a remote endpoint
// that appears are therefore all the same path.
//
// The identity of a network is its set of pools. Several Docker networks with
// the same pools on one host share one cluster network, one VNI and so one set
// of kernel objects; these are gone with the last of them.
//
// # Who may take part
//
// The cluster's word decides whose frames and records are taken (admit.go): not
// those of a host that it forgot, nor of one that did not confirm since the
// registry was rebuilt. Frames of strangers are dropped by VTEP. A record counts
// for an address only if its host leases that (holding.go), so that two hosts
// that believe to have one address cannot both be reached there.
//
// A host that must not take part itself (SetDetached) keeps everything and takes
// its VXLAN devices down, and mutes its containers in LANs: running ones are cut
// off, and recover without a restart. One endpoint on an address that its host has no right to (lost.go) is
// cut off by itself: a veth by its host end, a macvlan or ipvlan inside its sandbox,
// under a mark by which it is found again.
//
// State that was set back does not know all containers. What is found in a
// sandbox on one of our devices is treated as an endpoint while it is there,
// but never made again. Its network is as intent knows it, else as the cluster
// does; where neither does, its links stay as they are.
//
// # Modes
//
// A mode is one file: a name, the options that belong to it, and a pure plan.
// The registry is the slice literal in mode.go. There are two kinds (fenced in
// mode.go):
//
//	tunnels   vxlan: this host's containers reach others as Plan leads them
//	LAN       macvlan, ipvlan: they stand on a parent, and the LAN does the rest
//
// In a LAN, what matters is what the network stands on (ground, parent.go): links
// of the host that are mostly somebody else's, seen by Kernel.Links at the start of
// each pass. The same pure checks refuse a network when it is created (survey.go)
// and are its Problems afterwards; a network that cannot stand is left as it is,
// and its containers' interfaces are not made until it can. Records are published
// all the same: of names, of duplicates, and of MACs for macvlan_mode=source.
//
// With host_access (shim.go) the host has an address of the cluster's in a
// network. It is kept in intent, and address management finds out by Live when it
// is used no more.
//
// # Routed networks
//
// Networks whose Join answer has a gateway of ours (led in mode.go: host-gw, routed, and
// vxlan with gateway=distributed or host:NAME) bring their own way out and publish
// ports themselves:
//
//	gateway.go       the containers' gateway, what it leads to, who it is
//	hearing.go       whether the one that is it for all still answers
//	direct.go        the plan of host-gw and routed: who is led where
//	announced.go     what routers are told of that, and what they say
//	way.go           what probes of a host come to, pure
//	ways.go          next hops and probes, once a second
//	publish.go       Docker's calls about ports, and what is stored of them
//	egress.go        the networks that this host routes for, to kernel objects
//	ports.go         what the engine says of -p, checked
//	ports_hold.go    the ports of the host, each held by a socket: all that an
//	                 endpoint asks for, or nothing; what ProgramExternalConnectivity
//	                 asks again replaces, Leave and Revoke release
//
// A published port is stored with its endpoint, so that the next process holds the
// same ones; a conflict then is a Problem, and at Join an error with the name of who
// has it. SCTP is published on kernels without SCTP too: these only forward it.
//
// # Traps
//
//   - A macvlan child moves into the container; its absence from the host's
//     namespace is normal. Only the death of the device below it makes it
//     necessary to make it again (mend.go), and engines up to 27 call Join
//     before the sandbox exists, so "no sandbox" may mean "not yet".
//   - A host's own endpoints are never neighbours or forwarding entries of its
//     own device: duplicate address detection would fail.
//   - Nothing remote-derived is removed before the news have settled: a plugin
//     that just started knows of no remote endpoint, and the kernel still does.
//     What leads to a host that the cluster forgot goes even so.
//   - An ipvlan interface, and one in mode passthru, has the MAC of its parent. It
//     is known by the name that it was handed over with, and a zero MAC says nothing.
//   - A parent may die and return between two looks. That the interfaces on it
//     are gone shows in its new Device.Index, not in the dump.
//   - A look into all sandboxes costs a thread and a socket for each. What passes
//     need of them is at most a minute old; who is about to change the mode of an
//     ipvlan parent looks anew.
//   - A source that is shut out is cut off, so that in mode source nothing is
//     changed before the news have settled.
//   - No link is removed before the sandboxes were looked into once.
//   - Address management asks the driver and the driver asks it: neither may
//     hold a lock meanwhile that its answers need.
//   - Link changes flush neighbours, permanent ones too: a pass that changed a
//     link looks again before it ends.
//   - The definition of a network is kept with the intent: the data path needs
//     neither the ledger nor its local copy.
package driver
