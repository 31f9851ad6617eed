package founding

import (
	"slices"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// founder returns a machine that heard all of its JOIN, and is first in it.
func founder(force bool) *Machine {
	m := New(Config{Host: "own", Join: []string{"own", "a", "b"}, Force: force})
	m.Step(Tick{Fresh: "ff"})
	m.Step(Answered{Peer: "own", Self: true})
	for _, p := range []string{"a", "b"} {
		m.Step(free(p))
	}
	return m
}

func free(peer string) Answered {
	return Answered{Peer: peer, Answer: Answer{Host: cluster.HostID("host-" + peer), Name: peer}}
}

func effect[T Effect](all []Effect) (T, bool) {
	i := slices.IndexFunc(all, func(e Effect) bool { _, ok := e.(T); return ok })
	if i < 0 {
		var none T
		return none, false
	}
	return all[i].(T), true
}

// What was heard before somebody wanted a cluster may be old.
func TestEverybodyIsAskedAnew(t *testing.T) {
	m := founder(false)
	got := m.Step(Want{})
	if _, ok := effect[Record](got); ok || len(got) != 3 {
		t.Fatalf("%v", got)
	}
	m.Step(Answered{Peer: "own", Self: true})
	m.Step(free("a"))
	got = m.Step(free("b"))
	if r, ok := effect[Record](got); !ok || r.Cluster != "ff" {
		t.Errorf("%v", got)
	}
}

// One that objects is enough, even for a forced founder.
func TestObjection(t *testing.T) {
	for _, force := range []bool{false, true} {
		for _, ok := range []bool{true, false} {
			m := founder(force)
			m.Step(Want{})
			for _, e := range []Event{Answered{Peer: "own", Self: true}, free("a"), free("b"), Recorded{Peer: "a", Cluster: "ff", OK: true, Answer: free("a").Answer}} {
				m.Step(e)
			}
			got := m.Step(Recorded{Peer: "b", Cluster: "ff", OK: ok, Answer: free("b").Answer})
			if _, founds := effect[Found](got); founds != ok {
				t.Errorf("force %v, agreed %v: %v", force, ok, got)
			}
		}
	}
}

// An answer to a question that was asked before the promise does not end it; a
// later one does, and only if it comes from the founder itself.
func TestPromiseEndsByTheFounderAlone(t *testing.T) {
	at := Promise{Cluster: "aa", Founder: "host-a", Name: "a"}
	m := founder(false)
	m.Step(Tick{Fresh: "fe"}) // asks all
	if got := m.Step(Asked{Promise: at, Token: 1}); len(got) != 2 || got[0] != (Keep{at}) || got[1] != (Reply{1, true}) {
		t.Fatalf("%v", got)
	}
	if got := m.Step(Asked{Promise: Promise{Cluster: "bb", Founder: "host-b"}, Token: 2}); len(got) != 1 || got[0] != (Reply{2, false}) {
		t.Errorf("a second promise: %v", got)
	}
	m.Step(free("a"))
	if m.Promise() != at {
		t.Error("it ended by an answer from before")
	}
	m.Step(Tick{Fresh: "fd"})
	busy := free("a")
	busy.Answer.Founds = "aa"
	m.Step(busy)
	m.Step(Tick{Fresh: "fc"})
	wiped := free("a")
	wiped.Answer.Host = "host-c"
	m.Step(wiped)
	if m.Promise() != at {
		t.Error("it ended although the founder is at it, or another host answered")
	}
	m.Step(Tick{Fresh: "fb"})
	if got := m.Step(free("a")); len(got) != 1 || got[0] != (Keep{}) || m.Promise() != (Promise{}) {
		t.Errorf("the founder gave up: %v", got)
	}
}

// Of two founders at once the one with the higher id gives way.
func TestHigherAttemptGivesWay(t *testing.T) {
	for _, tt := range []struct {
		other cluster.ID
		ok    bool
	}{{"ee", true}, {"fff", false}} {
		m := founder(false)
		m.Step(Want{})
		for _, e := range []Event{Answered{Peer: "own", Self: true}, free("a"), free("b")} {
			m.Step(e)
		}
		if m.Founds() != "ff" {
			t.Fatalf("founds %q", m.Founds())
		}
		got := m.Step(Asked{Promise: Promise{Cluster: tt.other, Founder: "host-b"}, Token: 1})
		if r, _ := effect[Reply](got); r.OK != tt.ok || (m.Founds() == "") != tt.ok {
			t.Errorf("%s: %v, founds %q", tt.other, got, m.Founds())
		}
	}
}
