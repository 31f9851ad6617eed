package ledger

import (
	"context"
	"errors"
	"net/netip"

	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
	"github.com/isthmus-net/isthmus/transport"
)

type Config struct {
	Transport *transport.Transport
	DB        *bolt.DB
	Dir       string
	Self      cluster.Hello
	Host      cluster.HostID
	Join      []string
	Port      uint16
	Force     bool
	Log       logrus.FieldLogger
}

type Role string

const (
	Joining Role = "joining"
	Client  Role = "client"
	Voter   Role = "voter"
)

type Server struct {
	Host    cluster.HostID `json:"host"`
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
}

type Status struct {
	Role      Role       `json:"role"`
	Cluster   cluster.ID `json:"cluster,omitempty"`
	Voters    []Server   `json:"voters"`
	Reachable bool       `json:"reachable"` // a voter answered of late
	Fresh     bool       `json:"fresh"`
	Index     uint64     `json:"index"`
	Error     string     `json:"error,omitempty"` // what it waits for, or the newest failure
}

type Unreachable struct {
	Voters []Server
	Cause  error
}

func (u *Unreachable) Error() string { return u.Cause.Error() }
func (u *Unreachable) Unwrap() error { return u.Cause }

type Ledger struct{ cfg Config }

func Open(cfg Config) (*Ledger, error)                              { return &Ledger{cfg}, nil }
func (l *Ledger) Run(ctx context.Context) error                     { <-ctx.Done(); return nil }
func (l *Ledger) Cluster(ctx context.Context) (cluster.ID, error)   { <-ctx.Done(); return "", ctx.Err() }
func (l *Ledger) ID() cluster.ID                                    { return "" }
func (l *Ledger) Registry() *cluster.Registry                       { return rules.New() }
func (l *Ledger) Fresh() bool                                       { return false }
func (l *Ledger) Subscribe() <-chan struct{}                        { return nil }
func (l *Ledger) Status() Status                                    { return Status{} }
func (l *Ledger) SetSelf(self cluster.Hello)                        {}
func (l *Ledger) UpdateAddresses(map[cluster.HostID]netip.AddrPort) {}
func (l *Ledger) Propose(context.Context, cluster.Command) (cluster.Result, error) {
	return cluster.Result{}, &Unreachable{Cause: errors.New("being written")}
}
