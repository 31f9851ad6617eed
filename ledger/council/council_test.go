package council

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
)

// parse reads a state. Servers: "a" a voter, "a-" without a vote; then "!" not
// healthy, "!!" out for long, "~" not current, "?" lost. The first one leads.
// Hosts: every letter of the servers, and "a" a candidate, "a." one that is too
// new, "a!" one that is not healthy, "a*" one that is gone, "a0" a server's
// host that is no member.
func parse(t *testing.T, servers, hosts string) State {
	t.Helper()
	s := State{Stable: 10 * time.Second, Replace: time.Minute}
	members := map[cluster.HostID]Host{}
	for _, word := range strings.Fields(servers) {
		host, flags := cluster.HostID(word[:1]), word[1:]
		srv := Server{ID: string(host) + "1", Host: host, Voter: !strings.Contains(flags, "-"), Healthy: !strings.Contains(flags, "!"),
			Current: !strings.Contains(flags, "~"), Lost: strings.Contains(flags, "?"), For: 30 * time.Second}
		if strings.Contains(flags, "!!") {
			srv.For = time.Hour
		}
		if s.Leader == "" {
			s.Leader = srv.ID
		}
		s.Servers = append(s.Servers, srv)
		members[host] = Host{ID: host, Healthy: srv.Healthy, For: srv.For}
	}
	for _, word := range strings.Fields(hosts) {
		h := Host{ID: cluster.HostID(word[:1]), Healthy: true, For: time.Hour}
		switch word[1:] {
		case ".":
			h.For = time.Second
		case "!":
			h.Healthy = false
		case "*":
			h.Gone = true
		case "0":
			delete(members, h.ID)
			continue
		}
		members[h.ID] = h
	}
	for _, h := range members {
		s.Hosts = append(s.Hosts, h)
	}
	return s
}

func TestNext(t *testing.T) {
	for _, test := range []struct{ name, servers, hosts, want string }{
		{"alone", "a", "", ""},
		{"two hosts have one voter", "a", "b", ""},
		{"three hosts have three", "a", "b c", "enlist b"},
		{"both are prepared first", "a b-", "c", "enlist c"},
		{"nobody votes before both are ready", "a b- c-~", "", ""},
		{"then one after the other", "a b- c-", "", "promote b"},
		{"the second one", "a b c-", "", "promote c"},
		{"three voters are enough", "a b c", "d e f", ""},
		{"seven hosts have five", "a b c", "d e f g", "enlist d"},
		{"five are enough", "a b c d e", "f g h", ""},

		{"a new host waits", "a", "b. c", ""},
		{"a host that is away is not asked", "a", "b! c", ""},
		{"no even number when the third is away", "a", "b c!", ""},
		{"no even number above three", "a b c", "d e! f! g!", ""},
		{"an even number is made odd", "a b c d", "e f! g!", "enlist e"},
		{"an even number is kept", "a b c d", "e! f! g!", ""},

		{"a voter is away for a moment", "a b c!", "d", ""},
		{"a voter is out: its place is taken first", "a b c!!", "d", "enlist d"},
		{"the new one gets its vote", "a b c!! d-", "", "promote d"},
		{"then the old one goes", "a b c!! d", "", "remove c"},
		{"nobody can take its place", "a b c!!", "", ""},
		{"two of five are out", "a b c d!! e!!", "f g", "enlist f"},
		{"both are replaced at once", "a b c d!! e!! f-", "g", "enlist g"},
		{"it came back before it was replaced", "a b c d-", "", "remove d"},
		{"it came back after it was replaced", "a b c! d", "", "remove c"},

		{"a member was forgotten", "a b c!", "c*", "remove c"},
		{"a member is unknown", "a b c!", "c0", "remove c"},
		{"not when the quorum needs it", "a b! c", "c* d!", ""},
		{"unless one voter is enough then", "a b! c", "c*", "remove b"},
		{"but once another took its place", "a b! c d", "c*", "remove c"},
		{"another takes its place", "a b! c", "c* d", "enlist d"},
		{"a log was lost", "a b c!?", "", "remove c"},
		{"a log was lost that the quorum needs", "a b! c?", "", ""},
		{"then another takes its place", "a b! c?", "d", "enlist d"},
		{"one without a vote was forgotten", "a b- c-", "c*", "remove c"},
		{"one without a vote is out", "a b- c-!!", "", "remove c"},

		{"two hosts are left", "a b", "", "remove b"},
		{"six hosts are left", "a b c d e", "f", "remove e"},
		{"the leader stays", "b a", "", "remove a"},
		{"the unhealthy one goes first", "a b! c d e", "f", "remove b"},

		{"the leader leaves", "a b c", "a*", "yield b"},
		{"the leader leaves to one that is ready", "a b~ c", "a*", "yield c"},
		{"the only voter leaves", "a", "a* b", "enlist b"},
		{"the only voter makes its heir", "a b-", "a*", "promote b"},
		{"the only voter hands over", "a b", "a*", "yield b"},
		{"the heir removes it", "b a", "a*", "remove a"},
		{"the only voter of many leaves", "a", "a* b c d", "enlist b"},
		{"the last one cannot leave", "a", "a*", ""},
	} {
		c := Next(parse(t, test.servers, test.hosts))
		if got := strings.TrimSpace(fmt.Sprintf("%s %s", c.Action, c.Host)); got != test.want {
			t.Errorf("%s: got %q, want %q (%s)", test.name, got, test.want, c.Why)
		}
	}
}

