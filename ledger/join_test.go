package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/transport"
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

// All hosts start at once, and all want a network at once.
func TestAllAtOnce(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 5)
	var wg sync.WaitGroup
	for _, n := range nodes {
		n.start(join...)
	}
	began := time.Now()
	for i, n := range nodes {
		wg.Go(func() {
			if _, err := n.Propose(context.Background(), attach(fmt.Sprintf("10.%d.0.0/16", i+1))); err != nil {
				t.Errorf("%s: %v after %v", n.name, err, time.Since(began))
			}
		})
	}
	wg.Wait()
	for _, n := range nodes {
		if n.ID() == "" || n.ID() != nodes[0].ID() {
			t.Errorf("%s is in cluster %q, host1 in %q", n.name, n.ID(), nodes[0].ID())
		}
	}
}

// A member of JOIN takes connections and says nothing: the others do not wait
// for it longer than a command may take.
func TestSilentMember(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	silence(t, nodes[2].addr)
	nodes[0].start(join...)
	nodes[1].start(join...)
	nodes[1].must(attach("10.1.0.0/16"))
	if nodes[0].ID() != nodes[1].ID() {
		t.Error("two clusters")
	}
}

func TestNothingBeforeTheFirstCommand(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start(join...)
	nodes[2].start(join...)
	nodes[2].await("it knows who answers", func() bool {
		s := nodes[2].Status()
		return s.Error == "" && s.Founding == "no cluster yet: it is founded with the first network; of JOIN, host1 answers, "+join[1]+" does not"
	})
	for _, n := range nodes[:1] {
		if n.ID() != "" || hasLog(n.cfg.Dir) || n.Status().Role != Joining {
			t.Errorf("%s: %+v", n.name, n.Status())
		}
	}
	// Another host than the first asks for one.
	nodes[2].must(attach("10.1.0.0/16"))
	if nodes[0].Status().Role != Voter || nodes[0].ID() != nodes[2].ID() {
		t.Errorf("%+v", nodes[0].Status())
	}
	nodes[1].start(join...).await("it enters by itself", nodes[1].Fresh)
}

func TestFounderWaitsForAMajority(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start(join...)
	nodes[0].await("it says whom it waits for", func() bool {
		s := nodes[0].Status()
		return s.Role == Joining && strings.HasPrefix(s.Error, "joining: 1 of 3 members of JOIN answer") &&
			strings.Contains(s.Error, join[1]+" does not answer (connection refused") && strings.Contains(s.Error, "FOUND=force")
	})
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := nodes[0].Propose(short, attach("10.1.0.0/16"))
	if away := (*Unreachable)(nil); !errors.As(err, &away) || !strings.Contains(err.Error(), "join a cluster: 1 of 3") || !strings.Contains(err.Error(), "connection refused") {
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
		return strings.Contains(s, join[0]+", the first member of JOIN, founds the cluster, and does not answer (connection refused")
	})
	began := time.Now()
	_, err := nodes[1].Propose(t.Context(), attach("10.1.0.0/16"))
	if err == nil || !strings.Contains(err.Error(), join[0]+", the first member of JOIN") || time.Since(began) > 6*time.Second {
		t.Errorf("propose without the founder: %v after %v", err, time.Since(began))
	}
	if nodes[1].ID() != "" || nodes[2].ID() != "" {
		t.Error("a host that is not the first founded a cluster")
	}
	nodes[0].start(join...)
	nodes[1].fresh()
}

// Each of two hosts names the other: neither may found.
func TestJoinInACircle(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start(join[1])
	nodes[1].start(join[0])
	_, err := nodes[0].Propose(t.Context(), attach("10.1.0.0/16"))
	if err == nil || !strings.Contains(err.Error(), "it waits for that host in turn") {
		t.Errorf("propose: %v", err)
	}
}

// What a member recorded for a founder is on its disk before the founder goes
// on, and survives it.
func TestPromiseIsKept(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[1].start(join...)
	nodes[2].start(join...)
	promise := founding.Promise{Cluster: "00000000c0ffee00", Founder: nodes[0].id(), Name: "host1", At: nodes[0].addr}
	stranger := newNode(t, "stranger")
	stranger.start()
	nodes[1].await("it looks for a cluster", func() bool { return nodes[1].Status().Founding != "" })
	_, err := transport.Call[recordRequest, recordReply](t.Context(), stranger.cfg.Transport, nodes[1].addr, recordMethod, recordRequest{Promise: promise})
	if why := (*cluster.Refusal)(nil); !errors.As(err, &why) || why.Code != cluster.Invalid {
		t.Errorf("a promise in the name of another: %v", err)
	}
	promise.Founder, promise.Name = stranger.id(), "stranger"
	got, err := transport.Call[recordRequest, recordReply](t.Context(), stranger.cfg.Transport, nodes[1].addr, recordMethod, recordRequest{Promise: promise})
	if err != nil || !got.OK {
		t.Fatalf("record: %+v, %v", got, err)
	}
	stranger.kill()
	nodes[1].kill()
	nodes[1].start(join...)
	nodes[1].await("it remembers", func() bool { return strings.Contains(nodes[1].Status().Founding+nodes[1].Status().Error, join[0]) })
	other := founding.Promise{Cluster: "00000000decafe00", Founder: nodes[2].id(), Name: "host3", At: nodes[2].addr}
	got, err = transport.Call[recordRequest, recordReply](t.Context(), nodes[2].cfg.Transport, nodes[1].addr, recordMethod, recordRequest{Promise: other})
	if err != nil || got.OK || got.Host.Promise != promise {
		t.Errorf("a second promise: %+v, %v", got, err)
	}
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
		return strings.Contains(wiped.Status().Error, "the log of cluster "+string(id)+" was on this very host") &&
			strings.Contains(wiped.Status().Error, "isthmus recover")
	})
	if wiped.ID() != "" {
		t.Errorf("it founded cluster %s beside %s", wiped.ID(), id)
	}
}

