package bgp

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

const (
	// connectRetry is the pause between attempts to connect, in seconds.
	connectRetry = 5
	// idleHold is the pause after this host ended a session, in seconds.
	idleHold = 5
	// deferral is how long a restarted speaker waits for routers that do not
	// come back before it announces to those that did, in seconds.
	deferral = 5
)

// global makes the library's settings of this host.
func (c Config) global() *api.Global {
	g := &api.Global{Asn: c.AS, RouterId: c.RouterID.String(), ListenPort: -1}
	if c.Listen.IsValid() {
		g.ListenPort = int32(c.Listen.Port())
		g.ListenAddresses = []string{c.Listen.Addr().String()}
	}
	return g
}

// neighbor makes the library's settings of one router.
func (c Config) neighbor(p Peer) *api.Peer {
	n := &api.Peer{
		Conf:      &api.PeerConf{PeerAsn: p.AS, AuthPassword: string(p.Password), NeighborInterface: p.Interface},
		Transport: &api.Transport{RemotePort: uint32(p.Port)},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(c.Hold / time.Second), KeepaliveInterval: uint64(c.Hold / time.Second / 3), ConnectRetry: connectRetry, IdleHoldTimeAfterReset: idleHold,
		}},
		EbgpMultihop:    &api.EbgpMultihop{Enabled: p.Multihop > 0, MultihopTtl: uint32(p.Multihop)},
		TtlSecurity:     &api.TtlSecurity{Enabled: p.TTLSecurity, TtlMin: 255},
		GracefulRestart: &api.GracefulRestart{Enabled: c.Restart > 0, RestartTime: uint32(c.Restart / time.Second), DeferralTime: deferral, LocalRestarting: c.Restart > 0 && c.Restarting},
		Bfd:             &api.BfdPeerConfig{Enabled: c.BFD},
	}
	if p.Addr.IsValid() {
		n.Conf.NeighborAddress = p.Addr.String()
	}
	if p.Source.IsValid() {
		n.Transport.LocalAddress = p.Source.String()
	}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		family := &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}
		n.AfiSafis = append(n.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: c.Restart > 0}},
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: uint32(c.ReceiveMax)},
		})
	}
	return n
}

// policies makes what is let in and out: routes of this host, and from outside
// what Import names; nothing of the latter leaves again.
func (c Config) policies() *api.SetPoliciesRequest {
	accept := &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}
	own := &api.Statement{Name: "own", Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: accept}
	in := &api.Policy{Name: "in", Statements: []*api.Statement{own}}
	out := &api.Policy{Name: "out", Statements: []*api.Statement{{Name: "own-out", Conditions: own.Conditions, Actions: accept}}}
	r := &api.SetPoliciesRequest{Policies: []*api.Policy{in, out}}
	for name, is4 := range map[string]bool{"ipv4": true, "ipv6": false} {
		set := &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_PREFIX, Name: name}
		for _, m := range c.Import {
			if m.Prefix.Addr().Is4() != is4 {
				continue
			}
			longest := m.Prefix.Bits()
			if m.Within {
				longest = m.Prefix.Addr().BitLen()
			}
			set.Prefixes = append(set.Prefixes, &api.Prefix{IpPrefix: m.Prefix.String(), MaskLengthMin: uint32(m.Prefix.Bits()), MaskLengthMax: uint32(longest)})
		}
		if len(set.Prefixes) == 0 {
			continue
		}
		r.DefinedSets = append(r.DefinedSets, set)
		in.Statements = append(in.Statements, &api.Statement{
			Name:       "in-" + name,
			Conditions: &api.Conditions{PrefixSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name}},
			Actions:    accept,
		})
	}
	return r
}

