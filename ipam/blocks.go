package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Prepare leases this host's first block of each pool, where it has none:
// after a network was created, its containers start without asking anyone.
func (i *IPAM) Prepare(ctx context.Context, pools []cluster.PoolKey) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for _, key := range pools {
		p, ok := i.find(key)
		if !ok {
			return fmt.Errorf("prepare pool %s: Docker has not requested it from isthmus on this host: create the network with --ipam-driver", key)
		}
		if err := i.prepare(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (i *IPAM) prepare(ctx context.Context, p *pool) error {
	defer i.wake()
	i.mu.Lock()
	p.opening = 0
	bare := i.bare(p)
	i.mu.Unlock()
	if len(bare) == 0 {
		return nil
	}
	unlock, err := i.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	i.mu.Lock()
	bare = i.bare(p)
	i.mu.Unlock()
	for _, within := range bare {
		if err := i.growOrRecall(ctx, p, within); err != nil {
			return err
		}
	}
	return nil
}

// bare lists the ranges in use here that no block of this host reaches into.
// The caller holds i.mu.
func (i *IPAM) bare(p *pool) []netip.Prefix {
	if p.rec == nil {
		return nil
	}
	blocks := p.active(false)
	return slices.DeleteFunc(p.ranges(), func(within netip.Prefix) bool {
		s := i.scope(p, within)
		return slices.ContainsFunc(blocks, s.within.Overlaps)
	})
}

// growOrRecall is grow for somebody who waits: in a full pool the other
// holders are asked for what they do not use.
func (i *IPAM) growOrRecall(ctx context.Context, p *pool, within netip.Prefix) error {
	i.mu.Lock()
	want := blockSize(len(p.active(false)))
	i.mu.Unlock()
	err := i.grow(ctx, p, within, want)
	if _, ok := refused(err, cluster.Full); !ok {
		return err
	}
	if i.recall(ctx, p.key, i.neighbours(p, within)) {
		err = i.grow(ctx, p, within, 1) // where addresses are short, no more than needed
	}
	if _, ok := refused(err, cluster.Full); ok {
		return i.full(p, within)
	}
	return err
}

// grow leases one more block of that many addresses at most inside a range.
// The caller has the pool's turn.
func (i *IPAM) grow(ctx context.Context, p *pool, within netip.Prefix, want int) error {
	res, err := i.proposeIn(ctx, p, cluster.Command{Grant: &cluster.Grant{Pool: p.key, Range: within, Want: want}})
	if err == nil {
		err = i.keep(p, res, false)
	}
	i.note(p, err)
	return err
}

// proposeIn proposes a command on a pool that this host is attached to; if the
// cluster has lost the pool it attaches it anew. The caller has the pool's turn.
func (i *IPAM) proposeIn(ctx context.Context, p *pool, c cluster.Command) (cluster.Result, error) {
	res, err := i.propose(ctx, c)
	if _, ok := refused(err, cluster.UnknownPool); ok {
		if err := i.reattach(ctx, p); err != nil {
			return res, err
		}
		res, err = i.propose(ctx, c)
	}
	return res, err
}

// reattach attaches to a pool again that the cluster does not list this host
// for. The caller has the pool's turn.
func (i *IPAM) reattach(ctx context.Context, p *pool) error {
	i.mu.Lock()
	if p.rec == nil {
		i.mu.Unlock()
		return nil
	}
	name := p.rec.Pool.Name
	i.mu.Unlock()
	res, err := i.attach(ctx, cluster.AttachPool{Space: p.key.Space, Prefix: p.key.Prefix, Name: name, V6: p.key.Prefix.Addr().Is6()})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.rec == nil {
		return nil
	}
	return i.learn(p, res)
}

// note keeps what went wrong with a pool for status.
func (i *IPAM) note(p *pool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.problem = ""; err != nil {
		p.problem = err.Error()
	}
}

// keep takes up the lease that the cluster answered a request with. What the
// answer says of the pool comes first: the block may hold a gateway or a
// reserved address that the local copy does not know yet.
func (i *IPAM) keep(p *pool, res cluster.Result, exact bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p.rec == nil {
		return errGone(p)
	}
	if err := i.learn(p, res); err != nil {
		return err
	}
	l := res.Lease
	return i.keepLocked(p, block{Lease: l.ID, Pool: l.Pool, Prefix: l.Block, Exact: exact && l.Block.IsSingleIP()})
}

// keepLocked stores a lease as an active block; from then on its addresses
// are handed out. A lease that this run gave back already is not taken up
// again: the answer that brought it is late. The caller holds i.mu.
func (i *IPAM) keepLocked(p *pool, b block) error {
	if b.Lease == 0 || b.Pool != p.key || common(p.key.Prefix, b.Prefix) != b.Prefix {
		return fmt.Errorf("keep block %s: not one of pool %s", b.Prefix, p.key)
	}
	if i.returned[b.Lease] {
		return fmt.Errorf("keep block %s: lease %d was given back since", b.Prefix, b.Lease)
	}
	if _, ok := p.blocks[b.Lease]; ok {
		return nil
	}
	for _, other := range p.blocks {
		if other.Prefix.Overlaps(b.Prefix) {
			return fmt.Errorf("keep block %s: overlaps block %s of lease %d, which this host holds", b.Prefix, other.Prefix, other.Lease)
		}
	}
	if err := i.store.commit(put(blockBucket, blockKey(b.Lease), b)); err != nil {
		return err
	}
	p.blocks[b.Lease] = b
	return nil
}

// drain stores that blocks are being given back: from then on none of their
// addresses is handed out. The caller holds i.mu and has seen them empty.
func (i *IPAM) drain(p *pool, blocks []block) error {
	var ops []op
	for _, b := range blocks {
		b.Draining = true
		ops = append(ops, put(blockBucket, blockKey(b.Lease), b))
	}
	if len(ops) == 0 {
		return nil
	}
	if err := i.store.commit(ops...); err != nil {
		return err
	}
	for _, b := range blocks {
		b.Draining = true
		p.blocks[b.Lease] = b
	}
	return nil
}

// releaseDrained gives all draining blocks of a pool back, and forgets those
// that the cluster has taken.
func (i *IPAM) releaseDrained(ctx context.Context, p *pool) error {
	i.mu.Lock()
	blocks := slices.DeleteFunc(p.sorted(), func(b block) bool { return !b.Draining })
	i.mu.Unlock()
	var errs []error
	for _, b := range blocks {
		_, err := i.propose(ctx, cluster.Command{Release: &cluster.Release{Lease: b.Lease}})
		if _, ok := refused(err, cluster.NotHeld); err != nil && !ok {
			errs = append(errs, err)
			if !isRefusal(err) {
				break // out of reach: the next would wait as long
			}
			continue
		}
		i.mu.Lock()
		err = i.forget(p, b)
		i.mu.Unlock()
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forget drops a block that this host no longer holds. The caller holds i.mu.
func (i *IPAM) forget(p *pool, b block) error {
	ops := []op{del(blockBucket, blockKey(b.Lease))}
	var cold []netip.Addr
	for a := range p.freed {
		if b.Prefix.Contains(a) {
			ops = append(ops, del(freedBucket, addrKey(p.key, a)))
			cold = append(cold, a)
		}
	}
	if err := i.store.commit(ops...); err != nil {
		return err
	}
	i.returned[b.Lease] = true
	delete(p.blocks, b.Lease)
	for _, a := range cold {
		delete(p.freed, a)
	}
	return nil
}

func isRefusal(err error) bool {
	var r *cluster.Refusal
	return errors.As(err, &r)
}

func (i *IPAM) full(p *pool, within netip.Prefix) error {
	r := i.cfg.Ledger.Registry()
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.scope(p, within)
	held := map[string]int{}
	for _, l := range r.LeasesOf(p.key, "") {
		if l.Holder != i.cfg.Host {
			held[r.HostName(l.Holder)] += s.size(common(l.Block, s.within))
		}
	}
	for a := range p.used {
		if s.within.Contains(a) {
			held[r.HostName(i.cfg.Host)]++
		}
	}
	var hosts []string
	for name, n := range held {
		if n > 0 {
			hosts = append(hosts, fmt.Sprintf("%s %d", name, n))
		}
	}
	slices.Sort(hosts)
	what := "subnet " + p.key.Prefix.String()
	if s.within != p.key.Prefix {
		what = fmt.Sprintf("range %s of %s", s.within, what)
	}
	if p.key.Space != "" {
		what += " in space " + p.key.Space
	}
	if len(hosts) == 0 {
		return &fullError{what + " has no address for a container; create a larger network"}
	}
	return &fullError{fmt.Sprintf("%s is full: %d addresses, all in use by: %s; free one or create a larger network", what, s.size(s.within), strings.Join(hosts, ", "))}
}

// fullError says who has the addresses of a full pool.
type fullError struct{ text string }

func (e *fullError) Error() string { return e.text }
