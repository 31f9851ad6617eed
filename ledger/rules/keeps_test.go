package rules_test

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// keeps tests one step against the words of cluster/command.go.
func keeps(before, after *cluster.Registry, c cluster.Command, res cluster.Result) error {
	if c.Rebuild != nil {
		return nil
	}
	if err := still(before, after, c, res); err != nil {
		return err
	}
	if res.Refused != nil {
		if res.Refused.Text == "" || res.Refused.Code == "" {
			return fmt.Errorf("a refusal without words")
		}
		if len(after.Leases) != len(before.Leases) || len(after.Pools) != len(before.Pools) || len(after.Networks) != len(before.Networks) {
			return fmt.Errorf("a refused command changed something")
		}
		if res.Refused.Code == cluster.Full && c.Grant != nil {
			return really(before, c.Grant)
		}
		return nil
	}
	if res.Index != after.Index {
		return nil // answered before
	}
	switch {
	case c.Grant != nil:
		l := res.Lease
		p := before.Pools[l.Pool]
		if c.Grant.Range.IsValid() && !(c.Grant.Range.Contains(l.Block.Addr()) && l.Block.Bits() >= c.Grant.Range.Bits()) {
			return fmt.Errorf("block %s outside range", l.Block)
		}
		bits := l.Pool.Prefix.Addr().BitLen() - l.Pool.Prefix.Bits()
		size := 1 << (l.Block.Addr().BitLen() - l.Block.Bits())
		if bits < 20 && size > max(1, 1<<bits/(2*max(1, len(p.Holders)))) {
			return fmt.Errorf("block %s of %d addresses is more than the host's share", l.Block, size)
		}
		if c.Grant.Want > 0 && size >= 2*c.Grant.Want {
			return fmt.Errorf("block %s is larger than was wanted", l.Block)
		}
		if size > 1 || endpoint(p, l.Block.Addr()) {
			return nil
		}
		return fmt.Errorf("block %s is good for nothing", l.Block)
	case c.GrantExact != nil:
		if !res.Lease.Block.Contains(c.GrantExact.Addr) || res.Lease.Holder != c.Host {
			return fmt.Errorf("wrong lease")
		}
	case c.Release != nil:
		if l, ok := after.Leases[c.Release.Lease]; ok && (!c.Release.Addr.IsValid() || l.Covers(c.Release.Addr)) {
			return fmt.Errorf("still leased")
		}
	case c.Hello != nil:
		if h := after.Hosts[c.Host]; h.Session != after.Index || h.Gen != after.Gen {
			return fmt.Errorf("no session was opened: %+v", h)
		}
	case c.Forget != nil:
		if !after.Hosts[c.Forget.Host].Tombstone {
			return fmt.Errorf("not forgotten")
		}
		for _, l := range after.Leases {
			if l.Holder == c.Forget.Host && c.Forget.Dead {
				return fmt.Errorf("lease %d outlives its holder", l.ID)
			}
		}
	case c.Confirm != nil, c.Leave != nil:
		for _, l := range after.Leases {
			if l.Holder == c.Host {
				return fmt.Errorf("lease %d stayed behind", l.ID)
			}
		}
	case c.Dissolve != nil:
		if after.Dissolved != c.Dissolve.Into {
			return fmt.Errorf("not dissolved")
		}
	case c.AttachNetwork != nil && c.AttachNetwork.Def.MTU != 0:
		if res.Network.Def.MTU != c.AttachNetwork.Def.MTU {
			return fmt.Errorf("a contradiction was accepted")
		}
	}
	return nil
}

// still tests what no single command may change: an address passes from one
// lease to another only over the free space, a lease only ends by its holder's
// word or with its holder, numbers rise, and who was forgotten stays so.
func still(before, after *cluster.Registry, c cluster.Command, res cluster.Result) error {
	for id, l := range after.Leases {
		old, had := before.Leases[id]
		if had {
			if old.Holder != l.Holder || old.Pool != l.Pool || old.Block != l.Block || len(old.Without) > len(l.Without) {
				return fmt.Errorf("lease %+v became %+v", old, l)
			}
			continue
		}
		if c.Hello == nil && id != after.Index || id > after.Index {
			return fmt.Errorf("lease %d was made at number %d", id, after.Index)
		}
		if c.Hello != nil && before.Hosts[c.Host].Gen >= before.Gen {
			return fmt.Errorf("the claim %d was believed in a log that was not lost", id)
		}
		for _, o := range before.LeasesOf(l.Pool, "") {
			if o.Claim().Overlaps(l.Claim()) {
				return fmt.Errorf("lease %+v was made over %+v", l, o)
			}
		}
	}
	for id, l := range before.Leases {
		now, stays := after.Leases[id]
		if stays && len(now.Without) == len(l.Without) {
			continue
		}
		said := c.Release != nil && c.Release.Lease == id && c.Host == l.Holder
		gone := c.Leave != nil && c.Host == l.Holder || c.Confirm != nil && c.Host == l.Holder && before.Hosts[l.Holder].Tombstone
		forgotten := c.Forget != nil && c.Forget.Host == l.Holder && (c.Forget.Dead || !before.Hosts[l.Holder].Tombstone && !unfenced(before, l.Pool))
		if res.Refused != nil || !said && !gone && !forgotten {
			return fmt.Errorf("lease %+v ended or shrank", l)
		}
	}
	for id, h := range before.Hosts {
		now, stays := after.Hosts[id]
		if h.Tombstone && (!stays || !now.Tombstone) {
			return fmt.Errorf("host %s was forgotten, and is not any more", id)
		}
		if !stays && !(c.Leave != nil && c.Host == id) {
			return fmt.Errorf("host %s is gone", id)
		}
	}
	return nil
}

func unfenced(r *cluster.Registry, key cluster.PoolKey) bool {
	for _, n := range r.Networks {
		for _, k := range n.Pools {
			if k == key {
				return n.Def.Mode != "vxlan"
			}
		}
	}
	return false
}

// endpoint reports whether an address may be given to one, written another way
// than in the rules.
func endpoint(p cluster.Pool, a netip.Addr) bool {
	if a == p.Gateway {
		return false
	}
	for _, b := range p.Reserved {
		if a == b {
			return false
		}
	}
	if a.Is4() && p.Key.Prefix.Bits() < 31 && (!p.Key.Prefix.Contains(a.Prev()) || !p.Key.Prefix.Contains(a.Next())) {
		return false
	}
	return a.Is4() || p.Key.Prefix.Bits() >= 127 || p.Key.Prefix.Contains(a.Prev())
}

// really verifies, address by address, that a range without a free address has
// none.
func really(r *cluster.Registry, c *cluster.Grant) error {
	p := r.Pools[c.Pool]
	in := c.Pool.Prefix
	if c.Range.IsValid() {
		in = c.Range.Masked()
	}
	leases := r.LeasesOf(c.Pool, "")
next:
	for a, n := in.Addr(), 0; in.Contains(a) && n < 1<<12; a, n = a.Next(), n+1 {
		for _, l := range leases {
			if l.Covers(a) {
				continue next
			}
		}
		if endpoint(p, a) {
			return fmt.Errorf("%s is free", a)
		}
	}
	return nil
}
