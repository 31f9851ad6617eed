package ledger

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// pulses is what a leader's heartbeats tell of the other servers. A server that
// was not heard of yet counts as well, from the leader's first moment on.
type pulses struct {
	mu sync.Mutex
	by map[raft.ServerID]*pulse
}

type pulse struct {
	silent  bool      // heartbeats fail
	behind  time.Time // since when its log lags; zero when it does not
	healthy bool
	since   time.Time // since healthy is as it is
}

// reset forgets all: a new leader begins to count.
func (p *pulses) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.by = map[raft.ServerID]*pulse{}
}

// of returns the pulse of a server. The caller holds p.mu.
func (p *pulses) of(id raft.ServerID) *pulse {
	if p.by == nil {
		p.by = map[raft.ServerID]*pulse{}
	}
	if p.by[id] == nil {
		p.by[id] = &pulse{healthy: true, since: time.Now()}
	}
	return p.by[id]
}

// observer returns a filter that takes note of raft's observations, at once and
// without losing any; changed is called when there is another leader.
func (p *pulses) observer(changed func()) raft.FilterFn {
	silent := func(id raft.ServerID, is bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.of(id).silent = is
	}
	return func(o *raft.Observation) bool {
		switch o := o.Data.(type) {
		case raft.FailedHeartbeatObservation:
			silent(o.PeerID, true)
		case raft.ResumedHeartbeatObservation:
			silent(o.PeerID, false)
		case raft.LeaderObservation:
			changed()
		}
		return false
	}
}

// feel updates the pulse of a server whose log is current or not, and returns
// whether it is healthy, and since when. A server is, while heartbeats succeed
// and its log did not lag for longer than grace.
func (p *pulses) feel(id raft.ServerID, current bool, grace time.Duration) (healthy bool, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := p.of(id)
	switch {
	case current:
		s.behind = time.Time{}
	case s.behind.IsZero():
		s.behind = now
	}
	healthy = !s.silent && (s.behind.IsZero() || now.Sub(s.behind) < grace)
	if healthy != s.healthy {
		s.healthy, s.since = healthy, now
	}
	return s.healthy, s.since
}

// silent reports whether heartbeats to a server fail.
func (p *pulses) silent(id raft.ServerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of(id).silent
}

// healthy is what feel last said; a server that it was not asked about is.
func (p *pulses) healthy(id raft.ServerID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.of(id).healthy
}
