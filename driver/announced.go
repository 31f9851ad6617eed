package driver

import (
	"context"
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

// Import takes the full set of routes that routers gave, next hops by destination.
// Those that this host does not reach without a router are left out.
func (d *Driver) Import(ctx context.Context, routes map[netip.Prefix]netip.Addr) {
	var list []kernel.FIB
	for dst, via := range routes {
		hop, err := d.cfg.Kernel.Hop(ctx, via.WithZone(""))
		if err != nil || hop.Via.IsValid() {
			d.log.WithField("route", dst.String()).WithField("nexthop", via.String()).Warn("a router's route is left out: its next hop is in no subnet of this host")
			continue
		}
		list = append(list, kernel.FIB{Dst: dst, Via: via.WithZone(""), Dev: hop.Dev})
	}
	slices.SortFunc(list, func(a, b kernel.FIB) int { return a.Dst.Compare(b.Dst) })
	d.mu.Lock()
	d.imported = list
	d.mu.Unlock()
	d.loop.wake()
}
