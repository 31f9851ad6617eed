package cluster

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"time"
)

// ID names a cluster: 16 hex digits, drawn at random by its founder and the
// same for its whole life. The zero value means "no cluster yet".
type ID string

// HostID names a host for as long as its state lives: 32 hex digits, the first
// half of the SHA-256 of its Ed25519 public key. A host whose state is deleted
// is a new host.
type HostID string

// HostIDOf derives the identity that belongs to a public key.
func HostIDOf(key ed25519.PublicKey) HostID {
	sum := sha256.Sum256(key)
	return HostID(hex.EncodeToString(sum[:16]))
}

// Short returns the first eight digits, for people.
func (h HostID) Short() string {
	if len(h) <= 8 {
		return string(h)
	}
	return string(h[:8])
}

// Machine is what can be read of the machine below a host; it tells a host
// from its clone. Fields that cannot be read are empty.
type Machine struct {
	ID   string `json:"id,omitempty"`   // /etc/machine-id
	UUID string `json:"uuid,omitempty"` // DMI product UUID
	MAC  string `json:"mac,omitempty"`  // hardware address of the underlay link
}

// Host is one host as the cluster agreed on it.
type Host struct {
	ID        HostID            `json:"id"`
	Name      string            `json:"name"`
	PublicKey ed25519.PublicKey `json:"publicKey"`
	Session   uint64            `json:"session"` // log index of its newest Hello; commands of older sessions are refused; 0: not heard since Gen
	Gen       uint64            `json:"gen"`     // of the Registry at its newest Hello
	Nonce     uint64            `json:"nonce"`   // of that Hello
	VTEP      netip.Addr        `json:"vtep"`
	Address   netip.AddrPort    `json:"address"` // where its gossip, records, raft and RPC are served
	Machine   Machine           `json:"machine"`
	Tombstone bool              `json:"tombstone,omitempty"`
	// Unheard marks a forgotten host that was not heard since the registry was
	// rebuilt, and of which nobody said that it is off: its containers may use
	// what the lost log leased to it.
	Unheard bool `json:"unheard,omitempty"`
	// Replaced names the identity that took over name and address, when the
	// host was installed anew without its state. This one has no session, is
	// named NAME-SHORTID, and keeps its leases until it is forgotten.
	Replaced HostID `json:"replaced,omitempty"`
}

// HostInfo is what a host says of itself to all others by gossip.
type HostInfo struct {
	Name    string     `json:"name"`
	VTEP    netip.Addr `json:"vtep"`
	MTU     int        `json:"mtu"` // MTU in bytes of the underlay link towards the cluster
	Version string     `json:"version"`
}

// MemberState is what membership believes about a host.
type MemberState string

const (
	Alive  MemberState = "alive"
	Failed MemberState = "failed" // not answering; its records are suspended, not dropped
	Left   MemberState = "left"   // said good-bye

	// Waiting is not membership's word: the host answers, and there is no
	// cluster yet that either could be a member of.
	Waiting MemberState = "waiting"
)

// Member is one host as heard by gossip.
type Member struct {
	ID      HostID         `json:"id"`
	Address netip.AddrPort `json:"address"`
	State   MemberState    `json:"state"`
	Since   time.Time      `json:"since"` // of State
	Info    HostInfo       `json:"info"`
}

// Witness is what one host can say of another whose disk may have been set
// back: the state of its own copy of the registry, and what is in it.
type Witness struct {
	Cluster ID      `json:"cluster,omitempty"`
	Gen     uint64  `json:"gen"`
	Index   uint64  `json:"index"`
	Host    Host    `json:"host"`             // as registered in that copy, zero when unknown
	Leases  []Lease `json:"leases,omitempty"` // of that host, by number
	// Claims are the blocks that the witness itself keeps. Its copy may lag
	// behind them.
	Claims []Claim `json:"claims,omitempty"`
}

// Boot is what a host may believe of its own disk after a start.
type Boot struct {
	Settled bool    // those in reach have answered, or nobody did in time; or the cluster has confirmed this run
	Suspect string  // why stored blocks must not be used before the cluster confirms them; "" for no reason
	Witness Witness // the newest testimony of others; zero when there is none
}
