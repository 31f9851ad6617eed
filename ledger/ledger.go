package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/transport"
)

// Config is what a Ledger is made from.
type Config struct {
	// Transport must be run by the caller. Its Config.Cluster should be the
	// Ledger's ID method.
	Transport *transport.Transport
	DB        *bolt.DB       // holds the copy, the cluster and the last known voters
	Dir       string         // holds a voter's log; made when needed
	Host      cluster.HostID // this host
	Self      cluster.Hello  // what it says of itself; the nonce is set here
	Join      []string       // host[:port] entries, resolved anew at each try
	Port      uint16         // of entries of Join that have none
	Force     bool           // found a cluster although members of Join do not answer
	// Strict makes Boot suspect until the cluster has confirmed this run.
	Strict bool
	// Claims lists the blocks that this host keeps as active, for its Hello and
	// for a rebuild. It must not block; nil means none.
	Claims func() []cluster.Claim
	// Prepare makes this host ready to be let in by a registry that was put
	// together again, by its Gen (2 or more): a log was lost, and what it had
	// leased to this host may be another's now. When it returns nil, this host
	// must use nothing until it has held its blocks against a registry of that
	// Gen, over restarts too. It is called before the first Hello to a Gen in
	// each run, again after an error, never twice at a time, and is bounded by
	// ctx: no Hello leaves before. nil means that there is nothing to prepare.
	Prepare func(ctx context.Context, gen uint64) error
	Timing  Timing // zero fields have their defaults; tests are in more of a hurry
	Log     logrus.FieldLogger
}

// Timing is how patient the voters are.
type Timing struct {
	Election time.Duration // without a leader, before a voter stands for election; 1 s
	Position time.Duration // between two exchanges of how far the voters' logs are; 1 s
	Stable   time.Duration // a host follows the leader, before it becomes a voter; 10 s
	Replace  time.Duration // a voter is out, before another takes its place; 60 s
}

func (t Timing) orDefaults() Timing {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&t.Election, time.Second)
	or(&t.Position, time.Second)
	or(&t.Stable, 10*time.Second)
	or(&t.Replace, time.Minute)
	return t
}

// Ledger is one host's part of the replicated log. All methods may be called
// at the same time, and before Run.
type Ledger struct {
	cfg     Config
	log     logrus.FieldLogger
	mirror  *mirror
	witness *witness
	path    func(to netip.AddrPort) context.Context // how long a path lives, in tests; nil: for ever

	// turn is held by whoever has a request under way: a host has one at a
	// time. Its holder alone counts requests, prepares and says hello.
	turn       chan struct{}
	orders     chan order          // to keepLog
	rebuilding chan struct{}       // held by whoever rebuilds the log
	setBack    chan *replica       // wakes keepWhole
	judging    chan struct{}       // wakes keepMeeting
	events     chan founding.Event // to seek
	request    uint64
	prepared   uint64 // the generation that this run is prepared for
	told       uint64 // the newest generation that a refusal named
	nonce      uint64 // of this run

	learning sync.Mutex // of learn

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when anything below changes
	session   uint64        // 0: none
	id        cluster.ID
	voters    []Server                     // the configuration as the leader last told it
	led       netip.AddrPort               // where the leader was met; zero when that is not known
	unsure    bool                         // it may be elsewhere
	answered  map[cluster.HostID]bool      // when the leader was last looked for
	followers map[cluster.HostID]*follower // of this host
	leaving   map[cluster.HostID]time.Time // hosts that want no server any more, since when
	hints     []netip.AddrPort             // where else a voter may be
	addresses map[cluster.HostID]netip.AddrPort
	replica   *replica
	office    bool  // the replica serves others
	doubt     error // why it must not, whatever else
	departed  bool  // this host left, and is not to come back by itself
	reachable bool
	waiting   string           // what keeps the host from being served
	refused   *cluster.Refusal // why its Hello was refused
	unready   error            // why it does not say Hello to a registry that was rebuilt
	foreign   string           // what is to be said of other clusters that were met
	broken    error            // the copy cannot be written
	boot      boot
	stands    standing // as it is on disk
	wants     int      // commands that wait for a cluster
	held      int      // above 0: no cluster is looked for
	search    search   // for one
	callers   callers
	met       map[cluster.ID]meeting
	buried    struct { // what became of the cluster of this host
		into cluster.ID
		at   []netip.AddrPort
	}
	former map[cluster.ID]cluster.ID // clusters of this host that dissolved, and into which
}

