package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// Role is what a host is to the log.
type Role string

const (
	Joining Role = "joining" // belongs to no cluster yet
	Client  Role = "client"
	Voter   Role = "voter"
)

// Suffrage says whether a server has a vote.
type Suffrage string

const (
	Voting    Suffrage = "voter"
	Nonvoting Suffrage = "nonvoter" // it is being prepared
)

// Server is a host's part of the log.
type Server struct {
	ID       string         `json:"id"` // new with each log
	Host     cluster.HostID `json:"host"`
	Name     string         `json:"name"`
	Address  netip.AddrPort `json:"address"`
	Leader   bool           `json:"leader"`
	Healthy  bool           `json:"healthy"` // as the leader last said
	Suffrage Suffrage       `json:"suffrage"`
}

func (s Server) String() string {
	if s.Name == "" {
		return s.Address.String()
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.Address)
}

// Quorum counts voters.
type Quorum struct {
	Voters    int `json:"voters"`
	Needed    int `json:"needed"`
	Reachable int `json:"reachable"` // healthy, says the leader; without one, those that answer this host
}

// Status describes a ledger for people.
type Status struct {
	Role      Role           `json:"role"`
	Cluster   cluster.ID     `json:"cluster,omitempty"`
	Voters    []Server       `json:"voters"`
	Leader    cluster.HostID `json:"leader,omitempty"` // "" when this host knows none
	Quorum    Quorum         `json:"quorum"`
	Reachable bool           `json:"reachable"` // the leader serves this host now
	Fresh     bool           `json:"fresh"`
	Gen       uint64         `json:"gen"`
	Index     uint64         `json:"index"`
	// Founding says how a cluster comes to be, while this host has none, and
	// Waiting whom it asks.
	Founding string      `json:"founding,omitempty"`
	Waiting  []JoinState `json:"waiting,omitempty"`
	// Refused is why the cluster gives this host no session.
	Refused cluster.Code `json:"refused,omitempty"`
	// Error says what the host waits for, or what is wrong: empty when all is
	// well. While joining it begins with "joining: ".
	Error string `json:"error,omitempty"`
}

// count fills in who leads, and the quorum. Without a leader nobody knows of
// anybody's health; then those count that answered when one was looked for.
func (s *Status) count(answered map[cluster.HostID]bool) {
	for i := range s.Voters {
		v := &s.Voters[i]
		if !s.Reachable {
			v.Leader, v.Healthy = false, answered[v.Host]
		}
		if v.Leader {
			s.Leader = v.Host
		}
		if v.Suffrage == Nonvoting {
			continue
		}
		if s.Quorum.Voters++; v.Healthy {
			s.Quorum.Reachable++
		}
	}
	s.Quorum.Needed = s.Quorum.Voters/2 + 1
}

// Unreachable is the error of a Propose that no leader answered.
type Unreachable struct {
	Voters  []Server // none while the host belongs to no cluster
	Missing []Server // those that did not answer this host
	Cause   error
	last    error // of the newest try, also where Cause tells what else is waited for
}

func (u *Unreachable) Error() string {
	var missing []string
	for _, v := range u.Missing {
		missing = append(missing, fmt.Sprintf("%s %s", v.Name, v.Address))
	}
	needed := len(u.Voters)/2 + 1
	there := len(u.Voters) - len(u.Missing)
	switch {
	case len(u.Voters) == 0:
		return fmt.Sprintf("join a cluster: %v; networks and blocks wait until then", u.Cause)
	case len(u.Voters) == 1:
		return fmt.Sprintf("reach the voter %s: %v; new networks and blocks wait until it returns", u.Voters[0], u.Cause)
	case there < needed:
		back := "one of them returns"
		if n := needed - there; n > 1 {
			back = fmt.Sprintf("%d of them return", n)
		}
		return fmt.Sprintf("control quorum unavailable: %d/%d voters reachable (%s missing); new networks and blocks wait until %s",
			there, len(u.Voters), strings.Join(missing, ", "), back)
	case len(missing) > 0:
		return fmt.Sprintf("control quorum unavailable: %d/%d voters reachable (%s missing), but %v; new networks and blocks wait", there, len(u.Voters), strings.Join(missing, ", "), u.Cause)
	default:
		return fmt.Sprintf("control quorum unavailable: %d/%d voters reachable, but %v; new networks and blocks wait", there, len(u.Voters), u.Cause)
	}
}

func (u *Unreachable) Unwrap() error { return u.Cause }

// plain cuts a transport's error down to what people need.
func plain(err error) error {
	var dial *transport.DialError
	if errors.As(err, &dial) {
		err = dial.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time (is the host up? a firewall must let TCP and UDP through on its GOSSIP_PORT)")
	}
	return err
}
