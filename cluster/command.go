package cluster

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
)

// Command is one request to change the Registry. Exactly one of the pointers
// is set. Host, Session and Request are stamped by the ledger; Apply refuses a
// session that is not the host's newest (but for Hello), and answers a Request
// that it has answered before with the same Result.
type Command struct {
	Host    HostID `json:"host"`
	Session uint64 `json:"session,omitempty"`
	Request uint64 `json:"request,omitempty"` // increases per host and session

	Found         *Found         `json:"found,omitempty"`
	Hello         *Hello         `json:"hello,omitempty"`
	AttachPool    *AttachPool    `json:"attachPool,omitempty"`
	DetachPool    *DetachPool    `json:"detachPool,omitempty"`
	SetGateway    *SetGateway    `json:"setGateway,omitempty"`
	Reserve       *Reserve       `json:"reserve,omitempty"`
	Grant         *Grant         `json:"grant,omitempty"`
	GrantExact    *GrantExact    `json:"grantExact,omitempty"`
	Release       *Release       `json:"release,omitempty"`
	AttachNetwork *AttachNetwork `json:"attachNetwork,omitempty"`
	DetachNetwork *DetachNetwork `json:"detachNetwork,omitempty"`
	Forget        *Forget        `json:"forget,omitempty"`
	Confirm       *Confirm       `json:"confirm,omitempty"`
	Leave         *Leave         `json:"leave,omitempty"`
	Dissolve      *Dissolve      `json:"dissolve,omitempty"`
	Rebuild       *Rebuild       `json:"rebuild,omitempty"`
}

// Found is the first command of a log: it names the cluster.
type Found struct {
	Cluster ID `json:"cluster"`
}

// Hello registers a host, or a new run of it, and opens a new session: the
// index at which it is applied. A live host of the same Name under another ID
// is refused with NameTaken, and a known identity on another machine with
// Clone. One that is prepared for another generation of the registry is refused
// with OtherGen, which names the right one: whoever is let in by a registry that
// was rebuilt must have let go of what a lost log had leased to it.
type Hello struct {
	PublicKey ed25519.PublicKey `json:"publicKey"`
	Nonce     uint64            `json:"nonce"` // drawn at start; tells a repeated Hello from a new one
	Name      string            `json:"name"`
	VTEP      netip.Addr        `json:"vtep"`
	Address   netip.AddrPort    `json:"address"`
	Machine   Machine           `json:"machine"`
	Gen       uint64            `json:"gen,omitempty"` // of the Registry that the host is prepared for; 0 is 1: it was never rebuilt
	// Claims are the blocks that the host keeps as active. They count after a
	// Rebuild only, in the first Hello of the host to the new registry: those
	// that overlap no other lease are leased to it again, under their number.
	Claims []Claim `json:"claims,omitempty"`
}

// AttachPool creates a pool, or joins the host to it. A valid Prefix names the
// pool; otherwise the cluster picks: the pool already called Name for this
// family, else the first prefix of From, cut to Bits, that overlaps neither a
// pool of the space nor a prefix of Avoid. Overlap with an unequal pool of the
// space is refused (Overlap).
type AttachPool struct {
	Space  string         `json:"space,omitempty"`
	Prefix netip.Prefix   `json:"prefix"`
	Name   string         `json:"name,omitempty"`
	V6     bool           `json:"v6,omitempty"`
	From   []netip.Prefix `json:"from,omitempty"`
	Bits   int            `json:"bits,omitempty"`
	Avoid  []netip.Prefix `json:"avoid,omitempty"`
}

// DetachPool takes the host off a pool. The pool itself is dropped when it has
// no holder, no lease and no network.
type DetachPool struct {
	Pool PoolKey `json:"pool"`
}

// SetGateway fixes the gateway of a pool: Addr, or the first usable address
// when Addr is zero. The first one wins; another is refused (Contradiction).
// An address inside a lease of another host is refused (Held).
type SetGateway struct {
	Pool PoolKey    `json:"pool"`
	Addr netip.Addr `json:"addr"`
}

// Reserve keeps an auxiliary address from ever being given to an endpoint.
type Reserve struct {
	Pool PoolKey    `json:"pool"`
	Addr netip.Addr `json:"addr"`
}

// Grant leases a free block of a pool to the host: the next free aligned block
// of at most Want addresses (rounded up to a power of two), inside Range when
// that is valid, never more than the pool's size / (2 * holders), at least one
// address. A pool without a free address is refused (Full).
//
// After a Rebuild nothing is leased of the pools of a network that does not fence
// by the VTEP while a host was not heard (Unheard): it may still use what the
// lost log leased to it.
type Grant struct {
	Pool  PoolKey      `json:"pool"`
	Range netip.Prefix `json:"range"`
	Want  int          `json:"want"`
}

