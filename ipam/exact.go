package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// takeExact hands out the address that the user asked for with --ip.
func (i *IPAM) takeExact(ctx context.Context, p *pool, a netip.Addr, name string) error {
	if err := i.trusted(ctx); err != nil {
		return err
	}
	if err := i.takeOwn(p, a, name); !errors.Is(err, lease.ErrUncovered) {
		return err
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	for range 3 {
		// Another host may be asking for the same address: what is taken up
		// here can be on its way there.
		if err := i.leaseExact(ctx, p, a); err != nil && !errors.Is(err, lease.ErrGivenBack) {
			return err
		}
		if err := i.takeOwn(p, a, name); !errors.Is(err, lease.ErrUncovered) {
			return err
		}
	}
	return fmt.Errorf("address %s: its block is given back faster than it is leased; try again", a)
}

// leaseExact leases one address; when it lies in the block of another host,
// that one is asked to give it back. The caller has the pool's turn.
func (i *IPAM) leaseExact(ctx context.Context, p *pool, a netip.Addr) error {
	if err := i.releaseDrained(ctx, p); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	c := cluster.Command{GrantExact: &cluster.GrantExact{Pool: p.key, Addr: a}}
	err := i.acquire(ctx, p, c)
	if held, ok := refused(err, cluster.Held); ok && len(held.Holders) > 0 {
		if err := i.recallExact(ctx, p, a, held.Holders[0]); err != nil {
			return err
		}
		err = i.acquire(ctx, p, c)
	}
	if isRefusal(err) {
		return err
	}
	if contested := (*contestedError)(nil); errors.As(err, &contested) {
		return fmt.Errorf("address %s: %w", a, contested)
	}
	if err != nil {
		return fmt.Errorf("address %s lies in no block of this host, and cannot be leased: %w", a, err)
	}
	return nil
}

// recallExact asks the holder of an address to give it back. The error names
// who uses it, or the host that gives no answer.
func (i *IPAM) recallExact(ctx context.Context, p *pool, a netip.Addr, holder cluster.HostID) error {
	if who := i.whoHolds(p, a); who != "" {
		return usedBy(p, a, who)
	}
	name := i.cfg.Ledger.Registry().HostName(holder)
	if i.cfg.Recall == nil {
		return fmt.Errorf("address %s of subnet %s lies in a block of host %s: choose another one", a, p.key, name)
	}
	ctx, cancel := context.WithTimeout(ctx, recallTime)
	defer cancel()
	err := i.cfg.Recall(ctx, holder, p.key, a)
	if err == nil || isRefusal(err) {
		return err
	}
	return fmt.Errorf("address %s of subnet %s lies in a block of host %s, which does not answer: choose another address, or bring %s back; `isthmus node rm %s` frees its addresses if it is gone for good (%w)",
		a, p.key, name, name, name, err)
}