// world is a cluster as the leader sees it, and time.
type world struct {
	t      *rapid.T
	hosts  map[cluster.HostID]*Host
	state  State
	serial int
}

func (w *world) see() State {
	s := w.state
	s.Hosts = nil
	for _, h := range w.hosts {
		s.Hosts = append(s.Hosts, *h)
	}
	s.Servers = append([]Server(nil), s.Servers...)
	return s
}

func (w *world) pass(d time.Duration) {
	for _, h := range w.hosts {
		h.For += d
	}
	for i := range w.state.Servers {
		w.state.Servers[i].For += d
		w.state.Servers[i].Current = w.state.Servers[i].Healthy
	}
}

func (w *world) quorum() (voters, healthy int) {
	for _, s := range w.state.Servers {
		if s.Voter {
			voters++
			if s.Healthy {
				healthy++
			}
		}
	}
	return voters, healthy
}

// do applies a change as raft would, and checks that it was a good one.
func (w *world) do(c Change) {
	if voters, healthy := w.quorum(); healthy <= voters/2 {
		return // nothing can be changed
	}
	at := -1
	for i, s := range w.state.Servers {
		if s.ID == c.Server {
			at = i
		}
	}
	switch c.Action {
	case Enlist:
		h := w.hosts[c.Host]
		if !h.Healthy || h.Gone || h.For < w.state.Stable {
			w.t.Fatalf("enlisted %+v", h)
		}
		w.serial++
		w.state.Servers = append(w.state.Servers, Server{ID: fmt.Sprintf("%s%d", c.Host, w.serial), Host: c.Host, Healthy: true})
		return
	case Promote:
		if w.state.Servers[at].Voter || !w.state.Servers[at].Current {
			w.t.Fatalf("promoted %+v", w.state.Servers[at])
		}
		w.state.Servers[at].Voter = true
	case Remove:
		if c.Server == w.state.Leader {
			w.t.Fatal("the leader removed itself")
		}
		w.state.Servers = append(w.state.Servers[:at:at], w.state.Servers[at+1:]...)
	case Yield:
		if s := w.state.Servers[at]; !s.Voter || !s.Healthy || w.hosts[s.Host].Gone {
			w.t.Fatalf("yielded to %+v", s)
		}
		w.state.Leader = c.Server
	}
	if voters, healthy := w.quorum(); healthy <= voters/2 {
		w.t.Fatalf("%+v left %d healthy voters of %d", c, healthy, voters)
	}
}

