package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
	redialSoon  = 500 * time.Millisecond
	// dialsAtOnce and seeds bound the first round: so many dials at a time,
	// and no more once so many hosts answered.
	dialsAtOnce = 3
	seeds       = 3
	// resolveTimeout bounds a look-up of the names in JOIN.
	resolveTimeout = 3 * time.Second
)

// keepJoined brings this host among the others and keeps it there. It is quick
// to try again at first: hosts that start together are not ready together.
func (m *member) keepJoined() error {
	m.joinFirst()
	wait := redialSoon
	for sleep(m.ctx, m.dice.around(wait)) {
		wait = min(2*wait, redialEvery)
		m.mu.Lock()
		leaving := m.leaving
		m.mu.Unlock()
		if !leaving {
			m.redial()
		}
	}
	return m.ctx.Err()
}

// joinFirst dials JOIN and the address book.
func (m *member) joinFirst() {
	targets, err := m.joinTargets()
	m.mu.Lock()
	for _, id := range m.book.list((*host).awaited) {
		targets = append(targets, m.namesOf(id)...)
	}
	m.mu.Unlock()
	m.dice.shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })

	var joined atomic.Int32
	errs := make([]error, len(targets))
	next := make(chan int)
	var wg sync.WaitGroup
	for range dialsAtOnce {
		wg.Go(func() {
			for i := range next {
				if joined.Load() >= seeds {
					continue
				}
				if errs[i] = m.join(targets[i]); errs[i] == nil {
					joined.Add(1)
				}
			}
		})
	}
	for i := range targets {
		next <- i
	}
	close(next)
	wg.Wait()
	m.conclude(errors.Join(append(errs, err)...), true)
}

// redial tries one absent host and one entry of JOIN. All addresses at once:
// which one is right may have changed, and a dial into the void takes its time,
// as does the look-up of a name.
func (m *member) redial() {
	m.mu.Lock()
	absent, _ := of(m.dice, m.book.list(func(h *host) bool { return h.awaited() && !h.alive && len(h.Addresses) > 0 }))
	targets := m.namesOf(absent)
	m.mu.Unlock()

	var entries []string
	errs := make([]error, len(targets)+2)
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { errs[i] = m.join(t) })
	}
	wg.Go(func() {
		entries, errs[len(targets)] = m.joinTargets()
		if t, ok := of(m.dice, entries); ok {
			errs[len(targets)+1] = m.join(t)
		}
	})
	wg.Wait()
	m.conclude(errors.Join(errs...), len(entries) == 0)
}

// conclude notes how a round of dials went, which may have been to all there is
// to dial.
func (m *member) conclude(err error, all bool) {
	if m.ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	alone := len(m.alivePeers()) == 0
	m.trouble = nil
	if alone && err != nil {
		m.trouble = fmt.Errorf("join: no other host answers: %w", err)
		if m.quiet.pass("no other host answers") {
			m.log.WithError(err).Warn("no other host answers; trying on")
		}
	}
	if alone && all && err == nil && len(m.book.list((*host).awaited)) == 0 && !m.settled {
		m.settled = true // there is nobody to hear of
		m.changed()
	}
}

// namesOf lists the addresses of a host as memberlist wants them: with the name
// of the host that is to answer there. Call with mu held.
func (m *member) namesOf(id cluster.HostID) (names []string) {
	if h := m.book.hosts[id]; h != nil {
		for _, a := range h.Addresses {
			names = append(names, string(id)+"/"+a.String())
		}
	}
	return names
}

// joinTargets are the addresses in JOIN that do not belong to this host or to
// a member that is alive. The error tells of names that cannot be looked up.
func (m *member) joinTargets() ([]string, error) {
	ctx, cancel := context.WithTimeout(m.ctx, resolveTimeout)
	defer cancel()
	all, err := transport.Resolve(ctx, m.cfg.Join, m.cfg.Port)
	m.mu.Lock()
	defer m.mu.Unlock()
	present := map[netip.AddrPort]bool{m.net.Addr(): true}
	for _, h := range m.book.hosts {
		if h.alive && len(h.Addresses) > 0 {
			present[h.Addresses[0]] = true
		}
	}
	var out []string
	for _, a := range all {
		// A member may be reached under more addresses than it advertises.
		id := m.answers[a].peer
		h := m.book.hosts[id]
		if !present[a] && id != m.cfg.ID && (h == nil || !h.alive && h.refused == nil) {
			out = append(out, a.String())
		}
	}
	return out, err
}

// join exchanges membership with the host at [name/]address. This host itself
// is no error. That a host answered does not make it alive here yet: one that
// was held dead first has to hear of that, and to refute it.
func (m *member) join(target string) error {
	_, s, named := strings.Cut(target, "/")
	if !named {
		s = target
	}
	a, err := address(s)
	if err != nil {
		return err
	}
	_, err = m.list.Join([]string{target})
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.answers[a]
	if err == nil || last.peer == m.cfg.ID {
		return nil
	}
	if last.err != nil {
		return last.err // what memberlist made of it is longer and says less
	}
	return err
}

// alivePeers are the other hosts that are alive; call with mu held.
func (c *Cluster) alivePeers() []cluster.HostID {
	return c.book.list(func(h *host) bool { return h.present() })
}
