package gossip

import (
	"errors"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/isthmus-net/isthmus/cluster"
)

// Datagrams among the hosts, beside memberlist's own. A hint is the newest
// version of a stream with as many of its newest changes as fit, signed.
const (
	// msgHint travels by gossip: who learned from it passes it on.
	msgHint byte = 1 + iota
	// msgTold came straight from the owner, to all hosts (or, in a large
	// cluster, to some). It is not passed on: the owner's gossip finds those
	// who missed it, and they pass that on.
	msgTold
	// msgRoot is a host's id and root: an invitation to compare.
	msgRoot
)

const (
	// told is how many hosts an owner tells of a change by itself, a datagram
	// each. It makes the usual change known everywhere one network delay after
	// it was made, instead of after two to four rounds of gossip (200 ms each).
	// Above that, gossip does the rest.
	told = 64
	// tellEvery gathers the changes of a burst. tellAgain is when the last one
	// is told once more, lest one lost datagram cost a second.
	tellEvery = 20 * time.Millisecond
	tellAgain = 150 * time.Millisecond
	// heardFor is how long a version that somebody told of is looked for.
	heardFor = 10 * time.Second
)

// broadcast is a hint in memberlist's queue. Its name is the owner, so a newer
// one takes the place of an older one and the queue is never longer than the
// list of hosts.
type broadcast struct {
	owner cluster.HostID
	msg   []byte
}

var _ memberlist.NamedBroadcast = broadcast{}

func (b broadcast) Name() string    { return string(b.owner) }
func (b broadcast) Message() []byte { return b.msg }
func (b broadcast) Finished()       {}
func (b broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(broadcast)
	return ok && o.owner == b.owner
}

// tell makes own changes known.
func (m *member) tell() error {
	repeat := time.NewTimer(0)
	<-repeat.C // stopped and empty: nothing to repeat yet
	for {
		select {
		case <-m.ctx.Done():
			repeat.Stop()
			return m.ctx.Err()
		case <-m.published:
			m.tellAll(true)
			repeat.Reset(tellAgain)
			sleep(m.ctx, tellEvery)
		case <-repeat.C:
			m.tellAll(false)
		}
	}
}

// tellAll sends the newest version of the own stream to the others, and if it
// is new hands it to gossip.
func (m *member) tellAll(fresh bool) {
	m.mu.Lock()
	u, ok := m.table.newest(m.cfg.ID, m.hint-1)
	peers := m.alivePeers()
	m.dice.shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	to := make(map[cluster.HostID]netip.AddrPort, told)
	for _, id := range peers[:min(len(peers), told)] {
		to[id] = m.book.hosts[id].Addresses[0]
	}
	m.mu.Unlock()
	if !ok {
		return
	}
	if fresh {
		m.queue.QueueBroadcast(broadcast{m.cfg.ID, appendUpdate([]byte{msgHint}, u)})
	}
	msg := appendUpdate([]byte{msgTold}, u)
	for id, a := range to {
		m.send(id, a, msg)
	}
}

// send is best effort.
func (m *member) send(id cluster.HostID, a netip.AddrPort, msg []byte) {
	err := m.list.SendToAddress(memberlist.Address{Addr: a.String(), Name: string(id)}, msg)
	if err != nil {
		m.log.WithError(err).WithField("host", id.Short()).Debug("send hint")
	}
}

// hear takes in what others tell.
func (m *member) hear() error {
	for {
		select {
		case <-m.ctx.Done():
			return m.ctx.Err()
		case msg := <-m.heardMsgs:
			m.heed(msg)
		}
	}
}

func (m *member) heed(msg []byte) {
	d := decoder{b: msg}
	switch kind := d.byte(); kind {
	case msgRoot:
		peer := d.host()
		root := d.bytes(32)
		if !d.failed && [32]byte(root) != (locked{m.Cluster}).root() {
			m.mu.Lock()
			m.wantSync(peer)
			m.mu.Unlock()
		}
	case msgHint, msgTold:
		u := d.update()
		if d.failed {
			return
		}
		if m.hinted(u) && kind == msgHint {
			m.queue.QueueBroadcast(broadcast{u.owner(), msg})
		}
	}
}

// hinted takes in an update that came as a hint, and reports whether it was
// news.
func (m *member) hinted(u update) bool {
	changed, err := (locked{m.Cluster}).merge(u)
	if !errors.Is(err, errGap) && !errors.Is(err, errDiverged) {
		return changed
	}
	// The head is genuine, and newer than what is here.
	m.mu.Lock()
	defer m.mu.Unlock()
	owner := u.owner()
	last, ok := m.heard[owner]
	if ok && u.version.compare(last.version) <= 0 {
		return false
	}
	m.heard[owner] = rumour{u.version, time.Now()}
	m.wantSync(owner)
	return true
}

// rumour is a version of a stream that is known to exist and is not here.
type rumour struct {
	version
	at time.Time
}

// rootMessage says who this host is and what it holds.
func (c *Cluster) rootMessage() []byte {
	root := locked{c}.root()
	return append(appendHost([]byte{msgRoot}, c.cfg.ID), root[:]...)
}
