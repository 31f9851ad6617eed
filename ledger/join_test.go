package ledger

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// All hosts have one JOIN list and start in some order: one cluster comes out,
// founded by the first of the list.
func TestSameListEverywhere(t *testing.T) {
	t.Parallel()
	for name, order := range map[string][]int{"first to last": {0, 1, 2}, "last to first": {2, 1, 0}, "founder in between": {1, 0, 2}} {
		t.Run(name, func(t *testing.T) {
			nodes, join := hosts(t, 3)
			for _, i := range order {
				nodes[i].start(join...)
			}
			for _, n := range nodes {
				n.fresh()
				if n.ID() != nodes[0].ID() {
					t.Errorf("%s is in cluster %s, host1 in %s", n.name, n.ID(), nodes[0].ID())
				}
			}
			if nodes[0].Status().Role != Voter || nodes[1].Status().Role != Client {
				t.Errorf("roles %s, %s", nodes[0].Status().Role, nodes[1].Status().Role)
			}
		})
	}
}

func TestFounderWaitsForAMajority(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start(join...)
	nodes[0].await("it says whom it waits for", func() bool {
		s := nodes[0].Status()
		return s.Role == Joining && strings.HasPrefix(s.Error, "joining: "+join[1]+": connection refused") && strings.Contains(s.Error, "1 of 3") && strings.Contains(s.Error, "FOUND=force")
	})
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := nodes[0].Propose(short, attach("10.1.0.0/16"))
	if away := (*Unreachable)(nil); !errors.As(err, &away) || !strings.Contains(err.Error(), "join a cluster: ") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("propose while joining: %v", err)
	}
	nodes[2].start(join...)
	nodes[0].fresh()
	nodes[2].fresh()
	if nodes[0].ID() != nodes[2].ID() {
		t.Error("two clusters")
	}
}

func TestNobodyButTheFirstFounds(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[1].start(join...)
	nodes[2].start(join...)
	nodes[1].await("it says whom it waits for", func() bool {
		s := nodes[1].Status().Error
		return strings.Contains(s, join[0]+": connection refused") && strings.Contains(s, join[2]+": belongs to no cluster yet") &&
			strings.Contains(s, "the first member of JOIN, "+join[0])
	})
	if nodes[1].ID() != "" || nodes[2].ID() != "" {
		t.Error("a host that is not the first founded a cluster")
	}
	nodes[0].start(join...)
	nodes[1].fresh()
}

func TestForceFounds(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].startWith(func(c *Config) { c.Join, c.Force = []string{join[1]}, true }).fresh()
	// Where a member does answer, there is nothing to force.
	nodes[1].startWith(func(c *Config) { c.Join, c.Force = []string{join[0]}, true }).fresh()
	if nodes[0].ID() != nodes[1].ID() {
		t.Error("two clusters")
	}
}

func TestWipedFounderJoinsItsCluster(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	for _, n := range nodes {
		n.start(join...)
	}
	for _, n := range nodes {
		n.fresh()
	}
	id := nodes[0].ID()
	nodes[0].kill()
	wiped := newNode(t, "host1")
	wiped.addr = nodes[0].addr
	wiped.start(join...)
	wiped.await("it says what is missing", func() bool {
		return strings.Contains(wiped.Status().Error, "the log of cluster "+string(id)+" was on this very host")
	})
	if wiped.ID() != "" {
		t.Errorf("it founded cluster %s beside %s", wiped.ID(), id)
	}
}

func TestWrongCluster(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start().fresh()
	nodes[1].start().fresh()
	// A host keeps its cluster, and says so.
	nodes[1].kill()
	nodes[1].start(join[0])
	nodes[1].await("it refuses", func() bool {
		s := nodes[1].Status().Error
		return strings.Contains(s, string(nodes[0].ID())) && strings.Contains(s, string(nodes[1].ID())) && strings.Contains(s, "isthmus reset")
	})
	nodes[1].fresh().must(attach("10.1.0.0/16"))
	// A list that names two clusters is refused.
	nodes[2].start(join[:2]...)
	nodes[2].await("it refuses", func() bool {
		s := nodes[2].Status().Error
		return strings.Contains(s, string(nodes[0].ID())) && strings.Contains(s, string(nodes[1].ID())) && strings.Contains(s, "two clusters")
	})
}

func TestNameTaken(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	nodes[1].name = "host1"
	nodes[1].start(join[0])
	nodes[1].await("it says so", func() bool {
		return strings.Contains(nodes[1].Status().Error, "the name host1 belongs to") && strings.Contains(nodes[1].Status().Error, "NODE_NAME")
	})
	if nodes[1].ID() != "" {
		t.Error("it belongs to a cluster that refused it")
	}
	nodes[1].kill()
	nodes[1].name = "host2"
	nodes[1].start(join[0]).fresh()
}
