package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Secret is a password of sessions. It prints as whether it is set.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return "none"
	}
	return "set"
}

// GoString and MarshalText keep the password out of %#v and JSON.
func (s Secret) GoString() string             { return s.String() }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config is what a Speaker goes by. Parse fills all but Restarting and
// Imported, and RouterID if the settings name none.
type Config struct {
	AS          uint32
	RouterID    netip.Addr     // IPv4, unique among the routers' neighbours
	Listen      netip.AddrPort // where routers may connect; zero: nowhere
	Peers       []Peer
	Communities []uint32         // on every announced prefix, RFC 1997
	Large       []LargeCommunity // the same, RFC 8092
	Hold        time.Duration    // whole seconds
	Restart     time.Duration    // how long routers keep routes of a host that restarts; zero: no graceful restart
	BFD         bool
	Import      []Match // what is let in; none: nothing
	ImportMax   int     // how many prefixes are let in
	ReceiveMax  int     // how many routes of a family a router may offer before its session is cut

	// Restarting says that a process before this one announced, and that the
	// kernel still forwards by its routes. False on the first start of a host.
	Restarting bool

	// Imported gets the full set of imported routes whenever it changes,
	// sorted by prefix. It is called by one goroutine, may take its time, and
	// owns the slice. Nil: nobody wants to know.
	Imported func([]Route) `json:"-"`
}

// Peer is one router.
type Peer struct {
	Addr        netip.Addr // with a zone if link-local
	Interface   string     // instead of Addr: whoever is the one IPv6 neighbour there
	AS          uint32
	Port        uint16     // where the router listens
	Source      netip.Addr // this host's end; zero: as routed
	Multihop    uint8      // hops to a router of another AS; zero: it is a neighbour
	TTLSecurity bool       // take packets only from a direct neighbour (RFC 5082)
	Password    Secret
}

// Name is what the user calls the router.
func (p Peer) Name() string {
	if p.Interface != "" {
		return p.Interface
	}
	return p.Addr.String()
}

// LargeCommunity is a community of three numbers.
type LargeCommunity struct{ Global, Local1, Local2 uint32 }

// Match lets in one prefix, and with Within also all inside of it.
type Match struct {
	Prefix netip.Prefix
	Within bool
}

// Route is a prefix and where its packets go. The next hop of an IPv6 prefix
// is an IPv6 address; that of an IPv4 prefix may be of either family. A
// link-local next hop of an imported route has the zone it was heard in.
type Route struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
}

func (r Route) compare(o Route) int { return r.Prefix.Compare(o.Prefix) }

// check says what is wrong with a route that is to be announced.
func (r Route) check() error {
	switch {
	case !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked():
		return fmt.Errorf("announce %v: not a prefix without host bits", r.Prefix)
	case !r.NextHop.IsValid() || r.NextHop.IsUnspecified() || r.NextHop.Zone() != "":
		return fmt.Errorf("announce %v: next hop %v is not an address that routers can use", r.Prefix, r.NextHop)
	case r.Prefix.Addr().Is6() && !r.NextHop.Is6():
		return fmt.Errorf("announce %v: next hop %v is not an IPv6 address; give this host one", r.Prefix, r.NextHop)
	}
	return nil
}

// check refuses what Parse cannot see, or what was never parsed.
func (c Config) check() error {
	switch {
	case c.AS == 0:
		return errors.New("start BGP: no AS number; set BGP_AS")
	case !c.RouterID.Is4() || c.RouterID.IsUnspecified():
		return errors.New("start BGP: no router id; set BGP_ROUTER_ID to an IPv4 address that no other router has")
	case len(c.Peers) == 0:
		return errors.New("start BGP: no router; set BGP_PEERS")
	case c.Hold < 3*time.Second || c.ImportMax <= 0 || c.ReceiveMax <= 0:
		return fmt.Errorf("start BGP: hold time %v, import of %d, receipt of %d: not a checked configuration", c.Hold, c.ImportMax, c.ReceiveMax)
	}
	return nil
}