// GrantExact leases the one address Addr. An address inside a lease of another
// host is refused (Held), naming the holder. Unheard is as with Grant.
type GrantExact struct {
	Pool PoolKey    `json:"pool"`
	Addr netip.Addr `json:"addr"`
}

// Release gives a lease back, or, with a valid Addr, that one address of it
// (Lease.Without). A lease that is not the host's is refused (NotHeld); one
// that does not exist is answered with success. A lease that covers no usable
// address any more ends.
type Release struct {
	Lease uint64     `json:"lease"`
	Addr  netip.Addr `json:"addr,omitzero"`
}

// AttachNetwork creates the network of these pools, or joins the host to it.
// The first definition wins; one that contradicts it is refused
// (Contradiction), naming both. A VNI in use by another network is refused.
type AttachNetwork struct {
	Pools []PoolKey  `json:"pools"`
	Def   Definition `json:"definition"`
}

// DetachNetwork takes the host off a network. The network itself is dropped
// when no host holds it and no lease of its pools is left.
type DetachNetwork struct {
	Network uint32 `json:"network"`
}

// Forget takes a host out of the cluster for good: its identity is never let in
// again (Forgotten), it holds no pool and no network any more, and its leases
// are free. Leases in networks whose frames cannot be fenced by the VTEP stay
// with it, in quarantine, until the host itself says Confirm, or an operator
// says Dead: that it is off and will not come back. Any host may say it, any
// number of times. A host cannot forget itself (Invalid): that is Leave.
type Forget struct {
	Host HostID `json:"host"`
	Dead bool   `json:"dead,omitempty"`
}

// Confirm is the last word of a forgotten host: none of its containers uses an
// address of the cluster any more. It needs no session.
//
// A clone of the host, which cannot know whether the original still runs, is
// refused (Clone).
type Confirm struct {
	Machine Machine `json:"machine"`
}

// Leave takes the sender out of the cluster, with all that it holds. Its
// identity is not remembered. A host that still holds a network is refused
// (InUse); one that is not known has left already.
type Leave struct{}

// Dissolve ends a cluster without pools, whose hosts then join the cluster
// Into, members of which are at At. It is the last command of its log: any
// later one is refused (Dissolved). A cluster with pools is refused (InUse).
type Dissolve struct {
	Into ID               `json:"into"`
	At   []netip.AddrPort `json:"at"`
}

// Rebuild is the first command of a log that replaces one that was lost: the
// registry as it could be put together again, with its Gen and its Offset
// raised and without sessions. It becomes the state as it is, but for Index,
// which follows from Offset. Hosts that do not say Hello to it are fenced.
type Rebuild struct {
	Registry *Registry `json:"registry"`
}

// Result is the answer to a Command: what it made, or why not.
type Result struct {
	Index   uint64   `json:"index"`
	Pool    Pool     `json:"pool,omitzero"`
	Lease   Lease    `json:"lease,omitzero"`
	Network Network  `json:"network,omitzero"`
	Leases  []Lease  `json:"leases,omitempty"` // of Hello: all leases of the host; of Forget: those in quarantine
	Refused *Refusal `json:"refused,omitempty"`
}

// Code says why a command was refused, for callers that branch on it.
type Code string

const (
	StaleSession  Code = "stale-session"
	UnknownHost   Code = "unknown-host"
	Forgotten     Code = "forgotten"
	NameTaken     Code = "name-taken"
	UnknownPool   Code = "unknown-pool"
	UnknownNet    Code = "unknown-network"
	Overlap       Code = "overlap"
	Contradiction Code = "contradiction"
	Held          Code = "held"
	NotHeld       Code = "not-held"
	Full          Code = "full"
	OutOfRange    Code = "out-of-range"
	Invalid       Code = "invalid"
	Clone         Code = "clone"            // the identity belongs to another machine
	InUse         Code = "in-use"           // what is to go is still held
	Dissolved     Code = "dissolved"        // the cluster ended
	OtherGen      Code = "other-generation" // the registry was rebuilt since, see Refusal.Gen
	Unheard       Code = "unheard"          // of a host that must be heard first since the registry was rebuilt
)

// Refusal is a command's error: deterministic, the same on every host. Text
// names the cause and the remedy; Holders lists who is in the way.
type Refusal struct {
	Code    Code     `json:"code"`
	Text    string   `json:"text"`
	Holders []HostID `json:"holders,omitempty"`
	Gen     uint64   `json:"gen,omitempty"` // of the registry, with OtherGen
}

func (r *Refusal) Error() string { return r.Text }

// Refuse makes a Refusal.
func Refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Text: fmt.Sprintf(format, args...)}
}
