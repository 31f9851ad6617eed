package cluster

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// MAC is a hardware address as a comparable value. The zero value means none.
type MAC [6]byte

// ParseMAC reads the usual colon notation of a 48-bit address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("parse MAC address %q: need six hexadecimal pairs", s)
	}
	return MAC(hw), nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsZero reports whether m is the zero value.
func (m MAC) IsZero() bool { return m == MAC{} }

// MarshalText and UnmarshalText make JSON carry the colon notation.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

func (m *MAC) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*m = MAC{}
		return nil
	}
	v, err := ParseMAC(string(b))
	*m = v
	return err
}

// EndpointID is Docker's endpoint id, 32 bytes in hexadecimal there. A new one
// is made at every container start. The zero value marks a Record that says
// only "this host holds the network".
type EndpointID [16]byte

// EndpointIDOf takes the first half of Docker's 64 hex digits; shorter or
// other strings (tests, other engines) are padded or cut byte for byte.
func EndpointIDOf(s string) EndpointID {
	var id EndpointID
	if len(s) >= 32 {
		if _, err := hex.Decode(id[:], []byte(s[:32])); err == nil {
			return id
		}
	}
	copy(id[:], s)
	return id
}

func (e EndpointID) String() string               { return hex.EncodeToString(e[:]) }
func (e EndpointID) MarshalText() ([]byte, error) { return []byte(e.String()), nil }
func (e *EndpointID) UnmarshalText(b []byte) error {
	if len(b) != 32 {
		return fmt.Errorf("parse endpoint id %q: need 32 hexadecimal digits", b)
	}
	_, err := hex.Decode(e[:], b)
	return err
}

// Record is one fact that a host publishes about itself: an endpoint that it
// runs, a block that it keeps (Claim), or, with a zero Endpoint, that it holds the network at all (so that
// broadcast is replicated to it). Only the owner writes it. Records are
// comparable values.
type Record struct {
	Network  uint32     `json:"network"` // Network.ID in the Registry
	Endpoint EndpointID `json:"endpoint"`
	MAC      MAC        `json:"mac"`
	IPv4     netip.Addr `json:"ipv4"` // zero when the endpoint has none
	IPv6     netip.Addr `json:"ipv6"`
	Lease4   uint64     `json:"lease4"` // lease that covers IPv4; the higher one wins a conflict
	Lease6   uint64     `json:"lease6"`
	Name     string     `json:"name,omitempty"` // container name, where the engine tells it
	// Claim makes the record one about a block that the host keeps; all other
	// fields are zero then. Others hold new grants against it.
	Claim Claim `json:"claim,omitzero"`
}

// RecordKey identifies a record within its owner's stream.
type RecordKey struct {
	Network  uint32
	Endpoint EndpointID
	Claim    uint64 // lease number of a claim
}

// Key returns the identity of r within its owner's stream.
func (r Record) Key() RecordKey { return RecordKey{r.Network, r.Endpoint, r.Claim.Lease} }

// Stream is everything one host says about itself, at one version. Versions of
// one owner are ordered by (Epoch, Seq); the newer one replaces the older.
type Stream struct {
	Owner   HostID
	Epoch   uint32
	Seq     uint64
	Info    HostInfo
	Records map[RecordKey]Record // not to be changed by receivers
}
