// Package boot is what a lab host does before anything else runs on it: its
// first process makes the host's own cgroups, disk, /proc, /sys, /run and name,
// says that it is ready, and then only waits for orphans to end.
//
// The lab starts it with [Command] inside new pid, mount, net, UTS and IPC
// namespaces. All that later runs on the host lives in that pid namespace, so
// killing the first process ends the host as pulling its power cord would, and
// the namespaces, mounts and links go with it; what is on its disk stays.
//
// Two stages are needed: a cgroup namespace takes its root from the cgroups its
// maker is in, and belongs to one thread, so the first stage joins the cgroups,
// unshares, and executes the second from that same thread.
//
// The host's standard input carries one Config and then stays open: its end is
// the end of the owner, and unless the Config says Detached, the host ends too.
package boot
