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

// Server is a voter.
type Server struct {
	Host    cluster.HostID `json:"host"`
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
}

func (s Server) String() string {
	if s.Name == "" {
		return s.Address.String()
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.Address)
}

// Status describes a ledger for people.
type Status struct {
	Role      Role       `json:"role"`
	Cluster   cluster.ID `json:"cluster,omitempty"`
	Voters    []Server   `json:"voters"`
	Reachable bool       `json:"reachable"` // a voter serves this host now
	Fresh     bool       `json:"fresh"`
	Index     uint64     `json:"index"`
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

// Unreachable is the error of a Propose that no voter answered.
type Unreachable struct {
	Voters []Server // none while the host belongs to no cluster
	Cause  error
}

func (u *Unreachable) Error() string {
	if len(u.Voters) == 0 {
		return fmt.Sprintf("join a cluster: %v; networks and blocks wait until then", u.Cause)
	}
	what, it := "voter", "it returns"
	if len(u.Voters) > 1 {
		what, it = "voters", "one of them returns"
	}
	var names []string
	for _, v := range u.Voters {
		names = append(names, v.String())
	}
	return fmt.Sprintf("reach the %s %s: %v; new networks and blocks wait until %s", what, strings.Join(names, ", "), u.Cause, it)
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
