package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// State is where a session stands.
type State string

const (
	Waiting     State = "waiting"     // for the first Announce, or the neighbour on an interface
	Connecting  State = "connecting"  // no session
	Established State = "established" // prefixes are exchanged
	Cut         State = "cut"         // the router sent too much; tried again later
)

// Session is one router in a Status.
type Session struct {
	Peer      string     `json:"peer"`
	Address   netip.Addr `json:"address,omitzero"` // found on an interface, else as configured
	AS        uint32     `json:"as"`
	Password  Secret     `json:"password"`
	State     State      `json:"state"`
	Since     time.Time  `json:"since"`               // when State began
	Announced int        `json:"announced"`           // prefixes of the families that the session carries
	Received  int        `json:"received"`            // routes the router sent, but for those of this host
	Accepted  int        `json:"accepted"`            // of these, what Config.Import lets in
	Graceful  bool       `json:"graceful,omitempty"`  // the router agreed to keep routes while this host restarts
	BFD       string     `json:"bfd,omitempty"`       // state of BFD, if asked for
	Problem   string     `json:"problem,omitempty"`   // what is wrong, and what to do
	LastError string     `json:"lastError,omitempty"` // why the session was last not there
}

// Status is what a Speaker does.
type Status struct {
	AS        uint32     `json:"as"`
	RouterID  netip.Addr `json:"routerID"`
	Sessions  []Session  `json:"sessions"`
	Announced []Route    `json:"announced"`           // sorted
	Imported  []Route    `json:"imported,omitempty"`  // sorted
	LeftOut   int        `json:"leftOut,omitempty"`   // routes that Import lets in, beyond ImportMax
	Withdrawn bool       `json:"withdrawn,omitempty"` // Withdraw was called
}

// sessions remembers what is known of each router. It is safe for concurrent use.
type sessions struct {
	mu  sync.Mutex
	now func() time.Time
	as  uint32
	all []*session
}

type session struct {
	peer      Peer
	addr      netip.Addr // zero until an interface's neighbour was found
	state     State
	since     time.Time
	lastError string
	added     bool      // the library knows of it; else its events are old
	unsigned  bool      // the password could not be set
	flooded   bool      // the router sent too much
	until     time.Time // not before then is it added again
	speaks    families  // what the session carries
	awaits    families  // of which the router has not said all
	graceful  bool
	accepted  int
}

// families is a set of address families.
type families uint8

const (
	ipv4 families = 1 << iota
	ipv6
)

func newSessions(c Config, now func() time.Time) *sessions {
	s := &sessions{now: now, as: c.AS}
	for _, p := range c.Peers {
		s.all = append(s.all, &session{peer: p, addr: p.Addr, state: Waiting, since: now()})
	}
	return s
}

// of finds the session of an address; the zone names the interface.
func (s *sessions) of(addr netip.Addr) *session {
	i := slices.IndexFunc(s.all, func(x *session) bool {
		return x.addr == addr || x.peer.Interface != "" && x.peer.Interface == addr.Zone()
	})
	if i < 0 {
		return nil
	}
	return s.all[i]
}

// update changes the session of an address under the lock, if there is one.
func (s *sessions) update(addr netip.Addr, change func(*session)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.of(addr); x != nil {
		change(x)
	}
}

// enter changes the state, and says whether it is a new one.
func (s *sessions) enter(x *session, state State) bool {
	if x.state == state {
		return false
	}
	x.state, x.since = state, s.now()
	return true
}

// settled says that all routers have said all.
func (s *sessions) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(s.all, func(x *session) bool { return x.state != Established || x.awaits != 0 })
}

// unasked is how many routes beyond those asked for a router may send before
// it is a problem.
const unasked = 1000

// report makes the Session of a router that sent so many routes.
func (x *session) report(received, leftOut int) Session {
	r := Session{
		Peer: x.peer.Name(), Address: x.addr, AS: x.peer.AS, Password: x.peer.Password,
		State: x.state, Since: x.since, LastError: x.lastError,
		Received: received, Accepted: x.accepted, Graceful: x.graceful,
	}
	switch {
	case x.state == Cut:
		r.Problem = fmt.Sprintf("%s; next attempt at %s", x.lastError, x.until.Format(time.TimeOnly))
	case x.state != Established:
		r.Problem = x.lastError
	case received-x.accepted > unasked:
		r.Problem = fmt.Sprintf("%s sends %d routes that BGP_IMPORT does not let in: they are ignored, but cost memory; filter what it sends to this host", r.Peer, received-x.accepted)
	case leftOut > 0 && x.accepted > 0:
		r.Problem = fmt.Sprintf("%s sends %d routes that BGP_IMPORT lets in, and %d of all routers' are left out; narrow BGP_IMPORT, or raise BGP_IMPORT_MAX", r.Peer, x.accepted, leftOut)
	}
	return r
}
