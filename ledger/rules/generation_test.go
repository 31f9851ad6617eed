package rules_test

import (
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestHelloIsForOneGeneration(t *testing.T) {
	l := newLog(t, "a", "b")
	l.lose(l.r)
	for _, tt := range []struct {
		prepared uint64
		says     string
	}{
		{0, "prepared for generation 1"},
		{1, "prepared for generation 1"},
		{3, "isthmus recover"},
	} {
		c := hello("a", 9)
		c.Hello.Gen = tt.prepared
		res := l.apply(c)
		if why := res.Refused; why == nil || why.Code != cluster.OtherGen || why.Gen != 2 || !strings.Contains(why.Text, tt.says) {
			t.Errorf("prepared for %d: %+v", tt.prepared, res)
		}
		if h := l.r.Hosts[id("a")]; h.Session != 0 || h.Gen != 1 {
			t.Errorf("prepared for %d: let in as %+v", tt.prepared, h)
		}
	}
	l.hello("a")
	if h := l.r.Hosts[id("a")]; h.Session != l.r.Index || h.Gen != 2 {
		t.Errorf("prepared for 2: %+v", h)
	}
	// One that came late of the lost log does not open, nor repeat, anything.
	late := hello("a", l.requests["a"])
	if res := l.apply(late); res.Refused == nil || res.Refused.Code != cluster.OtherGen {
		t.Errorf("a late hello: %+v", res)
	}
}

// What the lost end of the log leased is not known until its holder is heard.
// Where its frames cannot be fenced, nothing is leased until then.
func TestNothingIsLeasedBesideAnUnheardHost(t *testing.T) {
	l, leases := two(t)
	l.hello("c")
	l.lose(l.r, l.heard("a", leases["a vxlan"], leases["a macvlan"]))
	l.hello("a")
	const bare, tunnel = "10.2.0.0/24", "10.1.0.0/24"
	why := l.refused("a", grant(bare, 8), cluster.Unheard, "b and c were not heard", "Start those hosts", "`isthmus node rm b --dead` and `isthmus node rm c --dead`")
	if len(why.Holders) != 2 {
		t.Errorf("holders %v", why.Holders)
	}
	l.refused("a", exact(bare, "10.2.0.200"), cluster.Unheard)
	own := leases["a macvlan"]
	if got := l.must("a", exact(bare, own.Block.Addr().Next().String())).Lease; !got.Equal(own) {
		t.Errorf("an address of its own: %+v", got)
	}
	l.must("a", grant(tunnel, 8))
	l.must("a", exact(tunnel, "10.1.0.200"))

	// To be heard helps, and to be off; to be taken out without a word does not.
	l.hello("c")
	l.refused("a", grant(bare, 8), cluster.Unheard, "b was not heard", "`isthmus node rm b --dead`")
	l.must("a", forget("b", false))
	l.must("c", forget("b", false))
	l.refused("a", grant(bare, 8), cluster.Unheard, "isthmus node rm")
	silent := l.r
	l.must("a", forget("b", true))
	l.must("a", grant(bare, 8))
	if l.r.Hosts[id("b")].Unheard {
		t.Error("it is off, and waited for")
	}

	// Or its own word, in a later generation too.
	l.r = silent
	l.lose(l.r)
	l.hello("a")
	l.hello("c")
	l.refused("c", grant(bare, 8), cluster.Unheard)
	l.apply(confirm("b"))
	if got := l.must("c", grant(bare, 8)).Lease; got.Block.Overlaps(own.Block) {
		t.Errorf("leased twice: %+v", got)
	}
}

func TestNobodyIsUnheardInAnUnbrokenLog(t *testing.T) {
	l, _ := two(t)
	l.must("b", forget("a", false))
	if l.r.Hosts[id("a")].Unheard {
		t.Error("a host of the same generation is marked")
	}
	l.must("b", grant("10.2.0.0/24", 8))
}
