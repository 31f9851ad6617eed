package dhcp

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// Request says for whom an address is wanted, and where.
type Request struct {
	Interface string      `json:"interface"`          // parent, in the host's namespace
	ClientID  []byte      `json:"client_id"`          // option 61 with its type octet; required, see Identity
	MAC       cluster.MAC `json:"mac,omitzero"`       // chaddr; zero: the parent's own
	Hostname  string      `json:"hostname,omitempty"` // for the server's name service; letters that DNS does not know are replaced
	Addr      netip.Addr  `json:"addr,omitzero"`      // wanted, or zero; the server may give another one
}

// Lease is what a server gave. It is plain data, to be stored and resumed.
type Lease struct {
	Request
	Prefix    netip.Prefix `json:"prefix"`          // Request.Addr and the subnet's length
	Router    netip.Addr   `json:"router,omitzero"` // default gateway; zero: none
	DNS       []netip.Addr `json:"dns,omitempty"`
	Domain    string       `json:"domain,omitempty"`
	MTU       int          `json:"mtu,omitempty"`    // 0: not said
	Server    netip.Addr   `json:"server"`           // its identifier, option 54
	ServerMAC cluster.MAC  `json:"server_mac"`       // of the server, or of the relay on the way to it
	Granted   time.Time    `json:"granted"`          // when the newest answer was asked for
	Renew     time.Time    `json:"renew,omitzero"`   // T1: from when on the server is asked
	Rebind    time.Time    `json:"rebind,omitzero"`  // T2: from when on any server is asked
	Expires   time.Time    `json:"expires,omitzero"` // zero: never, nor Renew and Rebind
}

// Expired reports whether the lease has ended.
func (l Lease) Expired(now time.Time) bool { return !l.Expires.IsZero() && !now.Before(l.Expires) }

// again is the request that would bring the same lease.
func (l Lease) again() Request {
	r := l.Request
	r.Addr = l.Prefix.Addr()
	return r
}

// Identity makes a client identifier out of words that name a container: the
// same for the same words, different for all others.
func Identity(words ...string) []byte {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return append([]byte{0}, sum[:16]...) // type 0: no hardware address (RFC 2132 section 9.14)
}

// MACIdentity is the client identifier that a machine with this MAC has by
// default, so that reservations by MAC apply to a container that was given one.
func MACIdentity(mac cluster.MAC) []byte { return append([]byte{1}, mac[:]...) }

// MACOf makes a locally administered MAC out of a client identifier, for
// containers that get the MAC of their lease.
func MACOf(clientID []byte) cluster.MAC {
	sum := sha256.Sum256(slices.Concat([]byte("mac"), clientID))
	mac := cluster.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// hostname makes a DNS label of a container's name.
func hostname(name string) string {
	label := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
	label = strings.Trim(label[:min(len(label), 63)], "-")
	return label
}
