package ipam

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// Keys of Docker's own in the options of the calls.
const (
	requestType  = "RequestAddressType"
	gatewayType  = "com.docker.network.gateway"
	endpointName = "com.docker.network.endpoint.name" // engine 29 and newer
	dockerPrefix = "com.docker."
)

// poolID is what Docker keeps of a pool: as text it names the pool and who
// chooses from what of it, and nothing else, so that it outlives the state of this plugin.
type poolID struct {
	key    cluster.PoolKey
	within netip.Prefix // --ip-range; invalid: the whole pool
	dhcp   bool         // the LAN's server chooses; within is invalid
}

func (id poolID) String() string {
	s := id.key.Space + "|" + id.key.Prefix.String()
	switch {
	case id.dhcp:
		s += "|dhcp"
	case id.within.IsValid():
		s += "|" + id.within.String()
	}
	return s
}

func parsePoolID(s string) (poolID, error) {
	var id poolID
	parts := strings.Split(s, "|")
	if len(parts) != 2 && len(parts) != 3 {
		return id, fmt.Errorf("pool id %q is not one of isthmus", s)
	}
	var err error
	id.key.Space = parts[0]
	if id.key.Prefix, err = netip.ParsePrefix(parts[1]); err != nil {
		return id, fmt.Errorf("pool id %q is not one of isthmus: %w", s, err)
	}
	if len(parts) == 3 && parts[2] == "dhcp" {
		id.dhcp = true
	} else if len(parts) == 3 {
		if id.within, err = netip.ParsePrefix(parts[2]); err != nil {
			return id, fmt.Errorf("pool id %q is not one of isthmus: %w", s, err)
		}
	}
	return id, nil
}

// poolRequest is a checked RequestPool.
type poolRequest struct {
	space, name string
	prefix      netip.Prefix // invalid: the cluster picks one of bits
	within      netip.Prefix // invalid: the whole pool
	v6          bool
	bits        int
	dhcp        bool // addresses come from the LAN's server
	wished      bool // dhcp=on was said of an IPv6 pool, where it does nothing
}

var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// parsePoolRequest checks what the user wrote, so that every refusal comes
// before the cluster is asked.
func parsePoolRequest(req *docker.RequestPoolRequest) (poolRequest, error) {
	r := poolRequest{v6: req.V6, bits: 24}
	if r.v6 {
		r.bits = 64
	}
	for _, key := range sortedKeys(req.Options) {
		value := req.Options[key]
		switch {
		case key == "space" && (value == "" || nameSyntax.MatchString(value)):
			r.space = value
		case key == "network" && nameSyntax.MatchString(value):
			r.name = value
		case key == "dhcp" && (value == "on" || value == "off"):
			r.dhcp = value == "on" && !r.v6
			r.wished = value == "on" && r.v6 // Docker says it for the IPv6 subnet of the network too
		case key == "dhcp":
			return r, fmt.Errorf("--ipam-opt dhcp=%s: is on or off", value)
		case key == "space" || key == "network":
			return r, fmt.Errorf("--ipam-opt %s=%s: need up to 64 letters, digits, '_', '.' or '-', the first a letter or digit", key, value)
		case !strings.HasPrefix(key, dockerPrefix):
			return r, fmt.Errorf("--ipam-opt %s: unknown option; isthmus knows dhcp, network, space", key)
		}
	}
	if req.Pool == "" {
		if req.SubPool != "" {
			return r, fmt.Errorf("--ip-range %s: needs a --subnet that it is part of", req.SubPool)
		}
		return r, nil
	}
	prefix, err := parseSubnet("--subnet", req.Pool, req.V6)
	switch {
	case err != nil:
		return r, err
	case prefix.Bits() == 0:
		return r, fmt.Errorf("--subnet %s: isthmus hands out addresses of a real subnet; name one, or leave --subnet out", prefix)
	case prefix.Addr().IsUnspecified(): // engine 29: any subnet of this size
		if req.SubPool != "" {
			return r, fmt.Errorf("--ip-range %s: needs a --subnet that it is part of, not %s", req.SubPool, prefix)
		}
		r.bits = prefix.Bits()
		return r, nil
	case prefix.Addr().IsMulticast() || prefix.Addr().IsLoopback() || prefix.Addr().Is4In6():
		return r, fmt.Errorf("--subnet %s: no addresses that containers can have", prefix)
	}
	r.prefix = prefix
	if req.SubPool != "" {
		if r.within, err = parseSubnet("--ip-range", req.SubPool, req.V6); err != nil {
			return r, err
		}
		if lease.Common(prefix, r.within) != r.within {
			return r, fmt.Errorf("--ip-range %s: is not part of --subnet %s", r.within, prefix)
		}
		if r.within == prefix {
			r.within = netip.Prefix{}
		}
	}
	return r, nil
}

func parseSubnet(flag, text string, v6 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s %s: need an address and a prefix length, such as 10.32.0.0/16", flag, text)
	case p.Addr().Is4() == v6:
		return p, fmt.Errorf("%s %s: Docker asked for the other address family", flag, text)
	case p != p.Masked():
		return p, fmt.Errorf("%s %s: has bits set beyond its length; did you mean %s?", flag, text, p.Masked())
	}
	return p, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// parseAddress reads an address that Docker sent for a pool.
func parseAddress(pool netip.Prefix, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return a, fmt.Errorf("address %q: not an IP address", text)
	}
	if a = a.Unmap().WithZone(""); !pool.Contains(a) {
		return a, fmt.Errorf("address %s: is not part of subnet %s", a, pool)
	}
	return a, nil
}
