package ledger

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

const (
	// bootTime is how long a start waits for what others testify.
	bootTime = 1200 * time.Millisecond
	// Hosts that did not testify are asked again, some at a time.
	testifyEvery = 5 * time.Second
	testifyMost  = 16
)

// source is where a testimony may be had: a host that is known, or an entry of
// JOIN.
type source struct {
	host  cluster.HostID
	entry string
}

// witnesses lists who may know better than this disk, and where: the hosts of
// the registry, those that UpdateAddresses knows, and the entries of JOIN, since
// the copy may be from before they were met. A host that has nothing stored
// needs nobody.
func (l *Ledger) witnesses() map[source][]netip.AddrPort {
	out := map[source][]netip.AddrPort{}
	registry := l.Registry()
	if l.boot.bare && registry.Cluster == "" {
		return out
	}
	for id, places := range l.others(registry) {
		out[source{host: id}] = places
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, at := range l.addresses {
		if _, known := registry.Hosts[id]; !known && id != l.cfg.Host && at.IsValid() {
			out[source{host: id}] = []netip.AddrPort{at}
		}
	}
	for _, entry := range l.cfg.Join {
		out[source{entry: entry}] = nil
	}
	return out
}

// askWitnesses asks the others what they know of this host, until all have
// answered, or the cluster has confirmed the run.
func (l *Ledger) askWitnesses(ctx context.Context) {
	heard := map[source]bool{}
	for round := 0; ctx.Err() == nil && !l.Fresh(); round++ {
		asking := l.witnesses()
		maps.DeleteFunc(asking, func(s source, _ []netip.AddrPort) bool { return heard[s] })
		if round > 0 {
			few := slices.Collect(maps.Keys(asking))
			rand.Shuffle(len(few), func(i, j int) { few[i], few[j] = few[j], few[i] })
			for _, s := range few[min(testifyMost, len(few)):] {
				delete(asking, s)
			}
		}
		maps.Copy(heard, l.hear(ctx, asking))
		l.mu.Lock()
		if !l.boot.settled && ctx.Err() == nil {
			l.boot.settled = true
			l.notify()
		}
		l.mu.Unlock()
		l.wait(ctx, nil, testifyEvery)
	}
}

// awaitWitnesses waits until the start is settled; false when ctx ended.
func (l *Ledger) awaitWitnesses(ctx context.Context) bool {
	for {
		changed := l.watch()
		if l.Boot().Settled {
			return true
		}
		if !l.wait(ctx, changed, bootTime) {
			return false
		}
	}
}

// hear asks at the same time, for at most bootTime, and returns the sources
// that need not be asked again.
func (l *Ledger) hear(ctx context.Context, from map[source][]netip.AddrPort) map[source]bool {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	var mu sync.Mutex
	heard := map[source]bool{}
	var wg sync.WaitGroup
	note := func(s source) {
		mu.Lock()
		defer mu.Unlock()
		heard[s] = true
	}
	ask := func(s source, at netip.AddrPort) {
		t, err := call[witnessRequest, testimony](ctx, l, at, witnessMethod, witnessRequest{l.cfg.Host})
		if err == nil {
			note(s)
			note(source{host: t.By})
			l.testified(at, t)
		}
	}
	for s, places := range from {
		for _, at := range places {
			wg.Go(func() { ask(s, at) })
		}
		if s.entry != "" {
			wg.Go(func() {
				places, _ := transport.Resolve(ctx, []string{s.entry}, l.cfg.Port)
				if l.isSelf(places) {
					note(s)
					return
				}
				for _, at := range places {
					wg.Go(func() { ask(s, at) })
				}
			})
		}
	}
	wg.Wait()
	return heard
}

// testified takes in what a host said of this one.
func (l *Ledger) testified(at netip.AddrPort, t testimony) {
	registry := l.Registry()
	if t.Run == l.nonce || t.Cluster != "" && t.Cluster != l.ID() && l.ID() != "" {
		return // this very run, or none of this cluster
	}
	who := at.String()
	if h, known := registry.Hosts[t.By]; known {
		who = h.Name
	}
	later := ""
	if l.cfg.Claims != nil && t.By != l.cfg.Host {
		later = leasedLater(l.cfg.Claims(), t.Claims)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := t.Witness
	if b := l.boot.witness; w.Gen > b.Gen || w.Gen == b.Gen && w.Index > b.Index {
		l.boot.witness = w
	}
	was := l.boot.standing
	switch {
	case t.By == l.cfg.Host:
		l.boot.seen = fmt.Sprintf("this host runs already at %s: the state here was copied from there; run `isthmus reset` on the copy", at)
	case w.Host.Tombstone:
		l.boot.seen = fmt.Sprintf("%s says that this host was removed from the cluster", who)
	case w.Host.ID == "" && was.Session != 0 && (w.Gen > registry.Gen || w.Gen == registry.Gen && w.Index > registry.Index):
		l.boot.seen = fmt.Sprintf("%s says that the cluster does not know this host any more", who)
	case w.Host.Session > was.Session && w.Host.Nonce != was.Nonce && w.Host.Nonce != l.nonce:
		l.boot.seen = fmt.Sprintf("%s knows session %d of this host, and its own disk ends with session %d: the disk was set back, or a copy of it ran elsewhere", who, w.Host.Session, was.Session)
	case later != "":
		l.boot.seen = fmt.Sprintf("%s was leased addresses of the block %s after this host, whose disk holds it: the disk was set back", who, later)
	}
	l.notify()
}

// leasedLater finds a block of this host of which another keeps addresses that
// it was leased later. Its copy need not include that lease yet.
func leasedLater(own, others []cluster.Claim) string {
	for _, c := range own {
		if slices.ContainsFunc(others, func(o cluster.Claim) bool { return o.Lease > c.Lease && o.Overlaps(c) }) {
			return c.Block.String()
		}
	}
	return ""
}

// witnessMethod asks any host what its copy says of another.
const witnessMethod = "ledger.witness"

type witnessRequest struct {
	Host cluster.HostID `json:"host"`
}

// testimony is what a host says of another, and who it is itself.
type testimony struct {
	cluster.Witness
	By  cluster.HostID `json:"by"`
	Run uint64         `json:"run"` // the nonce of its run
}

func (l *Ledger) serveWitness(_ context.Context, _ cluster.HostID, req witnessRequest) (testimony, error) {
	// The claims first: what they say too little, the copy says.
	var claims []cluster.Claim
	if l.cfg.Claims != nil {
		claims = l.cfg.Claims()
	}
	r := l.Registry()
	w := cluster.Witness{Cluster: r.Cluster, Gen: r.Gen, Index: r.Index, Host: r.Hosts[req.Host], Claims: claims}
	for _, lease := range r.Leases {
		if lease.Holder == req.Host {
			w.Leases = append(w.Leases, lease)
		}
	}
	slices.SortFunc(w.Leases, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	return testimony{w, l.cfg.Host, l.nonce}, nil
}
