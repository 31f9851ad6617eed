// Package cluster holds the plain values that the parts of isthmus exchange:
// who the hosts are, what the cluster agreed (Registry, Command, Result) and
// what it heard (Member, Stream, Record).
//
// The package has no behaviour beyond comparing, sorting and naming its values.
// driver, ipam, gossip and ledger all import it and never one another; plugin
// plugs them together.
package cluster
