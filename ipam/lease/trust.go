package lease

import (
	"fmt"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// Boot takes note of what the host may believe of its own disk (rule H5). It
// is called at the start, and again whenever the ledger knows more, until a
// registry confirms this run. Doubt that was raised once stays until then.
func (m *Machine) Boot(b cluster.Boot) {
	if m.Confirmed {
		return
	}
	m.Settled = m.Settled || b.Settled
	if b.Suspect != "" {
		m.Doubt = b.Suspect // the newest reason is the one that can be acted on
	}
	if m.Doubt == "" {
		m.Doubt = m.setBack(b.Witness)
	}
}

// setBack finds what shows that the disk is older than the testimony of
// another host: an active block whose lease is over, or an address that was
// carved out and is a part of the block here. A lease unknown here proves
// nothing: its answer may have been lost.
func (m *Machine) setBack(w cluster.Witness) string {
	held := map[uint64]cluster.Lease{}
	for _, l := range w.Leases {
		held[l.ID] = l
	}
	for _, key := range m.keys() {
		for _, b := range m.Pools[key].Sorted() {
			if b.Draining || w.Index < b.Lease {
				continue
			}
			l, ok := held[b.Lease]
			if !ok {
				return fmt.Sprintf("its disk holds block %s of subnet %s as its own, which it had given back according to another host: the disk was set back", b.Prefix, b.Pool)
			}
			for _, a := range l.Without {
				if b.Covers(a) {
					return fmt.Sprintf("its disk holds address %s of subnet %s as its own, which it had given back according to another host: the disk was set back", a, b.Pool)
				}
			}
		}
	}
	return ""
}

// Suspect says why nothing stored is used, "" when the disk is trusted.
func (m *Machine) Suspect() string {
	switch {
	case m.Confirmed:
		return ""
	case m.Doubt != "":
		return m.Doubt
	case !m.Settled:
		return "the other hosts have not been asked yet whether its disk is the newest"
	}
	return ""
}

// Untrusted is the error of whatever would use the stored blocks while there
// is doubt about them.
type Untrusted struct{ Reason string }

func (e *Untrusted) Error() string {
	return "the address blocks stored on this host are not trusted: " + e.Reason +
		"; they are used again as soon as the cluster confirms them: see isthmus status, and bring this host in reach of the others"
}

// Gate refuses with *Untrusted while there is doubt about the disk. Every step
// that hands out or gives back asks it.
func (m *Machine) Gate() error {
	if why := m.Suspect(); why != "" {
		return &Untrusted{why}
	}
	return nil
}

func (m *Machine) keys() []cluster.PoolKey {
	keys := make([]cluster.PoolKey, 0, len(m.Pools))
	for key := range m.Pools {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, cluster.ComparePools)
	return keys
}
