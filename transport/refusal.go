package transport

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Cause classes why two hosts do not talk, for callers that branch on it.
type Cause string

const (
	OtherKey     Cause = "other key"           // the cluster secrets differ
	OtherCluster Cause = "other cluster"       // same secret, two clusters
	OtherVersion Cause = "other version"       // of the wire protocol
	NotIsthmus   Cause = "not an isthmus port" // something else answers, or asks
	NoCluster    Cause = "no cluster yet"      // one end belongs to none so far; passes by itself
	Unreachable  Cause = "unreachable"         // no connection at all
	NotAdmitted  Cause = "not admitted"        // one end turns the other away (Config.Admit)
)

// DialError says why no stream to a peer came to be. Its text names the cause
// and the remedy.
type DialError struct {
	Peer  netip.AddrPort
	Cause Cause // "" when it is none of the known ones
	Err   error
}

func (e *DialError) Error() string { return "dial " + e.Peer.String() + ": " + e.Err.Error() }
func (e *DialError) Unwrap() error { return e.Err }

// fault is an error with its cause. Its text stands alone.
type fault struct {
	cause Cause
	text  string
	err   error // below, where a caller may ask for it
}

func (f *fault) Error() string { return f.text }
func (f *fault) Unwrap() error { return f.err }

func errNotIsthmus(detail string) *fault {
	return &fault{cause: NotIsthmus, text: "not an isthmus port: " + detail + " (check the port in JOIN, and GOSSIP_PORT on both hosts)"}
}

func causeOf(err error) Cause {
	var f *fault
	if errors.As(err, &f) {
		return f.cause
	}
	return ""
}

// Refusal is a peer that was refused, or that this host was refused by.
type Refusal struct {
	Time     time.Time      `json:"time"` // of the newest one
	Peer     netip.AddrPort `json:"peer"`
	Outgoing bool           `json:"outgoing"` // this host dialed
	Cause    Cause          `json:"cause"`
	Reason   string         `json:"reason"` // for people: cause and remedy
	Count    int            `json:"count"`
}

const (
	refusalsKept = 64
	refusalAge   = 10 * time.Minute
	// A refused peer tries again and again: one line a minute tells it, and
	// many peers together may not flood the log either.
	logEvery = time.Minute
	logBurst = 20
)

// refusals remembers who was refused of late, and logs it sparingly.
type refusals struct {
	log logrus.FieldLogger

	mu      sync.Mutex
	entries []refusalEntry // by time of the first occurrence
	window  time.Time      // start of the current log window
	logged  int            // lines in it
}

type refusalEntry struct {
	Refusal
	logged time.Time
}

// peerKey is what makes two refusals one. The port of a dialing peer is a
// random one.
func (r Refusal) peerKey() netip.AddrPort {
	if r.Outgoing {
		return r.Peer
	}
	return netip.AddrPortFrom(r.Peer.Addr(), 0)
}

// add records a refusal. Incoming ones are logged here, for nobody else sees
// them; outgoing ones reach their caller as an error.
func (rs *refusals) add(r Refusal) {
	if r.Cause == "" || r.Cause == NoCluster || r.Cause == Unreachable {
		return
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	i := slices.IndexFunc(rs.entries, func(e refusalEntry) bool {
		return e.Outgoing == r.Outgoing && e.Cause == r.Cause && e.peerKey() == r.peerKey()
	})
	if i < 0 {
		if len(rs.entries) == refusalsKept {
			rs.entries = slices.Delete(rs.entries, 0, 1)
		}
		i = len(rs.entries)
		rs.entries = append(rs.entries, refusalEntry{})
	}
	e := &rs.entries[i]
	r.Count = e.Count + 1
	e.Refusal = r
	if r.Outgoing || r.Time.Sub(e.logged) < logEvery {
		return
	}
	if r.Time.Sub(rs.window) >= logEvery {
		rs.window, rs.logged = r.Time, 0
	}
	if rs.logged++; rs.logged <= logBurst {
		e.logged = r.Time
		rs.log.WithFields(logrus.Fields{"peer": r.Peer, "cause": r.Cause}).Warn("refused a peer: " + r.Reason)
	}
}

// clear forgets the refusals of a peer that got through.
func (rs *refusals) clear(peer netip.AddrPort, outgoing bool) {
	key := Refusal{Peer: peer, Outgoing: outgoing}.peerKey()
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.entries = slices.DeleteFunc(rs.entries, func(e refusalEntry) bool {
		return e.Outgoing == outgoing && e.peerKey() == key
	})
}

// list returns what is not too old, newest first.
func (rs *refusals) list(now time.Time) []Refusal {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var out []Refusal
	for _, e := range rs.entries {
		if now.Sub(e.Time) < refusalAge {
			out = append(out, e.Refusal)
		}
	}
	slices.SortStableFunc(out, func(a, b Refusal) int { return b.Time.Compare(a.Time) })
	return out
}
