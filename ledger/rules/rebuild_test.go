package rules_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// lose replaces the registry of a log by one that was put together again.
func (l *log) lose(base *cluster.Registry, heard ...rules.Testimony) []rules.Unproven {
	l.t.Helper()
	was, _ := json.Marshal(base)
	next, no := rules.Renew(base, l.r.Gen+1, heard)
	if now, _ := json.Marshal(base); string(now) != string(was) {
		l.t.Fatal("the copy was changed")
	}
	if err := rules.Check(next); err != nil {
		l.t.Fatal(err)
	}
	l.r = rules.New()
	if res := l.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: next}}); res.Refused != nil {
		l.t.Fatal(res.Refused)
	}
	want := *next
	want.Index = want.Offset + 1
	if got, want := text(l.t, l.r), text(l.t, &want); got != want {
		l.t.Fatalf("rebuilt %s, want %s", got, want)
	}
	return no
}

func text(t *testing.T, r *cluster.Registry) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// claims says hello for a host that claims blocks.
func (l *log) claims(name string, claims ...cluster.Claim) cluster.Result {
	l.t.Helper()
	l.requests[name]++
	c := hello(name, l.requests[name])
	c.Hello.Gen, c.Hello.Claims = l.r.Gen, claims
	res := l.apply(c)
	if res.Refused != nil {
		l.t.Fatal(res.Refused)
	}
	l.sessions[name] = res.Index
	return res
}

func (l *log) heard(name string, leases ...cluster.Lease) rules.Testimony {
	t := rules.Testimony{Host: l.r.Hosts[id(name)]}
	for _, lease := range leases {
		t.Claims = append(t.Claims, lease.Claim())
	}
	return t
}

func TestRebuildBeginsALog(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/24"))
	good, _ := rules.Renew(l.r, 2, nil)
	edit := func(change func(r *cluster.Registry)) *cluster.Registry {
		r, err := rules.Decode([]byte(text(t, good)))
		if err != nil {
			t.Fatal(err)
		}
		change(r)
		return r
	}
	for word, r := range map[string]*cluster.Registry{
		"names no cluster": edit(func(r *cluster.Registry) { r.Cluster = "" }),
		"generation is 1":  edit(func(r *cluster.Registry) { r.Gen = 1 }),
		"offset":           edit(func(r *cluster.Registry) { r.Offset = 0 }),
		"dissolved":        edit(func(r *cluster.Registry) { r.Dissolved = "c0" }),
		"a has a session":  l.r2(t),
		"generation 2":     edit(func(r *cluster.Registry) { h := r.Hosts[id("b")]; h.Gen = 2; r.Hosts[id("b")] = h }),
		"answers":          edit(func(r *cluster.Registry) { r.Requests[id("a")] = cluster.Answered{Request: 1} }),
		"unknown or":       edit(func(r *cluster.Registry) { delete(r.Hosts, id("a")) }),
		"out of order":     edit(func(r *cluster.Registry) { r.Networks[1] = cluster.Network{ID: 1} }),
	} {
		next, res := rules.Apply(nil, cluster.Command{Rebuild: &cluster.Rebuild{Registry: r}}, 3)
		if res.Refused == nil || res.Refused.Code != cluster.Invalid || !strings.Contains(res.Refused.Text, word) || next.Cluster != "" || next.Index != 3 || res.Index != 3 {
			t.Errorf("%s: %+v", word, res)
		}
	}
	if res := l.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: good}}); res.Refused == nil || res.Refused.Code != cluster.Contradiction || !strings.Contains(res.Refused.Text, "empty log") {
		t.Errorf("rebuilt into a log: %+v", res)
	}
	next, res := rules.Apply(nil, cluster.Command{Rebuild: &cluster.Rebuild{Registry: good}}, 3)
	if res.Refused != nil || next.Index != good.Offset+3 || res.Index != next.Index {
		t.Errorf("rebuilt: %+v at %d", res, next.Index)
	}
	if next, res = rules.Apply(next, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 4); res.Refused != nil || next.Gen != 2 {
		t.Errorf("founded as what it is: %+v", res)
	}
}

// r2 is a registry of generation 2 in which hosts have sessions.
func (l *log) r2(t *testing.T) *cluster.Registry {
	r := *l.r
	r.Gen, r.Offset, r.Requests = 2, r.Index, nil
	return &r
}

func TestNumbersOnlyRise(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	base := l.r
	lost := l.must("a", grant("10.1.0.0/24", 8)).Lease
	l.lose(base)
	if l.r.Index <= lost.ID || l.r.Offset+1 != l.r.Index {
		t.Fatalf("the log goes on at %d, offset %d, after lease %d", l.r.Index, l.r.Offset, lost.ID)
	}
	l.refused("a", grant("10.1.0.0/24", 8), cluster.StaleSession)
	res := l.claims("a")
	if h := l.r.Hosts[id("a")]; res.Index != l.r.Index || h.Session != l.r.Index || h.Gen != 2 {
		t.Errorf("session %+v, host %+v", res, h)
	}
	c := grant("10.1.0.0/24", 8)
	c.Host, c.Session, c.Request = id("a"), l.sessions["a"], 1
	first, again := l.apply(c), l.apply(c)
	if first.Lease.ID != first.Index || first.Index != l.r.Index-1 || again.Index != first.Index || !again.Lease.Equal(first.Lease) {
		t.Errorf("granted %+v, again %+v, at %d", first, again, l.r.Index)
	}
	// What was granted in the lost end is not granted again at once.
	if first.Lease.Block.Overlaps(lost.Block) {
		t.Errorf("granted %s, as before the loss", first.Lease.Block)
	}
}

