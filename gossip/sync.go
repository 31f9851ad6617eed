package gossip

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
	"golang.org/x/sync/errgroup"
)

const (
	// probeEvery is how often an idle host shows its root to another one.
	probeEvery = time.Second
	// exchangeEvery probes there is an exchange in any case: datagrams may be
	// blocked where streams are not.
	exchangeEvery = 10
	// hurry is the least time between two exchanges while there is something
	// to fetch or to pass on.
	hurry = 200 * time.Millisecond
	// patience is how long an exchange may go on before the next one begins
	// beside it: a peer that just died must not hold up the others.
	patience      = 500 * time.Millisecond
	callsAtOnce   = 4
	answersAtOnce = 16

	dialTimeout     = 3 * time.Second
	exchangeTimeout = 20 * time.Second

	// settleAfter is when a host trusts a cluster in which no host has settled
	// (all were restarted at once) and some do not answer.
	settleAfter = 30 * time.Second
)

// keepSynced decides when to exchange with whom.
func (m *member) keepSynced(g *errgroup.Group) error {
	slots := make(chan struct{}, callsAtOnce)
	var last time.Time
	for probes := 1; ; {
		hurried := false
		timer := time.NewTimer(m.dice.around(probeEvery))
		select {
		case <-m.ctx.Done():
		case <-m.syncNow:
			hurried = true
			sleep(m.ctx, hurry-time.Since(last))
		case <-timer.C:
		}
		timer.Stop()
		if m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		m.renew()
		m.Review()
		m.mu.Lock()
		m.settle()
		settled := m.settled
		m.mu.Unlock()
		if !hurried {
			probes++
			if settled && probes%exchangeEvery != 0 {
				m.probe()
				continue
			}
		}
		peer, addr, ok := m.partner()
		if !ok {
			continue
		}
		last = time.Now()
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		done := make(chan struct{})
		g.Go(func() error {
			defer close(done)
			if err := m.exchange(peer, addr); err != nil && m.ctx.Err() == nil {
				m.log.WithError(err).WithField("host", peer.Short()).Debug("exchange records")
			}
			<-slots
			return nil
		})
		waiting := time.NewTimer(patience)
		select {
		case <-done:
		case <-waiting.C:
		}
		waiting.Stop()
	}
}

// probe shows the root to one host.
func (m *member) probe() {
	m.mu.Lock()
	peer, ok := of(m.dice, m.alivePeers())
	var addr netip.AddrPort
	if ok {
		addr = m.book.hosts[peer].Addresses[0]
	}
	m.mu.Unlock()
	if ok {
		m.send(peer, addr, m.rootMessage())
	}
}

// partner picks the peer of an exchange: one that has something this host
// lacks, else any that is alive.
func (m *member) partner() (cluster.HostID, netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for owner, r := range m.heard {
		if time.Since(r.at) > heardFor {
			delete(m.heard, owner)
		}
	}
	var wanted []cluster.HostID
	for id := range m.wanted {
		if h := m.book.hosts[id]; h != nil && h.refused == nil && len(h.Addresses) > 0 {
			wanted = append(wanted, id)
		}
	}
	clear(m.wanted)
	for owner := range m.heard { // still missing
		if h := m.book.hosts[owner]; h != nil && h.present() {
			wanted = append(wanted, owner)
		}
	}
	peer, ok := of(m.dice, wanted)
	if !ok {
		peer, ok = of(m.dice, m.alivePeers())
	}
	if !ok {
		return "", netip.AddrPort{}, false
	}
	return peer, m.book.hosts[peer].Addresses[0], true
}

// wantSync asks for an exchange with a host soon; call with mu held.
func (c *Cluster) wantSync(peer cluster.HostID) {
	c.wanted[peer] = true
	signal(c.syncNow)
}

// exchange calls a peer.
func (m *member) exchange(peer cluster.HostID, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(m.ctx, dialTimeout)
	defer cancel()
	conn, err := m.dial(ctx, addr, transport.Sync, peer)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(m.ctx, func() { _ = conn.Close() })()
	return m.run(conn, (*session).call)
}

