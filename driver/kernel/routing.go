package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// This file is what the firewall holds of networks that this host routes for:
// all of it lies in our own table inet, with the guards. ruleset_chains.go says in
// which rules.

// Gateway is a link of ours on which this host is the router of a network: a
// bridge, or the host end of one endpoint's veth. It forwards what comes from
// there, whatever the host's other links do; nothing from there reaches the host's
// loopback addresses, although connections from these to published ports are taken
// there (route_localnet); and no TCP connection is agreed upon with segments
// larger than its route.
type Gateway struct {
	Dev    string
	IPv6   bool // it routes IPv6 as well
	Broken bool // in a dump: a sysctl is not as it should be
}

// Uplink is a link of somebody else by which networks of this host reach the
// world: what goes between it and a Gateway is let pass where Docker's FORWARD
// policy would drop it. What goes between a Gateway and any other link is left
// to Docker's rules: they isolate Docker's own networks.
type Uplink struct {
	Dev  string
	IPv6 bool
	// Forward makes Dev forward what it receives, which answers to containers
	// need. Only the user may say so. Else, where it does not, that is an error
	// that names the sysctl.
	Forward bool
	Broken  bool // in a dump, as of Gateway
}

// Source is an address that may be the source of what arrives on Dev. Where there
// is one, anything else from there is dropped, unless it is link-local IPv6.
type Source struct {
	Dev string
	IP  netip.Addr
}

// Pool is a subnet of a network of the cluster, whether this host holds it or not.
// What is routed from one network to another is dropped, unless there is a Passage
// between them or it goes to a published port.
type Pool struct {
	Prefix  netip.Prefix
	Network uint32 // cluster.NetworkDef.ID; the pools of one network reach each other
	// NAT gives what leaves the pools of the cluster the address of this host.
	NAT bool
	// Internal drops all that is routed between it and others, published ports
	// included; not what Passage allows.
	Internal bool
	// Return gives what comes to its published ports the address of this host: its
	// containers may answer by another one.
	Return bool
}

// Passage lets two networks reach each other. A is below B, and both have a Pool.
type Passage struct{ A, B uint32 }

// Publish makes a port of this host one of a container: for what arrives from
// other hosts and from containers, and for what this host sends itself, from
// 127.0.0.1 too (not from ::1: the kernel routes that nowhere else).
type Publish struct {
	Proto string         // tcp, udp or sctp
	Host  netip.AddrPort // an unspecified address stands for all of the host's of its family
	To    netip.AddrPort // of the same family
}

func (g Gateway) Key() Key { return Key{"gateway", g.Dev, ""} }
func (u Uplink) Key() Key  { return Key{"uplink", u.Dev, ""} }
func (s Source) Key() Key  { return Key{"source", s.Dev, s.IP.String()} }
func (p Pool) Key() Key    { return Key{"pool", "", p.Prefix.String()} }
func (p Passage) Key() Key { return Key{"passage", "", fmt.Sprintf("%d-%d", p.A, p.B)} }
func (p Publish) Key() Key { return Key{"publish", "", p.Proto + " " + p.Host.String()} }

func (g Gateway) String() string {
	return "gateway dev " + g.Dev + word(g.IPv6, " ipv6") + word(g.Broken, " broken")
}

func (u Uplink) String() string {
	return "uplink dev " + u.Dev + word(u.IPv6, " ipv6") + word(u.Forward, " forward") + word(u.Broken, " broken")
}

func (s Source) String() string { return fmt.Sprintf("source %s dev %s", s.IP, s.Dev) }

// String is also the comment by which a dump finds p.
func (p Pool) String() string {
	return fmt.Sprintf("pool %s network %d", p.Prefix, p.Network) + word(p.NAT, " nat") + word(p.Internal, " internal") + word(p.Return, " return")
}

// String is also the comment by which a dump finds p.
func (p Passage) String() string { return fmt.Sprintf("passage %d %d", p.A, p.B) }
func (p Publish) String() string { return fmt.Sprintf("publish %s %s to %s", p.Proto, p.Host, p.To) }

func word(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

// parsePool and parsePassage are the reverse of String.
func parsePool(text string) (Pool, bool) {
	var p Pool
	words := strings.Fields(text)
	if len(words) < 4 || words[0] != "pool" {
		return p, false
	}
	prefix, err := netip.ParsePrefix(words[1])
	number, failed := strconv.ParseUint(words[3], 10, 32)
	p = Pool{Prefix: prefix, Network: uint32(number)}
	for _, w := range words[4:] {
		p.NAT, p.Internal, p.Return = p.NAT || w == "nat", p.Internal || w == "internal", p.Return || w == "return"
	}
	return p, err == nil && failed == nil && p.String() == text
}

func parsePassage(text string) (Passage, bool) {
	var p Passage
	_, err := fmt.Sscanf(text, "passage %d %d", &p.A, &p.B)
	return p, err == nil && p.String() == text
}

// routes reports whether o belongs to the firewall of routed networks.
func routes(o Object) bool {
	switch o.(type) {
	case Gateway, Uplink, Source, Pool, Passage, Publish:
		return true
	}
	return false
}

// checkObject says why an object cannot be among the others of want.
func checkObject(o Object, want State) error {
	switch o := o.(type) {
	case Guard:
		switch {
		case o.Rule == DropInput || o.Rule == DropBridgeInput:
			return checkDev(o.Dev)
		case o.Rule == Admit && o.Peer.IsValid(), (o.Rule == NoTrack || o.Rule == DropStrangers && o.Kind == "") && o.Tunnel.IsValid() && slices.Contains([]Kind{"", IPIP, GRE}, o.Kind):
			return nil
		}
		return errors.New("unknown rule")
	case Gateway:
		return checkDev(o.Dev)
	case Uplink:
		return checkDev(o.Dev)
	case Source:
		if !o.IP.IsValid() || o.IP != o.IP.Unmap().WithZone("") {
			return fmt.Errorf("%q is no plain address", o.IP)
		}
		return checkDev(o.Dev)
	case Pool:
		if !o.Prefix.IsValid() || o.Prefix != o.Prefix.Masked() || o.Prefix.Addr().Is4In6() || o.Prefix.Bits() == 0 {
			return fmt.Errorf("%q is no subnet", o.Prefix)
		}
	case Passage:
		found := map[uint32]bool{}
		for _, w := range want {
			if p, ok := w.(Pool); ok {
				found[p.Network] = true
			}
		}
		if o.A >= o.B || !found[o.A] || !found[o.B] {
			return fmt.Errorf("networks %d and %d are not two that have pools", o.A, o.B)
		}
	case Publish:
		if _, ok := protocols[o.Proto]; !ok {
			return fmt.Errorf("no such protocol: %q", o.Proto)
		}
		if !o.Host.IsValid() || !o.To.IsValid() || o.Host.Port() == 0 || o.To.Port() == 0 || o.To.Addr().IsUnspecified() ||
			o.Host.Addr() != o.Host.Addr().Unmap().WithZone("") || o.To.Addr() != o.To.Addr().Unmap().WithZone("") {
			return fmt.Errorf("%s to %s is not from a port to a port", o.Host, o.To)
		}
		if o.Host.Addr().Is4() != o.To.Addr().Is4() {
			return fmt.Errorf("%s and %s are not of one address family", o.Host.Addr(), o.To.Addr())
		}
	}
	return nil
}

func checkDev(dev string) error {
	if dev == "" || len(dev) > 15 {
		return fmt.Errorf("%q is no name of a link", dev)
	}
	return nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
