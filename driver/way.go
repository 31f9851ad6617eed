package driver

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Way is how another host is reached without a tunnel, as this host sees it.
type Way struct {
	Via    netip.Addr // next hop: the host itself, or a router; invalid: there is none
	Dev    string
	Routed bool   // Via is a router: it must know where the host's blocks are
	Native bool   // probes of an address inside of the host's blocks are answered
	Why    string // why not
}

// PeerWay is how the block of another host is reached, for people.
type PeerWay struct {
	Host  string       `json:"host"`
	Block netip.Prefix `json:"block"`
	By    string       `json:"by"` // native, or the fallback: vxlan, ipip, gre
	Via   netip.Addr   `json:"via,omitzero"`
	Dev   string       `json:"dev,omitempty"`
	Why   string       `json:"why,omitempty"` // it is not native
}

// why says why a block is not reached natively.
func (w Way) why(v View, host cluster.HostID, v4 bool) string {
	switch vtep := v.vtepOf(host); {
	case !vtep.IsValid():
		return "it does not say its underlay address"
	case vtep.Is4() != v4:
		return fmt.Sprintf("its underlay address %s is not of that family", vtep)
	case w.Routed:
		return fmt.Sprintf("it is behind router %s", w.Via)
	}
	return w.Why
}

// A way is believed after so many answers in a row, and given up after so many
// misses: at one probe a second a change shows within 3 s, and a lost packet alone
// moves nothing.
const (
	believe = 2
	giveUp  = 3
)

// verdict is what the probes of one host came to. The zero verdict is none yet.
type verdict struct {
	native, known   bool
	answers, misses int
	via             netip.Addr // for which it holds
}

// judge adds a probe's outcome by a next hop. Another next hop is another way, that
// has yet to show itself.
func (j verdict) judge(via netip.Addr, answered bool) verdict {
	if j.via != via {
		j = verdict{via: via}
	}
	if answered {
		j.answers, j.misses = j.answers+1, 0
		if j.answers >= believe {
			j.native, j.known = true, true
		}
		return j
	}
	j.answers, j.misses = 0, j.misses+1
	if j.misses >= giveUp {
		j.native, j.known = false, true
	}
	return j
}

// seed takes from the kernel which hosts are routed to natively: what a process
// before this one found is good until a probe says otherwise.
func seed(have kernel.State, via netip.Addr) verdict {
	for _, o := range have {
		if r, ok := o.(kernel.FIB); ok && r.Via == via && !r.Onlink && r.Dst.Bits() < r.Dst.Addr().BitLen() {
			return verdict{native: true, known: true, via: via}
		}
	}
	return verdict{via: via}
}
