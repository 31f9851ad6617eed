package ledger

import (
	"context"
	"errors"
	"io"

	"github.com/isthmus-net/isthmus/cluster"
)

// Report says how the registry was put together again.
type Report struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`   // of the new registry
	Index   uint64     `json:"index"` // of the copy that it goes on from
	Base    string     `json:"base"`  // whose copy that was
	Heard   []Heard    `json:"heard"` // every host that answered, this one too
	// Fenced are the hosts that did not. They keep their leases; the others
	// admit none of their frames until they say Hello.
	Fenced  []Heard        `json:"fenced,omitempty"`
	Refused []RefusedClaim `json:"refused,omitempty"`
}

// Heard is a host in a Report.
type Heard struct {
	Host  cluster.HostID `json:"host"`
	Name  string         `json:"name"`
	Gen   uint64         `json:"gen,omitempty"` // of its copy
	Index uint64         `json:"index,omitempty"`
}

// RefusedClaim is a block that a host keeps, and that the new registry gives to
// nobody or to another host.
type RefusedClaim struct {
	Host  cluster.HostID `json:"host"`
	Name  string         `json:"name"`
	Claim cluster.Claim  `json:"claim"`
	Why   string         `json:"why"`
}

// Recover rebuilds the registry on this host, from what all hosts in reach
// know, when the majority of the voters is lost for good.
func (l *Ledger) Recover(ctx context.Context) (Report, error) {
	return Report{}, errors.New("recover the log: this host cannot yet")
}

// Restore rebuilds the registry from a Backup, and from what all hosts in
// reach know.
func (l *Ledger) Restore(ctx context.Context, from io.Reader) (Report, error) {
	return Report{}, errors.New("restore the registry: this host cannot yet")
}

// Backup writes this host's copy of the registry as JSON.
func (l *Ledger) Backup(ctx context.Context, to io.Writer) error {
	return errors.New("back up the registry: this host cannot yet")
}
