package lan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/frame"
)

const (
	rounds    = 3                      // of probes for one address
	roundTime = 100 * time.Millisecond // between them
	lastTime  = 150 * time.Millisecond // that is waited after the last one
	rate      = 200                    // probes in a second at most, over all interfaces
	burst     = 60                     // of them at once
)

// Config is what a Prober needs. Log is required.
type Config struct {
	Log logrus.FieldLogger
	// Open opens an interface for probing; nil: a Socket in the network
	// namespace of whoever calls Probe, or Run. groups are the multicast
	// addresses to hear.
	Open func(ifname string, groups ...cluster.MAC) (Wire, error)
}

// Prober asks LANs who has an address. Its methods are safe for concurrent use.
type Prober struct {
	cfg  Config
	pace pace

	mu        sync.Mutex
	conflicts map[place]Conflict
}

// New returns a Prober. It keeps nothing open between probes.
func New(cfg Config) *Prober {
	if cfg.Open == nil {
		cfg.Open = func(ifname string, groups ...cluster.MAC) (Wire, error) { return Open(ifname, probes, groups...) }
	}
	return &Prober{cfg: cfg, conflicts: map[place]Conflict{}}
}

// Probe asks on an interface of the host who has the addresses, all at once,
// and returns those that somebody answered for, with the MAC that did: the
// interface's own for an address of this host. It takes 350 ms, less when all
// are answered for, and longer when many probes are under way; the limit is
// that of ctx. What it finds is remembered, see Conflicts.
func (p *Prober) Probe(ctx context.Context, ifname string, ips ...netip.Addr) (map[netip.Addr]cluster.MAC, error) {
	held, err := p.probe(ctx, ifname, ips)
	if err != nil {
		return nil, fmt.Errorf("probe addresses on %s: %w", ifname, err)
	}
	p.remember(ifname, ips, held)
	return held, nil
}

func (p *Prober) probe(ctx context.Context, ifname string, ips []netip.Addr) (map[netip.Addr]cluster.MAC, error) {
	var groups []cluster.MAC
	for _, ip := range ips {
		switch {
		case !ip.IsValid() || ip.Is4In6() || ip.IsUnspecified() || ip.IsMulticast():
			return nil, fmt.Errorf("address %s: is not one of a single machine", ip)
		case ip.Is6():
			groups = append(groups, frame.Everybody(ip), frame.SolicitedNode(ip))
		}
	}
	slices.SortFunc(groups, func(a, b cluster.MAC) int { return slices.Compare(a[:], b[:]) })
	w, err := p.cfg.Open(ifname, slices.Compact(groups)...)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	held := map[netip.Addr]cluster.MAC{}
	open := map[netip.Addr]bool{}
	for _, ip := range ips {
		if w.Has(ip) {
			held[ip] = w.MAC()
		} else {
			open[ip] = true
		}
	}
	for round := range rounds {
		for _, ip := range ips {
			if !open[ip] {
				continue
			}
			if err := p.pace.wait(ctx); err != nil {
				return nil, err
			}
			if err := w.Send(frame.Probe(w.MAC(), ip)); err != nil {
				return nil, err
			}
		}
		wait := roundTime
		if round == rounds-1 {
			wait = lastTime
		}
		if err := listen(ctx, w, wait, open, held); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// listen moves addresses from open to held as they are claimed, for a while or
// until none is open.
func listen(ctx context.Context, w Wire, wait time.Duration, open map[netip.Addr]bool, held map[netip.Addr]cluster.MAC) error {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for len(open) > 0 {
		frame, err := w.Receive(within)
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return err
		}
		if ip, mac, ok := claim(frame, w.MAC()); ok && open[ip] {
			held[ip] = mac
			delete(open, ip)
		}
	}
	return nil
}

// pace spaces what is sent: rate per second in the long run, burst at once.
type pace struct {
	mu   sync.Mutex
	next time.Time // at which the burst would be unused
}

// wait waits for the turn to send one.
func (p *pace) wait(ctx context.Context) error {
	const each = time.Second / rate
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(each)
	delay := p.next.Sub(now) - burst*each
	p.mu.Unlock()
	if delay <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
