package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// DHCP is the server of a LAN, as far as addresses of networks here are its own.
// No method blocks.
type DHCP interface {
	// Serves reports whether a Docker network here asked for a pool's addresses
	// to be the server's. Of IPv6 pools, which no server serves, it reports that
	// it was asked for.
	Serves(cluster.PoolKey) bool
	// Terms returns what the server said with an address that is kept here.
	Terms(cluster.PoolKey, netip.Addr) (Terms, bool)
	// Bears tells with which MAC an address is in use, where it is not that of
	// its Terms.
	Bears(cluster.PoolKey, netip.Addr, cluster.MAC)
}

// Terms is what comes with an address of a LAN's DHCP server. Zero fields were
// not said.
type Terms struct {
	Router netip.Addr
	MTU    int
	MAC    cluster.MAC // for which the server was asked
}

// served reports whether addresses of any of the pools are a server's.
func (d *Driver) served(pools []cluster.PoolKey) bool {
	return d.cfg.DHCP != nil && slices.ContainsFunc(pools, d.cfg.DHCP.Serves)
}

// servable refuses a network whose addresses are to come from a DHCP server that
// it cannot reach.
func (d *Driver) servable(n Network, def cluster.Definition) error {
	const flag = "--ipam-opt dhcp=on"
	v4 := slices.ContainsFunc(n.Pools, func(p cluster.PoolKey) bool { return p.Prefix.Addr().Is4() })
	n.Def = def
	switch {
	case !d.served(n.Pools):
	case fenced(n.Options.Mode):
		return fmt.Errorf("%s does not work with mode %s, which reaches no DHCP server of a LAN: use -o mode=macvlan or -o mode=ipvlan, with -o parent=, or leave it out", flag, n.Options.Mode)
	case n.routed():
		return fmt.Errorf("%s does not work with ipvlan_mode=%s, whose containers are not in the LAN but behind this host: use ipvlan_mode=l2, or leave it out", flag, tenureOf(def).mode)
	case n.Options.Parent == "":
		return errors.New(flag + " needs a LAN with a server in it: add -o parent=, or leave it out")
	case !v4:
		return errors.New(flag + " is for IPv4, and the network has IPv6 only: leave it out, isthmus hands out the addresses then")
	}
	return nil
}

// offered completes an endpoint with what the LAN's DHCP server said with its
// address. Where nobody asked for a MAC, it has the one for which the server was
// asked.
func (d *Driver) offered(n Network, e Endpoint, given bool) Endpoint {
	pool, ok := n.covers(e.IPv4.Addr())
	if !ok || fenced(n.Def.Mode) || d.cfg.DHCP == nil {
		return e
	}
	t, ok := d.cfg.DHCP.Terms(pool, e.IPv4.Addr())
	if !ok {
		return e
	}
	e.Router, e.MTU = t.Router, t.MTU
	switch {
	case n.anonymous() || t.MAC.IsZero():
	case !given:
		e.MAC = t.MAC
	case e.MAC != t.MAC:
		d.cfg.DHCP.Bears(pool, e.IPv4.Addr(), e.MAC)
	}
	return e
}

// fit is the MTU of an endpoint's interface: the network's, or the lower one that
// a DHCP server asked for and that still carries IP.
func (s *segment) fit(e Endpoint) int {
	least := 68
	if e.IPv6.IsValid() {
		least = 1280 // RFC 8200, section 5
	}
	if e.MTU >= least && e.MTU < s.MTU {
		return e.MTU
	}
	return s.MTU
}
