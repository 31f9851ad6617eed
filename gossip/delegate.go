package gossip

import (
	"encoding/hex"
	"errors"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
)

// delegate is what memberlist calls. Most of it is called with memberlist's
// lock held, from its packet loop: nothing here blocks, and nothing calls
// memberlist.
type delegate struct{ m *member }

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// metaVersion begins the metadata of a node: this byte, then its name. It
// travels in every message that says a host is alive, so it is kept short.
const (
	metaVersion = 1
	metaName    = 64
)

func (d *delegate) NodeMeta(limit int) []byte {
	name := d.m.infoNow().Name
	return append([]byte{metaVersion}, name[:min(len(name), metaName, limit-1)]...)
}

func nameIn(meta []byte) string {
	if len(meta) < 1 || meta[0] != metaVersion {
		return ""
	}
	return string(meta[1:])
}

// NotifyMsg hands a copy to the loop that hears. When that is busy the message
// is lost, as any datagram may be.
func (d *delegate) NotifyMsg(b []byte) {
	select {
	case d.m.heardMsgs <- append([]byte(nil), b...):
	default:
	}
}

func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

// LocalState rides on memberlist's own state exchange: who this is and the
// root of its table.
func (d *delegate) LocalState(bool) []byte { return d.m.rootMessage() }

func (d *delegate) MergeRemoteState(b []byte, _ bool) { d.NotifyMsg(b) }

// NotifyAlive refuses hosts that may not take part, and names that no host has.
// What membership learns in a merge comes by here as well.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if id, err := hex.DecodeString(n.Name); err != nil || len(id) != 16 {
		return errors.New("its name is not a host id")
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return d.m.admit(cluster.HostID(n.Name))
}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.m.noted(n, true) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.m.noted(n, true) }
func (d *delegate) NotifyLeave(n *memberlist.Node)  { d.m.noted(n, false) }

// noted takes down the state of a host. A stay that is over has nothing to
// say: memberlist's timers outlive it.
func (m *member) noted(n *memberlist.Node, alive bool) {
	id := cluster.HostID(n.Name)
	if id == m.cfg.ID || m.ctx.Err() != nil {
		return
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.book.meet(id)
	h.Seen = now
	if alive {
		h.at(nodeAddress(n))
		h.Left = h.Left && h.alive // a host that comes back has not left
		if name := nameIn(n.Meta); name != "" {
			h.Name = name
		}
	}
	if h.alive != alive {
		h.alive, h.since = alive, now
		m.log.WithFields(logrus.Fields{
			"host": id.Short(), "name": h.Name, "address": nodeAddress(n), "state": h.state(),
		}).Info("member changed")
	}
	if m.admit(id) == nil && alive {
		m.trouble = nil
		if !m.settled {
			m.wantSync(id)
		}
	}
	m.countAlive()
	signal(m.save)
	m.changed()
}

// NotifyConflict: a second address claims to be a host that is alive. Either
// it just moved, which passes, or its state was copied, which does not.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	if !d.m.quiet.pass("conflict " + existing.Name) {
		return
	}
	d.m.log.WithFields(logrus.Fields{
		"host": cluster.HostID(existing.Name).Short(), "address": nodeAddress(existing), "claims": nodeAddress(other),
	}).Warn("two addresses claim one host identity; if this is said again and again, one machine is a copy of the other: reset isthmus there")
}
