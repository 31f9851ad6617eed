package ledger

import "github.com/isthmus-net/isthmus/cluster"

// Boot says what this host may believe of its own disk in this run. It changes
// with time; Subscribe tells.
func (l *Ledger) Boot() cluster.Boot {
	return cluster.Boot{Settled: l.Fresh()}
}
