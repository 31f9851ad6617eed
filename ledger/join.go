package ledger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// settle returns when this host belongs to a cluster, or has a log that says
// to which.
func (l *Ledger) settle(ctx context.Context) error {
	if hasLog(l.cfg.Dir) {
		_, err := l.Cluster(ctx)
		return err
	}
	if l.ID() != "" {
		return nil
	}
	for {
		found, err := l.tryJoin(ctx)
		if found {
			if err = l.begin(ctx, cluster.Command{Host: l.cfg.Host, Found: &cluster.Found{Cluster: cluster.ID(random())}}); err == nil {
				_, err = l.Cluster(ctx)
			}
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.note(err.Error())
		rest := pause()
		if refusal := (*cluster.Refusal)(nil); errors.As(err, &refusal) {
			rest = refusedPause
		}
		if !l.wait(ctx, nil, rest) {
			return ctx.Err()
		}
	}
}

// tryJoin looks for a cluster once. It reports that this host is to found one,
// or returns nil after it was let into one, or says what it waits for.
func (l *Ledger) tryJoin(ctx context.Context) (found bool, err error) {
	if len(l.cfg.Join) == 0 {
		return true, nil
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers := l.askJoin(asking)
	clusters := map[cluster.ID]answer{}
	var order []cluster.ID
	var troubles []string
	free := 0
	for _, a := range answers {
		switch {
		case a.self:
			free++
		case a.err != nil:
			troubles = append(troubles, fmt.Sprintf("%s: %v", a.entry, plain(a.err)))
		case a.reply.Cluster == "":
			free++
			troubles = append(troubles, fmt.Sprintf("%s: belongs to no cluster yet", a.entry))
		default:
			if _, known := clusters[a.reply.Cluster]; !known {
				order = append(order, a.reply.Cluster)
			}
			clusters[a.reply.Cluster] = a.answer
		}
	}
	switch {
	case len(order) > 1:
		return false, fmt.Errorf("the members of JOIN belong to two clusters, %s and %s: run `isthmus reset` on those that should join the other, or name only one of them", order[0], order[1])
	case len(order) == 1:
		return false, l.enter(ctx, order[0], answers)
	case l.cfg.Force:
		return true, nil
	case answers[0].self && free > len(answers)/2:
		return true, nil
	case answers[0].self:
		return false, fmt.Errorf("%s (%d of %d members of JOIN answer, and a majority must agree that there is no cluster yet: start them, or set FOUND=force here)",
			strings.Join(troubles, "; "), free, len(answers))
	}
	return false, fmt.Errorf("%s (the first member of JOIN, %s, founds the cluster; it must list itself there, or leave JOIN empty)", strings.Join(troubles, "; "), answers[0].entry)
}

// enter says hello to a cluster that members of JOIN told about.
func (l *Ledger) enter(ctx context.Context, id cluster.ID, answers []joinAnswer) error {
	var voters []Server
	l.mu.Lock()
	l.hints = nil
	for _, a := range answers {
		if a.err == nil && a.reply.Cluster == id {
			voters = a.reply.Voters
			for _, v := range a.reply.Voters {
				l.hints = append(l.hints, v.Address)
			}
		}
	}
	self := l.self.Address
	l.mu.Unlock()
	if len(voters) > 0 && !slices.ContainsFunc(voters, func(v Server) bool { return v.Address != self }) {
		return fmt.Errorf("the log of cluster %s was on this very host, and is gone: bring its state back, or run `isthmus reset` on the other members and found a new cluster", id)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.release()
	if err := l.sayHello(ctx, id); err != nil {
		if u := (*Unreachable)(nil); errors.As(err, &u) {
			err = (&Unreachable{Voters: voters, Cause: u.Cause})
		}
		return fmt.Errorf("enter cluster %s: %w", id, err)
	}
	l.learn(voters)
	return l.belong(id)
}

// answer is what one host said to ledger.where.
type answer struct {
	reply whereReply
	err   error
}

// joinAnswer is what an entry of JOIN said: the first of its addresses that
// answered, or why none did.
type joinAnswer struct {
	entry string
	self  bool
	answer
}

// askJoin asks all entries of JOIN at the same time, in their order.
func (l *Ledger) askJoin(ctx context.Context) []joinAnswer {
	out := make([]joinAnswer, len(l.cfg.Join))
	var wg sync.WaitGroup
	for i, entry := range l.cfg.Join {
		out[i].entry = entry
		wg.Go(func() {
			addrs, err := transport.Resolve(ctx, []string{entry}, l.cfg.Port)
			if out[i].err = err; len(addrs) == 0 {
				return
			}
			if out[i].self = l.isSelf(addrs); out[i].self {
				out[i].err = nil
				return
			}
			for _, a := range l.ask(ctx, addrs) {
				if out[i].answer = a; a.err == nil {
					out[i].self = a.reply.Host == l.cfg.Host
					return
				}
			}
		})
	}
	wg.Wait()
	return out
}

// ask asks all addresses at the same time; answers come before failures.
func (l *Ledger) ask(ctx context.Context, addrs []netip.AddrPort) []answer {
	all := make([]answer, len(addrs))
	var wg sync.WaitGroup
	for i, at := range addrs {
		wg.Go(func() {
			all[i].reply, all[i].err = transport.Call[whereRequest, whereReply](ctx, l.cfg.Transport, at, whereMethod, whereRequest{})
		})
	}
	wg.Wait()
	var good, bad []answer
	for _, a := range all {
		if a.err == nil {
			good = append(good, a)
		} else {
			bad = append(bad, a)
		}
	}
	return append(good, bad...)
}

// isSelf reports whether one of the addresses of an entry is this host's own.
// Hosts often find their own name at a loopback address.
func (l *Ledger) isSelf(addrs []netip.AddrPort) bool {
	l.mu.Lock()
	self := l.self.Address
	l.mu.Unlock()
	own := map[netip.Addr]bool{self.Addr().Unmap(): true}
	if local, err := net.InterfaceAddrs(); err == nil {
		for _, a := range local {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				own[p.Addr().Unmap()] = true
			}
		}
	}
	for _, a := range addrs {
		if a.Port() == self.Port() && (own[a.Addr().Unmap()] || a.Addr().IsLoopback()) {
			return true
		}
	}
	return false
}

// watchJoin notices members of JOIN that belong to another cluster than this
// host, which keeps its own.
func (l *Ledger) watchJoin(ctx context.Context) {
	if _, err := l.Cluster(ctx); err != nil {
		return
	}
	for {
		asking, cancel := context.WithTimeout(ctx, patience)
		foreign := ""
		for _, a := range l.askJoin(asking) {
			var dial *transport.DialError
			if errors.As(a.err, &dial) && dial.Cause == transport.OtherCluster {
				foreign = fmt.Sprintf("%s: %v", a.entry, dial.Err)
				break
			}
		}
		cancel()
		l.mu.Lock()
		if l.foreign != foreign && ctx.Err() == nil {
			if l.foreign = foreign; foreign != "" {
				l.log.WithField("cause", foreign).Error("a member of JOIN belongs to another cluster")
			}
			l.notify()
		}
		l.mu.Unlock()
		if !l.wait(ctx, nil, time.Minute) {
			return
		}
	}
}
