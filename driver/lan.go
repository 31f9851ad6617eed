package driver

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"path"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// planLAN is what macvlan and ipvlan have in common: the containers' interfaces
// stand on a link of this host, and the LAN does the rest.
func planLAN(s *segment, v View, d *Desired) {
	g := v.ground(s.Network)
	s.Device = g.Link
	d.Heed = append(d.Heed, g.Heed...)
	s.MTU = cmp.Or(g.Dev.MTU, s.Def.MTU, 1500)
	if s.Def.MTU > 0 {
		s.MTU = min(s.MTU, s.Def.MTU)
	}
	blocked := v.shares(s.Network, g, s.before, false)
	for _, f := range slices.Concat([]*fault{blocked}, g.ailments(s.Network)) {
		if f != nil {
			d.Problems = append(d.Problems, Problem{Network: poolNames(s.Pools), Cause: f.cause, Remedy: f.remedy, alarm: true})
		}
	}
	for _, l := range g.VLANs {
		_, made := v.device(l.Name)
		if _, taken := d.State[l.Key()]; !taken && (made || g.Fault == nil) {
			d.State.Put(l)
			d.Devices[l.Name] = s
		}
	}
	for _, o := range g.Alone {
		d.State.Put(o)
		d.Devices[o.Key().Dev] = s
	}
	kin := tenureOf(s.Def)
	for _, e := range s.endpoints {
		h := kernel.Handover{
			Link: kernel.Link{
				Name: e.link(), Kind: kin.kind, Standing: kernel.HandedOver, Parent: g.Link, MAC: e.MAC, MTU: s.fit(e),
				Mode: kin.mode, Flag: kin.flag, BCQueue: s.Options.BCQueue,
				Down: s.lost[e.ID] || v.Detached != "" && len(g.Alone) == 0,
			},
			Sandbox: e.Sandbox, Name: e.Inside, Addrs: e.Addrs(), Routes: s.routes(e), Follow: true,
		}
		if kin.mode == "source" {
			h.Link.Sources = s.sources(e)
		}
		d.State.Put(h.Link)
		d.Devices[h.Link.Name] = s
		d.attach(e, handover{Handover: h, blocked: blocked, lan: true, seen: g.houses(e), on: g.Dev.Index})
	}
	if blocked == nil {
		if g.Dev.Up && len(g.Alone) == 0 && v.Detached == "" && !s.routed() {
			s.Speaker = g.Link
		}
		planShim(s, g, v, d)
	} else {
		// What stands goes on as it is: its parent may only be called otherwise now.
		shim := shimDevice(s.Pools)
		for _, name := range append(slices.Clone(g.Heed), shim) {
			dev, ok := v.device(name)
			if _, planned := d.State[kernel.Link{Name: name}.Key()]; ok && !planned && dev.Ours && (dev.Kind == kernel.VLAN || name == shim) {
				d.Left[name] = true
			}
		}
	}
}

// houses reports whether an endpoint's interface was seen in its sandbox.
func (g ground) houses(e Endpoint) bool {
	return e.Inside != "" && slices.ContainsFunc(g.Dev.Children, func(c kernel.Child) bool {
		return c.Sandbox != "" && path.Base(c.Sandbox) == path.Base(e.Sandbox) && c.Name == e.Inside
	})
}

// routes lists the default routes that an endpoint's interface had, in case
// that it is made again. Where the container has others, those stay.
func (n Network) routes(e Endpoint) []kernel.Route {
	var out []kernel.Route
	for _, p := range e.Addrs() {
		any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if p.Addr().Is6() {
			any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		via := n.gateway(p.Addr())
		if !via.IsValid() && e.Router.IsValid() && p.Contains(e.Router) {
			via = e.Router
		}
		switch {
		case n.Options.Internal:
		case n.routed():
			out = append(out, kernel.Route{Dst: any})
		case via.IsValid():
			out = append(out, kernel.Route{Dst: any, Via: via})
		}
	}
	return out
}

// gateway returns the LAN's router for an address of the network; invalid for
// none.
func (n Network) gateway(a netip.Addr) netip.Addr {
	if n.Options.Internal || n.routed() || fenced(n.Def.Mode) {
		return netip.Addr{}
	}
	pool, _ := n.covers(a)
	for _, g := range n.Gateways {
		if pool.Prefix.IsValid() && pool.Prefix.Contains(g) {
			return g
		}
	}
	return netip.Addr{}
}

// routed reports a network whose containers send packets, and not frames.
func (n Network) routed() bool {
	k := tenureOf(n.Def)
	return k.kind == kernel.IPvlan && k.mode != "l2"
}

// anonymous reports whether the network's interfaces have the MAC of the parent.
func (n Network) anonymous() bool {
	k := tenureOf(n.Def)
	return !fenced(n.Def.Mode) && (k.kind == kernel.IPvlan || k.alone())
}

// lanDevice names a link of a network: the same after every restart, and when
// the cluster numbers its networks anew.
func lanDevice(begin string, pools []cluster.PoolKey) string {
	sum := sha256.Sum256([]byte("isthmus network\x00" + poolNames(pools)))
	return begin + hex.EncodeToString(sum[:4])
}

func isolatedDevice(pools []cluster.PoolKey) (name, end string) {
	return lanDevice("is-d", pools), lanDevice("is-o", pools)
}

func shimDevice(pools []cluster.PoolKey) string { return lanDevice(shimBegin, pools) }

// shimBegin begins the names of the links by which this host is in the LANs of its containers.
const shimBegin = "is-h"
