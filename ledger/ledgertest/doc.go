// Package ledgertest is a replicated log without a network: several hosts in
// one process share one registry, which the real rules (package rules) change.
//
//	c := ledgertest.New(t)
//	a, b := c.Host("host1"), c.Host("host2")
//	a.Propose(ctx, cluster.Command{AttachPool: ...})
//
// A Host has the methods that ipam and driver ask of a ledger: Propose,
// Registry, Fresh and Subscribe. Every command crosses JSON, as on the wire,
// and after each the registry is checked for all that must hold in it.
package ledgertest
