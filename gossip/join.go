package gossip

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

const (
	// redialEvery is how often a host dials one host that is known and does
	// not answer, and one entry of JOIN that is no member.
	redialEvery = 5 * time.Second
	// dialsAtOnce and seeds bound the first round: so many dials at a time,
	// and no more once so many hosts answered.
	dialsAtOnce = 3
	seeds       = 3
	// resolveTimeout bounds a look-up of the names in JOIN.
	resolveTimeout = 3 * time.Second
)

// keepJoined brings this host among the others and keeps it there.
func (m *member) keepJoined() error {
	m.joinFirst()
	for sleep(m.ctx, m.dice.around(redialEvery)) {
		if !m.isLeaving() {
			m.redial()
		}
	}
	return m.ctx.Err()
}

// joinFirst dials JOIN and the address book.
func (m *member) joinFirst() {
	targets, resolved := m.joinTargets()
	m.mu.Lock()
	for _, id := range m.book.list((*host).awaited) {
		targets = append(targets, m.book.hosts[id].Addresses...)
	}
	m.mu.Unlock()
	m.dice.shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })

	var joined atomic.Int32
	var wg sync.WaitGroup
	next := make(chan netip.AddrPort)
	for range dialsAtOnce {
		wg.Go(func() {
			for a := range next {
				if joined.Load() < seeds && m.join(a) {
					joined.Add(1)
				}
			}
		})
	}
	for _, a := range targets {
		next <- a
	}
	close(next)
	wg.Wait()
	if m.ctx.Err() != nil {
		return
	}
	if left, _ := m.joinTargets(); resolved && len(left) == 0 {
		m.settleAlone()
	}
	if len(targets) > 0 && joined.Load() == 0 {
		m.log.WithField("join", m.cfg.Join).Warn("no known host answers; trying on")
	}
}

// joinTargets are the addresses in JOIN that do not belong to this host or to
// a member that is alive; false when a name cannot be looked up.
func (m *member) joinTargets() ([]netip.AddrPort, bool) {
	ctx, cancel := context.WithTimeout(m.ctx, resolveTimeout)
	defer cancel()
	all, err := transport.Resolve(ctx, m.cfg.Join, m.cfg.Port)
	if err != nil {
		m.log.WithError(err).Debug("some entries of JOIN have no address")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	present := map[netip.AddrPort]bool{m.net.Addr(): true}
	for _, h := range m.book.hosts {
		if h.alive && len(h.Addresses) > 0 {
			present[h.Addresses[0]] = true
		}
	}
	var out []netip.AddrPort
	for _, a := range all {
		// A member may be reached under more addresses than it advertises.
		id := m.answered[a]
		h := m.book.hosts[id]
		if !present[a] && id != m.cfg.ID && (h == nil || !h.alive && !h.Forgotten) {
			out = append(out, a)
		}
	}
	return out, err == nil
}

// redial tries one absent host and one entry of JOIN. All addresses at once:
// which one is right may have changed, and a dial into the void takes its time,
// as does the look-up of a name.
func (m *member) redial() {
	m.mu.Lock()
	absent, ok := of(m.dice, m.book.list(func(h *host) bool { return h.awaited() && !h.alive && len(h.Addresses) > 0 }))
	var addrs []netip.AddrPort
	if ok {
		addrs = slices.Clone(m.book.hosts[absent].Addresses)
	}
	m.mu.Unlock()

	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() { m.join(a) })
	}
	wg.Go(func() {
		targets, resolved := m.joinTargets()
		if a, ok := of(m.dice, targets); ok {
			m.join(a)
		} else if resolved {
			m.settleAlone()
		}
	})
	wg.Wait()
}

// join exchanges membership with whoever answers at an address, twice if need
// be: two hosts that hold each other dead learn it from the first exchange,
// refute it, and take note of that in the second.
func (m *member) join(a netip.AddrPort) bool {
	for range 2 {
		if _, err := m.list.Join([]string{a.String()}); err != nil {
			m.log.WithError(err).WithField("address", a).Debug("join")
			return false
		}
		if m.aliveAt(a) {
			return true
		}
	}
	return true
}

// aliveAt reports whether the host that last answered at an address is alive
// in membership's view.
func (m *member) aliveAt(a netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.book.hosts[m.answered[a]]
	return h != nil && h.alive
}

func (c *Cluster) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// alivePeers are the other hosts that are alive; call with mu held.
func (c *Cluster) alivePeers() []cluster.HostID {
	return c.book.list(func(h *host) bool { return h.alive && !h.Forgotten })
}
