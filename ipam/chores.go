package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// chore is one thing to do for a pool.
type chore struct {
	attach  bool           // the cluster does not list this host
	release bool           // draining blocks, or holes, wait
	giveUp  bool           // parked for too long
	drop    bool           // parked, and gone from the cluster
	secure  []netip.Addr   // in use without a lease
	lease   []netip.Prefix // ranges that run low
	want    int            // addresses to lease for each
}

// chores decides what a pool needs; it drains what is surplus. The caller
// holds i.mu.
func (i *IPAM) chores(p *pool, r *cluster.Registry, fresh bool, now time.Time) (chore, error) {
	var c chore
	if i.m.Gate() != nil {
		return c, nil
	}
	if p.rec == nil {
		c.release = len(i.m.Releases(p.key)) > 0
		return c, nil
	}
	gone := fresh && r.Index >= p.rec.Index && !slices.Contains(r.Pools[p.key].Holders, i.cfg.Host)
	if p.parked() {
		c.giveUp = now.Sub(p.rec.Parked) >= keepTime
		c.drop = gone && len(p.Blocks) == 0
	} else {
		p.Peak = p.Peak.Step(now, len(p.Used))
		c.attach = gone
		if !p.creating(now) && !now.Before(p.quiet) {
			c.lease, c.want = i.low(p, now), p.Want()
		}
		// Whoever has the pool's turn may be about to use what it just leased.
		if len(c.lease) == 0 && len(p.hold) == 0 {
			if err := i.drain(p, p.Surplus(i.scopes(p), len(i.definition(p).Holders), now)); err != nil {
				return c, err
			}
		}
		if fresh && i.m.Confirmed && !now.Before(p.secured) {
			c.secure = p.Uncovered()
		}
	}
	c.release = len(i.m.Releases(p.key)) > 0
	return c, nil
}

// low lists the ranges in which too few cool addresses are free. The caller
// holds i.mu.
func (i *IPAM) low(p *pool, now time.Time) []netip.Prefix {
	var out []netip.Prefix
	holders := len(i.definition(p).Holders)
	for _, within := range p.ranges() {
		if p.Low(i.scope(p, within), holders, now) {
			out = append(out, within)
		}
	}
	return out
}

// maintain does the chores of all pools. It stops at the first sign that the
// cluster is out of reach, and returns it.
func (i *IPAM) maintain(ctx context.Context) error {
	r, fresh := i.copy()
	i.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(i.pools), cluster.ComparePools)
	i.mu.Unlock()
	var errs []error
	for _, key := range keys {
		i.mu.Lock()
		p := i.pools[key]
		c, err := i.chores(p, r, fresh, i.cfg.Now())
		i.mu.Unlock()
		if err == nil {
			err = i.do(ctx, p, c)
		}
		if errors.Is(err, errInUse) || isRefusal(err) || errors.As(err, new(*contestedError)) {
			i.note(p, err)
			i.cfg.Log.WithField("pool", key.String()).WithError(err).Debug("chore refused")
			continue
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(errs...)
}

func (i *IPAM) do(ctx context.Context, p *pool, c chore) error {
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	if c.giveUp {
		return i.giveUp(ctx, p)
	}
	if c.release {
		if err := i.releaseDrained(ctx, p); err != nil {
			return err
		}
	}
	if !c.attach && !c.drop && len(c.lease)+len(c.secure) == 0 {
		return nil
	}
	select {
	case p.hold <- struct{}{}:
		defer func() { <-p.hold }()
	default:
		return nil // somebody proposes for it now, and wakes Run after
	}
	if c.drop {
		i.mu.Lock()
		defer i.mu.Unlock()
		if p.parked() && len(p.Blocks) == 0 {
			return i.unrecord(p)
		}
		return nil
	}
	if c.attach {
		if err := i.reattach(ctx, p); err != nil {
			return err
		}
	}
	if err := i.secure(ctx, p, c.secure); err != nil {
		return err
	}
	return i.leaseAhead(ctx, p, c.lease, c.want)
}

// leaseAhead leases the next blocks before anybody waits for them (rule H6).
// The caller has the pool's turn.
func (i *IPAM) leaseAhead(ctx context.Context, p *pool, ranges []netip.Prefix, want int) error {
	for _, within := range ranges {
		err := i.grow(ctx, p, within, want)
		_, full := refused(err, cluster.Full)
		_, unheard := refused(err, cluster.Unheard)
		if full || unheard {
			i.mu.Lock()
			p.quiet = i.cfg.Now().Add(holdOff)
			if full {
				p.problem = "" // nobody waits for it: no reason to complain
			}
			i.mu.Unlock()
			return nil
		}
		if err != nil {
			return err
		}
	}
	if len(ranges) > 0 {
		i.wake() // one block may not be enough
	}
	return nil
}

// secure leases addresses that are in use here without a lease: found in a
// container after the disk was set back, or left when the cluster took a block.
// One that another host holds raises an alarm. The caller has the pool's turn.
func (i *IPAM) secure(ctx context.Context, p *pool, addrs []netip.Addr) error {
	for _, a := range addrs {
		err := i.acquire(ctx, p, cluster.Command{GrantExact: &cluster.GrantExact{Pool: p.key, Addr: a}})
		if err != nil && !isRefusal(err) && !errors.As(err, new(*contestedError)) {
			return err
		}
		i.mu.Lock()
		if b, ok := p.Covering(a); !ok || b.Draining {
			p.secured = i.cfg.Now().Add(holdOff)
			text := fmt.Sprintf("address %s is in use here without a lease", a)
			if err != nil {
				text += ": " + err.Error()
			}
			p.alarm(text, i.cfg.Now())
		}
		i.mu.Unlock()
	}
	return nil
}

// contestedError is a block that the cluster granted and another host keeps.
type contestedError struct{ text string }

func (e *contestedError) Error() string { return e.text }
