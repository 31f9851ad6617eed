package founding

import (
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Config is what a Machine is made from.
type Config struct {
	Host    cluster.HostID
	Join    []string         // entries of JOIN
	Known   []netip.AddrPort // members of a cluster that this host shall enter
	Force   bool             // FOUND=force
	Promise Promise          // that was kept
}

// council is how many entries of JOIN agree to a founding.
const council = 5

// Machine is a host without a cluster. Not for concurrent use.
type Machine struct {
	cfg     Config
	peers   []peer // JOIN in its order, then those heard of
	wanted  bool
	fresh   cluster.ID // for the next attempt
	promise Promise

	attempt  *attempt
	founds   cluster.ID // Found is under way
	enters   cluster.ID // Enter is under way
	rested   bool       // a tick passed since the last attempt or Enter failed
	barred   string     // why the last Enter failed
	broken   string     // why the last Found failed
	resolved bool       // founded or entered: it is over
}

// attempt is a founding that others are asked to agree to.
type attempt struct {
	id      cluster.ID
	waiting []string // peers that were asked and did not answer yet
	agreed  []cluster.HostID
	against bool
}

// peer is somebody who may know of a cluster.
type peer struct {
	name       string // as in JOIN, or its address
	join       bool
	at         netip.AddrPort
	self       bool
	asking     bool
	stale      bool // nothing was heard since it mattered
	early      bool // the question was sent before the present promise
	answered   bool
	answer     Answer
	err        string
	member     bool // it said that it belongs to a cluster
	persuading bool
	tired      bool   // no tick passed since it was to be persuaded
	persuaded  string // why it did not found
}

// New makes the machine of a host.
func New(c Config) *Machine {
	m := &Machine{cfg: c, promise: c.Promise, rested: true}
	for _, name := range c.Join {
		m.peers = append(m.peers, peer{name: name, join: true, stale: true})
	}
	for _, at := range c.Known {
		m.meet(at, true)
	}
	if c.Promise.Founder != "" {
		m.meet(c.Promise.At, false)
	}
	return m
}

func (m *Machine) meet(at netip.AddrPort, member bool) {
	if !at.IsValid() {
		return
	}
	i := slices.IndexFunc(m.peers, func(p peer) bool { return p.name == at.String() || p.at == at })
	if i < 0 {
		i = len(m.peers)
		m.peers = append(m.peers, peer{name: at.String(), at: at, stale: true})
	}
	m.peers[i].member = m.peers[i].member || member
}

func (m *Machine) peer(name string) *peer {
	for i := range m.peers {
		if m.peers[i].name == name {
			return &m.peers[i]
		}
	}
	return &peer{}
}

// Founds is the cluster that this host is about to found, "" for none.
func (m *Machine) Founds() cluster.ID {
	if m.attempt != nil {
		return m.attempt.id
	}
	return m.founds
}

// First is the host whose entry is the first of JOIN, when that one is to
// found and not this one; "" while it is not known.
func (m *Machine) First() cluster.HostID {
	if m.founder() || !m.peers[0].answered {
		return ""
	}
	return m.peers[0].answer.Host
}

// Promise is what this host recorded for another.
func (m *Machine) Promise() Promise { return m.promise }

// Wanted reports whether somebody waits for a cluster.
func (m *Machine) Wanted() bool { return m.wanted }

// Step takes one event.
func (m *Machine) Step(e Event) []Effect {
	if m.resolved {
		if e, ok := e.(Asked); ok {
			return []Effect{Reply{e.Token, false}}
		}
		return nil
	}
	var out []Effect
	switch e := e.(type) {
	case Want:
		if !m.wanted {
			m.wanted = true
			m.doubt()
			out = m.ask()
		}
	case Sated:
		m.wanted = false
	case Tick:
		m.fresh, m.rested = e.Fresh, true
		for i := range m.peers {
			m.peers[i].tired = false
		}
		out = m.ask()
	case Answered:
		out = m.answered(e)
	case Recorded:
		m.recorded(e)
	case Persuaded:
		p := m.peer(e.Peer)
		p.persuading, p.tired, p.persuaded = false, true, e.Err
		if e.Err == "" {
			p.answered, p.answer, p.err = true, e.Answer, ""
		}
	case Founded:
		m.founds, m.broken = "", e.Err
		m.ended(e.Err)
	case Entered:
		m.enters, m.barred = "", e.Err
		m.ended(e.Err)
	case Asked:
		out = m.asked(e)
	case Heard:
		m.meet(e.At, true)
		out = m.ask()
	}
	return append(out, m.decide()...)
}

func (m *Machine) ended(err string) {
	if err == "" {
		m.resolved = true
		return
	}
	m.rested = false
	m.doubt()
}

// doubt makes what was heard so far too old to found on.
func (m *Machine) doubt() {
	for i := range m.peers {
		m.peers[i].stale = !m.peers[i].self
	}
}

func (m *Machine) ask() []Effect {
	var out []Effect
	for i := range m.peers {
		if p := &m.peers[i]; !p.asking {
			p.asking, p.early = true, false
			out = append(out, Ask{p.name})
		}
	}
	return out
}

func (m *Machine) answered(e Answered) []Effect {
	p := m.peer(e.Peer)
	p.asking, p.stale = false, false
	p.self = e.Self || e.Err == "" && e.Answer.Host == m.cfg.Host
	p.answered, p.answer, p.err = e.Err == "" || p.self, e.Answer, e.Err
	if e.At.IsValid() {
		p.at = e.At
	}
	// The founder says itself that it founds no such cluster.
	if a := e.Answer; !p.self && !p.early && e.Err == "" && a.Host == m.promise.Founder && a.Cluster == "" && a.Founds != m.promise.Cluster {
		m.promise = Promise{}
		return []Effect{Keep{}}
	}
	return nil
}

// asked decides whether to record what a founder wants.
func (m *Machine) asked(e Asked) []Effect {
	switch is := m.promise; {
	case m.founds != "", m.enters != "":
		return []Effect{Reply{e.Token, false}}
	case m.attempt != nil && m.attempt.id < e.Promise.Cluster:
		return []Effect{Reply{e.Token, false}}
	case is.Founder != "" && is.Founder != e.Promise.Founder && !e.Force:
		return []Effect{Reply{e.Token, false}}
	}
	if ids, _ := m.clusters(); len(ids) > 0 {
		return []Effect{Reply{e.Token, false}}
	}
	if m.attempt != nil {
		m.attempt, m.rested = nil, false
		m.doubt()
	}
	m.promise = e.Promise
	m.meet(e.Promise.At, false)
	for i := range m.peers {
		m.peers[i].early = m.peers[i].asking
	}
	return []Effect{Keep{e.Promise}, Reply{e.Token, true}}
}

func (m *Machine) recorded(e Recorded) {
	p, a := m.peer(e.Peer), m.attempt
	if e.Err == "" {
		p.answered, p.answer, p.err = true, e.Answer, ""
	} else {
		p.answered, p.err = false, e.Err
	}
	if a == nil || a.id != e.Cluster {
		return
	}
	a.waiting = slices.DeleteFunc(a.waiting, func(name string) bool { return name == e.Peer })
	switch {
	case e.OK && !slices.Contains(a.agreed, e.Answer.Host):
		if m.counts(p) {
			a.agreed = append(a.agreed, e.Answer.Host)
		}
	case !e.OK && e.Err == "":
		a.against = true
	}
}

// decide does what is due now.
func (m *Machine) decide() []Effect {
	if m.resolved || m.founds != "" || m.enters != "" || !m.rested {
		return nil
	}
	if ids, peers := m.clusters(); len(ids) > 0 {
		if m.attempt = nil; len(ids) > 1 {
			return nil
		}
		m.enters = ids[0]
		return []Effect{Enter{ids[0], peers}}
	}
	m.barred = ""
	if a := m.attempt; a != nil {
		if len(a.waiting) > 0 {
			return nil
		}
		if m.attempt = nil; a.against || !m.cfg.Force && !m.majority(len(a.agreed)) {
			m.rested = false
			m.doubt()
			return nil
		}
		m.founds = a.id
		return []Effect{Found{a.id}}
	}
	if !m.wanted {
		return nil
	}
	if !m.founder() {
		if p := &m.peers[0]; p.answered && !p.persuading && !p.tired {
			p.persuading = true
			return []Effect{Persuade{p.name}}
		}
		return nil
	}
	return m.begin()
}

// begin starts an attempt, when nothing is in its way.
func (m *Machine) begin() []Effect {
	asking := slices.ContainsFunc(m.peers, func(p peer) bool { return p.stale })
	if asking || m.fresh == "" || m.obstacle() != "" {
		return nil
	}
	a := &attempt{id: m.fresh, agreed: []cluster.HostID{m.cfg.Host}}
	m.attempt, m.fresh = a, ""
	var out []Effect
	for _, p := range m.peers {
		if p.answered && !p.self {
			a.waiting = append(a.waiting, p.name)
			out = append(out, Record{p.name, a.id, m.cfg.Force})
		}
	}
	if len(out) == 0 {
		return m.decide()
	}
	return out
}

// founder reports whether this host may found at all.
func (m *Machine) founder() bool {
	return m.cfg.Force || len(m.cfg.Join) == 0 || m.peers[0].self
}

// clusters lists the clusters that one may enter: none, one, or several
// between which a person must choose; and who belongs to the first.
func (m *Machine) clusters() (ids []cluster.ID, peers []string) {
	full := map[cluster.ID]bool{}
	for _, p := range m.peers {
		if id := p.answer.Cluster; p.answered && id != "" {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
			full[id] = full[id] || !p.answer.Empty
		}
	}
	if len(full) > 1 {
		with := slices.DeleteFunc(slices.Clone(ids), func(id cluster.ID) bool { return !full[id] })
		switch len(with) {
		case 0:
			ids = []cluster.ID{slices.Min(ids)}
		case 1:
			ids = with
		}
	}
	if len(ids) == 1 {
		for _, p := range m.peers {
			if p.answered && p.answer.Cluster == ids[0] {
				peers = append(peers, p.name)
			}
		}
	}
	return ids, peers
}

// counts reports whether a peer has a say in founding.
func (m *Machine) counts(p *peer) bool {
	i := slices.IndexFunc(m.peers, func(q peer) bool { return q.name == p.name })
	return p.join && i < council
}

// majority reports whether so many hosts of JOIN, this one among them, are
// enough. A host that is in the list twice counts once.
func (m *Machine) majority(n int) bool {
	all := m.votes()
	return all == 0 || 2*n > all
}

// votes is how many hosts have a say.
func (m *Machine) votes() int {
	n, self := 0, false
	var seen []cluster.HostID
	for i := range m.peers {
		p := &m.peers[i]
		switch {
		case !m.counts(p):
			continue
		case p.self:
			if self {
				continue
			}
			self = true
		case p.answered:
			if slices.Contains(seen, p.answer.Host) {
				continue
			}
			seen = append(seen, p.answer.Host)
		}
		n++
	}
	return n
}
