package ledger

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// Hosts leave one after the other, the leader first; the log stays with those
// that are left.
func TestLeave(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	for _, n := range nodes {
		n.must(attach(pool))
	}
	lease := nodes[1].block(pool)
	rest := nodes
	for len(rest) > 1 {
		lead := leaderOf(t, rest)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := lead.Leave(ctx); err != nil {
			t.Fatalf("%s: %v", lead.name, err)
		}
		cancel()
		rest = others(rest, lead)
		for _, n := range rest {
			n.await("it is gone", func() bool { _, known := n.Registry().Hosts[lead.id()]; return !known })
			n.must(attach(pool))
			if err := rules.Check(n.Registry()); err != nil {
				t.Error(err)
			}
		}
		// It does not come back by itself.
		_, err := lead.Propose(t.Context(), attach(pool))
		if why := (*cluster.Refusal)(nil); err == nil || !errors.As(err, &why) && !strings.Contains(err.Error(), "left the cluster") {
			t.Errorf("propose after leaving: %v", err)
		}
		if _, known := rest[0].Registry().Hosts[lead.id()]; known || hasLog(lead.cfg.Dir) {
			t.Errorf("%s is known: %v; has a log: %v", lead.name, known, hasLog(lead.cfg.Dir))
		}
		lead.kill()
	}
	if rest[0] != nodes[1] {
		if len(rest[0].Registry().Leases) != 0 {
			t.Errorf("leases %v", rest[0].Registry().Leases)
		}
	} else {
		rest[0].holds(nodes[1], lease)
	}
	// The last one takes the cluster with it.
	if err := rest[0].Leave(t.Context()); err != nil {
		t.Errorf("the last host: %v", err)
	}
}

func TestLeaveRefuses(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	if err := nodes[0].start().Leave(t.Context()); err != nil {
		t.Errorf("leave without a cluster: %v", err)
	}
	nodes[0].fresh()
	nodes[1].start(join[0]).fresh()
	// Nobody could take the log over.
	nodes[1].kill()
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := nodes[0].Leave(short); err == nil || !strings.Contains(err.Error(), "no other host is in reach") {
		t.Errorf("leave with the only log: %v", err)
	}
	key := nodes[0].must(attach(pool)).Pool.Key
	nodes[0].must(cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{key}, Def: cluster.Definition{Mode: "vxlan"}}})
	err := nodes[0].Leave(t.Context())
	if why := (*cluster.Refusal)(nil); !errors.As(err, &why) || why.Code != cluster.InUse || !strings.Contains(err.Error(), pool) {
		t.Errorf("leave with a network: %v", err)
	}
}

// Two of three voters are lost. The third goes on alone; the others return with
// what would be a majority of the log that was given up.
func TestRecoverFromAMinority(t *testing.T) {
	t.Parallel()
	nodes := assemble(t, 3)
	for _, n := range nodes {
		n.must(attach(pool))
		n.block(pool)
	}
	survivor := nodes[2]
	if _, err := survivor.Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "the log is in reach") {
		t.Errorf("recover while all is well: %v", err)
	}
	last := nodes[0].Registry().Index
	survivor.await("it has all", func() bool { return survivor.Registry().Index >= last })
	nodes[0].kill()
	nodes[1].kill()
	survivor.await("it has no leader", func() bool { return !survivor.Status().Reachable })
	report, err := survivor.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Gen != 2 || len(report.Fenced) != 2 {
		t.Errorf("report %+v", report)
	}
	survivor.gen(2)
	mine := survivor.block(pool)
	join := []string{survivor.addr.String()}
	for _, n := range nodes[:2] {
		n.startHasty(join...)
	}
	for _, n := range nodes {
		n.gen(2)
	}
	awaitVoters(t, nodes, 3)
	for _, n := range nodes {
		n.block(pool)
	}
	end := nodes[0].must(attach(pool)).Index
	for _, n := range nodes {
		n.await("it has all", func() bool { return n.Registry().Index >= end })
		if got := len(n.Registry().LeasesOf(mine.Pool, "")); got != 7 {
			t.Errorf("%s knows %d leases", n.name, got)
		}
		if err := rules.Check(n.Registry()); err != nil {
			t.Error(err)
		}
	}
}
