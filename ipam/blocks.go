package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// Prepare leases this host's first block of each pool, where it has none:
// after a network was created, its containers start without asking anyone. That
// all addresses are in use just now is no reason to refuse the network.
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
	if err := i.trusted(ctx); err != nil {
		return err
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
		err := i.growOrRecall(ctx, p, within)
		if full := (*fullError)(nil); errors.As(err, &full) && !full.never {
			i.note(p, err)
			i.cfg.Log.WithField("pool", p.key.String()).WithError(err).Warn("network has no address for this host now")
			continue
		}
		if err != nil {
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
	blocks := p.Active(false)
	return slices.DeleteFunc(p.ranges(), func(within netip.Prefix) bool {
		s := i.scope(p, within)
		return slices.ContainsFunc(blocks, func(b lease.Block) bool { return s.Within.Overlaps(b.Prefix) })
	})
}

// growOrRecall is grow for somebody who waits: in a full pool the other
// holders are asked for what they do not use.
func (i *IPAM) growOrRecall(ctx context.Context, p *pool, within netip.Prefix) error {
	i.mu.Lock()
	want := p.Want()
	i.mu.Unlock()
	err := i.grow(ctx, p, within, want)
	var silent []cluster.HostID
	for range recallRounds {
		if _, ok := refused(err, cluster.Full); !ok {
			return err
		}
		var moved bool
		if moved, silent = i.recallAny(ctx, p.key, i.neighbours(p, within)); !moved {
			break
		}
		err = i.grow(ctx, p, within, 1) // where addresses are short, no more than needed
	}
	if _, ok := refused(err, cluster.Full); ok {
		return i.full(p, within, silent)
	}
	return err
}

// recallRounds is how often others are asked: what one of them gave back may
// be leased by a third before this host comes to it.
const recallRounds = 3

// grow leases one more block of that many addresses at most inside a range.
// The caller has the pool's turn.
func (i *IPAM) grow(ctx context.Context, p *pool, within netip.Prefix, want int) error {
	err := i.acquire(ctx, p, cluster.Command{Grant: &cluster.Grant{Pool: p.key, Range: within, Want: want}})
	i.note(p, err)
	return err
}

// contestTries is how often another block is asked for when the one granted is
// claimed by another host.
const contestTries = 3

// acquire asks for a lease and takes it up (rule H2), unless another host says
// that the block is its own (rule H7): then it is given back, and another one
// asked for. The caller has the pool's turn.
func (i *IPAM) acquire(ctx context.Context, p *pool, c cluster.Command) error {
	var contest *lease.Contest
	for range contestTries {
		if err := i.acquireOnce(ctx, p, c); !errors.As(err, &contest) {
			return err
		}
		if c.GrantExact != nil {
			break // there is no other
		}
	}
	return &contestedError{fmt.Sprintf("host %s keeps block %s of subnet %s, although the cluster granted it to this host: it is not used; see the alarm in isthmus status",
		i.cfg.Ledger.Registry().HostName(contest.Host), contest.Claim.Block, p.key)}
}

func (i *IPAM) acquireOnce(ctx context.Context, p *pool, c cluster.Command) error {
	var request uint64
	res, err := i.inPool(ctx, p, func() (res cluster.Result, err error) {
		request, res, err = i.ask(ctx, c)
		return res, err
	})
	if err != nil {
		return err
	}
	// Whoever uses a block testifies from a copy that knows of its lease.
	if err := i.included(ctx, res.Lease); err != nil {
		i.mu.Lock()
		i.m.Abandon(request)
		i.mu.Unlock()
		return err
	}
	contest := i.contest(ctx, res.Lease)
	i.mu.Lock()
	if p.rec == nil {
		i.m.Abandon(request)
		i.mu.Unlock()
		return errGone(p)
	}
	// What the answer says of the pool is stored with the block, which may hold a
	// gateway or a reserved address that a copy stored before does not know.
	rec := p.learned(res)
	step, err := i.m.Answered(request, res, contest)
	if stored := i.commit(step, put(poolBucket, poolKey(p.key), rec)); stored != nil {
		err = errors.Join(err, stored)
	} else {
		p.rec = &rec
	}
	if contest != nil {
		i.contested(p, res.Lease, *contest)
	}
	i.mu.Unlock()
	if len(step.Send) > 0 {
		err = errors.Join(err, i.send(ctx, p, step.Send))
	}
	return err
}

// included waits until the copy of the registry includes a lease. One that it
// comes to include later is taken up by Run.
func (i *IPAM) included(ctx context.Context, l cluster.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, copyTime)
	defer cancel()
	if err := i.cfg.Ledger.Await(ctx, l.ID); err != nil {
		return fmt.Errorf("use block %s of subnet %s, which was just leased: this host's copy of the registry lags behind; try again: %w", l.Block, l.Pool, err)
	}
	return nil
}

