package driver

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// speaker tells this host's own containers which MAC an address has now. With
// ARP answered locally no gratuitous ARP crosses hosts, so each host speaks to
// its own containers, and nothing goes on the wire.
type speaker struct {
	// bindings is who was who at the last pass. Addresses that vanished stay:
	// a container may still remember them when they come back elsewhere.
	bindings map[binding]cluster.MAC
	joined   map[string]bool // endpoints of the last pass, nil before the first
	segments map[uint32]*segment
	queue    []utterance // by time
}

// utterance is one announcement to all containers of a network, at a time.
type utterance struct {
	at time.Time
	binding
}

func newSpeaker() speaker { return speaker{bindings: map[binding]cluster.MAC{}} }

// listen compares who is who with the last pass, and queues announcements of
// what changed and of who just joined. Before the first pass, the kernel's
// neighbours tell what this host's containers may remember.
func (l *loop) listen(want Desired, first kernel.State, now time.Time) {
	s := &l.speaker
	begin := s.joined == nil
	if begin {
		for _, o := range first {
			if n, ok := o.(kernel.Neigh); ok && want.Devices[n.Dev] != nil {
				s.bindings[binding{want.Devices[n.Dev].Cluster, n.IP}] = n.MAC
			}
		}
	}
	var news []binding
	for b, mac := range want.Bindings {
		if old, ok := s.bindings[b]; ok && old != mac {
			news = append(news, b)
		}
		s.bindings[b] = mac
	}
	joined := make(map[string]bool)
	s.segments = make(map[uint32]*segment, len(want.Segments))
	for _, g := range want.Segments {
		s.segments[g.Cluster] = g
		for _, e := range g.endpoints {
			if !e.Joined() {
				continue
			}
			joined[e.ID] = true
			// Engines up to 27 announce nothing themselves.
			if !begin && !s.joined[e.ID] {
				news = append(news, bindings(g.Cluster, e)...)
			}
		}
	}
	s.joined = joined
	for b := range s.bindings {
		if s.segments[b.Network] == nil {
			delete(s.bindings, b)
		}
	}
	slices.SortFunc(news, func(a, b binding) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), a.IP.Compare(b.IP))
	})
	for _, b := range slices.Compact(news) {
		for _, wait := range l.d.pace.announce {
			s.queue = append(s.queue, utterance{now.Add(wait), b})
		}
	}
	slices.SortStableFunc(s.queue, func(a, b utterance) int { return a.at.Compare(b.at) })
}

// here reports whether an endpoint of this host has the address, and may use it.
func (s *segment) here(ip netip.Addr) bool {
	return slices.ContainsFunc(s.endpoints, func(e Endpoint) bool {
		return e.Joined() && !s.lost[e.ID] && (e.IPv4.Addr() == ip || e.IPv6.Addr() == ip)
	})
}

func bindings(network uint32, e Endpoint) []binding {
	var out []binding
	for _, a := range e.Addrs() {
		out = append(out, binding{network, a.Addr()})
	}
	return out
}

// speak sends what is due, as things are now, and returns when to speak next;
// the zero time when there is nothing more to say.
func (l *loop) speak(ctx context.Context, now time.Time) time.Time {
	s := &l.speaker
	var out []kernel.Announcement
	for len(s.queue) > 0 && !s.queue[0].at.After(now) {
		b := s.queue[0].binding
		s.queue = s.queue[1:]
		g, mac := s.segments[b.Network], s.bindings[b]
		if g == nil || g.Speaker == "" {
			continue
		}
		if !g.fenced() {
			if g.here(b.IP) { // without a MAC of its own it has the parent's
				out = append(out, kernel.Announcement{Dev: g.Speaker, IP: b.IP, MAC: mac})
			}
			continue
		}
		for _, to := range g.Local {
			if to != mac && !mac.IsZero() {
				out = append(out, kernel.Announcement{Dev: g.Speaker, To: to, IP: b.IP, MAC: mac})
			}
		}
	}
	if len(out) > 0 {
		if err := l.d.cfg.Kernel.Announce(ctx, out); err != nil {
			l.d.log.WithError(err).Warn("announce a changed address to this host's containers")
		}
	}
	if len(s.queue) == 0 {
		return time.Time{}
	}
	return s.queue[0].at
}
