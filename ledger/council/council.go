package council

import (
	"cmp"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// State is what the leader knows.
type State struct {
	Leader  string // ID of its own server
	Servers []Server
	Hosts   []Host // that are members of the cluster
	// Stable is how long a host must have been healthy before it becomes a
	// voter, and Replace how long a voter must have been out before another
	// takes its place.
	Stable, Replace time.Duration
}

// Server is one server of the present configuration.
type Server struct {
	ID      string // new with each log, so that a host may have two for a moment
	Host    cluster.HostID
	Voter   bool
	Healthy bool          // answers the leader, and keeps up
	For     time.Duration // since Healthy is as it is
	Current bool          // its log reaches the end of the leader's
	Lost    bool          // its log does not exist any more
}

// Host is a member that is, or could become, a voter.
type Host struct {
	ID      cluster.HostID
	Healthy bool // follows the leader
	For     time.Duration
	Gone    bool // forgotten, or about to leave
}

// Action says what a Change does.
type Action string

const (
	None    Action = ""
	Enlist  Action = "enlist"  // let Host make an empty log, and add it without a vote
	Promote Action = "promote" // give Server a vote
	Remove  Action = "remove"  // take Server out
	Yield   Action = "yield"   // let Server lead
)

// Change is one step. Why is for the log.
type Change struct {
	Action Action
	Host   cluster.HostID
	Server string
	Why    string
}

// Seats is how many voters a cluster of so many hosts has.
func Seats(hosts int) int {
	switch {
	case hosts <= 2:
		return 1
	case hosts <= 6:
		return 3
	default:
		return 5
	}
}

// Next names the next change, or None. The leader counts as healthy.
func Next(s State) Change {
	c := survey(s)
	for _, step := range []func() (Change, bool){c.dismiss, c.promote, c.enlist, c.reduce, c.tidy} {
		if change, ok := step(); ok {
			return change
		}
	}
	return Change{}
}

// chamber is a State, looked through.
type chamber struct {
	State
	want    int
	gone    map[cluster.HostID]bool // false for a member
	voters  []Server                // all
	good    []Server                // voters that fill a seat: neither dismissed nor out for long
	waiting []Server                // without a vote, and able to get one
}

func survey(s State) *chamber {
	c := &chamber{State: s, gone: map[cluster.HostID]bool{}}
	members := 0
	for _, h := range s.Hosts {
		if c.gone[h.ID] = h.Gone; !h.Gone {
			members++
		}
	}
	c.want = Seats(members)
	c.Servers = slices.Clone(s.Servers)
	// Longest healthy first; the order of the input does not matter.
	slices.SortFunc(c.Servers, func(a, b Server) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(b.For, a.For), cmp.Compare(a.ID, b.ID))
	})
	for i := range c.Servers {
		srv := &c.Servers[i]
		if srv.ID == s.Leader {
			srv.Healthy, srv.Lost = true, false
		}
		if srv.Voter {
			c.voters = append(c.voters, *srv)
		}
		switch {
		case c.dismissed(*srv) || c.out(*srv):
		case srv.Voter:
			c.good = append(c.good, *srv)
		default:
			c.waiting = append(c.waiting, *srv)
		}
	}
	return c
}

func rank(s Server) int {
	if s.Healthy {
		return 0
	}
	return 1
}

// dismissed reports whether a server is to go, whatever the number of voters.
func (c *chamber) dismissed(s Server) bool {
	gone, member := c.gone[s.Host]
	return s.Lost || gone || !member
}

// out reports whether a server has been away for so long that it does not fill
// its seat.
func (c *chamber) out(s Server) bool { return !s.Healthy && s.For >= c.Replace }

// safe reports whether a majority of the voters is healthy after one voter
// left, and one joined; "" is none.
func (c *chamber) safe(leaves, joins string) bool {
	voters, healthy := 0, 0
	for _, s := range c.Servers {
		if s.ID != joins && (!s.Voter || s.ID == leaves) {
			continue
		}
		if voters++; s.Healthy {
			healthy++
		}
	}
	return voters > 0 && healthy > voters/2
}

// dismiss removes the servers of hosts that are gone, and those whose log is
// lost, at once.
func (c *chamber) dismiss() (Change, bool) {
	for _, s := range slices.Backward(c.Servers) { // the unhealthy ones first
		if !c.dismissed(s) {
			continue
		}
		why := "its host is not a member any more"
		if s.Lost {
			why = "its log is lost"
		}
		switch {
		case s.ID == c.Leader:
			if i := slices.IndexFunc(c.good, func(s Server) bool { return s.Healthy && s.Current }); i >= 0 {
				return Change{Action: Yield, Host: c.good[i].Host, Server: c.good[i].ID, Why: "the leader's host is leaving"}, true
			}
		case !s.Voter || c.safe(s.ID, ""):
			return Change{Action: Remove, Host: s.Host, Server: s.ID, Why: why}, true
		}
	}
	return Change{}, false
}

// seats is how many voters there should be, given who could be one: odd, unless
// that would mean to give up one that is well.
func (c *chamber) seats() int {
	have := len(c.good)
	seats := min(c.want, have+len(c.waiting)+len(c.candidates()))
	if seats%2 == 0 {
		seats--
	}
	return max(seats, min(have, c.want))
}

// promote gives votes once all servers that are needed are ready, so that the
// cluster spends only a moment with an even number of voters.
func (c *chamber) promote() (Change, bool) {
	var ready []Server
	for _, s := range c.waiting {
		if s.Healthy && s.Current {
			ready = append(ready, s)
		}
	}
	need := c.seats() - len(c.good)
	if need <= 0 || len(ready) < need || !c.safe("", ready[0].ID) {
		return Change{}, false
	}
	return Change{Action: Promote, Host: ready[0].Host, Server: ready[0].ID, Why: "a seat is free"}, true
}

// enlist prepares hosts for the seats that are free.
func (c *chamber) enlist() (Change, bool) {
	candidates := c.candidates()
	if len(candidates) == 0 || c.seats() <= len(c.good)+len(c.waiting) {
		return Change{}, false
	}
	return Change{Action: Enlist, Host: candidates[0].ID, Why: "a seat is free"}, true
}

// candidates are the hosts that may be enlisted, the longest healthy one first.
func (c *chamber) candidates() []Host {
	var out []Host
	for _, h := range c.Hosts {
		if !h.Gone && h.Healthy && h.For >= c.Stable && !slices.ContainsFunc(c.Servers, func(s Server) bool { return s.Host == h.ID }) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b Host) int { return cmp.Or(cmp.Compare(b.For, a.For), cmp.Compare(a.ID, b.ID)) })
	return out
}

// reduce removes a voter whose seat another one took, and one too many.
func (c *chamber) reduce() (Change, bool) {
	for _, s := range slices.Backward(c.voters) { // the unhealthy ones first
		if s.ID == c.Leader || !c.safe(s.ID, "") {
			continue
		}
		if len(c.good) > c.want || len(c.good) == c.want && c.out(s) {
			return Change{Action: Remove, Host: s.Host, Server: s.ID, Why: "there are more voters than seats"}, true
		}
	}
	return Change{}, false
}

// tidy removes servers that will not get a vote.
func (c *chamber) tidy() (Change, bool) {
	for _, s := range slices.Backward(c.Servers) {
		if !s.Voter && (c.out(s) || len(c.good) >= c.want) {
			return Change{Action: Remove, Host: s.Host, Server: s.ID, Why: "no seat is free for it"}, true
		}
	}
	return Change{}, false
}