// ask proposes a numbered command. When there is no answer it is abandoned:
// what it may have done shows in the registry.
func (i *IPAM) ask(ctx context.Context, c cluster.Command) (uint64, cluster.Result, error) {
	i.mu.Lock()
	msg := i.m.Ask(c)
	i.mu.Unlock()
	res, err := i.propose(ctx, msg.Command)
	if err != nil {
		i.mu.Lock()
		i.m.Abandon(msg.Request)
		i.mu.Unlock()
	}
	return msg.Request, res, err
}

// proposeIn proposes a command on a pool that this host is attached to. The
// caller has the pool's turn.
func (i *IPAM) proposeIn(ctx context.Context, p *pool, c cluster.Command) (cluster.Result, error) {
	return i.inPool(ctx, p, func() (cluster.Result, error) { return i.propose(ctx, c) })
}

// inPool proposes something on a pool that this host is attached to; if the
// cluster has lost the pool it attaches it anew. The caller has the pool's turn.
func (i *IPAM) inPool(ctx context.Context, p *pool, propose func() (cluster.Result, error)) (cluster.Result, error) {
	res, err := propose()
	if _, ok := refused(err, cluster.UnknownPool); ok {
		if err := i.reattach(ctx, p); err != nil {
			return res, err
		}
		res, err = propose()
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

// drain begins to give blocks back: from then on none of their addresses is
// handed out. The caller holds i.mu and has seen them empty.
func (i *IPAM) drain(p *pool, leases []uint64) error {
	if len(leases) == 0 {
		return nil
	}
	s, err := i.m.Drain(p.key, leases...)
	if err != nil {
		return err
	}
	return i.commit(s)
}

// releaseDrained gives back to the cluster all of a pool that is stored as
// given back, and forgets the blocks that it has taken.
func (i *IPAM) releaseDrained(ctx context.Context, p *pool) error {
	i.mu.Lock()
	due := i.m.Releases(p.key)
	i.mu.Unlock()
	return i.send(ctx, p, due)
}

// send sends releases, one after the other.
func (i *IPAM) send(ctx context.Context, p *pool, releases []cluster.Command) error {
	var errs []error
	for _, c := range releases {
		i.mu.Lock()
		msg := i.m.Ask(c)
		i.mu.Unlock()
		res, err := i.propose(ctx, msg.Command)
		refusal, isRefused := refused(err, cluster.NotHeld)
		if isRefused {
			res.Refused, err = refusal, nil
		}
		i.mu.Lock()
		if err != nil {
			i.m.Abandon(msg.Request)
		} else {
			var step lease.Step
			if step, err = i.m.Answered(msg.Request, res, nil); err == nil {
				err = i.commit(step)
			}
		}
		i.mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			if !isRefusal(err) {
				break // out of reach: the next would wait as long
			}
		}
	}
	return errors.Join(errs...)
}

// full says who has the addresses of a full pool.
func (i *IPAM) full(p *pool, within netip.Prefix, silent []cluster.HostID) error {
	r := i.cfg.Ledger.Registry()
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.scope(p, within)
	held := map[string]int{}
	for _, l := range r.LeasesOf(p.key, "") {
		if l.Holder != i.cfg.Host {
			held[r.HostName(l.Holder)] += leased(s, l)
		}
	}
	for a := range p.Used {
		if s.Within.Contains(a) {
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
	if s.Within != p.key.Prefix {
		what = fmt.Sprintf("range %s of %s", s.Within, what)
	}
	if p.key.Space != "" {
		what += " in space " + p.key.Space
	}
	if len(hosts) == 0 {
		return &fullError{what + " has no address for a container; create a larger network", true}
	}
	text := fmt.Sprintf("%s is full: %d addresses, all in use by: %s; free one or create a larger network", what, s.Size(s.Within), strings.Join(hosts, ", "))
	if len(silent) > 0 {
		var names []string
		for _, id := range silent {
			names = append(names, r.HostName(id))
		}
		slices.Sort(names)
		does, it := "does", "it does"
		if len(names) > 1 {
			does, it = "do", "they do"
		}
		text += fmt.Sprintf(" (%s %s not answer: what %s not use cannot be given back now; `isthmus node rm` frees the addresses of a host that is gone for good)", strings.Join(names, ", "), does, it)
	}
	return &fullError{text, false}
}

// useful reports whether a block covers any address for an endpoint. A lease
// whose last such address was given back ends by itself.
func (i *IPAM) useful(p *pool, b lease.Block) bool {
	return leased(i.scope(p, netip.Prefix{}), cluster.Lease{Block: b.Prefix, Without: b.Holes}) > 0
}

// leased counts the addresses that a lease covers of a scope.
func leased(s lease.Scope, l cluster.Lease) int {
	n := s.Size(lease.Common(l.Block, s.Within))
	for _, a := range l.Without {
		if s.Within.Contains(a) && s.Usable(a) {
			n--
		}
	}
	return n
}

// fullError says who has the addresses of a full pool.
type fullError struct {
	text  string
	never bool // it has none for containers at all
}

func (e *fullError) Error() string { return e.text }
