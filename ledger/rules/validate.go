package rules

import (
	"crypto/ed25519"
	"net/netip"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// Validate checks all that can be said of a command without a registry. Apply
// does it too; a proposer that calls it first spares the way to the voter.
func Validate(c cluster.Command) *cluster.Refusal {
	set := 0
	for _, present := range []bool{
		c.Found != nil, c.Hello != nil, c.AttachPool != nil, c.DetachPool != nil, c.SetGateway != nil, c.Reserve != nil,
		c.Grant != nil, c.GrantExact != nil, c.Release != nil, c.AttachNetwork != nil, c.DetachNetwork != nil,
		c.Forget != nil, c.Confirm != nil, c.Leave != nil, c.Dissolve != nil, c.Rebuild != nil,
	} {
		if present {
			set++
		}
	}
	if set != 1 {
		return cluster.Refuse(cluster.Invalid, "the command carries %d orders that this version knows, not one: run the same version of isthmus on all hosts", set)
	}
	switch {
	case c.Found != nil:
		if c.Found.Cluster == "" {
			return cluster.Refuse(cluster.Invalid, "a cluster cannot be founded without an id")
		}
		return nil
	case c.Hello != nil:
		return validHello(c.Host, *c.Hello)
	case c.Rebuild != nil:
		if c.Rebuild.Registry == nil {
			return cluster.Refuse(cluster.Invalid, "a cluster cannot be rebuilt without a registry")
		}
		return nil
	case c.Confirm != nil:
		if c.Host == "" {
			return cluster.Refuse(cluster.Invalid, "the command carries no host")
		}
		return nil
	case c.Host == "" || c.Request == 0:
		return cluster.Refuse(cluster.Invalid, "the command carries no host or no request number")
	case c.AttachPool != nil:
		return validAttach(*c.AttachPool)
	case c.DetachPool != nil:
		return validKey(c.DetachPool.Pool)
	case c.SetGateway != nil:
		return validKey(c.SetGateway.Pool)
	case c.Reserve != nil:
		return validAddr(c.Reserve.Pool, c.Reserve.Addr)
	case c.Grant != nil:
		return validKey(c.Grant.Pool)
	case c.GrantExact != nil:
		return validAddr(c.GrantExact.Pool, c.GrantExact.Addr)
	case c.AttachNetwork != nil:
		return validNetwork(*c.AttachNetwork)
	case c.Forget != nil && c.Forget.Host == "":
		return cluster.Refuse(cluster.Invalid, "the request names no host to remove")
	case c.Dissolve != nil && c.Dissolve.Into == "":
		return cluster.Refuse(cluster.Invalid, "the request names no cluster to dissolve into")
	}
	return nil
}

func validHello(id cluster.HostID, c cluster.Hello) *cluster.Refusal {
	switch {
	case len(c.PublicKey) != ed25519.PublicKeySize:
		return cluster.Refuse(cluster.Invalid, "host %s sent a public key of %d bytes, not %d", id.Short(), len(c.PublicKey), ed25519.PublicKeySize)
	case cluster.HostIDOf(c.PublicKey) != id:
		return cluster.Refuse(cluster.Invalid, "host %s is not the one that its public key says (%s)", id.Short(), cluster.HostIDOf(c.PublicKey).Short())
	case strings.TrimSpace(c.Name) == "" || len(c.Name) > 255:
		return cluster.Refuse(cluster.Invalid, "the host name %q is empty or longer than 255 bytes: set NODE_NAME", c.Name)
	}
	return nil
}

func validAttach(c cluster.AttachPool) *cluster.Refusal {
	if why := validSpace(c.Space); why != nil {
		return why
	}
	if c.Prefix.IsValid() {
		return validPrefix(c.Prefix)
	}
	width := 32
	if c.V6 {
		width = 128
	}
	for _, p := range c.From {
		if !p.IsValid() || p.Addr().BitLen() != width || c.Bits < p.Bits() || c.Bits > width {
			return cluster.Refuse(cluster.Invalid, "pools of length /%d cannot be cut from %s", c.Bits, p)
		}
		if why := validPrefix(p); why != nil {
			return why
		}
	}
	return nil
}

func validSpace(s string) *cluster.Refusal {
	ok := len(s) <= 64
	for _, c := range s {
		ok = ok && c < 0x80 && (c == '.' || c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if !ok {
		return cluster.Refuse(cluster.Invalid, "the address space %q needs at most 64 of the characters a-z, A-Z, 0-9, '.', '_' and '-'", s)
	}
	return nil
}

// notForContainers lists what no container can have an address of: this network, the
// host itself, multicast, and IPv6 addresses of one link or with an IPv4
// address inside.
var notForContainers = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

func validPrefix(p netip.Prefix) *cluster.Refusal {
	if !p.IsValid() || p.Addr().Is4In6() {
		return cluster.Refuse(cluster.Invalid, "%s is not a subnet", p)
	}
	for _, no := range notForContainers {
		if p.Overlaps(no) {
			return cluster.Refuse(cluster.Invalid, "%s is not a range that containers can use, since it overlaps %s: choose another --subnet", p, no)
		}
	}
	return nil
}

func validKey(k cluster.PoolKey) *cluster.Refusal {
	if why := validSpace(k.Space); why != nil {
		return why
	}
	return validPrefix(k.Prefix)
}

func validAddr(k cluster.PoolKey, a netip.Addr) *cluster.Refusal {
	if why := validKey(k); why != nil {
		return why
	}
	if !a.IsValid() {
		return cluster.Refuse(cluster.Invalid, "the request names no address of pool %s", k)
	}
	return nil
}

func validNetwork(c cluster.AttachNetwork) *cluster.Refusal {
	if len(c.Pools) == 0 {
		return cluster.Refuse(cluster.Invalid, "a network needs at least one pool")
	}
	for _, k := range c.Pools {
		if why := validKey(k); why != nil {
			return why
		}
		if k.Space != c.Pools[0].Space {
			return cluster.Refuse(cluster.Invalid, "the pools %s and %s of one network are in different address spaces: give all of them the same --ipam-opt space=NAME", c.Pools[0], k)
		}
	}
	if c.Def.VNI > MaxVNI {
		return cluster.Refuse(cluster.Invalid, "VNI %d is out of range: choose one from 1 to %d", c.Def.VNI, MaxVNI)
	}
	return nil
}
