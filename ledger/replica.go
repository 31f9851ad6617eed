package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
)

// replica is a server's part of the replicated log. It is all that the rest of
// the package sees of raft.
type replica struct {
	*machine
	raft     *raft.Raft
	net      *raft.NetworkTransport
	streams  *streams
	store    *store
	witness  *witness
	election time.Duration
	server   raft.ServerID
	gen      uint64 // of the registry, also before a leader said what is in it
	opened   time.Time
	boot     uint64
	start    place       // where the log ended when it was opened
	ready    atomic.Bool // leader, and everything committed before is applied
	pulses   pulses

	// lost is called when the log must not be used any more.
	lost func(error)

	mu   sync.Mutex
	told map[string]place // what the other servers know of this log
}

type replicaConfig struct {
	dir      string
	listener net.Listener
	dial     func(context.Context, cluster.HostID) (net.Conn, error)
	// admit tells whether a server that is not in the configuration of this
	// log may still speak to it.
	admit    func(raft.ServerID) bool
	witness  *witness
	election time.Duration
	applied  func(*cluster.Registry)
	changed  func()      // called when there is another leader
	lost     func(error) // called when the log must not be used any more
	log      logrus.FieldLogger
}

const logFile = "log.db"

// errSetBack says that a log was replaced by an older state of itself.
var errSetBack = errors.New("the log on this host was set back to an older state of its disk")

// hasReplica reports whether the directory holds a log at all.
func hasReplica(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, logFile))
	return err == nil
}

// openReplica starts raft on the log in dir, which writeLog made.
func openReplica(c replicaConfig) (*replica, error) {
	store, err := openStore(filepath.Join(c.dir, logFile))
	if err != nil {
		return nil, err
	}
	r := &replica{
		machine: newMachine(c.applied), store: store, witness: c.witness, election: c.election,
		opened: time.Now(), boot: rand.Uint64(), lost: c.lost, told: map[string]place{},
	}
	if err := r.open(c); err != nil {
		r.close()
		return nil, fmt.Errorf("open log in %s: %w", c.dir, err)
	}
	return r, nil
}

func (r *replica) open(c replicaConfig) error {
	var err error
	if r.server, err = r.identity(); err != nil {
		return err
	}
	if r.gen, err = r.store.GetUint64(genKey); err != nil {
		return err
	}
	if r.gen == 0 {
		r.gen = 1 // the log was made before there were others
	}
	if r.start.Term, err = r.store.GetUint64([]byte(termKey)); err != nil {
		return err
	}
	logger := &raftLog{log: c.log, name: "raft"}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.dir, 2, logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.streams = &streams{
		server: r.server, listener: c.listener, dial: c.dial, greet: r.greet, heard: r.heard, meet: r.meet, peer: peerOf,
		admit: func(id raft.ServerID) bool { return r.includes(id) || c.admit(id) },
		ctx:   ctx, cancel: cancel, accepted: make(chan net.Conn), conns: map[net.Conn]struct{}{},
	}
	r.net = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider:   addressBook{},
		Stream:                  r.streams,
		MaxPool:                 2,
		Timeout:                 2 * c.election,
		Logger:                  logger,
		MsgpackUseNewTimeFormat: true,
	})
	config := raft.DefaultConfig()
	config.LocalID = r.server
	config.Logger = logger
	config.NoLegacyTelemetry = true
	config.ShutdownOnRemove = false
	config.SnapshotThreshold = 1024
	config.TrailingLogs = 256
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = c.election, c.election, c.election*4/5
	if r.raft, err = raft.NewRaft(config, r.machine, r.store, r.store, snaps, r.net); err != nil {
		return err
	}
	r.start.Index = r.raft.LastIndex()
	r.raft.RegisterObserver(raft.NewObserver(nil, false, r.pulses.observer(c.changed)))
	r.streams.open()
	if !r.alone() {
		return nil
	}
	// A sole voter waits for nobody: to shorten the time after which it stands
	// for election makes it do so at once.
	hurry := r.raft.ReloadableConfig()
	hurry.HeartbeatTimeout, hurry.ElectionTimeout = config.LeaderLeaseTimeout, config.LeaderLeaseTimeout
	return r.raft.ReloadConfig(hurry)
}

// identity is the name of this log directory among the servers: the host, and
// a number that is new with each directory, so that a voter that lost its log
// is not taken for the one that it was.
func (r *replica) identity() (raft.ServerID, error) {
	b, err := r.store.Get(serverKey)
	if err == nil && len(b) == 0 {
		err = errors.New("the log has no owner: its file was made by something else")
	}
	return raft.ServerID(b), err
}

// configuration is the newest one in the log, committed or not.
func (r *replica) configuration() []raft.Server {
	return r.raft.GetConfiguration().Configuration().Servers
}

// includes reports whether a server is in the configuration.
func (r *replica) includes(id raft.ServerID) bool {
	return slices.ContainsFunc(r.configuration(), func(s raft.Server) bool { return s.ID == id })
}

