package kernel

// Options bound what Diff may do.
type Options struct {
	// KeepRemote keeps FDB and neighbour entries that nobody wants, as long as
	// their link is wanted: what was learned from other hosts is not pruned
	// before the view of the cluster has settled.
	KeepRemote bool
	// KeepLinks keeps links that nobody wants, and all that stands on them:
	// for a caller whose own plan is not complete yet.
	KeepLinks bool
}

// Diff computes what turns have into want.
func Diff(have, want State, o Options) []Op { return nil }

// Recreated names the links that ops create.
func Recreated(ops []Op) []string { return nil }