// settle does all changes, and fails when they do not end.
func (w *world) settle() (changes int) {
	for range 60 {
		c := Next(w.see())
		if c.Action == None {
			return changes
		}
		changes++
		w.do(c)
		w.pass(time.Second)
	}
	w.t.Fatalf("no end of changes: %+v", w.see())
	return 0
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, hosts: map[cluster.HostID]*Host{}, state: State{
			Leader: "a0", Servers: []Server{{ID: "a0", Host: "a", Voter: true, Healthy: true, Current: true}}, Stable: 10 * time.Second, Replace: time.Minute,
		}}
		letters := "abcdefghij"[:rapid.IntRange(1, 10).Draw(t, "hosts")]
		for _, l := range letters {
			id := cluster.HostID(l)
			w.hosts[id] = &Host{ID: id, Healthy: true}
		}
		for range rapid.IntRange(0, 30).Draw(t, "events") {
			id := cluster.HostID(rapid.SampledFrom([]byte(letters)).Draw(t, "host"))
			h := w.hosts[id]
			set := func(healthy bool) {
				h.Healthy, h.For = healthy, 0
				for i := range w.state.Servers {
					if srv := &w.state.Servers[i]; srv.Host == id && !srv.Lost {
						srv.Healthy, srv.For = healthy, 0
					}
				}
			}
			led := w.leader()
			switch rapid.IntRange(0, 6).Draw(t, "event") {
			case 0:
				if id != led { // another one would lead: that is a new State
					set(false)
				}
			case 1:
				set(true)
			case 2:
				if h.Healthy {
					h.Gone = true
				}
			case 3: // the log is lost, its host is well
				for i := range w.state.Servers {
					if srv := &w.state.Servers[i]; srv.Host == id && id != led {
						srv.Lost, srv.Healthy, srv.For = true, false, 0
					}
				}
			case 4:
				w.pass(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
			default:
				w.do(Next(w.see()))
				w.pass(time.Second)
			}
		}
		if voters, healthy := w.quorum(); healthy <= voters/2 {
			return // lost for good, in this run
		}
		// Everybody comes back, and time passes: the voters are as many as
		// they should be, and all is quiet.
		members := 0
		for _, h := range w.hosts {
			if !h.Gone {
				members++
			}
			h.Healthy = true
		}
		for i := range w.state.Servers {
			if srv := &w.state.Servers[i]; !srv.Lost {
				srv.Healthy = true
			}
		}
		w.pass(time.Hour)
		w.settle()
		if members == 0 {
			return
		}
		if voters, _ := w.quorum(); voters != min(Seats(members), members) {
			t.Fatalf("%d voters of %d members: %+v", voters, members, w.see())
		}
		for _, s := range w.state.Servers {
			if !s.Voter || s.Lost || w.hosts[s.Host].Gone {
				t.Fatalf("it stayed: %+v", s)
			}
		}
		// One voter that blinks changes nothing.
		for i := range w.state.Servers {
			srv := &w.state.Servers[i]
			if srv.ID == w.state.Leader {
				continue
			}
			srv.Healthy, srv.For = false, 0
			w.pass(30 * time.Second)
			if c := Next(w.see()); c.Action != None {
				t.Fatalf("%+v because %+v blinked", c, srv)
			}
			srv.Healthy, srv.For = true, 0
			if c := Next(w.see()); c.Action != None {
				t.Fatalf("%+v because %+v came back", c, srv)
			}
		}
		// One that stays away is replaced when there is somebody.
		if members > Seats(members) && members >= 3 {
			for i := range w.state.Servers {
				if srv := &w.state.Servers[i]; srv.ID != w.state.Leader {
					gone := srv.Host
					srv.Healthy, srv.For, w.hosts[gone].Healthy = false, 0, false
					w.pass(time.Hour)
					w.settle()
					for _, s := range w.state.Servers {
						if s.Host == gone {
							t.Fatalf("%s was not replaced: %+v", gone, w.see())
						}
					}
					break
				}
			}
			if voters, _ := w.quorum(); voters != Seats(members) {
				t.Fatalf("%d voters of %d members", voters, members)
			}
		}
	})
}

func (w *world) leader() cluster.HostID {
	for _, s := range w.state.Servers {
		if s.ID == w.state.Leader {
			return s.Host
		}
	}
	return ""
}

// The order in which the leader lists what it knows decides nothing.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := State{Leader: "a1", Stable: time.Second, Replace: time.Minute}
		for _, l := range "abcdefgh" {
			id := cluster.HostID(l)
			s.Hosts = append(s.Hosts, Host{ID: id, Healthy: rapid.Bool().Draw(t, "healthy"), For: time.Hour, Gone: rapid.IntRange(0, 5).Draw(t, "gone") == 0})
			if l == 'a' || rapid.Bool().Draw(t, "server") {
				s.Servers = append(s.Servers, Server{ID: string(id) + "1", Host: id, Voter: l == 'a' || rapid.Bool().Draw(t, "voter"),
					Healthy: rapid.Bool().Draw(t, "well"), For: time.Hour, Current: true})
			}
		}
		want := Next(s)
		s.Hosts, s.Servers = rapid.Permutation(s.Hosts).Draw(t, "hosts"), rapid.Permutation(s.Servers).Draw(t, "servers")
		if got := Next(s); got != want {
			t.Fatalf("%+v, then %+v", want, got)
		}
	})
}
