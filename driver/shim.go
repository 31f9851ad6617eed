package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// A link and what stands on it never hear each other. With host_access=on the
// host gets an interface beside those of its containers, with an address of the
// cluster's, and a route to each of them. The address of the host in the LAN
// stays what it is.

// planShim adds the host's own interface in a network, where it was asked for.
func planShim(s *segment, g ground, v View, d *Desired) {
	if !s.Options.HostAccess {
		return
	}
	if len(s.HostAddrs) == 0 {
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(s.Pools), Cause: "this host has no address in it, so that it and its containers do not reach each other",
			Remedy: "remove the network here and create it again",
		})
		return
	}
	kin := tenureOf(s.Def)
	shim := kernel.Link{
		Name: shimDevice(s.Pools), Kind: kin.kind, Parent: g.Link, MTU: s.MTU,
		Mode: kin.mode, Flag: kin.flag, BCQueue: s.Options.BCQueue, Down: !g.Dev.Up,
	}
	if kin.kind == kernel.Macvlan {
		shim.MAC = deriveMAC(v.Host, shim.Name)
	}
	d.State.Put(shim)
	d.Devices[shim.Name] = s
	if shim.Down { // the kernel takes no routes by it, and drops addresses of IPv6
		return
	}
	own := s.rightfulHost(v, d)
	for _, a := range own {
		d.State.Put(kernel.Addr{Dev: shim.Name, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	for _, e := range s.endpoints {
		for _, p := range e.Addrs() {
			i := slices.IndexFunc(own, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
			if i < 0 || !e.Joined() || s.lost[e.ID] {
				continue
			}
			d.route(s, kernel.FIB{Dst: netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), Dev: shim.Name, Src: own[i]})
		}
	}
}

// route adds a route of the host, which has one table for all networks.
func (d *Desired) route(s *segment, r kernel.FIB) {
	if have, ok := d.State[r.Key()]; ok && have != kernel.Object(r) {
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(s.Pools), Cause: fmt.Sprintf("another network of this host routes %s elsewhere", r.Dst),
			Remedy: "use one subnet in one network only where the host routes",
		})
		return
	}
	d.State.Put(r)
}

// rightfulHost lists the host's own addresses, but those that it has no right to:
// as with an endpoint, others may have them, see lost.go.
func (s *segment) rightfulHost(v View, d *Desired) (out []netip.Addr) {
	if v.Detached != "" && s.Options.Parent != "" {
		return nil
	}
	for _, a := range s.HostAddrs {
		pool, _ := s.covers(a)
		if _, lost := v.Lost[pool][a]; !lost {
			out = append(out, a)
			continue
		}
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(s.Pools), Cause: fmt.Sprintf("address %s of the host itself is cut off: this host has no lease of it any more", a),
			Remedy: "remove the network here and create it again", alarm: true,
		})
	}
	return out
}

// checkAccess refuses host_access where the kernel does not let the host beside
// its containers.
func checkAccess(n Network, have bool) error {
	kin := tenureOf(n.Def)
	refuse := func(word, why string) error {
		return fmt.Errorf("option host_access=on does not work with %s: %s", word, why)
	}
	switch {
	case !n.Options.HostAccess:
		return nil
	case n.Options.Foreign:
		return refuse("ipam=foreign", "the host needs an address that no other has: use isthmus as --ipam-driver")
	case !have:
		return errors.New("option host_access=on: this host has no addresses to give")
	case kin.mode == "private":
		return refuse("macvlan_mode=private", "that keeps containers from all others of their parent, the host among them: use macvlan_mode=bridge")
	case kin.mode == "vepa":
		return refuse("macvlan_mode=vepa", "that sends all frames to the switch, and not to the host: use macvlan_mode=bridge")
	case kin.mode == "source":
		return refuse("macvlan_mode=source", "that sends all frames to the switch, and not to the host: use macvlan_mode=bridge")
	case kin.mode == "passthru":
		return refuse("macvlan_mode=passthru", "that leaves no place for the host on the parent: use macvlan_mode=bridge")
	case kin.flag == "private":
		return refuse("ipvlan_flag=private", "that keeps containers from all others of their parent, the host among them: use ipvlan_flag=bridge")
	case kin.flag == "vepa":
		return refuse("ipvlan_flag=vepa", "that sends all packets to the switch, and not to the host: use ipvlan_flag=bridge")
	}
	return nil
}

// accommodate gives the host its addresses in a network that stands, so that the
// LAN can be asked whether they are free.
func (d *Driver) accommodate(ctx context.Context, n Network) (Network, error) {
	if !n.Options.HostAccess && !direct(n.Def.Mode) && central(n.Def) == "" || len(n.HostAddrs) > 0 {
		return n, nil
	}
	if err := d.lookAtLinks(ctx, d.pace.sandbox); err != nil { // its VLAN may be a moment old
		return n, err
	}
	var err error
	if n.HostAddrs, err = d.hostAddrs(ctx, n); err != nil {
		return n, err
	}
	err = d.store.edit(func(in *Intent) error {
		now, ok := in.Networks[n.ID]
		if !ok {
			return fmt.Errorf("network %s was removed meanwhile", short(n.ID))
		}
		now.HostAddrs = n.HostAddrs
		in.Networks[n.ID] = now
		return nil
	})
	if err != nil {
		d.releaseHost(ctx, n.Pools, n.HostAddrs)
		return n, err
	}
	return n, d.Sync(ctx, n.Cluster)
}

// hostAddrs returns the host's own addresses in a network: those that it has
// already by another Docker network that is the same, or new ones.
func (d *Driver) hostAddrs(ctx context.Context, n Network) ([]netip.Addr, error) {
	for _, other := range d.store.intent().Networks {
		if slices.Equal(other.Pools, n.Pools) && len(other.HostAddrs) > 0 {
			return other.HostAddrs, nil
		}
	}
	var out []netip.Addr
	has := map[bool]bool{} // by family
	for _, pool := range n.Pools {
		if has[pool.Prefix.Addr().Is4()] {
			continue
		}
		a, err := d.cfg.Hosts.HostAddress(ctx, pool)
		if err != nil {
			d.releaseHost(ctx, n.Pools, out)
			return nil, fmt.Errorf("take an address of %s for the host: %w", pool, err)
		}
		has[pool.Prefix.Addr().Is4()] = true
		out = append(out, a.Unmap())
	}
	return out, nil
}

// releaseHost gives back addresses of the host, unless a network has them. One
// that cannot be given back now is found unused later, see Live.
func (d *Driver) releaseHost(ctx context.Context, pools []cluster.PoolKey, addrs []netip.Addr) {
	for _, a := range addrs {
		pool, ok := Network{Pools: pools}.covers(a)
		if !ok || d.store.intent().hosts(pool, a) {
			continue
		}
		if err := d.cfg.Hosts.ReleaseHostAddress(ctx, pool, a); err != nil {
			d.log.WithError(err).WithField("address", a.String()).Warn("give back an address of the host; it will be found unused")
		}
	}
}

// hosts reports whether the host itself has the address in a network.
func (in *Intent) hosts(pool cluster.PoolKey, a netip.Addr) bool {
	for _, n := range in.Networks {
		if slices.Contains(n.HostAddrs, a) && slices.Contains(n.Pools, pool) {
			return true
		}
	}
	return false
}