func TestClustersWithNetworksStayApart(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start().fresh().must(attach("10.1.0.0/16"))
	nodes[1].start().fresh().must(attach("10.2.0.0/16"))
	nodes[1].kill()
	nodes[1].start(join[0])
	// The one whose JOIN names the other sees it, and the other is told.
	for _, n := range nodes[:2] {
		n.await("it says so", func() bool {
			s := n.Status().Error
			return strings.Contains(s, string(nodes[0].ID())) && strings.Contains(s, string(nodes[1].ID())) && strings.Contains(s, "isthmus reset")
		})
		n.fresh().must(grant("10." + n.name[len("host"):] + ".0.0/16"))
	}
	// A list that names two clusters is refused.
	nodes[2].start(join[:2]...)
	nodes[2].await("it refuses", func() bool {
		s := nodes[2].Status().Error
		return strings.Contains(s, string(nodes[0].ID())) && strings.Contains(s, string(nodes[1].ID())) && strings.Contains(s, "two clusters")
	})
}

// An empty cluster dissolves into the other when they meet, whichever of the two
// names the other, and its hosts join that one.
func TestEmptyClusterDissolves(t *testing.T) {
	t.Parallel()
	for _, names := range []string{"the empty one names the other", "the other names the empty one"} {
		t.Run(names, func(t *testing.T) {
			t.Parallel()
			nodes, join := hosts(t, 4)
			full, empty := nodes[:2], nodes[2:]
			full[0].start().fresh().must(attach("10.1.0.0/16"))
			full[1].start(join[0]).fresh()
			empty[0].start().fresh()
			empty[1].start(join[2]).fresh()
			away := nodes[3]
			away.kill() // and hears of it later
			if names == "the empty one names the other" {
				empty[0].kill()
				empty[0].start(join[0])
			} else {
				full[1].kill()
				full[1].start(join[2])
			}
			if err := empty[0].ended(); !errors.Is(err, ErrDissolved) {
				t.Fatalf("run of the empty cluster: %v", err)
			}
			empty[0].start()
			empty[0].await("it joins", empty[0].Fresh)
			if empty[0].ID() != full[0].ID() {
				t.Errorf("it joined cluster %s", empty[0].ID())
			}
			away.start(join[2])
			if err := away.ended(); !errors.Is(err, ErrDissolved) {
				t.Fatalf("run of a host that was away: %v", err)
			}
			away.start().await("it joins", away.Fresh)
			if away.ID() != full[0].ID() {
				t.Errorf("it joined cluster %s", away.ID())
			}
			away.must(grant("10.1.0.0/16"))
		})
	}
}

// Of two empty clusters that of the lower id stays.
func TestTwoEmptyClusters(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	nodes[1].start().fresh()
	low, high := nodes[0], nodes[1]
	if high.ID() < low.ID() {
		low, high = high, low
	}
	id := low.ID()
	low.kill()
	low.start(join...)
	if err := high.ended(); !errors.Is(err, ErrDissolved) {
		t.Fatalf("run: %v", err)
	}
	high.start().await("it joins", high.Fresh)
	if high.ID() != id || low.ID() != id {
		t.Errorf("clusters %s and %s, want %s", low.ID(), high.ID(), id)
	}
}

func TestNameTaken(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	nodes[1].name = "host1"
	nodes[1].start(join[0])
	nodes[1].await("it says so", func() bool {
		return nodes[1].Status().Refused == cluster.NameTaken && strings.Contains(nodes[1].Status().Error, "the name host1 belongs to") && strings.Contains(nodes[1].Status().Error, "NODE_NAME")
	})
	if nodes[1].ID() != "" {
		t.Error("it belongs to a cluster that refused it")
	}
	nodes[1].kill()
	nodes[1].name = "host2"
	nodes[1].start(join[0]).fresh()
}

// What a host says about an attempt to enter must not hold what it said of the
// one before.
func TestEnterSaysWhyOnce(t *testing.T) {
	t.Parallel()
	n, silent := newNode(t, "host1").start(), nextAddr()
	silence(t, silent)
	const before = "enter cluster c1: the attempt before"
	n.Ledger.mu.Lock()
	n.waiting = before
	n.Ledger.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := n.enter(ctx, "c1", []Server{{Host: "a", Name: "host9", Address: silent}})
	if err == nil || strings.Contains(err.Error(), "before") || !strings.Contains(err.Error(), "host9") || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("%v", err)
	}
}