// begin starts the library: nothing is let in or out but by policy, and no
// router is known yet.
func begin(ctx context.Context, lib *server.BgpServer, c Config) error {
	if err := lib.StartBgp(ctx, &api.StartBgpRequest{Global: c.global()}); err != nil {
		if c.Listen.IsValid() {
			return fmt.Errorf("listen at %s for routers: %w; choose another BGP_LISTEN, or off", c.Listen, err)
		}
		return fmt.Errorf("start BGP: %w", err)
	}
	request := c.policies()
	if err := lib.SetPolicies(ctx, request); err != nil {
		return fmt.Errorf("set the policies of BGP: %w", err)
	}
	for direction, policy := range map[api.PolicyDirection]*api.Policy{
		api.PolicyDirection_POLICY_DIRECTION_IMPORT: request.Policies[0],
		api.PolicyDirection_POLICY_DIRECTION_EXPORT: request.Policies[1],
	} {
		if err := lib.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: direction, Policies: []*api.Policy{policy}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}}); err != nil {
			return fmt.Errorf("set the policies of BGP: %w", err)
		}
	}
	return nil
}

// found returns the address of the one router on an interface.
func found(ctx context.Context, lib *server.BgpServer, link string) (netip.Addr, error) {
	var addr netip.Addr
	err := lib.ListPeer(ctx, &api.ListPeerRequest{Address: link}, func(p *api.Peer) {
		if a, err := netip.ParseAddr(p.GetState().GetNeighborAddress()); err == nil {
			addr = a
		}
	})
	if err == nil && !addr.IsValid() {
		err = fmt.Errorf("the library does not say whom it found on %s", link)
	}
	return addr, err
}

// path makes the library's form of a route of this host.
func (c Config) path(r Route) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, fmt.Errorf("announce %v: %w", r.Prefix, err)
	}
	p := &apiutil.Path{Family: bgp.RF_IPv4_UC, Nlri: nlri, Age: time.Now().Unix()}
	if r.Prefix.Addr().Is6() {
		p.Family = bgp.RF_IPv6_UC
	}
	p.Attrs = append(p.Attrs, bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP))
	if p.Family == bgp.RF_IPv4_UC && r.NextHop.Is4() {
		hop, err := bgp.NewPathAttributeNextHop(r.NextHop)
		if err != nil {
			return nil, fmt.Errorf("announce %v: next hop %v: %w", r.Prefix, r.NextHop, err)
		}
		p.Attrs = append(p.Attrs, hop)
	} else {
		reach, err := bgp.NewPathAttributeMpReachNLRI(p.Family, []bgp.PathNLRI{{NLRI: nlri}}, r.NextHop)
		if err != nil {
			return nil, fmt.Errorf("announce %v: next hop %v: %w", r.Prefix, r.NextHop, err)
		}
		p.Attrs = append(p.Attrs, reach)
	}
	if len(c.Communities) > 0 {
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeCommunities(c.Communities))
	}
	if len(c.Large) > 0 {
		var values []*bgp.LargeCommunity
		for _, l := range c.Large {
			values = append(values, &bgp.LargeCommunity{ASN: l.Global, LocalData1: l.Local1, LocalData2: l.Local2})
		}
		p.Attrs = append(p.Attrs, bgp.NewPathAttributeLargeCommunities(values))
	}
	return p, nil
}

// heard calls each for every route that was let in; best says which of several
// to one prefix counts.
func heard(lib *server.BgpServer, each func(r Route, router netip.Addr, best bool)) error {
	for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
		err := lib.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family}, func(nlri bgp.NLRI, paths []*apiutil.Path) {
			prefix, ok := nlri.(*bgp.IPAddrPrefix)
			if !ok {
				return
			}
			for _, p := range paths {
				if !p.PeerAddress.IsValid() {
					continue // of this host
				}
				each(Route{Prefix: prefix.Prefix, NextHop: nextHop(p)}, p.PeerAddress, p.Best)
			}
		})
		if err != nil {
			return fmt.Errorf("list imported routes: %w", err)
		}
	}
	return nil
}

// nextHop finds where a heard route points to. A link-local one needs the
// interface that it was heard on.
func nextHop(p *apiutil.Path) netip.Addr {
	var hop netip.Addr
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			hop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			hop = a.Nexthop
			if !hop.IsValid() || hop.IsUnspecified() {
				hop = a.LinkLocalNexthop
			}
		}
	}
	if hop.Is6() && hop.IsLinkLocalUnicast() {
		hop = hop.WithZone(p.PeerAddress.Zone())
	}
	return hop
}