// ErrDissolved is what Run returns after the cluster of this host, which had no
// pools, dissolved into another: this host has forgotten its cluster, and a new
// Ledger over the same state joins the other one.
var ErrDissolved = errors.New("the cluster of this host dissolved into another")

// Open reads what is on disk and registers the ledger's RPC methods with the
// transport. It starts nothing.
func Open(cfg Config) (*Ledger, error) {
	cfg.Join = slices.DeleteFunc(slices.Clone(cfg.Join), func(s string) bool { return strings.TrimSpace(s) == "" })
	m, err := openMirror(cfg.DB)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	w, err := openWitness(cfg.DB)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	cfg.Timing = cfg.Timing.orDefaults()
	l := &Ledger{
		callers: callers{}, cfg: cfg, log: cfg.Log, mirror: m, witness: w,
		turn:       make(chan struct{}, 1),
		orders:     make(chan order),
		events:     make(chan founding.Event),
		rebuilding: make(chan struct{}, 1),
		setBack:    make(chan *replica, 1),
		judging:    make(chan struct{}, 1),
		met:        map[cluster.ID]meeting{},
		former:     map[cluster.ID]cluster.ID{},
		followers:  map[cluster.HostID]*follower{},
		leaving:    map[cluster.HostID]time.Time{},
		changed:    make(chan struct{}),
		nonce:      rand.Uint64() | 1,
		waiting:    "starting",
	}
	id, err := load(cfg.DB, clusterKey)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l.id = cluster.ID(id)
	if err := errors.Join(l.read(votersKey, &l.voters), l.read(formerKey, &l.former), l.openBoot()); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l.serve()
	return l, nil
}

// Run takes part in the cluster until ctx ends. A log or a disk that cannot be
// used does not end it: the copy serves on, and Status says what is wrong.
func (l *Ledger) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { l.mirror.run(ctx, l.noteBroken); return nil })
	g.Go(func() error { l.askWitnesses(ctx); return nil })
	g.Go(func() error { l.keepWhole(ctx); return nil })
	g.Go(func() error { return l.keepMeeting(ctx) })
	g.Go(func() error { return l.keepLog(ctx) })
	g.Go(func() error {
		if err := l.settle(ctx); err != nil {
			return err
		}
		g.Go(func() error { l.keepSession(ctx); return nil })
		l.keepFollowing(ctx)
		return nil
	})
	err := g.Wait()
	switch {
	case errors.Is(err, ErrDissolved):
		err = errors.Join(err, l.forget())
	case errors.Is(err, context.Canceled):
		return nil
	}
	if err != nil {
		return fmt.Errorf("run ledger: %w", err)
	}
	return nil
}

// ID is the cluster of this host, "" while it has none.
func (l *Ledger) ID() cluster.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// Cluster waits until this host belongs to a cluster.
func (l *Ledger) Cluster(ctx context.Context) (cluster.ID, error) {
	for {
		changed := l.watch()
		if id := l.ID(); id != "" {
			return id, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("join a cluster: %w (%s)", ctx.Err(), l.Status().Error)
		case <-changed:
		}
	}
}

// Registry is the newest copy on this host: never nil, never changed, and what
// was known last when no voter is in reach.
func (l *Ledger) Registry() *cluster.Registry { return l.mirror.Registry() }

// Fresh reports whether the copy includes the Hello of this run: it is then
// newer than everything that an earlier run was told.
func (l *Ledger) Fresh() bool {
	h := l.Registry().Hosts[l.cfg.Host]
	return h.Session != 0 && h.Nonce == l.nonce
}

// Subscribe returns a one-slot channel that is signalled on any change of
// Registry, Fresh or Status. It lives as long as the Ledger.
func (l *Ledger) Subscribe() <-chan struct{} { return l.mirror.subscribe() }

// UpdateAddresses says where hosts are heard of now; a voter that moved is
// found there.
func (l *Ledger) UpdateAddresses(addresses map[cluster.HostID]netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !maps.Equal(l.addresses, addresses) {
		l.addresses = maps.Clone(addresses)
		l.notify()
	}
}

