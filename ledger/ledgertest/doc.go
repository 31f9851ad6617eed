// Package ledgertest is a replicated log without a network: several hosts in
// one process share one registry, which the real rules (package rules) change.
//
//	c := ledgertest.New(t)
//	a, b := c.Host("host1"), c.Host("host2")
//	a.Propose(ctx, cluster.Command{AttachPool: ...})
//
// A Host has the methods that ipam and driver ask of a ledger: Propose,
// Registry, Fresh, Boot and Subscribe. Every command crosses JSON, as on the
// wire, and after each the registry is checked for all that must hold in it.
//
// What a host may meet can be brought about: that it is cut off (Reach), that
// answers get lost (LoseAnswers), a new run (Restart, Hello), a clone of it
// (Clone), doubt about its disk (SetBoot), and a registry that was lost and put
// together again (Cluster.Rebuild). Leaving and forgetting are commands.
package ledgertest
