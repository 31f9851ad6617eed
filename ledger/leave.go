package ledger

import (
	"context"
	"fmt"

	"github.com/isthmus-net/isthmus/cluster"
)

// Leave takes this host out of the cluster. The caller has given everything
// back, and deletes the state afterwards.
func (l *Ledger) Leave(ctx context.Context) error {
	if _, err := l.Propose(ctx, cluster.Command{Leave: &cluster.Leave{}}); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return nil
}
