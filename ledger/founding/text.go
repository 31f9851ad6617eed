package founding

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Member is an entry of JOIN, or a host that was heard of, as it stands.
type Member struct {
	Entry   string         `json:"entry"`
	Name    string         `json:"name,omitempty"` // once it answered
	Address netip.AddrPort `json:"address"`        // zero while the entry cannot be resolved
	Self    bool           `json:"self,omitempty"`
	Cluster cluster.ID     `json:"cluster,omitempty"`
	Error   string         `json:"error,omitempty"` // why it does not answer; empty while it does
}

// Members lists JOIN in its order, and then the others.
func (m *Machine) Members() []Member {
	var out []Member
	for _, p := range m.peers {
		s := Member{Entry: p.name, Address: p.at, Self: p.self}
		switch {
		case p.answered:
			s.Name, s.Cluster = p.answer.Name, p.answer.Cluster
		case p.err != "":
			s.Error = p.err
		default:
			s.Error = "not asked yet"
		}
		out = append(out, s)
	}
	return out
}

// Text says what the host waits for. Stuck means that it will not come about
// without somebody's doing.
func (m *Machine) Text() (text string, stuck bool) {
	ids, _ := m.clusters()
	switch {
	case len(ids) > 1:
		return fmt.Sprintf("the members of JOIN belong to two clusters with networks, %s and %s: run `isthmus reset` on those that should join the other, or name only one of them", ids[0], ids[1]), true
	case m.barred != "":
		return m.barred, true
	case m.broken != "":
		return m.broken, true
	case len(ids) == 1:
		return fmt.Sprintf("entering cluster %s", ids[0]), false
	case m.founds != "":
		return fmt.Sprintf("founding cluster %s", m.founds), false
	}
	why := ""
	if m.founder() {
		why = m.obstacle()
	} else {
		why = m.awaited()
	}
	if why != "" {
		return why, !slices.ContainsFunc(m.peers, func(p peer) bool { return !p.answered && p.err == "" })
	}
	text = "no cluster yet: it is founded with the first network"
	if who := m.presence(); who != "" {
		text += "; of JOIN, " + who
	}
	return text, false
}

// awaited says why the first entry of JOIN, which is to found, does not.
func (m *Machine) awaited() string {
	first := m.peers[0]
	switch {
	case first.err != "" && !first.answered:
		return fmt.Sprintf("%s, the first member of JOIN, founds the cluster, and does not answer (%s): start it, or set FOUND=force here", first.called(), first.err)
	case first.persuaded != "":
		return fmt.Sprintf("%s, the first member of JOIN, does not found the cluster: %s", first.called(), first.persuaded)
	}
	return ""
}

// obstacle says why this host may not found the cluster now.
func (m *Machine) obstacle() string {
	if m.cfg.Force {
		return ""
	}
	if p := m.promise; p.Founder != "" {
		return fmt.Sprintf("%s (%s) was about to found cluster %s together with this host: start it with the state that it had, or set FOUND=force here", p.Name, p.At, p.Cluster)
	}
	var free []cluster.HostID
	var missing []string
	for i := range m.peers {
		p := &m.peers[i]
		switch {
		case p.answered && !p.self && p.answer.Promise.Founder != "" && p.answer.Promise.Founder != m.cfg.Host:
			other := p.answer.Promise
			return fmt.Sprintf("%s recorded that %s (%s) founds cluster %s: start that host with the state that it had; if it was installed anew or is gone, set FOUND=force here", p.called(), other.Name, other.At, other.Cluster)
		case p.member && !p.answered:
			return fmt.Sprintf("%s belongs to a cluster that knows this host, and does not answer (%s): start it, or set FOUND=force here", p.called(), p.err)
		case !m.counts(p):
		case p.answered && !slices.Contains(free, p.host(m.cfg.Host)):
			free = append(free, p.host(m.cfg.Host))
		case !p.answered && p.err != "":
			missing = append(missing, fmt.Sprintf("%s does not answer (%s)", p.called(), p.err))
		}
	}
	if m.majority(len(free)) {
		return ""
	}
	return fmt.Sprintf("%d of %d members of JOIN answer, and a majority must agree that there is no cluster yet: %s; start them, or set FOUND=force here",
		len(free), m.votes(), strings.Join(missing, "; "))
}

func (p *peer) host(own cluster.HostID) cluster.HostID {
	if p.self {
		return own
	}
	return p.answer.Host
}

// presence says who of JOIN answers.
func (m *Machine) presence() string {
	var here, away []string
	for _, p := range m.peers {
		switch {
		case !p.join, p.self:
		case p.answered:
			here = append(here, p.called())
		default:
			away = append(away, p.called())
		}
	}
	var parts []string
	for _, g := range []struct {
		who       []string
		one, many string
	}{{here, "answers", "answer"}, {away, "does not", "do not"}} {
		switch n := len(g.who); {
		case n == 1:
			parts = append(parts, g.who[0]+" "+g.one)
		case n > 1:
			parts = append(parts, strings.Join(g.who[:n-1], ", ")+" and "+g.who[n-1]+" "+g.many)
		}
	}
	text := strings.Join(parts, ", ")
	if len(here) == 0 && text != "" {
		text += " answer"
	}
	return text
}

// called names a peer for people: by its name while it answers, and else so
// that it can be found.
func (p *peer) called() string {
	switch {
	case p.answered && p.answer.Name != "":
		return p.answer.Name
	case p.at.IsValid() && p.at.String() != p.name:
		return fmt.Sprintf("%s (%s)", p.name, p.at)
	}
	return p.name
}
