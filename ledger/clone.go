package ledger

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// cloneTime bounds how long a Hello waits for the run that it would end.
const cloneTime = time.Second

// alive refuses a Hello that would end a run of that host which still answers:
// its state was copied. The leader asks before it writes the Hello into the
// log, so that the run goes on untouched.
func (l *Ledger) alive(ctx context.Context, c cluster.Command) *cluster.Refusal {
	h := l.Registry().Hosts[c.Host]
	if c.Hello == nil || h.Nonce == 0 || h.Tombstone || h.Nonce == c.Hello.Nonce {
		return nil
	}
	at := []netip.AddrPort{}
	if h.Address.IsValid() {
		at = append(at, h.Address)
	}
	l.mu.Lock()
	if a, ok := l.addresses[c.Host]; ok && !slices.Contains(at, a) {
		at = append(at, a)
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cloneTime)
	defer cancel()
	for _, a := range l.ask(ctx, at) {
		if a.err == nil && a.reply.Host == c.Host && a.reply.Run == h.Nonce {
			return runsAt(h, a.at)
		}
	}
	return nil
}

func runsAt(h cluster.Host, at netip.AddrPort) *cluster.Refusal {
	why := cluster.Refuse(cluster.Clone,
		"the host %s (%s) runs already at %s: the state of this host was copied from there. Run `isthmus reset` on the copy, so that it joins as a new host",
		h.Name, h.ID.Short(), at)
	why.Holders = []cluster.HostID{h.ID}
	return why
}

// impostor refuses that this host votes, or speaks for the cluster as its only
// voter, when it is a clone: by its machine, or because its identity runs at one
// of the addresses at which a registry, or somebody else, knows it.
func (l *Ledger) impostor(ctx context.Context, r *cluster.Registry, at ...netip.AddrPort) *cluster.Refusal {
	h, ok := r.Hosts[l.cfg.Host]
	if !ok {
		return nil
	}
	hello := l.cfg.Self
	hello.Nonce = l.nonce
	_, res := rules.Apply(r, cluster.Command{Host: l.cfg.Host, Hello: &hello}, r.Index-r.Offset+1)
	if res.Refused != nil && res.Refused.Code == cluster.Clone {
		return res.Refused
	}
	var places []netip.AddrPort
	for _, a := range append(at, h.Address) {
		if a.IsValid() && a != l.cfg.Self.Address && !slices.Contains(places, a) {
			places = append(places, a)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, cloneTime)
	defer cancel()
	for _, a := range l.ask(ctx, places) {
		if a.err == nil && a.reply.Host == l.cfg.Host && a.reply.Run != l.nonce {
			return runsAt(h, a.at)
		}
	}
	return nil
}
