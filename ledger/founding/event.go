package founding

import (
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
)

// Promise is what a host recorded for one that founds a cluster.
type Promise struct {
	Cluster cluster.ID     `json:"cluster"`
	Founder cluster.HostID `json:"founder"`
	Name    string         `json:"name"` // of the founder
	At      netip.AddrPort `json:"at"`
}

// Answer is what a host says of itself.
type Answer struct {
	Host    cluster.HostID `json:"host"`
	Name    string         `json:"name"`
	Cluster cluster.ID     `json:"cluster,omitempty"` // "": none
	Empty   bool           `json:"empty,omitempty"`   // that cluster has no pools
	Founds  cluster.ID     `json:"founds,omitempty"`  // what it is about to found
	Promise Promise        `json:"promise,omitzero"`
}

// Event is something that happened to the host.
type Event interface{ event() }

type (
	// Want says that a command waits for a cluster.
	Want struct{}
	// Sated says that none does any more.
	Sated struct{}
	// Tick says that it is time to ask again. Fresh is an id that nobody has.
	Tick struct{ Fresh cluster.ID }
	// Answered is the end of an Ask: what the peer said, or why it said nothing.
	Answered struct {
		Peer   string
		At     netip.AddrPort // that was asked, where it is known
		Self   bool           // the peer is this host
		Answer Answer
		Err    string
	}
	// Recorded is the end of a Record. Not OK without Err is an objection,
	// which Answer explains.
	Recorded struct {
		Peer    string
		Cluster cluster.ID
		OK      bool
		Answer  Answer
		Err     string
	}
	// Persuaded is the end of a Persuade.
	Persuaded struct {
		Peer   string
		Answer Answer
		Err    string
	}
	// Founded is the end of a Found, which failed for Err; "" for success.
	Founded struct{ Err string }
	// Entered is the end of an Enter.
	Entered struct{ Err string }
	// Asked is the request of a founder to record its promise. Token returns in
	// the Reply.
	Asked struct {
		Promise Promise
		Force   bool
		Token   any
	}
	// Heard says that a member of a cluster asked this host something.
	Heard struct{ At netip.AddrPort }
)

func (Want) event()      {}
func (Sated) event()     {}
func (Tick) event()      {}
func (Answered) event()  {}
func (Recorded) event()  {}
func (Persuaded) event() {}
func (Founded) event()   {}
func (Entered) event()   {}
func (Asked) event()     {}
func (Heard) event()     {}

// Effect is something that the host is to do. Each Ask, Record, Persuade,
// Found and Enter is answered by its event, in any order; the others are done
// before anything that follows them.
type Effect interface{ effect() }

type (
	// Ask a peer who it is.
	Ask struct{ Peer string }
	// Persuade asks a peer to found a cluster.
	Persuade struct{ Peer string }
	// Record asks a peer to record a promise. Founder, name and address are this
	// host's.
	Record struct {
		Peer    string
		Cluster cluster.ID
		Force   bool
	}
	// Keep writes a promise to disk; the zero value deletes it.
	Keep struct{ Promise Promise }
	// Reply answers Asked, after Keep.
	Reply struct {
		Token any
		OK    bool
	}
	// Found a cluster, with this host as its only voter.
	Found struct{ Cluster cluster.ID }
	// Enter a cluster, which these peers belong to.
	Enter struct {
		Cluster cluster.ID
		Peers   []string
	}
)

func (Ask) effect()      {}
func (Persuade) effect() {}
func (Record) effect()   {}
func (Keep) effect()     {}
func (Reply) effect()    {}
func (Found) effect()    {}
func (Enter) effect()    {}
