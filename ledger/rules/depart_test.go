package rules_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

func forget(name string, dead bool) cluster.Command {
	return cluster.Command{Forget: &cluster.Forget{Host: id(name), Dead: dead}}
}

func confirm(name string) cluster.Command {
	return cluster.Command{Host: id(name), Confirm: &cluster.Confirm{}}
}

// two makes a vxlan network on 10.1.0.0/24 and a macvlan one on 10.2.0.0/24,
// held by a and b, with a block for each host on each.
func two(t *testing.T) (l *log, leases map[string]cluster.Lease) {
	l, leases = newLog(t, "a", "b"), map[string]cluster.Lease{}
	for pool, mode := range map[string]string{"10.1.0.0/24": "vxlan", "10.2.0.0/24": "macvlan"} {
		for _, host := range []string{"a", "b"} {
			l.must(host, attach(pool))
			l.must(host, network(cluster.Definition{Mode: mode}, pool))
			leases[host+" "+mode] = l.must(host, grant(pool, 8)).Lease
		}
	}
	return l, leases
}

func TestForgetKeepsWhatCannotBeFenced(t *testing.T) {
	l, leases := two(t)
	res := l.must("b", forget("a", false))
	if !slices.EqualFunc(res.Leases, []cluster.Lease{leases["a macvlan"]}, cluster.Lease.Equal) {
		t.Errorf("in quarantine: %v", res.Leases)
	}
	if _, ok := l.r.Leases[leases["a vxlan"].ID]; ok {
		t.Error("a block behind a fence is still leased")
	}
	h := l.r.Hosts[id("a")]
	if _, answers := l.r.Requests[id("a")]; !h.Tombstone || h.Session != 0 || answers {
		t.Errorf("host %+v", h)
	}
	for _, p := range l.r.Pools {
		if slices.Contains(p.Holders, id("a")) {
			t.Errorf("pool %s is held by the forgotten host", p.Key)
		}
	}

	// It is never let in again, and forgetting it again changes nothing.
	if res := l.apply(hello("a", 77)); res.Refused == nil || res.Refused.Code != cluster.Forgotten || !strings.Contains(res.Refused.Text, "isthmus reset") {
		t.Errorf("hello of a forgotten host: %+v", res)
	}
	l.refused("a", grant("10.1.0.0/24", 8), cluster.Forgotten, "isthmus reset")
	before, _ := json.Marshal([]any{l.r.Hosts, l.r.Leases, l.r.Pools})
	l.must("b", forget("a", false))
	if after, _ := json.Marshal([]any{l.r.Hosts, l.r.Leases, l.r.Pools}); string(after) != string(before) {
		t.Errorf("forgotten twice: %s, before %s", after, before)
	}

	// Quarantine counts as held, and says what helps.
	in := leases["a macvlan"].Block.Addr().Next().Next().String()
	why := l.refused("b", exact("10.2.0.0/24", in), cluster.Held, "host a was removed", "`isthmus node rm a --dead`")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
	l.must("b", grant("10.1.0.0/24", 8))

	if res := l.must("b", forget("a", true)); len(res.Leases) != 0 {
		t.Errorf("still in quarantine: %v", res.Leases)
	}
	l.must("b", exact("10.2.0.0/24", in))
}

func TestConfirmEndsQuarantine(t *testing.T) {
	l, leases := two(t)
	if res := l.apply(confirm("a")); res.Refused == nil || res.Refused.Code != cluster.Invalid || !strings.Contains(res.Refused.Text, "isthmus leave") {
		t.Errorf("confirm of a member: %+v", res)
	}
	l.must("b", forget("a", false))
	for range 2 {
		if res := l.apply(confirm("a")); res.Refused != nil || res.Index != l.r.Index {
			t.Errorf("confirm: %+v", res)
		}
		if _, ok := l.r.Leases[leases["a macvlan"].ID]; ok {
			t.Error("still in quarantine")
		}
	}
	if res := l.apply(confirm("nobody")); res.Refused != nil {
		t.Errorf("confirm of a host that is not known: %v", res.Refused)
	}
}

// A network that only a quarantine keeps may become another one; what is in
// quarantine was decided before.
func TestQuarantineOutlivesTheModeOfItsNetwork(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.2.0.0/24"))
	n := l.must("a", network(cluster.Definition{Mode: "macvlan"}, "10.2.0.0/24")).Network
	lease := l.must("a", grant("10.2.0.0/24", 8)).Lease
	l.must("b", forget("a", false))
	l.must("b", attach("10.2.0.0/24"))
	if m := l.must("b", network(cluster.Definition{Mode: "vxlan"}, "10.2.0.0/24")).Network; m.ID != n.ID || m.Def.Mode != "vxlan" {
		t.Fatalf("network %+v", m)
	}
	l.must("b", forget("a", false))
	if _, ok := l.r.Leases[lease.ID]; !ok {
		t.Error("the quarantine ended with the mode")
	}
	l.must("b", leaveNet(n.ID))
	l.must("b", detach("10.2.0.0/24"))
	l.apply(confirm("a"))
	if !l.r.Empty() {
		t.Errorf("left over: %+v", l.r.Pools)
	}
}

func TestForgetFreesTheName(t *testing.T) {
	l, leases := two(t)
	l.must("b", forget("a", false))
	anew := hello("a2", 1)
	anew.Hello.Name = "a"
	if res := l.apply(anew); res.Refused != nil {
		t.Fatalf("hello under a freed name: %v", res.Refused)
	}
	// Two hosts have been called a: the remedy is about the first.
	l.refused("b", exact("10.2.0.0/24", leases["a macvlan"].Block.Addr().Next().Next().String()), cluster.Held, "`isthmus node rm "+id("a").Short()+" --dead`")
	if got := l.r.HostsCalled("a"); len(got) != 2 || got[0].ID != id("a2") {
		t.Errorf("called a: %v", got)
	}
}

