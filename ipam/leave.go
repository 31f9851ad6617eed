package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Leave gives everything back that this host holds of the cluster's pools: all
// leases, and the attachments. It is refused while a Docker network or an
// endpoint of this host needs one; the error names them, and nothing has
// changed then. After any other error what was not given back is tried again
// by Run, or by another Leave.
func (i *IPAM) Leave(ctx context.Context) error {
	i.mu.Lock()
	pools := slices.SortedFunc(maps.Values(i.pools), func(a, b *pool) int { return cluster.ComparePools(a.key, b.key) })
	i.mu.Unlock()
	for _, p := range pools {
		if err := i.freeDead(ctx, p); err != nil {
			return err
		}
	}
	i.mu.Lock()
	var users []string
	for _, p := range pools {
		switch {
		case p.rec != nil && p.rec.uses() > 0:
			users = append(users, fmt.Sprintf("subnet %s belongs to a Docker network of this host", p.key))
		case len(p.Used)+len(p.Pinned) > 0:
			users = append(users, fmt.Sprintf("subnet %s has %s", p.key, i.userList(p)))
		}
	}
	i.mu.Unlock()
	if len(users) > 0 {
		return fmt.Errorf("give back the addresses of this host: %s: remove its containers and networks first: %w", strings.Join(users, "; "), errInUse)
	}
	var errs []error
	for _, p := range pools {
		errs = append(errs, i.leaveOne(ctx, p))
	}
	return errors.Join(errs...)
}

func (i *IPAM) leaveOne(ctx context.Context, p *pool) error {
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	if err := i.leave(ctx, p, 0); err != nil {
		return err
	}
	// Blocks of a pool that this host is not attached to: of a lost answer.
	i.mu.Lock()
	err = i.drain(p, slices.Collect(maps.Keys(p.Blocks)))
	i.mu.Unlock()
	if err != nil {
		return err
	}
	return i.releaseDrained(ctx, p)
}
