package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// Report says how the registry was put together again.
type Report struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`   // of the new registry
	Index   uint64     `json:"index"` // of the copy that it goes on from
	Base    string     `json:"base"`  // whose copy that was
	Heard   []Heard    `json:"heard"` // every host that answered, this one too
	// Fenced are the hosts that did not. They keep their leases; the others
	// admit none of their frames until they say Hello.
	Fenced  []Heard        `json:"fenced,omitempty"`
	Refused []RefusedClaim `json:"refused,omitempty"`
}

// Heard is a host in a Report.
type Heard struct {
	Host  cluster.HostID `json:"host"`
	Name  string         `json:"name"`
	Gen   uint64         `json:"gen,omitempty"` // of its copy
	Index uint64         `json:"index,omitempty"`
}

// RefusedClaim is a block that a host keeps, and that the new registry gives to
// nobody or to another host.
type RefusedClaim struct {
	Host  cluster.HostID `json:"host"`
	Name  string         `json:"name"`
	Claim cluster.Claim  `json:"claim"`
	Why   string         `json:"why"`
}

// Recover rebuilds the log with this host as its only voter, from what all
// hosts in reach know, when the majority of the voters is lost for good. It
// refuses while a leader is in reach. Of two groups of hosts that cannot reach
// each other it must be said in one alone: when they meet, the voters of the
// lower generation drop their log.
//
// Run must be running; it takes at most about ten seconds.
func (l *Ledger) Recover(ctx context.Context) (Report, error) {
	if l.ID() == "" {
		return Report{}, errors.New("recover the log: this host belongs to no cluster; `isthmus restore` takes a backup here")
	}
	r, err := l.rebuild(ctx, rebuildOf{})
	if err != nil {
		return Report{}, fmt.Errorf("recover the log: %w", err)
	}
	return r, nil
}

// Restore rebuilds the log with this host as its only voter, from a Backup and
// what all hosts in reach know. It refuses where that would take something
// back: while a leader is in reach, whose registry is newer than any backup,
// and while any host in reach has a newer copy, from which Recover goes on.
// This host may belong to no cluster yet.
func (l *Ledger) Restore(ctx context.Context, from io.Reader) (Report, error) {
	backup, err := readBackup(from)
	if err != nil {
		return Report{}, fmt.Errorf("restore the registry: %w", err)
	}
	l.hold(1)
	defer l.hold(-1)
	if err := l.restorable(ctx, backup); err != nil {
		return Report{}, fmt.Errorf("restore the registry: %w", err)
	}
	r, err := l.rebuild(ctx, rebuildOf{backup: backup})
	if err != nil {
		return Report{}, fmt.Errorf("restore the registry: %w", err)
	}
	return r, nil
}

// hold keeps this host from looking for a cluster.
func (l *Ledger) hold(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held += n
	l.notify()
}

// restorable refuses a backup of another cluster than that of this host, or,
// while it has none, than that of the members of JOIN.
func (l *Ledger) restorable(ctx context.Context, backup *cluster.Registry) error {
	const other = "the backup is of cluster %s, and %s belongs to cluster %s: run `isthmus reset` there first, on all members of the one that is to go"
	switch id := l.ID(); id {
	case backup.Cluster:
		return nil
	case "":
	default:
		return fmt.Errorf(other, backup.Cluster, "this host", id)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, a := range l.askJoin(ctx) {
		if id := a.reply.Cluster; a.err == nil && id != "" && id != backup.Cluster {
			return fmt.Errorf(other, backup.Cluster, Server{Name: a.reply.Name, Address: a.at}, id)
		}
	}
	return nil
}

// rebuildOf is what a registry is rebuilt from, besides what the hosts say.
type rebuildOf struct {
	backup *cluster.Registry
	alone  bool // this host is the only voter there is, and was set back
}

// rebuildTime bounds a rebuild, so that one that hangs does not keep the next
// one from its turn.
const rebuildTime = 30 * time.Second

func (l *Ledger) rebuild(ctx context.Context, of rebuildOf) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, rebuildTime)
	defer cancel()
	select {
	case l.rebuilding <- struct{}{}:
		defer func() { <-l.rebuilding }()
	case <-ctx.Done():
		return Report{}, fmt.Errorf("another rebuild is under way: %w", ctx.Err())
	}
	id, backup := l.ID(), of.backup
	if backup == nil {
		backup = rules.New()
	} else {
		id = backup.Cluster
	}
	all, err := l.takeCensus(ctx, id, backup)
	if err != nil {
		return Report{}, err
	}
	for _, c := range all {
		if c.Leader.Host != "" && !(of.alone && c.Leader.Host == l.cfg.Host) {
			return Report{}, fmt.Errorf("the log is in reach: %s serves it to %s; nothing is lost", c.Leader, c.Host.Name)
		}
		if of.backup != nil && newer(c.Registry, backup) {
			return Report{}, fmt.Errorf("the copy on %s is newer (generation %d, index %d) than the backup (generation %d, index %d), which would take back what came since: run `isthmus recover` on a member, which goes on from that copy", c.Host.Name, c.Registry.Gen, c.Registry.Index, backup.Gen, backup.Index)
		}
	}
	var known []netip.AddrPort
	for _, c := range all {
		known = append(known, c.Registry.Hosts[l.cfg.Host].Address)
		if c.Leader.Host == l.cfg.Host {
			known = append(known, c.Leader.Address)
		}
	}
	copies := all
	if of.backup != nil {
		copies = append([]census{{Host: cluster.Host{Name: "the backup"}, Registry: backup}}, all...)
	}
	base, whose := highest(copies)
	if base.Hosts[l.cfg.Host].Tombstone {
		return Report{}, fmt.Errorf("this host was removed from the cluster: run this on another member, and `isthmus reset` here")
	}
	if why := l.impostor(ctx, base, known...); why != nil {
		l.noteRefused(why)
		return Report{}, why
	}
	next, report := renew(base, copies)
	report.Base = whose
	if err := l.begin(ctx, cluster.Command{Host: l.cfg.Host, Rebuild: &cluster.Rebuild{Registry: next}}); err != nil {
		return Report{}, err
	}
	if err := l.awaitGen(ctx, next.Gen); err != nil {
		return Report{}, err
	}
	l.log.WithField("generation", next.Gen).WithField("base", whose).WithField("fenced", len(report.Fenced)).Warn("the registry was put together again")
	l.announce(ctx, next)
	return report, nil
}

// renew makes the registry that follows a lost one, and says how.
func renew(base *cluster.Registry, copies []census) (*cluster.Registry, Report) {
	gen := base.Gen
	heard := map[cluster.HostID]bool{}
	var says []rules.Testimony
	report := Report{Cluster: base.Cluster, Index: base.Index}
	for _, c := range copies {
		gen = max(gen, c.Registry.Gen)
		if c.Host.ID == "" {
			continue
		}
		heard[c.Host.ID] = true
		report.Heard = append(report.Heard, Heard{c.Host.ID, c.Host.Name, c.Registry.Gen, c.Registry.Index})
		if c.Registry.Cluster == "" {
			continue // a new host, which restores a backup
		}
		says = append(says, rules.Testimony{Host: c.Host, Claims: c.Claims})
	}
	report.Gen = gen + 1
	next, unproven := rules.Renew(base, gen+1, says)
	for _, h := range next.Hosts {
		if !heard[h.ID] && !h.Tombstone {
			report.Fenced = append(report.Fenced, Heard{Host: h.ID, Name: h.Name})
		}
	}
	slices.SortFunc(report.Fenced, func(a, b Heard) int { return strings.Compare(a.Name, b.Name) })
	for _, u := range unproven {
		report.Refused = append(report.Refused, RefusedClaim{u.Host, next.HostName(u.Host), u.Claim, u.Why})
	}
	return next, report
}

// awaitGen waits until this host serves a registry of that generation.
func (l *Ledger) awaitGen(ctx context.Context, gen uint64) error {
	for {
		changed := l.watch()
		l.mu.Lock()
		office := l.office && l.reachable
		l.mu.Unlock()
		if office && l.Registry().Gen >= gen {
			return nil
		}
		if !l.wait(ctx, changed, time.Second) {
			return fmt.Errorf("start the new log: %w (%s)", ctx.Err(), l.Status().Error)
		}
	}
}

// rebuiltMethod tells a host of a rebuilt log.
const rebuiltMethod = "ledger.rebuilt"

type rebuiltRequest struct {
	Cluster cluster.ID `json:"cluster"`
	Gen     uint64     `json:"gen"`
	Voters  []Server   `json:"voters"` // the host that tells it
}

// announce tells all hosts that the log was rebuilt. Those that do not hear it
// now find out when they ask where the voters are.
func (l *Ledger) announce(ctx context.Context, r *cluster.Registry) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l.mu.Lock()
	voters := l.voters
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, places := range l.others(r) {
		for _, at := range places {
			wg.Go(func() {
				_, _ = call[rebuiltRequest, struct{}](ctx, l, at, rebuiltMethod, rebuiltRequest{r.Cluster, r.Gen, voters})
			})
		}
	}
	wg.Wait()
}

func (l *Ledger) serveRebuilt(ctx context.Context, from cluster.HostID, req rebuiltRequest) (struct{}, error) {
	if req.Cluster != "" && req.Cluster == l.ID() && len(req.Voters) == 1 && req.Voters[0].Host == from {
		l.outdated(ctx, req.Gen, req.Voters)
	}
	return struct{}{}, nil
}

// outdated takes in that the log of this cluster goes on in a later generation,
// with these voters. A voter of an earlier one is none any more: its log may
// hold what was never agreed. When it is the voter of the later one itself, its
// disk was set back.
func (l *Ledger) outdated(ctx context.Context, gen uint64, voters []Server) {
	self := func(v Server) bool { return v.Host == l.cfg.Host }
	if len(voters) == 0 {
		return
	}
	if r := l.local(); r != nil {
		own := r.Registry()
		switch {
		case r.gen >= gen:
			return
		case len(voters) == 1 && self(voters[0]):
			l.wasSetBack(r, setBackText(own, gen, 0))
			return
		}
		l.log.WithField("generation", gen).Warn("the log was rebuilt elsewhere; the one on this host is deleted")
		if err := l.replaceLog(ctx, wipeLog); err != nil {
			l.log.WithError(err).Error("cannot delete the log on this host")
			return
		}
	}
	if l.Registry().Gen < gen {
		l.learn(voters)
		l.wonder()
	}
}