func TestForgetIsRefused(t *testing.T) {
	l, _ := two(t)
	l.refused("a", forget("a", false), cluster.Invalid, "isthmus leave", "node rm a")
	l.refused("a", forget("nobody", true), cluster.Invalid, id("nobody").Short(), "isthmus status")
	l.must("b", forget("a", false))
	l.refused("a", forget("b", false), cluster.Forgotten)
}

func TestLeave(t *testing.T) {
	l, leases := two(t)
	leave := cluster.Command{Leave: &cluster.Leave{}}
	why := l.refused("a", leave, cluster.InUse, "host a", "10.1.0.0/24", "10.2.0.0/24", "docker network rm")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a")}) {
		t.Errorf("holders %v", why.Holders)
	}
	for _, n := range l.r.Networks {
		l.must("a", leaveNet(n.ID))
	}
	l.must("a", leave)
	if _, ok := l.r.Hosts[id("a")]; ok || len(l.r.Leases) != 2 {
		t.Errorf("after leaving: hosts %v, leases %v", l.r.Hosts, l.r.Leases)
	}
	if _, ok := l.r.Leases[leases["a vxlan"].ID]; ok {
		t.Error("a lease stayed behind")
	}
	l.must("a", leave) // its answer may have been lost
	l.refused("a", grant("10.1.0.0/24", 8), cluster.UnknownHost)
	l.hello("a") // its identity is not remembered
	l.must("a", attach("10.1.0.0/24"))
}

func TestTheLastToLeaveTakesThePoolsAlong(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	l.must("a", grant("10.1.0.0/24", 8))
	l.must("a", attach("10.2.0.0/24"))
	l.must("a", cluster.Command{Leave: &cluster.Leave{}})
	if !l.r.Empty() || len(l.r.Hosts)+len(l.r.Requests) != 0 {
		t.Errorf("left over: %+v", l.r)
	}
}

func TestDissolve(t *testing.T) {
	l := newLog(t, "a", "b")
	at := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:7950"), netip.MustParseAddrPort("[2001:db8::1]:7950")}
	into := func(id cluster.ID) cluster.Command {
		return cluster.Command{Dissolve: &cluster.Dissolve{Into: id, At: at}}
	}
	l.refused("a", into("c1"), cluster.Invalid, "into itself")
	l.must("b", attach("10.1.0.0/24"))
	why := l.refused("a", into("c0"), cluster.InUse, "b still holds", "10.1.0.0/24", "isthmus reset")
	if !slices.Equal(why.Holders, []cluster.HostID{id("b")}) {
		t.Errorf("holders %v", why.Holders)
	}
	l.must("b", detach("10.1.0.0/24"))

	c := into("c0")
	c.Host, c.Session, c.Request = id("a"), l.sessions["a"], 1000
	first, again := l.apply(c), l.apply(c)
	if first.Refused != nil || again.Refused != nil || again.Index != first.Index || l.r.Dissolved != "c0" || !slices.Equal(l.r.Members, at) {
		t.Errorf("dissolved: %+v, again %+v, into %s at %v", first, again, l.r.Dissolved, l.r.Members)
	}
	l.requests["a"] = 1000
	for name, c := range map[string]cluster.Command{
		"found": {Found: &cluster.Found{Cluster: "c1"}}, "hello": hello("c", 1), "attach": attach("10.1.0.0/24"),
		"leave": {Leave: &cluster.Leave{}}, "forget": forget("b", true), "confirm": confirm("b"), "again": into("c0"),
	} {
		if c.Host == "" && c.Found == nil {
			l.refused("a", c, cluster.Dissolved, "c1", "c0", "192.0.2.9:7950 and [2001:db8::1]:7950")
			continue
		}
		if res := l.apply(c); res.Refused == nil || res.Refused.Code != cluster.Dissolved {
			t.Errorf("%s in a dissolved cluster: %+v", name, res)
		}
	}
	if res := l.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: rules.New()}}); res.Refused == nil {
		t.Error("a dissolved cluster was rebuilt in its own log")
	}
}

// A clone of a removed host cannot know whether the original still runs.
func TestACloneDoesNotConfirm(t *testing.T) {
	l := newLog(t, "b")
	first := hello("a", 1)
	first.Hello.Machine = cluster.Machine{ID: "m1"}
	l.apply(first)
	session := l.r.Hosts[id("a")].Session
	do := func(c cluster.Command) cluster.Result {
		c.Host, c.Session, c.Request = id("a"), session, l.r.Index+1
		return l.apply(c)
	}
	do(attach("10.2.0.0/24"))
	do(network(cluster.Definition{Mode: "macvlan"}, "10.2.0.0/24"))
	lease := do(grant("10.2.0.0/24", 8)).Lease
	l.must("b", forget("a", false))
	c := confirm("a")
	c.Confirm.Machine = cluster.Machine{ID: "m2"}
	if res := l.apply(c); res.Refused == nil || res.Refused.Code != cluster.Clone || !strings.Contains(res.Refused.Text, "may still run") {
		t.Errorf("confirm by a clone: %+v", res)
	}
	if _, ok := l.r.Leases[lease.ID]; !ok {
		t.Fatal("a clone ended the quarantine")
	}
	c.Confirm.Machine = first.Hello.Machine
	if res := l.apply(c); res.Refused != nil {
		t.Error(res.Refused)
	}
	if _, ok := l.r.Leases[lease.ID]; ok {
		t.Error("still in quarantine")
	}
}
