package ledger

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// answer is what one host said to ledger.where.
type answer struct {
	at    netip.AddrPort // that was asked
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
		wg.Go(func() { out[i] = l.askEntry(ctx, entry) })
	}
	wg.Wait()
	return out
}

func (l *Ledger) askEntry(ctx context.Context, entry string) joinAnswer {
	out := joinAnswer{entry: entry}
	addrs, err := transport.Resolve(ctx, []string{entry}, l.cfg.Port)
	if len(addrs) == 0 {
		out.err = err
		return out
	}
	if out.at = addrs[0]; l.isSelf(addrs) {
		out.self = true
		return out
	}
	out.answer = l.ask(ctx, addrs)[0]
	out.self = out.err == nil && out.reply.Host == l.cfg.Host
	return out
}

// ask asks all addresses at the same time, whatever cluster they are in;
// answers come before failures.
func (l *Ledger) ask(ctx context.Context, addrs []netip.AddrPort) []answer {
	ctx, req := transport.Anonymous(ctx), l.introduction()
	all := make([]answer, len(addrs))
	var wg sync.WaitGroup
	for i, at := range addrs {
		wg.Go(func() {
			all[i].at = at
			all[i].reply, all[i].err = call[whereRequest, whereReply](ctx, l, at, whereMethod, req)
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
	self := l.cfg.Self.Address
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

// others is where the other hosts of a registry may be found, as far as that
// is known.
func (l *Ledger) others(r *cluster.Registry) map[cluster.HostID][]netip.AddrPort {
	out := map[cluster.HostID][]netip.AddrPort{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, h := range r.Hosts {
		if id == l.cfg.Host || h.Tombstone {
			continue
		}
		if h.Address.IsValid() {
			out[id] = append(out[id], h.Address)
		}
		if at, ok := l.addresses[id]; ok && at.IsValid() && at != h.Address {
			out[id] = append(out[id], at)
		}
	}
	return out
}

// some picks a few other members to ask.
func (l *Ledger) some() []netip.AddrPort {
	known := map[netip.AddrPort]bool{}
	for _, places := range l.others(l.Registry()) {
		for _, at := range places {
			known[at] = true
		}
	}
	l.mu.Lock()
	for id, at := range l.addresses {
		if id != l.cfg.Host && at.IsValid() {
			known[at] = true
		}
	}
	l.mu.Unlock()
	all := slices.Collect(maps.Keys(known))
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(gossips, len(all))]
}
