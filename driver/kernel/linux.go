package kernel

import (
	"context"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
)

// Config is what Open needs.
type Config struct {
	Log logrus.FieldLogger
}

// Linux is the real Kernel: the network namespace in which Open was called.
type Linux struct{}

var _ Kernel = (*Linux)(nil)

// Open connects to the kernel.
func Open(Config) (*Linux, error)                                           { return &Linux{}, nil }
func (*Linux) Close()                                                       {}
func (*Linux) Dump(context.Context) (State, error)                          { return nil, nil }
func (*Linux) Do(context.Context, []Op) error                               { return nil }
func (*Linux) Hand(context.Context, Handover) error                         { return nil }
func (*Linux) Mend(context.Context, Handover) (bool, error)                 { return false, nil }
func (*Linux) Observe(context.Context, string, cluster.MAC) (string, error) { return "", nil }
func (*Linux) Announce(context.Context, []Announcement) error               { return nil }
func (*Linux) Underlay(context.Context, netip.Addr) (Underlay, error)       { return Underlay{}, nil }
func (*Linux) Routes(context.Context) ([]netip.Prefix, error)               { return nil, nil }
func (*Linux) Watch(context.Context, chan<- struct{}) error                 { return nil }
