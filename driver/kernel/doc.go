// Package kernel is the only door to Linux: comparable objects that say what
// the network stack holds (State), a pure Diff between two states, and a
// narrow interface (Kernel) that reads and applies them by netlink and
// nftables.
package kernel
