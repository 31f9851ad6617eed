package ledger

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	// bootTime is how long a start waits for what others testify.
	bootTime = 1200 * time.Millisecond
	// Hosts that did not testify are asked again, some at a time.
	testifyEvery = 5 * time.Second
	testifyMost  = 16
)

var standingKey = []byte("session") // standing

// standing is what this host knows on its own of its newest session, and of the
// machine that it ran on. The nonce is stored before the Hello is said, and the
// session before it is used: who knows of a newer session under another nonce
// knows more than this disk.
type standing struct {
	Session uint64          `json:"session"`
	Nonce   uint64          `json:"nonce"`
	Machine cluster.Machine `json:"machine"`
}

// boot is what a run found out about the disk that it started from.
type boot struct {
	settled  bool
	standing standing // as it was at the start
	machine  string   // why this may be a copy on another machine
	seen     string   // why this may be an older state
	witness  cluster.Witness
}

// openBoot looks at what the disk alone says.
func (l *Ledger) openBoot() error {
	if err := l.read(standingKey, &l.boot.standing); err != nil {
		return err
	}
	l.stands = l.boot.standing
	l.boot.settled = len(l.others(l.Registry())) == 0
	l.boot.machine = otherMachine(l.boot.standing.Machine, l.cfg.Self.Machine)
	if h, ok := l.Registry().Hosts[l.cfg.Host]; ok {
		l.boot.machine = cmp.Or(l.boot.machine, otherMachine(h.Machine, l.cfg.Self.Machine))
		if h.Session > l.boot.standing.Session {
			l.boot.standing.Session, l.boot.standing.Nonce = h.Session, h.Nonce
		}
	}
	return nil
}

// otherMachine says by what a machine is another than the one that was, as far
// as both are known. It is stricter than the rule by which the cluster tells a
// clone: a doubt ends with the Hello, a refusal does not.
func otherMachine(was, is cluster.Machine) string {
	for _, f := range []struct{ what, was, is string }{
		{"machine id", was.ID, is.ID}, {"product UUID", was.UUID, is.UUID}, {"MAC address", was.MAC, is.MAC},
	} {
		if f.was != "" && f.is != "" && f.was != f.is {
			return fmt.Sprintf("its %s is %s, and was %s when the cluster last heard of it", f.what, f.is, f.was)
		}
	}
	return ""
}

// Boot says what this host may believe of its own disk in this run. It changes
// with time, which Subscribe tells: a start is Settled within 1.2 s after Run
// began, at once when the registry knows no other host; a Suspect may come
// later, with who testifies it, and ends when the cluster has confirmed the run
// ([Ledger.Fresh]).
func (l *Ledger) Boot() cluster.Boot {
	fresh := l.Fresh()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := cluster.Boot{Settled: fresh || l.boot.settled, Witness: l.boot.witness}
	if fresh {
		return out
	}
	// The cluster's own word says more than what raised the doubt, and what to do.
	if r := l.refused; r != nil && (r.Code == cluster.Clone || r.Code == cluster.Forgotten) {
		out.Suspect = r.Text
		return out
	}
	var why []string
	if l.boot.machine != "" {
		why = append(why, "this may be a copy of the host on another machine: "+l.boot.machine)
	}
	if l.boot.seen != "" {
		why = append(why, l.boot.seen)
	}
	if l.cfg.Strict {
		why = append(why, "STRICT_BOOT is on, and the cluster has not confirmed this host since it started")
	}
	out.Suspect = strings.Join(why, "; ")
	return out
}

// keepStanding is called before a Hello is said (session 0), and with the
// session that it opened before that one is used. What cannot be written makes
// the next start suspect, no more.
func (l *Ledger) keepStanding(session uint64) {
	l.mu.Lock()
	now := l.stands
	l.mu.Unlock()
	next := standing{now.Session, l.nonce, now.Machine}
	if session != 0 { // the cluster took this machine for the host's
		next.Session, next.Machine = session, l.cfg.Self.Machine
	}
	if next == now {
		return
	}
	if err := l.write(standingKey, next); err != nil {
		l.log.WithError(err).Warn("the next start will wait for the cluster")
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stands = next
}

// askWitnesses asks the others what they know of this host, until all have
// answered, or the cluster has confirmed the run.
func (l *Ledger) askWitnesses(ctx context.Context) {
	heard := map[cluster.HostID]bool{}
	for round := 0; ctx.Err() == nil && !l.Fresh(); round++ {
		asking := l.others(l.Registry())
		maps.DeleteFunc(asking, func(id cluster.HostID, _ []netip.AddrPort) bool { return heard[id] })
		ids := slices.Collect(maps.Keys(asking))
		if rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] }); round > 0 {
			ids = ids[:min(testifyMost, len(ids))]
		}
		for id := range l.hear(ctx, ids, asking) {
			heard[id] = true
		}
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

// hear asks hosts at the same time, for at most bootTime, and returns those
// that answered.
func (l *Ledger) hear(ctx context.Context, ids []cluster.HostID, at map[cluster.HostID][]netip.AddrPort) map[cluster.HostID]bool {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	var mu sync.Mutex
	heard := map[cluster.HostID]bool{}
	var wg sync.WaitGroup
	for _, id := range ids {
		for _, a := range at[id] {
			wg.Go(func() {
				w, err := call[witnessRequest, cluster.Witness](ctx, l, a, witnessMethod, witnessRequest{l.cfg.Host})
				if err != nil {
					return
				}
				mu.Lock()
				heard[id] = true
				mu.Unlock()
				l.testified(id, w)
			})
		}
	}
	wg.Wait()
	return heard
}

// testified takes in what a host said of this one.
func (l *Ledger) testified(by cluster.HostID, w cluster.Witness) {
	registry := l.Registry()
	who := registry.HostName(by)
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.boot.witness; w.Gen > b.Gen || w.Gen == b.Gen && w.Index > b.Index {
		l.boot.witness = w
	}
	was := l.boot.standing
	switch {
	case w.Host.Tombstone:
		l.boot.seen = fmt.Sprintf("%s says that this host was removed from the cluster", who)
	case w.Host.ID == "" && was.Session != 0 && (w.Gen > registry.Gen || w.Gen == registry.Gen && w.Index > registry.Index):
		l.boot.seen = fmt.Sprintf("%s says that the cluster does not know this host any more", who)
	case w.Host.Session > was.Session && w.Host.Nonce != was.Nonce && w.Host.Nonce != l.nonce:
		l.boot.seen = fmt.Sprintf("%s knows session %d of this host, and its own disk ends with session %d: the disk was set back, or a copy of it ran elsewhere", who, w.Host.Session, was.Session)
	}
	l.notify()
}

// witnessMethod asks any host what its copy says of another.
const witnessMethod = "ledger.witness"

type witnessRequest struct {
	Host cluster.HostID `json:"host"`
}

func (l *Ledger) serveWitness(_ context.Context, _ cluster.HostID, req witnessRequest) (cluster.Witness, error) {
	r := l.Registry()
	w := cluster.Witness{Cluster: r.Cluster, Gen: r.Gen, Index: r.Index, Host: r.Hosts[req.Host]}
	for _, lease := range r.Leases {
		if lease.Holder == req.Host {
			w.Leases = append(w.Leases, lease)
		}
	}
	slices.SortFunc(w.Leases, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	return w, nil
}
