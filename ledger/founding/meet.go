package founding

import "github.com/isthmus-net/isthmus/cluster"

// Verdict is what a cluster does about another that it met. They never merge.
type Verdict string

const (
	Stay     Verdict = "stay"     // the other dissolves into this one
	Dissolve Verdict = "dissolve" // this one dissolves into the other
	Apart    Verdict = "apart"    // both go on, and refuse each other
)

// Meet judges two clusters, of which one may be empty: have no pools. Both come
// to answers that fit each other.
func Meet(own cluster.ID, empty bool, other cluster.ID, otherEmpty bool) Verdict {
	switch {
	case !empty && !otherEmpty:
		return Apart
	case empty && (!otherEmpty || other < own):
		return Dissolve
	}
	return Stay
}
