package rules_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestACloneIsToldByItsMachine(t *testing.T) {
	full := cluster.Machine{ID: "m1", UUID: "u1", MAC: "02:00:00:00:00:01"}
	for _, tc := range []struct {
		name    string
		was, is cluster.Machine
		clone   string // what the refusal names
	}{
		{"the same", full, full, ""},
		{"another machine id", full, cluster.Machine{ID: "m2", UUID: "u1", MAC: full.MAC}, "machine id m1, not m2"},
		{"another UUID", full, cluster.Machine{ID: "m1", UUID: "u2", MAC: full.MAC}, "product UUID u1, not u2"},
		{"a new network card", full, cluster.Machine{ID: "m1", UUID: "u1", MAC: "02:00:00:00:00:02"}, ""},
		{"another MAC, no UUID", cluster.Machine{ID: "m1", MAC: "a"}, cluster.Machine{ID: "m1", MAC: "b"}, "MAC address a, not b"},
		{"another MAC, UUID not readable any more", full, cluster.Machine{ID: "m1", MAC: "b"}, "MAC address"},
		{"another MAC, UUID not known before", cluster.Machine{ID: "m1", MAC: "a"}, cluster.Machine{ID: "m1", UUID: "u", MAC: "b"}, "MAC address"},
		{"another UUID is all there is", cluster.Machine{UUID: "u1"}, cluster.Machine{ID: "m", UUID: "u2"}, "product UUID"},
		{"nothing known before", cluster.Machine{}, full, ""},
		{"nothing known now", full, cluster.Machine{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			first := hello("a", 1)
			first.Hello.Machine = tc.was
			l.sessions["a"] = l.apply(first).Index
			l.must("a", attach("10.1.0.0/24"))
			was := l.r.Hosts[id("a")]
			for _, nonce := range []uint64{2, 1} { // a clone of memory has the nonce too
				c := hello("a", nonce)
				c.Hello.Machine = tc.is
				res := l.apply(c)
				if tc.clone == "" {
					if res.Refused != nil {
						t.Fatal(res.Refused)
					}
					continue
				}
				if res.Refused == nil || res.Refused.Code != cluster.Clone || !slices.Equal(res.Refused.Holders, []cluster.HostID{id("a")}) {
					t.Fatalf("hello: %+v", res)
				}
				for _, w := range []string{tc.clone, "host a", "isthmus reset", "isthmus node rm a"} {
					if !strings.Contains(res.Refused.Text, w) {
						t.Errorf("%q does not say %q", res.Refused.Text, w)
					}
				}
				if l.r.Hosts[id("a")].Session != was.Session {
					t.Error("the clone cost the original its session")
				}
			}
			if tc.clone != "" {
				l.must("a", grant("10.1.0.0/24", 8))
			}
		})
	}
}

func TestWhatWasKnownOfAMachineStaysKnown(t *testing.T) {
	l := newLog(t)
	for i, m := range []cluster.Machine{{ID: "m1", UUID: "u1", MAC: "a"}, {ID: "m1"}, {UUID: "u1", MAC: "b"}} {
		c := hello("a", uint64(i+1))
		c.Hello.Machine = m
		if res := l.apply(c); res.Refused != nil {
			t.Fatal(res.Refused)
		}
	}
	if got, want := l.r.Hosts[id("a")].Machine, (cluster.Machine{ID: "m1", UUID: "u1", MAC: "b"}); got != want {
		t.Errorf("machine %+v, want %+v", got, want)
	}
}

func TestReinstalledHostTakesItsNameBack(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/16"))
	l.must("b", attach("10.1.0.0/16"))
	block := l.must("a", grant("10.1.0.0/16", 8)).Lease

	anew := hello("a2", 1)
	anew.Hello.Name, anew.Hello.Address = "a", l.r.Hosts[id("a")].Address
	if res := l.apply(anew); res.Refused != nil || len(res.Leases) != 0 {
		t.Fatalf("hello of the new identity: %+v", res)
	}
	if got := l.r.HostName(id("a2")); got != "a" {
		t.Errorf("the new identity is called %q", got)
	}
	former := "a-" + id("a").Short()
	if h := l.r.Hosts[id("a")]; h.Name != former || h.Session != 0 || h.Replaced != id("a2") || h.Address.IsValid() {
		t.Errorf("the old identity: %+v", h)
	}
	if !l.r.Leases[block.ID].Equal(block) {
		t.Error("the old identity lost its lease")
	}
	l.refused("a", grant("10.1.0.0/16", 8), cluster.StaleSession)

	// What it held is found by its former name, and freed under it.
	l.refused("b", exact("10.1.0.0/16", "10.1.0.5"), cluster.Held, "former installation of host a", "`isthmus node rm "+former+"`")
	if got := l.r.HostsCalled(former); len(got) != 1 || got[0].ID != id("a") {
		t.Errorf("called %s: %v", former, got)
	}
	l.must("b", forget("a", false))
	l.must("b", exact("10.1.0.0/16", "10.1.0.5"))
}

func TestAFormerNameIsNobodyElses(t *testing.T) {
	l := newLog(t, "a")
	squatter := hello("b", 1)
	squatter.Hello.Name = "a-" + id("a").Short()
	l.apply(squatter)
	anew := hello("a2", 1)
	anew.Hello.Name, anew.Hello.Address = "a", l.r.Hosts[id("a")].Address
	if res := l.apply(anew); res.Refused != nil {
		t.Fatal(res.Refused)
	}
	if got := l.r.HostName(id("a")); got == "a" || got == squatter.Hello.Name {
		t.Errorf("the old identity is called %q", got)
	}
}
