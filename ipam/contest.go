package ipam

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// contest finds another host that keeps a block which was granted to this one
// (rule H7): what gossip heard is held against it, and who is heard to claim it
// is asked. A host that does not answer is taken to keep it.
func (i *IPAM) contest(ctx context.Context, l cluster.Lease) *lease.Contest {
	if i.cfg.Claimed == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	own := l.Claim()
	asked := map[lease.Contest]bool{}
	check := func(block netip.Prefix) (contest *lease.Contest, heard bool) {
		host, claim, ok := i.cfg.Claimed(l.Pool, block)
		if !ok || host == i.cfg.Host {
			return nil, false
		}
		c := lease.Contest{Host: host, Claim: claim}
		if asked[c] || !claim.Overlaps(own) {
			return nil, true
		}
		asked[c] = true
		if i.cfg.StillClaims != nil {
			still, err := i.cfg.StillClaims(ctx, host, own)
			if err == nil && !still {
				return nil, true
			}
		}
		return &c, true
	}
	c, heard := check(l.Block)
	if c != nil || !heard {
		return c
	}
	// Another claim may lie behind the one that does not count.
	for a := l.Block.Addr(); l.Block.Contains(a); a = a.Next() {
		if c, _ := check(netip.PrefixFrom(a, a.BitLen())); c != nil {
			return c
		}
	}
	return nil
}

// contested raises the alarm. The caller holds i.mu.
func (i *IPAM) contested(p *pool, l cluster.Lease, c lease.Contest) {
	r := i.cfg.Ledger.Registry()
	text := fmt.Sprintf("block %s was granted to this host, but host %s says that it keeps %s (lease %d): not used, and given back", l.Block, r.HostName(c.Host), c.Claim.Block, c.Claim.Lease)
	if p.alarm(text, i.cfg.Now()) {
		i.cfg.Log.WithFields(map[string]any{"pool": l.Pool.String(), "block": l.Block.String(), "peer": r.HostName(c.Host), "lease": c.Claim.Lease}).
			Error("block was granted that another host keeps")
	}
}

// rivals raises an alarm for each block of this host that another one keeps as
// well: one of the two leases was lost with the end of a log.
func (i *IPAM) rivals(ctx context.Context) {
	for _, own := range i.Claims() {
		c := i.contest(ctx, cluster.Lease{ID: own.Lease, Pool: own.Pool, Block: own.Block, Without: own.Given()})
		if c == nil {
			continue
		}
		name := i.cfg.Ledger.Registry().HostName(c.Host)
		i.mu.Lock()
		if i.pool(own.Pool).alarm(fmt.Sprintf("block %s of this host (lease %d) is kept by host %s too (block %s, lease %d): an address may be in use twice", own.Block, own.Lease, name, c.Claim.Block, c.Claim.Lease), i.cfg.Now()) {
			i.cfg.Log.WithFields(map[string]any{"pool": own.Pool.String(), "block": own.Block.String(), "peer": name, "lease": c.Claim.Lease}).
				Error("block of this host is kept by another host too")
		}
		i.mu.Unlock()
	}
}
