package ledger

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestCallers: a host that asks is listed once, beside those of JOIN, while it
// goes on asking.
func TestCallers(t *testing.T) {
	c, now := callers{}, time.Unix(0, 0)
	one, two := netip.MustParseAddrPort("192.0.2.1:7950"), netip.MustParseAddrPort("192.0.2.2:7950")
	if !c.note("one", one, now) || c.note("one", one, now) || !c.note("two", two, now) {
		t.Error("news is what was not known")
	}
	listed := func(at time.Time) (names []string) {
		for _, m := range c.join([]JoinState{{Entry: "one", Address: one}}, at) {
			names = append(names, m.Entry)
		}
		return names
	}
	if got := listed(now); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("lists %v", got)
	}
	if got := listed(now.Add(callerTime + 1)); !slices.Equal(got, []string{"one"}) {
		t.Errorf("lists %v long after", got)
	}
	c.note("one", one, now.Add(2*callerTime))
	if len(c) != 1 {
		t.Errorf("remembers %v", c)
	}
}
