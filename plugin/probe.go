package main

import (
	"context"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
)

// A path that carried full packets is looked at again after probeGood, a
// narrow one after probeNarrow, one that did not answer at all after probeLost.
const (
	probeGood   = 5 * time.Minute
	probeNarrow = time.Minute
	probeLost   = 20 * time.Second
	probeBound  = 15 * time.Second // of one peer
	probeAtOnce = 8

	// leastMTU is what every path carries whole: IPv6's minimum.
	leastMTU = 1280
)

// wire is the part of the transport that the prober uses.
type wire interface {
	ProbeMTU(ctx context.Context, to netip.AddrPort, size int) error
	FitMTU(ctx context.Context, to netip.AddrPort, low, high int) (int, error)
}

// prober sends one full-sized packet with DF to each peer that is alive, and
// where it does not arrive finds the size that does. What stands on links says
// nothing of the path between: macvlan children get no ICMP, so TCP on a
// narrower path just stops.
type prober struct {
	wire    wire
	self    cluster.HostID
	members func() []cluster.Member
	wake    <-chan struct{} // members changed
	mtu     func() int      // of this host's underlay link
	report  func(host cluster.HostID, fits int)
	log     logrus.FieldLogger

	peers map[cluster.HostID]probed
}

// probed is what was found of one peer, at which size, and when to look again.
type probed struct {
	size int
	to   netip.AddrPort
	next time.Time
}

// Run probes what is due whenever the members change, and from time to time.
func (p *prober) Run(ctx context.Context) error {
	p.peers = map[cluster.HostID]probed{}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		p.round(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-tick.C:
		}
	}
}

// round probes the peers that are due.
func (p *prober) round(ctx context.Context, now time.Time) {
	var group errgroup.Group
	group.SetLimit(probeAtOnce)
	alive := map[cluster.HostID]bool{}
	type outcome struct {
		host cluster.HostID
		done probed
	}
	due := p.due(now, alive)
	outcomes := make(chan outcome, len(due))
	for _, m := range due {
		group.Go(func() error {
			outcomes <- outcome{m.ID, p.probe(ctx, m)}
			return nil
		})
	}
	_ = group.Wait()
	close(outcomes)
	for o := range outcomes {
		p.peers[o.host] = o.done
	}
	for id := range p.peers {
		if !alive[id] {
			delete(p.peers, id) // probed anew as soon as it is back
		}
	}
}

func (p *prober) due(now time.Time, alive map[cluster.HostID]bool) []cluster.Member {
	var out []cluster.Member
	for _, m := range p.members() {
		if m.ID == p.self || m.State != cluster.Alive {
			continue
		}
		alive[m.ID] = true
		last, known := p.peers[m.ID]
		if known && now.Before(last.next) && last.size == p.size(m) && last.to == m.Address {
			continue
		}
		out = append(out, m)
	}
	return out
}

// size is the largest packet that both ends' links carry.
func (p *prober) size(m cluster.Member) int {
	if m.Info.MTU > 0 {
		return min(p.mtu(), m.Info.MTU)
	}
	return p.mtu()
}

func (p *prober) probe(ctx context.Context, m cluster.Member) probed {
	ctx, cancel := context.WithTimeout(ctx, probeBound)
	defer cancel()
	log := p.log.WithFields(logrus.Fields{"host": m.Info.Name, "address": m.Address})
	done := probed{size: p.size(m), to: m.Address}
	if p.wire.ProbeMTU(ctx, m.Address, done.size) == nil {
		p.report(m.ID, done.size)
		done.next = time.Now().Add(probeGood)
		return done
	}
	fits, err := p.wire.FitMTU(ctx, m.Address, min(leastMTU, done.size), done.size)
	switch {
	case err != nil:
		log.WithError(err).Debug("probed the path: no answer at any size")
		done.next = time.Now().Add(probeLost)
	case fits < done.size:
		log.WithFields(logrus.Fields{"mtu": done.size, "fits": fits}).Warn("the path is narrower than its links say")
		p.report(m.ID, fits)
		done.next = time.Now().Add(probeNarrow)
	default: // the first probe was lost by chance
		p.report(m.ID, fits)
		done.next = time.Now().Add(probeGood)
	}
	return done
}
