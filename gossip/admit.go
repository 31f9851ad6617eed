package gossip

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// knockedFor is how long Trouble tells of a refused host's last attempt.
const knockedFor = time.Minute

// knock is an attempt of a refused host.
type knock struct {
	at  time.Time
	why error
}

// Review asks Admit about all hosts again, and drops what those said that are
// refused now. It happens every second; call it to have it happen at once.
func (c *Cluster) Review() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.book.hosts {
		_ = c.admit(id) // for what it does
	}
	for id := range c.table.streams {
		_ = c.admit(id)
	}
}

// admit says why a host may not take part; call with mu held. What a refused
// host said is dropped, and is not taken from others either; membership goes on
// below, so that a host that is let in again is where it was.
func (c *Cluster) admit(id cluster.HostID) error {
	var why error
	if c.cfg.Admit != nil && id != c.cfg.ID {
		why = c.cfg.Admit(id)
	}
	changed := false
	if h := c.book.hosts[id]; h != nil {
		changed = (h.refused == nil) != (why == nil)
		h.refused = why
	}
	if why == nil {
		delete(c.knocks, id)
	} else if c.table.drop(id) {
		changed = true
	}
	if !changed {
		return why
	}
	delete(c.heard, id)
	delete(c.wanted, id)
	c.countAlive()
	c.changed()
	if why != nil {
		c.log.WithError(why).WithField("host", c.nameOf(id)).Warn("refuse a host")
	} else {
		c.log.WithField("host", c.nameOf(id)).Info("let a host in again")
	}
	return why
}

// turnAway reports whether a host that opened a stream is refused.
func (c *Cluster) turnAway(id cluster.HostID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	why := c.admit(id)
	if why != nil {
		c.knocks[id] = knock{time.Now(), why}
	}
	return why != nil
}

// refusals tells of the refused hosts that lately opened a stream; call with mu
// held.
func (c *Cluster) refusals() []error {
	maps.DeleteFunc(c.knocks, func(_ cluster.HostID, k knock) bool { return time.Since(k.at) > knockedFor })
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(c.knocks)) {
		errs = append(errs, fmt.Errorf("host %s is refused: %w", c.nameOf(id), c.knocks[id].why))
	}
	return errs
}

// nameOf names a host for people; call with mu held.
func (c *Cluster) nameOf(id cluster.HostID) string {
	if h := c.book.hosts[id]; h != nil && h.Name != "" {
		return h.Name + " (" + id.Short() + ")"
	}
	return id.Short()
}
