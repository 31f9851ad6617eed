package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
)

const (
	// meetEvery is how often the members of JOIN are asked where they belong.
	meetEvery = 10 * time.Second
	// farewell is how long a voter of a dissolved cluster tells the others.
	farewell = time.Second
)

var formerKey = []byte("former") // map[cluster.ID]cluster.ID

// meeting is a cluster that this one met, by what one member of it said.
type meeting struct {
	who   string
	at    []netip.AddrPort
	empty bool
	seen  time.Time
}

// askedBy takes in who asked this host a question.
func (l *Ledger) askedBy(ctx context.Context, req whereRequest) {
	if req.Cluster == "" {
		l.mu.Lock()
		if l.id == "" && req.At.IsValid() && l.callers.note(req.Name, req.At, time.Now()) {
			l.notify()
		}
		l.mu.Unlock()
		return
	}
	if l.ID() == "" {
		l.post(ctx, founding.Heard{At: req.At})
		return
	}
	l.meet(req.Cluster, meeting{Server{Name: req.Name, Address: req.At}.String(), []netip.AddrPort{req.At}, req.Empty, time.Now()})
}

// consider takes in what a host said about where it belongs.
func (l *Ledger) consider(ctx context.Context, a answer) {
	if a.err != nil {
		return
	}
	own := l.ID()
	if a.reply.Dissolved != "" && own != "" {
		l.bury(a)
	}
	switch {
	case a.reply.Cluster == "":
		return
	case a.reply.Cluster == own:
		if r := l.local(); a.reply.Gen > l.Registry().Gen || r != nil && a.reply.Gen > r.gen {
			l.outdated(ctx, a.reply.Gen, a.reply.Voters)
		}
		return
	}
	m := meeting{Server{Name: a.reply.Name, Address: a.at}.String(), []netip.AddrPort{a.at}, a.reply.Empty, time.Now()}
	for _, v := range a.reply.Voters {
		if !slices.Contains(m.at, v.Address) {
			m.at = append(m.at, v.Address)
		}
	}
	l.meet(a.reply.Cluster, m)
}

func (l *Ledger) meet(id cluster.ID, m meeting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id == l.id || l.id == "" {
		return
	}
	was, known := l.met[id]
	if len(m.at) < len(was.at) && time.Since(was.seen) < 2*meetEvery {
		m.at = was.at // who asks tells less than who answers
	}
	l.met[id] = m
	if !known || was.empty != m.empty || time.Since(was.seen) > 2*meetEvery {
		signal(l.judging)
	}
}

// bury ends the cluster of this host on the word of one that was in it: it
// dissolved while this host was away.
func (l *Ledger) bury(a answer) {
	empty := l.Registry().Empty()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buried.into != "" {
		return
	}
	if !empty {
		l.foreign = fmt.Sprintf("cluster %s, to which this host belongs, dissolved into cluster %s while this host was away with networks of it: remove them here, or run `isthmus reset`", l.id, a.reply.Dissolved)
		return
	}
	l.buried.into, l.buried.at = a.reply.Dissolved, []netip.AddrPort{a.at}
	signal(l.judging)
}

// keepMeeting notices other clusters, until ctx ends. It returns ErrDissolved
// when that of this host is no more.
func (l *Ledger) keepMeeting(ctx context.Context) error {
	if _, err := l.Cluster(ctx); err != nil {
		return err
	}
	copied := l.mirror.subscribe()
	defer l.mirror.unsubscribe(copied)
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-copied:
		case <-l.judging:
			l.judge(ctx)
		case <-tick.C:
			next := meetEvery - redial + pause()
			if hasLog(l.cfg.Dir) && !l.Status().Reachable {
				next = redial + pause()
			}
			tick.Reset(next)
			asking, cancel := context.WithTimeout(ctx, patience)
			for _, a := range l.askJoin(asking) {
				if !a.self {
					l.consider(ctx, a.answer)
				}
			}
			if l.local() != nil {
				// The log may go on without this voter, in a later generation.
				for _, a := range l.ask(asking, l.some()) {
					l.consider(ctx, a)
				}
			}
			cancel()
			l.judge(ctx)
		}
		if l.gone() {
			if l.local() != nil {
				l.wait(ctx, nil, farewell)
			}
			return ErrDissolved
		}
	}
}

// gone reports whether the cluster of this host is no more.
func (l *Ledger) gone() bool {
	r := l.Registry()
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Dissolved != "" {
		l.buried.into, l.buried.at = r.Dissolved, r.Members
	}
	return l.buried.into != ""
}

// judge does what is to be done about the clusters that were met.
func (l *Ledger) judge(ctx context.Context) {
	registry, fresh := l.Registry(), l.Fresh()
	l.mu.Lock()
	own := l.id
	maps.DeleteFunc(l.met, func(_ cluster.ID, m meeting) bool { return time.Since(m.seen) > 2*meetEvery+patience })
	met := maps.Clone(l.met)
	l.mu.Unlock()
	var says []string
	for _, id := range slices.Sorted(maps.Keys(met)) {
		m := met[id]
		verdict := founding.Meet(own, registry.Empty(), id, m.empty)
		switch {
		case verdict == founding.Apart:
			says = append(says, fmt.Sprintf("%s belongs to cluster %s and this host to cluster %s, and both have networks: both go on, and refuse each other; run `isthmus reset` on the hosts that should join the other", m.who, id, own))
		case verdict == founding.Dissolve && fresh:
			l.log.WithField("into", id).Warn("this cluster has no networks, and dissolves into another that it met")
			_, err := l.Propose(ctx, cluster.Command{Dissolve: &cluster.Dissolve{Into: id, At: m.at}})
			if why := (*cluster.Refusal)(nil); err != nil && ctx.Err() == nil && !(errors.As(err, &why) && why.Code == cluster.Dissolved) {
				says = append(says, fmt.Sprintf("%s belongs to cluster %s and this host to cluster %s, which has no networks, and cannot join the other yet: %v", m.who, id, own, err))
			}
		}
	}
	text := strings.Join(says, "; ")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.foreign != text && ctx.Err() == nil && l.buried.into == "" {
		if l.foreign = text; text != "" {
			l.log.WithField("cause", text).Error("another cluster was met")
		}
		l.notify()
	}
}

// forget deletes all that is left of a cluster that dissolved, but for where
// its hosts are to go. Run has ended everything else.
func (l *Ledger) forget() error {
	l.mu.Lock()
	into, at := l.buried.into, l.buried.at
	former := maps.Clone(l.former)
	former[l.id] = into
	// Who was in the one before hears of the last.
	for was, next := range former {
		if next == l.id {
			former[was] = into
		}
	}
	l.mu.Unlock()
	for _, dir := range []string{l.cfg.Dir, l.cfg.Dir + nextSuffix} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("forget the cluster: %w", err)
		}
	}
	known, e1 := json.Marshal(at)
	past, e2 := json.Marshal(former)
	if err := errors.Join(e1, e2); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	err := l.cfg.DB.Update(func(tx *bolt.Tx) error {
		if err := tx.DeleteBucket(bucket); err != nil {
			return err
		}
		b, err := tx.CreateBucket(bucket)
		if err != nil {
			return err
		}
		return errors.Join(b.Put(knownKey, known), b.Put(formerKey, past))
	})
	if err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = ""
	return nil
}