// answer serves exchanges that others began, until ctx ends.
func (c *Cluster) answer(ctx context.Context) error {
	l := c.net.Listener(transport.Sync)
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var g errgroup.Group
	g.SetLimit(answersAtOnce)
	for {
		conn, err := l.Accept()
		if err != nil {
			_ = g.Wait() // the goroutines return nil
			return fmt.Errorf("accept record exchange: %w", err)
		}
		// One too many waits no longer than the others take; callers back off.
		g.Go(func() error {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			peer := conn.(peered)
			if c.turnAway(peer.Peer()) {
				return nil
			}
			if err := c.run(peer, (*session).answer); err != nil && ctx.Err() == nil {
				c.log.WithError(err).WithField("host", peer.Peer().Short()).Debug("answer record exchange")
			}
			return nil
		})
	}
}

// run is one end of an exchange, and what follows from it.
func (c *Cluster) run(conn peered, end func(*session) error) error {
	_ = conn.SetDeadline(time.Now().Add(exchangeTimeout)) // only a closed conn fails, and then so does the exchange
	c.mu.Lock()
	s := &session{ReadWriter: conn, replica: locked{c}, dice: c.dice, budget: exchangeBudget, complete: c.settled && c.speaks}
	c.mu.Unlock()
	err := end(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.bad != nil && err == nil {
		err = s.bad
	}
	// What was learned is news for others as well, and what could not be had
	// here is elsewhere.
	if s.learned > 0 || s.more || len(c.heard) > 0 {
		signal(c.syncNow)
	}
	if err == nil && !s.more {
		if c.exchanged.IsZero() {
			c.exchanged = time.Now()
		}
		c.trusted = c.trusted || s.peerComplete
		c.settle()
	}
	return err
}

// settle decides whether this host has heard enough to believe that what it
// does not know does not exist; call with mu held. It has when it exchanged
// with a host that had, or holds a stream of each known host. When a whole
// cluster restarts at once neither may come true, so time decides.
func (c *Cluster) settle() {
	if c.settled || c.exchanged.IsZero() {
		return
	}
	silent := slices.ContainsFunc(c.book.list((*host).awaited), func(id cluster.HostID) bool { return c.table.streams[id] == nil })
	if c.trusted || !silent || time.Since(c.exchanged) > settleAfter {
		c.settled = true
		c.changed()
	}
}

// renew begins a new epoch of the own stream when others showed a version of
// it that this run did not make.
func (m *member) renew() {
	m.mu.Lock()
	due := m.table.outdated() && time.Since(m.renewed) > time.Second
	epoch := m.table.seen + 1
	m.mu.Unlock()
	if !due {
		return
	}
	m.log.WithField("epoch", epoch).Warn("others know newer records of this host: its state was rolled back, or another machine runs a copy of it")
	if err := storeEpoch(m.cfg.DB, epoch); err != nil {
		m.log.WithError(err).Error("store epoch")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renewed = time.Now()
	m.table.raise(epoch)
	signal(m.published)
}

// locked is the table of a running Cluster, one call at a time.
type locked struct{ c *Cluster }

var _ replica = locked{}

func (l locked) root() [32]byte {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.c.table.root()
}

func (l locked) digest() []summary {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.c.table.digest()
}

func (l locked) compare(theirs []summary) (wants, gives []summary) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	wants, gives = l.c.table.compare(theirs)
	return slices.DeleteFunc(wants, func(s summary) bool { return l.c.admit(s.owner) != nil }), gives
}

func (l locked) since(have summary) (update, bool) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.c.table.since(have)
}

func (l locked) merge(u update) (bool, error) {
	c := l.c
	owner := u.owner()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admit(owner) != nil {
		return false, nil
	}
	changed, err := c.table.merge(u)
	if c.table.outdated() {
		signal(c.syncNow)
	}
	if changed {
		c.learned(owner)
	}
	return changed, err
}
