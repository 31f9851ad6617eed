package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// rivalTime is how long a look for the leader goes on after one host said that
// it leads, while less than a majority of the voters have answered (one that was
// cut off may not know yet that it leads nobody), or after a majority answered
// and nobody leads (they may be choosing).
const rivalTime = 200 * time.Millisecond

// leads reports whether this host's own server leads, and serves.
func (l *Ledger) leads() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replica != nil && l.office && l.replica.ready.Load()
}

// leaderAt is where the leader was last met; zero when that is not known.
func (l *Ledger) leaderAt() netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.led
}

// ledAt notes where the leader is.
func (l *Ledger) ledAt(at netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsure = false
	if l.led != at {
		l.led = at
		l.notify()
	}
}

// missed notes that the leader is not there.
func (l *Ledger) missed(at netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.led == at && at.IsValid() {
		l.led = netip.AddrPort{}
		l.notify()
	}
}

// wonder notes that the leader did not answer well: it may only be slow.
func (l *Ledger) wonder() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsure = true
}

// lookUp returns where the leader is, after looking for it when there is doubt.
func (l *Ledger) lookUp(ctx context.Context, id cluster.ID) (netip.AddrPort, error) {
	l.mu.Lock()
	at, sure := l.led, !l.unsure
	l.mu.Unlock()
	if at.IsValid() && sure {
		return at, nil
	}
	at, err := l.findLeader(ctx, id)
	if err == nil {
		l.ledAt(at)
	}
	return at, err
}

// sighting is what one address said to ledger.where.
type sighting struct {
	at netip.AddrPort
	answer
}

// findLeader asks all voters of a cluster, wherever they may be, which of them
// leads. It takes at most as long as patience.
func (l *Ledger) findLeader(ctx context.Context, id cluster.ID) (netip.AddrPort, error) {
	addrs := l.candidates()
	if len(addrs) == 0 {
		return netip.AddrPort{}, errors.New("nobody in reach knows where the voters are")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	answers := make(chan sighting, len(addrs))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, at := range addrs {
		wg.Go(func() {
			f := sighting{at: at}
			f.reply, f.err = call[whereRequest, whereReply](ctx, l, at, whereMethod, whereRequest{})
			if f.err == nil && f.reply.Cluster != id {
				f.err = fmt.Errorf("it belongs to cluster %q, not to %q", f.reply.Cluster, id)
			}
			answers <- f
		})
	}
	var all []sighting
	var enough <-chan time.Time
	for led, done := false, false; !done && len(all) < len(addrs); {
		select {
		case f := <-answers:
			all = append(all, f)
			most := l.majority(all)
			led = led || f.err == nil && f.reply.Leads
			if done = led && most; (led || most) && enough == nil {
				enough = time.After(rivalTime)
			}
		case <-enough:
			done = true
		}
	}
	return l.weigh(all)
}

// majority reports whether most voters have answered.
func (l *Ledger) majority(all []sighting) bool {
	answered, voters := l.count(all)
	return answered > voters/2
}

// count notes which voters answered.
func (l *Ledger) count(all []sighting) (answered, voters int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered = map[cluster.HostID]bool{}
	if l.replica != nil {
		l.answered[l.cfg.Host] = true
	}
	for _, f := range all {
		if f.err == nil {
			l.answered[f.reply.Host] = true
		}
	}
	for _, v := range l.voters {
		if v.Suffrage == Voting {
			if voters++; l.answered[v.Host] {
				answered++
			}
		}
	}
	return answered, voters
}

// weigh takes the newest of those who say that they lead, else whom the newest
// voter follows.
func (l *Ledger) weigh(all []sighting) (netip.AddrPort, error) {
	answered, voters := l.count(all)
	slices.SortStableFunc(all, func(a, b sighting) int {
		return cmp.Or(cmp.Compare(b.reply.Gen, a.reply.Gen), cmp.Compare(b.reply.Term, a.reply.Term))
	})
	asked := map[netip.AddrPort]bool{}
	var first error
	for _, f := range all {
		if asked[f.at] = true; f.err == nil && f.reply.Leads {
			return f.at, nil
		}
		if f.err == nil && f.reply.Trouble != "" {
			f.err = errors.New(f.reply.Trouble)
		}
		if f.err != nil && first == nil {
			first = fmt.Errorf("%s: %w", f.at, plain(f.err))
		}
	}
	for _, f := range all {
		for _, v := range f.reply.Voters {
			if f.err == nil && v.Host == f.reply.Leader && v.Host != l.cfg.Host && !asked[v.Address] {
				return v.Address, nil
			}
		}
	}
	if first == nil || voters > 1 && answered > voters/2 {
		first = errors.New("the voters have not agreed on a leader yet")
	}
	return netip.AddrPort{}, first
}

// candidates lists where to look for a voter.
func (l *Ledger) candidates() []netip.AddrPort {
	registry := l.Registry()
	l.mu.Lock()
	defer l.mu.Unlock()
	var hosts []cluster.HostID
	for _, v := range l.voters {
		hosts = append(hosts, v.Host)
	}
	if l.replica != nil {
		for _, id := range l.replica.voters() {
			hosts = append(hosts, hostOf(id))
		}
	}
	var out []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && a != l.cfg.Self.Address && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, h := range hosts {
		if h != l.cfg.Host {
			for _, a := range l.addressesLocked(h, registry.Hosts[h].Address) {
				add(a)
			}
		}
	}
	for _, a := range l.hints {
		add(a)
	}
	return out
}
