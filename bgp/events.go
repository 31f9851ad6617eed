package bgp

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// hear takes a line of the library's log that names a cause. It must not call
// the library, which may hold its lock.
func (s *Speaker) hear(router netip.Addr, message string, field func(string) slog.Value) {
	s.sessions.update(router, func(x *session) {
		x.lastError = causes[message](x.peer, s.config.AS, field)
		x.unsigned = x.unsigned || message == unsigned
	})
}

// changed takes a change of a session's state.
func (s *Speaker) changed(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE || s.ended.Load() {
		return
	}
	state := e.Peer.State
	s.sessions.update(state.NeighborAddress, func(x *session) {
		if !x.added {
			return
		}
		log := s.log.WithField("router", x.peer.Name())
		if state.SessionState == bgp.BGP_FSM_ESTABLISHED {
			x.speaks, x.graceful = agreed(state.RemoteCap, s.config.Restart > 0)
			x.awaits = x.speaks
			if s.sessions.enter(x, Established) {
				log.Info("BGP session is up")
			}
			return
		}
		if state.AdminState == api.PeerState_ADMIN_STATE_PFX_CT {
			x.flooded = true
		}
		switch {
		case x.state == Established:
			if text := lost(x.peer, state.DisconnectReason); text != "" {
				x.lastError = text
			}
			s.sessions.enter(x, Connecting)
			log.Warnf("BGP session is down: %s", x.lastError)
		case state.SessionState == bgp.BGP_FSM_IDLE && state.DisconnectReason == api.PeerState_DISCONNECT_REASON_INVALID_MSG:
			x.lastError = disowned(x.peer, s.config.AS)
		}
	})
}

// agreed reads what a router offered when the session began: which families it
// speaks, and whether it keeps routes of a neighbour that restarts.
func agreed(offered []bgp.ParameterCapabilityInterface, restart bool) (speaks families, graceful bool) {
	for _, c := range offered {
		switch c := c.(type) {
		case *bgp.CapMultiProtocol:
			switch c.CapValue {
			case bgp.RF_IPv4_UC:
				speaks |= ipv4
			case bgp.RF_IPv6_UC:
				speaks |= ipv6
			}
		case *bgp.CapGracefulRestart:
			graceful = restart
		}
	}
	if speaks == 0 {
		speaks = ipv4 // RFC 4760: what is meant without a word
	}
	return speaks, graceful
}

// saidAll takes the mark at the end of a router's routes of one family.
func (s *Speaker) saidAll(p *apiutil.Path, _ time.Time) {
	s.sessions.update(p.PeerAddress, func(x *session) {
		switch p.Family {
		case bgp.RF_IPv4_UC:
			x.awaits &^= ipv4
		case bgp.RF_IPv6_UC:
			x.awaits &^= ipv6
		}
	})
}

// Status says what each session is, and what is announced and imported.
func (s *Speaker) Status() Status {
	s.mu.Lock()
	lib := s.lib
	out := Status{
		AS: s.config.AS, RouterID: s.config.RouterID, Withdrawn: s.withdrawn,
		Announced: slices.SortedFunc(maps.Values(s.want), Route.compare),
		Imported:  slices.Clone(s.imported), LeftOut: s.leftOut,
	}
	s.mu.Unlock()

	type counts struct {
		received int
		bfd      string
	}
	known := map[netip.Addr]counts{}
	if lib != nil {
		// It fails only when the library has just ended: there are no counts then.
		_ = lib.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
			addr, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
			if err != nil {
				return
			}
			var c counts
			for _, f := range p.GetAfiSafis() {
				c.received += int(f.GetState().GetAccepted()) // without those of this host that come back
			}
			if s.config.BFD {
				c.bfd = strings.ToLower(strings.TrimPrefix(p.GetState().GetBfdState().GetSessionState().String(), "BFD_SESSION_STATE_"))
			}
			known[addr] = c
		})
	}
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	for _, x := range s.sessions.all {
		c := known[x.addr]
		r := x.report(c.received, out.LeftOut)
		r.BFD = c.bfd
		if x.state == Established {
			r.Announced = carried(out.Announced, x.speaks)
		}
		out.Sessions = append(out.Sessions, r)
	}
	return out
}

// carried counts the routes of some families. The library would count by a
// walk through all its routes, under the lock that sessions wait for.
func carried(routes []Route, speaks families) (n int) {
	for _, r := range routes {
		family := ipv6
		if r.Prefix.Addr().Is4() {
			family = ipv4
		}
		if speaks&family != 0 {
			n++
		}
	}
	return n
}
