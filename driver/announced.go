package driver

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// planBGP says which blocks routers shall lead to this host, and leads where routers
// say. What a network of the cluster covers is never theirs.
func (v View) planBGP(d *Desired) {
	any := false
	for _, s := range d.Segments {
		if !s.Options.BGP || s.Options.Internal {
			continue
		}
		any = true
		unsaid := false
		for _, c := range v.Claims {
			if v.Detached != "" || !slices.Contains(s.Pools, c.Pool) {
				continue
			}
			if c.Block.Addr().Is6() && family(v.VTEP) == "ipv4" {
				unsaid = true
				continue
			}
			d.Announced = append(d.Announced, c.Block)
		}
		if unsaid {
			d.Problems = append(d.Problems, Problem{
				Network: poolNames(s.Pools), Cause: "its IPv6 blocks are not announced to routers: this host's underlay address is of IPv4",
				Remedy: "set ADVERTISE to an IPv6 address on all hosts",
			})
		}
	}
	slices.SortFunc(d.Announced, netip.Prefix.Compare)
	d.Announced = slices.Compact(d.Announced)
	if !any {
		return
	}
	for _, r := range v.Imported {
		covered := slices.ContainsFunc(d.Segments, func(s *segment) bool {
			return slices.ContainsFunc(s.prefixes(), func(p netip.Prefix) bool { return p.Overlaps(r.Dst) && r.Dst.Bits() >= p.Bits() })
		})
		if _, taken := d.State[r.Key()]; !taken && !covered {
			d.State.Put(r)
		}
	}
}

// Announced lists the blocks that routers shall lead to this host, sorted, as of the
// newest pass, and the next hop to them; false before there was one.
func (d *Driver) Announced() (blocks []netip.Prefix, via netip.Addr, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.announced), d.announcedBy, d.passed
}

// Told returns the one-slot channel that is signalled when Announced changed.
func (d *Driver) Told() <-chan struct{} { return d.told }

// announce takes what a pass came to.
func (d *Driver) announce(list []netip.Prefix) {
	d.mu.Lock()
	same := d.passed && d.announcedBy == d.vtep && slices.Equal(d.announced, list)
	d.announced, d.announcedBy, d.passed = list, d.vtep, true
	d.mu.Unlock()
	if same {
		return
	}
	select {
	case d.told <- struct{}{}:
	default:
	}
}

// Import takes the full set of routes that routers gave, next hops by destination; a
// link-local next hop has the name of its link as zone. It keeps the map.
func (d *Driver) Import(routes map[netip.Prefix]netip.Addr) {
	d.mu.Lock()
	d.nextHops = routes
	d.mu.Unlock()
	d.loop.wake()
}

// resolve finds the links to the next hops that routers gave. It does so at every
// pass, because a link may go and return without a word from a router. Those that this
// host does not reach directly are left out.
func (d *Driver) resolve(ctx context.Context) (problems []Problem) {
	d.mu.Lock()
	offered, devices := d.nextHops, d.devices
	d.mu.Unlock()
	if !d.store.intent().bgp() {
		return nil
	}
	var list []kernel.FIB
	dev := map[netip.Addr]string{} // "" of those left out
	for _, dst := range slices.SortedFunc(maps.Keys(offered), netip.Prefix.Compare) {
		via := offered[dst]
		if _, known := dev[via]; !known {
			var err error
			if dev[via], err = d.linkTo(ctx, via, devices); err != nil {
				problems = append(problems, Problem{
					Cause: "routes of BGP routers are left out: " + err.Error(), Remedy: "have the routers say a next hop in a subnet of this host", alarm: true,
				})
			}
		}
		if dev[via] != "" {
			list = append(list, kernel.FIB{Dst: dst, Via: via.WithZone(""), Dev: dev[via]})
		}
	}
	d.mu.Lock()
	d.imported = list
	d.mu.Unlock()
	return problems
}

// linkTo names the link that a neighbour is on.
func (d *Driver) linkTo(ctx context.Context, via netip.Addr, devices []kernel.Device) (string, error) {
	if zone := via.Zone(); zone != "" {
		if !slices.ContainsFunc(devices, func(l kernel.Device) bool { return l.Name == zone }) {
			return "", fmt.Errorf("their next hop %s is on a link that is gone", via)
		}
		return zone, nil
	}
	hop, err := d.cfg.Kernel.Hop(ctx, via)
	switch {
	case err != nil:
		return "", fmt.Errorf("their next hop: %w", err)
	case hop.Via.IsValid():
		return "", fmt.Errorf("their next hop %s is in no subnet of this host", via)
	}
	return hop.Dev, nil
}
