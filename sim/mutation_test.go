package sim

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// mutation defeats a rule, or a pair of rules that back each other up, from
// outside. Those that lie in a host's order of doing things are where that
// order is: see the uses of site.mutation.
type mutation struct {
	rule   string   // what is defeated
	faults []string // under which it shows
	mode   string   // of the network
	bits   int      // of its subnet
	likely []string // what the way there leads over: see loaded
	begin  string   // events that the search begins with, where the way is long
}

var mutations = map[string]mutation{
	"adopt and store": {
		"an address is stored as used before Docker is answered, and one found in a container counts (H1)",
		[]string{"crash"}, "vxlan", 32, nil, "",
	},
	"stale answer": {
		"only the answer to the outstanding request counts, and no lease that this run gave back (H2)",
		[]string{"crash"}, "vxlan", 32, nil, "",
	},
	"release order": {
		"a block is stored as draining before its Release leaves (H3)",
		[]string{"crash"}, "vxlan", 32, []string{"drain", "crash"}, "",
	},
	"hole order": {
		"an address is stored as a hole before its Release leaves (H3)",
		[]string{"crash"}, "vxlan", 29, []string{"carve", "crash", "want"}, "grow a 4, speak a, deliver grant a 0, deliver answer a 0, flush a",
	},
	"release binding": {
		"a Release ends the lease that it names, in the order of requests (I4)",
		nil, "vxlan", 32, []string{"drain", "repeat"}, "",
	},
	"readopt and session": {
		"a draining block is never used again, and commands of an earlier run are refused (H4)",
		[]string{"crash"}, "vxlan", 32, nil, "",
	},
	"session fence": {
		"commands of an earlier run are refused, should the disk have been set back",
		[]string{"crash", "rollback"}, "vxlan", 32, []string{"restore", "-deliver", "-lose", "-repeat"},
		"grow a 1, speak a, deliver grant a 0, deliver answer a 0, flush a, snapshot a, drain a 0, flush a, speak a, crash a, restore a, start a, hello a, deliver hello a 0",
	},
	"witness": {
		"a disk that was set back is not used before the cluster confirms it (H5)",
		[]string{"crash", "rollback"}, "vxlan", 32, nil, "",
	},
	"lost": {
		"endpoints on addresses that a host turns out not to hold any more are detached (H4)",
		[]string{"crash", "rollback"}, "vxlan", 32, nil,
		"grow a 1, speak a, deliver grant a 0, deliver answer a 0, flush a, run a 0, flush a, snapshot a, stop a 0, flush a, drain a 0, flush a, speak a, deliver release a 0, deliver answer a 0, flush a",
	},
	"machine check": {
		"a disk on another machine is not used before the cluster confirms it (H5)",
		[]string{"crash", "clone"}, "vxlan", 32, nil, "",
	},
	"clone check": {
		"an identity is not let in from another machine, nor a second time while it is alive",
		[]string{"crash", "clone"}, "vxlan", 32, nil, "",
	},
	"claims": {
		"a granted block that another host claims is not used, should the log have lost its end (H7)",
		[]string{"amnesia", "crash", "gossip"}, "vxlan", 32, nil, "",
	},
	"reclaim": {
		"the leases of a host are freed only with the host being fenced",
		[]string{"crash", "forget"}, "vxlan", 32, nil, "",
	},
	"quarantine": {
		"where nothing fences, the leases of a forgotten host stay with it",
		[]string{"crash", "forget"}, "macvlan", 32, nil, "",
	},
	"confirm": {
		"a forgotten host detaches its endpoints before it confirms",
		[]string{"crash", "forget"}, "macvlan", 32, nil, "",
	},
	"clone confirms": {
		"a machine does not confirm for the one that it was copied from",
		[]string{"clone", "forget"}, "macvlan", 32, []string{"clone", "forget", "confirm", "start"}, "",
	},
	"generation": {
		"a host lets go of what a rebuilt registry does not lease to it before it is let in",
		[]string{"crash", "cut", "rebuild"}, "vxlan", 32, nil, "",
	},
	"rebuild fence": {
		"hosts that a rebuilt registry did not hear are not admitted until their Hello",
		[]string{"crash", "cut", "rebuild"}, "vxlan", 32, nil, "",
	},
}

// early reports a command that leaves before its decision is on disk.
func (s *site) early(c cluster.Command) bool {
	if c.Release == nil {
		return false
	}
	return s.mutation == "release order" && !c.Release.Addr.IsValid() || s.mutation == "hole order" && c.Release.Addr.IsValid()
}

// alter changes a command before it is applied.
func (s *site) alter(c cluster.Command) cluster.Command {
	h, known := s.log.Hosts[c.Host]
	last := s.log.Requests[c.Host].Request
	switch s.mutation {
	case "session fence", "readopt and session":
		if c.Hello == nil && known && c.Session != h.Session {
			c.Session = h.Session
			c.Request = max(c.Request, last+1)
		}
	case "release binding":
		if c.Release == nil {
			break
		}
		c.Request = max(c.Request, last+1)
		if _, there := s.log.Leases[c.Release.Lease]; !there {
			old, ok := s.former(c.Release.Lease)
			for id, l := range s.log.Leases {
				if ok && l.Holder == c.Host && l.Pool == old.Pool && l.Block == old.Block {
					c.Release = &cluster.Release{Lease: id, Addr: c.Release.Addr}
				}
			}
		}
	case "generation":
		if c.Hello != nil {
			hello := *c.Hello
			hello.Gen = s.log.Gen
			c.Hello = &hello
		}
	case "clone check":
		if c.Hello != nil && known {
			hello := *c.Hello
			hello.Machine = h.Machine
			c.Hello = &hello
		}
	}
	return c
}