// Status describes the ledger for people.
func (l *Ledger) Status() Status {
	own := l.Registry()
	s := Status{Gen: own.Gen, Index: own.Index, Fresh: l.Fresh()}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Cluster, s.Reachable, s.Voters = l.id, l.reachable, slices.Clone(l.voters)
	s.count(l.answered)
	switch {
	case l.replica != nil && slices.Contains(l.replica.voters(), l.replica.server):
		s.Role = Voter
	case l.id == "":
		s.Role = Joining
	default:
		s.Role = Client
	}
	switch {
	case l.broken != nil:
		s.Error = l.broken.Error()
	case l.refused != nil:
		s.Error, s.Refused = l.refused.Text, l.refused.Code
	case l.unready != nil:
		s.Error = l.unready.Error()
	case l.waiting != "":
		s.Error = l.waiting
	default:
		s.Error = l.foreign
	}
	if s.Role != Joining {
		return s
	}
	if s.Founding, s.Waiting = l.search.text, l.callers.join(l.search.members, time.Now()); l.search.on && !l.search.stuck {
		s.Error = ""
	} else {
		s.Error = "joining: " + s.Error
	}
	return s
}

// notify is called with l.mu held.
func (l *Ledger) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
	l.mirror.touch()
}

// watch returns a channel that is closed at the next change.
func (l *Ledger) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// wait sleeps for d, or until something changed; false when ctx ended.
func (l *Ledger) wait(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-changed:
	}
	return true
}

func (l *Ledger) local() *replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.replica
}

// note records what keeps the host from being served; "" when nothing does.
func (l *Ledger) note(waiting string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	reachable := waiting == ""
	if l.waiting == waiting && l.reachable == reachable {
		return
	}
	if !reachable && l.office && l.replica.ready.Load() {
		return // it was looking for a leader before this host became that
	}
	if l.waiting != waiting {
		if reachable {
			l.log.Info("the cluster's log is in reach")
		} else {
			l.log.WithField("cause", waiting).Warn("the cluster's log is out of reach")
		}
	}
	l.waiting, l.reachable = waiting, reachable
	l.notify()
}

// noteRefused records why this host gets no session; nil when it has one.
func (l *Ledger) noteRefused(why *cluster.Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if why == l.refused || why != nil && l.refused != nil && why.Text == l.refused.Text {
		return
	}
	if l.refused = why; why != nil {
		l.log.WithField("cause", why.Text).Error("the cluster refuses this host")
	}
	l.notify()
}

// noteUnready records why this host is not prepared; nil when it is.
func (l *Ledger) noteUnready(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == l.unready || err != nil && l.unready != nil && err.Error() == l.unready.Error() {
		return
	}
	if l.unready = err; err != nil {
		l.log.WithError(err).Error("the rebuilt registry cannot let this host in")
	}
	l.notify()
}

func (l *Ledger) noteBroken(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if (err == nil) == (l.broken == nil) {
		return
	}
	if err != nil {
		l.log.WithError(err).Error("cannot write the copy of the registry")
	}
	l.broken = err
	l.notify()
}

// belong enters this host in a cluster, for good.
func (l *Ledger) belong(id cluster.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.id {
	case id:
		return nil
	case "":
	default:
		return fmt.Errorf("this host belongs to cluster %s, and the log to cluster %s: run `isthmus reset` here to join that one", l.id, id)
	}
	if err := save(l.cfg.DB, clusterKey, []byte(id)); err != nil {
		return err
	}
	l.log.WithField("cluster", id).Info("this host belongs to a cluster now")
	l.id = id
	l.notify()
	return nil
}

// learn records who the voters are.
func (l *Ledger) learn(voters []Server) {
	l.learning.Lock() // others need not wait for the disk
	defer l.learning.Unlock()
	l.mu.Lock()
	known := slices.Equal(l.voters, voters)
	l.mu.Unlock()
	if known {
		return
	}
	b, err := json.Marshal(voters)
	if err == nil {
		err = save(l.cfg.DB, votersKey, b)
	}
	if err != nil {
		l.log.WithError(err).Warn("cannot remember the voters over a restart")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.voters = voters
	l.notify()
}