func TestClaimsAreLeasedAgain(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	for _, h := range []string{"a", "b"} {
		l.must(h, attach("10.1.0.0/24"))
	}
	base := l.r
	one := l.must("a", grant("10.1.0.0/24", 8)).Lease
	two := l.must("b", grant("10.1.0.0/24", 8)).Lease
	l.must("a", carve(one.ID, "10.1.0.5"))
	hole := l.must("b", exact("10.1.0.0/24", "10.1.0.5")).Lease
	one = l.r.Leases[one.ID]
	l.must("c", attach("10.9.0.0/24"))
	far := l.must("c", grant("10.9.0.0/24", 8)).Lease
	beyond := cluster.Claim{Lease: 1 << 60, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.128/29")}

	t.Run("at hello", func(t *testing.T) {
		l := *l
		l.t = t
		l.lose(base)
		bad := []cluster.Claim{
			beyond, {}, {Lease: 5}, {Lease: 5, Pool: pool("10.1.0.0/24")},
			{Lease: 5, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.2.0.0/29")},
			{Lease: 5, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.128/25")},
			{Lease: 5, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.129/29")},
			{Lease: 5, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.128/31"), Without: 3},
			{Lease: 5, Pool: pool("10.1.0.0/16"), Block: netip.MustParsePrefix("10.1.0.128/31")},
			{Lease: 5, Pool: pool("127.0.0.0/24"), Block: netip.MustParsePrefix("127.0.0.0/31")},
		}
		res := l.claims("a", append(bad, one.Claim(), one.Claim(), hole.Claim())...)
		if !slices.EqualFunc(res.Leases, []cluster.Lease{one, {ID: hole.ID, Pool: hole.Pool, Block: hole.Block, Holder: id("a")}}, cluster.Lease.Equal) {
			t.Fatalf("leases %+v", res.Leases)
		}
		l.must("a", release(hole.ID))
		if res := l.claims("b", two.Claim(), hole.Claim()); len(res.Leases) != 2 {
			t.Errorf("leases %+v", res.Leases)
		}
		if res := l.claims("c", far.Claim()); len(res.Leases) != 1 {
			t.Errorf("leases %+v", res.Leases)
		}
		if p := l.r.Pools[far.Pool]; p.Key != far.Pool || len(p.Holders) != 0 {
			t.Errorf("the pool was made again as %+v", p)
		}
		// Only the first hello counts, and only the own generation is behind.
		l.must("a", release(one.ID))
		if res := l.claims("a", one.Claim()); len(res.Leases) != 0 {
			t.Errorf("claimed twice: %+v", res.Leases)
		}
		if res := l.claims("new", cluster.Claim{Lease: 5, Pool: pool("10.9.0.0/16"), Block: netip.MustParsePrefix("10.9.1.0/29")}); len(res.Leases) != 0 {
			t.Errorf("an overlapping pool: %+v", res.Leases)
		}
		attachNamed := attach("10.9.0.0/24")
		attachNamed.AttachPool.Name = "web"
		if p := l.must("c", attachNamed).Pool; p.Name != "web" {
			t.Errorf("the name did not come back: %+v", p)
		}
	})

	t.Run("before", func(t *testing.T) {
		l := *l
		l.t = t
		no := l.lose(base, l.heard("b", two, hole), l.heard("a", one), l.heard("c", far))
		if len(no) != 0 {
			t.Errorf("refused: %v", no)
		}
		for _, want := range []cluster.Lease{one, two, hole, far} {
			if got := l.r.Leases[want.ID]; !got.Equal(want) {
				t.Errorf("lease %+v, want %+v", got, want)
			}
		}
		l.claims("c", far.Claim())
		l.refused("c", exact("10.1.0.0/24", "10.1.0.4"), cluster.Held, "host a was not heard", "isthmus node rm a")
	})

	t.Run("in an unbroken log nothing is", func(t *testing.T) {
		l := newLog(t)
		if res := l.claims("a", cluster.Claim{Lease: 1, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.0/29")}); len(res.Leases) != 0 {
			t.Errorf("leases %+v", res.Leases)
		}
	})
}

// What was granted in the lost end of the log goes before what base knew.
func TestTheNewestClaimIsTheTrueOne(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	for _, h := range []string{"a", "b", "c"} {
		l.must(h, attach("10.1.0.0/27"))
	}
	whole := l.must("a", grant("10.1.0.0/27", 4)).Lease
	kept := l.must("a", grant("10.1.0.0/27", 4)).Lease
	l.must("a", reserve("10.1.0.0/27", "10.1.0.20"))
	base := l.r
	l.must("a", release(whole.ID))
	l.must("a", carve(kept.ID, kept.Block.Addr().Next().String())) // nobody leases it
	first := whole.Block.Addr()
	b := l.must("b", exact("10.1.0.0/27", first.Next().String())).Lease
	l.must("a", carve(kept.ID, kept.Block.Addr().String()))
	c := l.must("c", exact("10.1.0.0/27", kept.Block.Addr().String())).Lease
	kept = l.r.Leases[kept.ID]

	stale := cluster.Lease{ID: kept.ID + 1, Pool: kept.Pool, Block: netip.PrefixFrom(kept.Block.Addr().Next().Next(), 32), Holder: id("b")}
	mad := cluster.Lease{ID: 1 << 60, Pool: kept.Pool, Block: netip.MustParsePrefix("10.1.0.24/32")}
	no := l.lose(base, l.heard("a", kept), l.heard("b", b, stale, mad), l.heard("c", c))
	if len(no) != 2 || no[0].Claim != mad.Claim() || no[1].Claim != stale.Claim() || !strings.Contains(no[1].Why, "host a has") {
		t.Errorf("refused: %v", no)
	}
	for _, want := range []cluster.Lease{kept, b, c} {
		if got := l.r.Leases[want.ID]; !got.Equal(want) {
			t.Errorf("lease %+v, want %+v", got, want)
		}
	}
	// a had given the whole block back. What nobody claims of it stays with
	// a, who will give it back again.
	if got := l.r.Leases[whole.ID]; got.Holder != id("a") || got.Covers(first.Next()) || !got.Covers(first.Next().Next()) {
		t.Errorf("the lease that ended: %+v", got)
	}
}

func TestHostsThatBaseDoesNotKnow(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/24"))
	base := l.r
	l.hello("b")
	lease := l.must("b", cluster.Command{GrantExact: &cluster.GrantExact{Pool: pool("10.1.0.0/24"), Addr: netip.MustParseAddr("10.1.0.9")}}).Lease
	namesake := rules.Testimony{Host: cluster.Host{ID: id("c"), PublicKey: key("c"), Name: "a"}}
	forged := rules.Testimony{Host: cluster.Host{ID: "0123456789abcdef", PublicKey: key("d"), Name: "d"}, Claims: []cluster.Claim{{Lease: 3, Pool: pool("10.1.0.0/24"), Block: netip.MustParsePrefix("10.1.0.8/32")}}}
	no := l.lose(base, l.heard("b", lease), namesake, forged)
	if len(no) != 1 || no[0].Host != forged.Host.ID || !strings.Contains(no[0].Why, "key") {
		t.Errorf("refused: %v", no)
	}
	if h := l.r.Hosts[id("b")]; h.Session != 0 || h.Name != "b" || !l.r.Leases[lease.ID].Equal(lease) {
		t.Errorf("host %+v, leases %v", h, l.r.Leases)
	}
	if got := l.r.HostName(id("c")); got != "a-"+id("c").Short() {
		t.Errorf("the namesake is called %s", got)
	}
}

func TestTheForgottenStayForgotten(t *testing.T) {
	l, leases := two(t)
	heard := l.heard("a", leases["a vxlan"], leases["a macvlan"])
	l.must("b", forget("a", false))
	no := l.lose(l.r, heard)
	if len(no) != 2 || !strings.Contains(no[0].Why, "removed") {
		t.Errorf("refused: %v", no)
	}
	if res := l.apply(hello("a", 99)); res.Refused == nil || res.Refused.Code != cluster.Forgotten {
		t.Errorf("hello: %+v", res)
	}
	if _, ok := l.r.Leases[leases["a macvlan"].ID]; !ok {
		t.Error("the quarantine ended with the registry")
	}
	if res := l.apply(confirm("a")); res.Refused != nil || len(l.r.Leases) != 2 {
		t.Errorf("confirm: %+v, leases %v", res, l.r.Leases)
	}
}

func TestCursorsMoveOn(t *testing.T) {
	for subnet, want := range map[string][2]string{ // at the start, and after another loss
		"10.1.0.0/16": {"10.1.16.0", "10.1.32.0"},
		"10.2.0.0/24": {"10.2.0.128", "10.2.0.0"},
		"10.3.0.0/30": {"10.3.0.2", "10.3.0.0"},
		"10.4.0.0/31": {"10.4.0.1", "10.4.0.0"},
		"10.5.0.1/32": {"invalid IP", "invalid IP"},
		"fd00::/64":   {"fd00::1000", "fd00::2000"},
		"fd01::/48":   {"fd01::1000", "fd01::2000"},
		"fd02::/120":  {"fd02::80", "fd02::"},
		"fd03::4/127": {"fd03::5", "fd03::4"},
		"fd04::4/128": {"invalid IP", "invalid IP"},
	} {
		l := newLog(t, "a")
		l.must("a", attach(subnet))
		for i := range want {
			l.lose(l.r)
			if got := fmt.Sprint(l.r.Pools[pool(subnet)].Cursor); got != want[i] {
				t.Errorf("%s: cursor %s, want %s", subnet, got, want[i])
			}
		}
	}
}
