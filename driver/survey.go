package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// survey is what is known of this host when a network in a LAN is created.
type survey struct {
	View
	held  []held
	fresh bool                 // no network of this host has its pools
	lacks map[kernel.Kind]bool // of what it needs
	hosts bool                 // there are addresses for the host itself
}

// survey looks at this host's links, and asks the kernel what it can make.
func (d *Driver) survey(ctx context.Context, n Network) (survey, error) {
	in := d.store.intent()
	s := survey{View: d.view(), held: in.held(), fresh: !in.uses(n.Pools), lacks: map[kernel.Kind]bool{}, hosts: d.cfg.Hosts != nil}
	var err error
	if s.Links, _, err = d.links(ctx, lodgers{}, 0); err != nil {
		return s, err
	}
	for _, kind := range []kernel.Kind{stations[n.Options.Mode], kernel.VLAN} {
		able, err := d.cfg.Kernel.Makes(ctx, kind)
		if err != nil {
			return s, err
		}
		s.lacks[kind] = !able
	}
	return s, nil
}

// check refuses a network that cannot work on this host by this definition,
// which by made; empty for the user who asks now.
func (s survey) check(n Network, def cluster.Definition, by string) error {
	n.Def = def
	g := s.ground(n)
	if n.Options.Parent == "" && !n.Options.Internal {
		return fmt.Errorf("mode %s needs a parent: add -o parent= with %s, or --internal for a network of this host alone", def.Mode, s.suggest())
	}
	if f := s.shares(n, g, s.held, s.fresh); f != nil {
		return f
	}
	if err := checkAccess(n, s.hosts); err != nil {
		return err
	}
	who, drop := "", "leave it out"
	if by != "" {
		who, drop = by+" created the network with ", "raise that of the parent"
	}
	if def.MTU > g.Dev.MTU && g.Dev.MTU > 0 {
		return fmt.Errorf("%smtu=%d is more than parent %s carries, which is %d: use -o mtu=%d or less, or %s", who, def.MTU, g.Link, g.Dev.MTU, g.Dev.MTU, drop)
	}
	mtu := g.Dev.MTU
	if def.MTU > 0 {
		mtu = def.MTU
	}
	v6 := slices.ContainsFunc(n.Pools, func(p cluster.PoolKey) bool { return p.Prefix.Addr().Is6() })
	if v6 && mtu < 1280 {
		return fmt.Errorf("%smtu=%d is too small for IPv6, which needs 1280: use -o mtu=1280 or more, or no IPv6 subnet", who, mtu)
	}
	// What is wrong with the host's network comes first: a module would not help.
	for _, l := range g.VLANs {
		if _, made := s.device(l.Name); !made && s.lacks[kernel.VLAN] {
			return kernel.Lacks(kernel.VLAN)
		}
	}
	if kind := stations[def.Mode]; s.lacks[kind] {
		return kernel.Lacks(kind)
	}
	return nil
}

// expected is what a definition will be, as far as this host knows: what the
// cluster has where nothing was asked for.
func (d *Driver) expected(n Network, asked cluster.Definition) cluster.Definition {
	agreed, known := d.cfg.Ledger.Registry().NetworkOf(n.Pools)
	if known && len(agreed.Holders) > 0 && agreed.Def.Mode == asked.Mode && !contradicts(asked, agreed.Def) && !fenced(asked.Mode) {
		return agreed.Def
	}
	return asked
}

// mismatch refuses a network in a LAN that was agreed otherwise than this host
// asks for.
func mismatch(n Network, asked cluster.Definition, creator string) error {
	if fenced(n.Def.Mode) {
		return nil
	}
	have, want := tenureOf(n.Def), tenureOf(asked)
	words := func(key, a, b string) error {
		return fmt.Errorf("network %s was created on %s with %s=%s, and this one asks for %s=%s: leave -o %s out, or use the same", poolNames(n.Pools), creator, key, a, key, b, key)
	}
	switch {
	case asked.Mode != n.Def.Mode:
		return words("mode", n.Def.Mode, asked.Mode)
	case asked.Submode != "" && have.mode != want.mode:
		return words(n.Def.Mode+"_mode", have.mode, want.mode)
	case asked.Flag != "" && have.flag != want.flag:
		return words("ipvlan_flag", have.flag, want.flag)
	case asked.VLAN != "" && n.Def.VLAN != "" && asked.VLAN != n.Def.VLAN:
		return fmt.Errorf("network %s is in VLAN %s, as created on %s, and parent %s of this host is in VLAN %s: use a parent in VLAN %s here", poolNames(n.Pools), n.Def.VLAN, creator, n.Options.Parent, asked.VLAN, n.Def.VLAN)
	}
	return nil
}

// LAN is a link of this host that leads to a network's LAN.
type LAN struct {
	Link   string
	MAC    cluster.MAC // its own
	Shared bool        // the containers have that MAC, and none of their own
}

// LAN returns the link of this host by which the LAN of a pool's network is
// reached: where its addresses can be probed for, and its DHCP server asked.
// There is none for networks without a LAN, or whose containers send no frames,
// nor while the link is away.
func (d *Driver) LAN(pool cluster.PoolKey) (LAN, bool) {
	v := d.view()
	for _, h := range d.store.intent().held() {
		if !slices.Contains(h.Pools, pool) || h.fenced() || h.routed() || h.Options.Parent == "" {
			continue
		}
		if dev, ok := v.device(h.Options.Parent); ok && dev.Up {
			return LAN{dev.Name, dev.MAC, h.anonymous()}, true
		}
	}
	return LAN{}, false
}