// alone reports whether this is the only voter.
func (r *replica) alone() bool {
	voters := r.voters()
	return len(voters) == 1 && voters[0] == r.server
}

// voters lists the servers with a vote.
func (r *replica) voters() []raft.ServerID {
	var out []raft.ServerID
	for _, s := range r.configuration() {
		if s.Suffrage == raft.Voter {
			out = append(out, s.ID)
		}
	}
	return out
}

// leader is the host that leads, as far as this server knows.
func (r *replica) leader() cluster.HostID {
	_, id := r.raft.LeaderWithID()
	return hostOf(id)
}

// end is where the log ends: the term of its last entry, and its index.
func (r *replica) end() place {
	stats := r.raft.Stats()
	number := func(key string) uint64 {
		n, _ := strconv.ParseUint(stats[key], 10, 64)
		return n
	}
	log := place{number("last_log_term"), number("last_log_index")}
	if snap := (place{number("last_snapshot_term"), number("last_snapshot_index")}); snap.Index > log.Index {
		return snap
	}
	return log
}

// run keeps ready up to date until ctx ends; changed is called after each
// change.
func (r *replica) run(ctx context.Context, changed func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case leader := <-r.raft.LeaderCh():
			ready := leader && r.raft.Barrier(0).Error() == nil
			if ready {
				r.pulses.reset()
				r.settled(r.configuration())
			}
			r.ready.Store(ready)
			changed()
		}
	}
}

var errStarting = errors.New("the voter is starting")

// trouble says why the replica is not ready.
func (r *replica) trouble() error {
	if err := r.store.failure(); err != nil {
		return fmt.Errorf("the voter cannot write its log: %w (is its disk full?)", err)
	}
	return errStarting
}

// Propose commits a command and returns the answer of the rules. After an
// error it may still be committed later.
func (r *replica) Propose(ctx context.Context, c cluster.Command) (cluster.Result, error) {
	if !r.ready.Load() {
		return cluster.Result{}, r.trouble()
	}
	b, err := json.Marshal(c)
	if err != nil {
		return cluster.Result{}, fmt.Errorf("write command: %w", err)
	}
	future := r.raft.Apply(b, time.Second)
	if err := within(ctx, future); err != nil {
		return cluster.Result{}, fmt.Errorf("write the log: %w", err)
	}
	return future.Response().(cluster.Result), nil
}

// latest waits until all that was committed before is applied, and returns the
// registry's index. The replica must be ready.
func (r *replica) latest(ctx context.Context) (uint64, error) {
	if err := within(ctx, r.raft.Barrier(time.Second)); err != nil {
		return 0, fmt.Errorf("read the log: %w", err)
	}
	return r.Registry().Index, nil
}

// within waits for raft, but not for a disk that hangs. Raft answers every
// future, at the latest when it is closed.
func within(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		return err
	}
}

// position is where this log is now.
func (r *replica) position() position {
	return position{
		Server: string(r.server), Boot: r.boot, Start: r.start,
		Now: place{max(r.start.Term, r.raft.CurrentTerm()), r.raft.CommitIndex()},
	}
}

// greet says to another server where both logs are.
func (r *replica) greet(to string) greeting {
	g := greeting{To: to, Here: r.position()}
	if seen, ok := r.witness.of(to); ok {
		g.Seen = &seen
	}
	return g
}

// heard notes that a greeting reached the other server.
func (r *replica) heard(g greeting) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told[g.To] = g.Here.Now
}

// meet judges a greeting. A log that was set back takes part in nothing: this
// one is given up, and the other one is not spoken to.
func (r *replica) meet(g greeting) error {
	if g.Seen != nil && g.Seen.contradicts(r.position()) {
		r.lost(fmt.Errorf("%w: host %s saw it at entry %d of term %d, and it was opened at entry %d of term %d",
			errSetBack, hostOf(raft.ServerID(g.Here.Server)).Short(), g.Seen.Now.Index, g.Seen.Now.Term, r.start.Index, r.start.Term))
		return errSetBack
	}
	if !r.witness.hear(g.Here) {
		return fmt.Errorf("the log of server %s was set back to an older state of its disk", g.Here.Server)
	}
	return nil
}

// close ends the voter. A leader hands over first when another voter can take
// its place.
func (r *replica) close() error {
	if r.ready.Load() && !r.alone() {
		ctx, cancel := context.WithTimeout(context.Background(), r.election)
		if err := within(ctx, r.raft.LeadershipTransfer()); err == nil {
			r.ready.Store(false)
		}
		cancel()
	}
	var errs []error
	r.store.stop()
	if r.streams != nil {
		errs = append(errs, r.streams.Close()) // cuts what raft waits for
	}
	if r.raft != nil {
		errs = append(errs, r.raft.Shutdown().Error())
	}
	if r.net != nil {
		r.net.CloseStreams()
		errs = append(errs, r.net.Close())
	}
	return errors.Join(append(errs, r.store.Close())...)
}