// former finds a lease that is over.
func (s *site) former(id uint64) (cluster.Lease, bool) {
	for _, r := range slices.Backward(s.past) {
		if l, ok := r.Leases[id]; ok {
			return l, true
		}
	}
	return cluster.Lease{}, false
}

// disguise changes the registry before a command is applied; what it returns
// changes it back after.
func (s *site) disguise(c cluster.Command) (undo func()) {
	if c.Forget == nil {
		return func() {}
	}
	before := *s.log
	id := c.Forget.Host
	switch s.mutation {
	case "reclaim":
		return func() {
			next := *s.log
			next.Hosts = maps.Clone(next.Hosts)
			if h, ok := before.Hosts[id]; ok {
				next.Hosts[id] = h
			}
			s.swap(&next)
		}
	case "quarantine":
		masked := before
		masked.Networks = map[uint32]cluster.Network{}
		for id, n := range before.Networks {
			n.Def.Mode = "vxlan"
			masked.Networks[id] = n
		}
		s.log = &masked
		return func() {
			next := *s.log
			next.Networks = before.Networks
			s.swap(&next)
		}
	}
	return func() {}
}

// swap replaces the newest registry.
func (s *site) swap(r *cluster.Registry) {
	s.past[len(s.past)-1], s.log = r, r
}

// config is a small cluster, in which two hosts soon want the same.
func (m mutation) config(name string) config {
	return config{hosts: 2, pools: []ground{{prefixes[m.bits], m.mode}}, faults: m.faults, mutation: name}
}

// short is how many events a cluster of two hosts lives through in a search,
// after both have joined.
const short = 150

// joined is how hosts begin to take part, one after the other.
func joined(hosts int) []event {
	var out []event
	for i := range hosts {
		out = append(out, events(fmt.Sprintf("start %[1]s, hello %[1]s, deliver hello %[1]s 0, deliver answer %[1]s 0, follow %[1]s 1, reconcile %[1]s, flush %[1]s", letter(i)))...)
	}
	return out
}

// events reads events with commas between them.
func events(text string) []event {
	var out []event
	for _, line := range strings.Split(text, ", ") {
		if line == "" {
			continue
		}
		e, err := parseEvent(line)
		if err != nil {
			panic(err)
		}
		out = append(out, e)
	}
	return out
}

// beginning is what a search begins with: both hosts take part, and more.
func (m mutation) beginning() []event { return slices.Concat(joined(2), events(m.begin)) }

// search walks through clusters until a duplicate shows, or the steps are used
// up, and says how many it took.
func (m mutation) search(name string, seed uint64, most int) (trace []event, broken string, steps int) {
	for ; steps < most; seed++ {
		w := newSite(m.config(name))
		w.dice = w.loaded(m.likely)
		begin, _ := replay(w, m.beginning())
		trace, broken := walk(w, rand.New(rand.NewPCG(seed, 2)), short)
		steps += len(begin) + len(trace)
		if kindOf(broken) == "I6" {
			return slices.Concat(begin, trace), broken, steps
		}
	}
	return nil, "", steps
}

func recordingOf(name string) string {
	return filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".trace")
}

// Every rule is needed: with it defeated, the recorded trace ends in a
// duplicate, and with it in force the same trace does not.
func TestEachRuleIsNeeded(t *testing.T) {
	for _, name := range sortedKeys(mutations) {
		t.Run(name, func(t *testing.T) {
			r := readRecording(t, recordingOf(name))
			c, err := configOf(r.keys)
			if err != nil {
				t.Fatal(err)
			}
			if c.mutation != name {
				t.Fatalf("the recording defeats %q", c.mutation)
			}
			w := newSite(c)
			done, broken := replay(w, r.events)
			if kindOf(broken) != "I6" || len(done) != len(r.events) {
				t.Errorf("%s: %d of %d events happened and led to %q, not to a duplicate; if the rules changed, record it again: go test ./sim -run Search -args -record\n%s",
					mutations[name].rule, len(done), len(r.events), broken, w)
			}
			c.mutation = ""
			w = newSite(c)
			if _, broken := replay(w, r.events); broken != "" {
				t.Errorf("with the rule in force: %s\n%s", broken, w)
			}
		})
	}
}

var record = flag.Bool("record", false, "search for duplicates under each mutation, and write the traces to testdata")

// A random search finds each mutation again. It takes its time: nightly.
func TestSearchFindsEachMutation(t *testing.T) {
	if budget() < nightly && !*record {
		t.Logf("under %d steps only the recordings are done again", nightly)
		return
	}
	for _, name := range sortedKeys(mutations) {
		t.Run(name, func(t *testing.T) {
			m := mutations[name]
			seed := uint64(1)
			if !*record {
				seed = 1_000_000 // not those that the recordings are from
			}
			trace, broken, steps := m.search(name, seed, 3*nightly)
			if broken == "" {
				t.Fatalf("%s: no duplicate in %d steps", m.rule, steps)
			}
			t.Logf("%s: %s, after %d steps", name, broken, steps)
			if !*record {
				return
			}
			c := m.config(name)
			short := shrink(func() world { return newSite(c) }, trace, broken)
			_, broken = replay(newSite(c), short)
			recording{c.keys(), short}.write(t, recordingOf(name), fmt.Sprintf("Defeated: %s.\nFound after %d steps from seed %d; ends in %s.", m.rule, steps, seed, broken))
		})
	}
}
