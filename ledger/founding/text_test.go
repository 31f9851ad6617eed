package founding

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// What a person is told names who is missing, and what to do.
func TestText(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	here := func(name string) Answered {
		return Answered{Peer: name, Answer: Answer{Host: cluster.HostID(name), Name: name}}
	}
	self := Answered{Peer: "host1", Self: true}
	away := Answered{Peer: "host3", At: at("10.0.0.3:7950"), Err: "no answer"}
	list := []string{"host1", "host2", "host3"}
	member := func(name string, id cluster.ID, empty bool) Answered {
		a := here(name)
		a.Answer.Cluster, a.Answer.Empty = id, empty
		return a
	}
	promised := here("host2")
	promised.Answer.Promise = Promise{"c1", "old", "host1", at("10.0.0.1:7950")}
	for _, tt := range []struct {
		name   string
		config Config
		events []Event
		says   []string
		stuck  bool
	}{
		{"one of JOIN is away", Config{Host: "own", Join: list}, []Event{here("host1"), here("host2"), away},
			[]string{"no cluster yet: it is founded with the first network; of JOIN, host1 and host2 answer, host3 (10.0.0.3:7950) does not"}, false},
		{"the first is away", Config{Host: "own", Join: []string{"host3", "host2"}}, []Event{away, here("host2")},
			[]string{"host3 (10.0.0.3:7950), the first member of JOIN, founds the cluster, and does not answer (no answer): start it, or set FOUND=force here"}, true},
		{"no majority", Config{Host: "own", Join: list}, []Event{self, away, Answered{Peer: "host2", Err: "connection refused"}},
			[]string{"1 of 3 members of JOIN answer", "host2 does not answer (connection refused); host3 (10.0.0.3:7950) does not answer (no answer)", "FOUND=force"}, true},
		{"two clusters", Config{Host: "own", Join: list}, []Event{member("host1", "c1", false), member("host2", "c2", false)},
			[]string{"two clusters with networks, c1 and c2", "isthmus reset"}, true},
		{"two clusters, one empty", Config{Host: "own", Join: list}, []Event{member("host1", "c1", true), member("host2", "c2", false), Entered{Err: "name taken"}},
			[]string{"name taken"}, true},
		{"the first founds not", Config{Host: "own", Join: list}, []Event{here("host1"), here("host2"), here("host3"), Want{}, Persuaded{Peer: "host1", Err: "1 of 3 members of JOIN answer"}},
			[]string{"host1, the first member of JOIN, does not found the cluster: 1 of 3"}, true},
		{"another founder was there", Config{Host: "own", Join: list}, []Event{self, promised, here("host3")},
			[]string{"host2 recorded that host1 (10.0.0.1:7950) founds cluster c1", "FOUND=force"}, true},
		{"a promise was given", Config{Host: "own", Promise: Promise{"c1", "other", "host9", at("10.0.0.9:7950")}}, nil,
			[]string{"host9 (10.0.0.9:7950) was about to found cluster c1", "FOUND=force"}, false},
		{"a member knows this host", Config{Host: "own", Known: []netip.AddrPort{at("10.0.0.9:7950")}}, []Event{Answered{Peer: "10.0.0.9:7950", Err: "connection refused"}},
			[]string{"10.0.0.9:7950 belongs to a cluster that knows this host, and does not answer (connection refused)"}, true},
	} {
		m := New(tt.config)
		m.Step(Tick{Fresh: "ff"})
		for _, e := range tt.events {
			m.Step(e)
		}
		text, stuck := m.Text()
		for _, s := range tt.says {
			if !strings.Contains(text, s) {
				t.Errorf("%s: %q lacks %q", tt.name, text, s)
			}
		}
		if stuck != tt.stuck {
			t.Errorf("%s: stuck is %v: %q", tt.name, stuck, text)
		}
		if m.Founds() != "" {
			t.Errorf("%s: it founds", tt.name)
		}
	}
}

// Of two clusters the one with networks is entered, of two empty ones the lower.
func TestWhichClusterIsEntered(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b Answer
		want cluster.ID
	}{
		{"a has networks", Answer{Cluster: "c2"}, Answer{Cluster: "c1", Empty: true}, "c2"},
		{"b has networks", Answer{Cluster: "c1", Empty: true}, Answer{Cluster: "c2"}, "c2"},
		{"both are empty", Answer{Cluster: "c2", Empty: true}, Answer{Cluster: "c1", Empty: true}, "c1"},
		{"both have networks", Answer{Cluster: "c1"}, Answer{Cluster: "c2"}, ""},
	} {
		m := New(Config{Host: "own", Join: []string{"a", "b"}})
		m.peers[0].answered, m.peers[0].answer, m.peers[0].asking = true, tt.a, true
		var got cluster.ID
		for _, e := range m.Step(Answered{Peer: "b", Answer: tt.b}) {
			if e, ok := e.(Enter); ok {
				got = e.Cluster
			}
		}
		if got != tt.want {
			t.Errorf("%s: enters %q", tt.name, got)
		}
	}
}

// A forced host founds although nobody answers, but not beside a cluster.
func TestForce(t *testing.T) {
	m := New(Config{Host: "own", Join: []string{"a", "b"}, Force: true})
	m.Step(Tick{Fresh: "ff"})
	m.Step(Answered{Peer: "a", Err: "no answer"})
	if got := m.Step(Want{}); len(got) != 1 { // b is being asked already
		t.Fatalf("%v", got)
	}
	m.Step(Answered{Peer: "a", Err: "no answer"})
	got := m.Step(Answered{Peer: "b", Err: "no answer"})
	if len(got) != 1 || got[0] != (Found{"ff"}) {
		t.Errorf("nobody answers: %v", got)
	}
	m = New(Config{Host: "own", Join: []string{"a", "b"}, Force: true})
	m.Step(Tick{Fresh: "ff"})
	m.Step(Want{})
	m.Step(Answered{Peer: "a", Err: "no answer"})
	got = m.Step(Answered{Peer: "b", Answer: Answer{Host: "b", Cluster: "c1"}})
	if len(got) != 1 {
		t.Errorf("one has a cluster: %v", got)
	} else if e, ok := got[0].(Enter); !ok || e.Cluster != "c1" {
		t.Errorf("one has a cluster: %v", got)
	}
}
