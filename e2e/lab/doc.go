// Package lab makes several Docker hosts on one Linux machine, for tests,
// benchmarks and the demo.
//
// A host is a set of namespaces (pid, network, mount, UTS, IPC, cgroup) with a
// Docker engine of its own in it. Its disk is an overlay of the machine's root,
// or of a Debian tree with another engine, so that /etc, /var/lib/docker and
// all else it writes is its own and outlives a reboot; /run and /tmp are empty
// at each boot. Its eth0 is plugged into a bridge in a namespace of its own,
// the switch, where links are cut and made lossy, and where a registry listens.
// A [Station] is another machine of that LAN: a network namespace without files.
//
//	machine ── box (pid 1 of switch) ── br0, docker-registry
//	        ├─ box (pid 1 of host1) ── eth0, dockerd, containers, plugins
//	        ├─ box (pid 1 of host2) ── eth0, dockerd, ...
//	        └─ box (pid 1 of a station) ── eth0, what a test starts there
//
// Nothing of a lab is in the machine's own network namespace or mount table, so
// labs do not meet each other, and ending the first processes ends it all. These
// end with the process that made the lab, whatever ends that, unless the lab is
// detached; [Sweep] then removes what is left on disk.
//
// Hosts are numbered from 1, as their names (host1) and addresses (10.99.0.1).
//
// Traps: the clean-up of a network namespace by the kernel is asynchronous, and
// a process of the machine inside it keeps it alive; so enter a host only by
// [Host.Command] or [Host.Capture], which are ended with the host. Kernel
// modules, clock, memory and the kernel log are the machine's. Offloads make
// frames on a veth far longer than the MTU; see [Lab.PathMTU].
package lab
