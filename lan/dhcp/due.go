package dhcp

import "time"

// action is what a lease needs.
type action int

const (
	wait    action = iota // nothing, until a time
	confirm               // it comes from an earlier run: INIT-REBOOT
	extend                // RENEWING
	rebind                // REBINDING
	regain                // it ended, or was taken back
)

func (a action) String() string {
	return [...]string{"wait", "confirm", "extend", "rebind", "regain"}[a]
}

// retryTime is the shortest time between two tries (RFC 2131 section 4.4.5).
const retryTime = time.Minute

// condition is what is known of a lease besides what it says.
type condition struct {
	sure bool      // a server confirmed it in this run
	lost bool      // a server refused it
	next time.Time // no try before, after one that failed; zero: at once
}

// due says what a lease needs now, or, with wait, when to look again: never at
// the zero time.
func due(l Lease, c condition, now time.Time) (action, time.Time) {
	if !c.next.IsZero() && !reached(now, c.next) {
		return wait, c.next
	}
	switch {
	case c.lost || !l.Expires.IsZero() && reached(now, l.Expires):
		return regain, now
	case !c.sure:
		return confirm, now
	case l.Expires.IsZero():
		return wait, time.Time{}
	case reached(now, l.Rebind):
		return rebind, now
	case reached(now, l.Renew):
		return extend, now
	}
	return wait, l.Renew
}

// retry says when to try again what was not answered at now: after half of the
// time until the lease's next phase, but no sooner than retryTime, unless that
// phase comes first; what was lost is asked for every retryTime.
func retry(l Lease, lost bool, now time.Time) time.Time {
	if lost || l.Expires.IsZero() {
		return now.Add(retryTime)
	}
	for _, phase := range []time.Time{l.Renew, l.Rebind, l.Expires} {
		if rest := phase.Sub(now); rest > 0 {
			return now.Add(min(max(rest/2, retryTime), rest))
		}
	}
	return now.Add(retryTime)
}

// reached compares by the monotonic clock, which stands still while a machine
// is suspended, and by the wall clock, which may be set: whichever is ahead.
func reached(now, at time.Time) bool {
	return !now.Before(at) || !now.Round(0).Before(at.Round(0))
}
