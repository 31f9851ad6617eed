package ledger

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// callers are hosts without a cluster that asked this one where it belongs:
// they name it in their JOIN, and it need not name them. They are for people to
// see; founding does not count them. Guarded by Ledger.mu.
type callers map[netip.AddrPort]caller

type caller struct {
	name string
	seen time.Time
}

// callerTime is how long a host that asked is listed: it asks again within
// redial.
const callerTime = 10 * time.Second

// note remembers a caller, and reports whether it is new or has another name.
func (c callers) note(name string, at netip.AddrPort, now time.Time) bool {
	was, known := c[at]
	c[at] = caller{name, now}
	for at, old := range c {
		if now.Sub(old.seen) > callerTime {
			delete(c, at)
		}
	}
	return !known || was.name != name
}

// join adds the callers to the members of JOIN that are listed already.
func (c callers) join(members []JoinState, now time.Time) []JoinState {
	out := slices.Clone(members)
	for at, who := range c {
		if now.Sub(who.seen) > callerTime || slices.ContainsFunc(members, func(m JoinState) bool { return m.Address == at }) {
			continue
		}
		out = append(out, JoinState{Entry: cmp.Or(who.name, at.String()), Name: who.name, Address: at})
	}
	slices.SortFunc(out[len(members):], func(a, b JoinState) int { return a.Address.Compare(b.Address) })
	return out
}
