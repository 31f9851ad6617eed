package lan

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// recheck is how often conflicting addresses are looked for again, give or take
// a part of it: two hosts that ask for one address at the same time take each
// other for its holder, and must not do so for ever.
const (
	recheck = time.Minute
	stagger = 10 * time.Second
)

func untilRecheck() time.Duration { return recheck - stagger + rand.N(2*stagger) }

// Conflict is an address that something on the LAN of an interface answered
// for, and that no later probe found gone.
type Conflict struct {
	Interface string      `json:"interface"`
	Addr      netip.Addr  `json:"addr"`
	MAC       cluster.MAC `json:"mac"`   // that answered last
	Since     time.Time   `json:"since"` // of the first answer
	Seen      time.Time   `json:"seen"`  // of the last one
}

type place struct {
	ifname string
	addr   netip.Addr
}

// Conflicts lists what is conflicting on an interface, or with "" on all, by
// interface and address.
func (p *Prober) Conflicts(ifname string) []Conflict {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Conflict
	for at, c := range p.conflicts {
		if ifname == "" || at.ifname == ifname {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), a.Addr.Compare(b.Addr))
	})
	return out
}

// Forget drops what is remembered of an interface: no network stands on it any
// more.
func (p *Prober) Forget(ifname string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range p.conflicts {
		if at.ifname == ifname {
			delete(p.conflicts, at)
		}
	}
}

// remember takes note of the outcome of a probe.
func (p *Prober) remember(ifname string, ips []netip.Addr, held map[netip.Addr]cluster.MAC) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ip := range ips {
		at := place{ifname, ip}
		old, known := p.conflicts[at]
		mac, found := held[ip]
		log := p.cfg.Log.WithFields(map[string]any{"interface": ifname, "address": ip.String()})
		switch {
		case !found && known:
			delete(p.conflicts, at)
			log.Info("address is answered for no more on the LAN")
		case found:
			c := Conflict{Interface: ifname, Addr: ip, MAC: mac, Since: now, Seen: now}
			if known {
				c.Since = old.Since
			}
			p.conflicts[at] = c
			if !known || old.MAC != mac {
				log.WithField("mac", mac.String()).Warn("address is answered for by a stranger on the LAN")
			}
		}
	}
}

// Run probes the conflicting addresses again about every minute, and forgets those
// that nobody answers for. It returns when ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	timer := time.NewTimer(untilRecheck())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(untilRecheck())
		}
		by := map[string][]netip.Addr{}
		var order []string
		for _, c := range p.Conflicts("") {
			if by[c.Interface] == nil {
				order = append(order, c.Interface)
			}
			by[c.Interface] = append(by[c.Interface], c.Addr)
		}
		for _, ifname := range order {
			// An interface that cannot be asked says nothing about the addresses.
			if _, err := p.Probe(ctx, ifname, by[ifname]...); err != nil && ctx.Err() == nil {
				p.cfg.Log.WithField("interface", ifname).WithError(err).Debug("conflicting addresses cannot be probed")
			}
		}
	}
}
