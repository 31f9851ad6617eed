package ipam

import (
	"context"
	"fmt"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// trusted waits until what is stored here may be used (rule H5): until the
// others in reach have been asked, or the cluster has confirmed this run, but
// no longer than trustTime. The error names the reason and the remedy.
func (i *IPAM) trusted(ctx context.Context) error {
	if i.gate() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trustTime)
	defer cancel()
	for {
		i.mu.Lock()
		news := i.news
		i.mu.Unlock()
		i.look(ctx)
		err := i.gate()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-news:
		case <-time.After(trustTime / 15): // whoever signals may wait for this call
		}
	}
}

func (i *IPAM) gate() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m.Gate()
}

// look takes note of what is known about the disk by now.
func (i *IPAM) look(ctx context.Context) {
	i.mu.Lock()
	confirmed := i.m.Confirmed
	i.mu.Unlock()
	if confirmed {
		return
	}
	boot := i.cfg.Ledger.Boot()
	i.mu.Lock()
	i.m.Boot(boot)
	i.trustChanged()
	doubted := i.m.Doubt != ""
	i.mu.Unlock()
	if r, fresh := i.copy(); fresh && doubted {
		i.reconcile(ctx, r)
	}
}

// Rebuilt takes note that the registry of this host's cluster was put together
// again, by the number of its generation. From then on, over restarts, nothing here is trusted
// (Suspect) until Run has held all blocks against such a registry. It is on disk
// when this returns nil, and must be before this host is let in by that
// registry. One that the blocks were held against already changes nothing.
func (i *IPAM) Rebuilt(id cluster.ID, gen uint64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.commit(i.m.Rebuilt(id, gen)); err != nil {
		return fmt.Errorf("store that the registry was rebuilt: %w", err)
	}
	i.trustChanged()
	return nil
}

// Barred says why nothing here may be used, as known from this host's own disk
// (Rebuilt); "" when there is no such reason. It needs nobody else,
// and so is known from the start.
func (i *IPAM) Barred() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m.Barred()
}

// trustChanged tells the subscribers if it did. The caller holds i.mu.
func (i *IPAM) trustChanged() {
	why := i.m.Suspect()
	if why == i.suspect {
		return
	}
	log := i.cfg.Log
	if why != "" {
		log.WithField("reason", why).Warn("stored address blocks wait until the cluster confirms them")
	} else if i.suspect != "" {
		log.Info("stored address blocks are trusted")
	}
	i.suspect = why
	i.tell()
}

// Suspect says why nothing that is stored here is used before the cluster
// confirms it, "" when all is trusted. The ledger's reasons are included.
func (i *IPAM) Suspect() string {
	boot := i.cfg.Ledger.Boot()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.m.Boot(boot)
	i.trustChanged()
	return i.m.Suspect()
}

// Claims lists the blocks that this host keeps, by lease: what it says to
// others. A block that it is just taking up is among them.
func (i *IPAM) Claims() []cluster.Claim {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m.Claims()
}

// Keeps reports whether this host keeps any address that a claim covers as its
// own, by whatever lease: the answer to another host that was granted it.
func (i *IPAM) Keeps(claim cluster.Claim) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.m.Keeps(claim)
}
