package ledger

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// replica is a voter's part of the replicated log. It is all that the rest of
// the package sees of raft.
type replica struct {
	*machine
	raft   *raft.Raft
	net    *raft.NetworkTransport
	store  *store
	server raft.ServerID
	ready  atomic.Bool // leader, and everything committed before is applied
}

type replicaConfig struct {
	dir       string
	transport *transport.Transport
	admit     func(cluster.HostID) bool // who may speak raft to this host
	applied   func(*cluster.Registry)
	log       logrus.FieldLogger
}

const logFile = "log.db"

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
	r := &replica{machine: newMachine(c.applied), store: store}
	if err := r.start(c); err != nil {
		r.close()
		return nil, fmt.Errorf("open log in %s: %w", c.dir, err)
	}
	return r, nil
}

func (r *replica) start(c replicaConfig) error {
	var err error
	if r.server, err = r.identity(); err != nil {
		return err
	}
	logger := &raftLog{log: c.log, name: "raft"}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.dir, 2, logger)
	if err != nil {
		return err
	}
	r.net = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  &streams{Listener: c.transport.Listener(transport.Raft), transport: c.transport, admit: c.admit},
		MaxPool:                 2,
		Timeout:                 5 * time.Second,
		Logger:                  logger,
		MsgpackUseNewTimeFormat: true,
	})
	config := raft.DefaultConfig()
	config.LocalID = r.server
	config.Logger = logger
	config.NoLegacyTelemetry = true
	config.SnapshotThreshold = 1024
	config.TrailingLogs = 256
	// A sole voter waits for nobody; this is how long a restart takes.
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	r.raft, err = raft.NewRaft(config, r.machine, r.store, r.store, snaps, r.net)
	return err
}

// identity is the name of this log directory among the voters: the host, and
// a number that is new with each directory, so that a voter that lost its log
// is not taken for the one that it was.
func (r *replica) identity() (raft.ServerID, error) {
	b, err := r.store.Get(serverKey)
	if err == nil && len(b) == 0 {
		err = errors.New("the log has no owner: its file was made by something else")
	}
	return raft.ServerID(b), err
}

// hostOf is the host that a voter runs on.
func hostOf(id raft.ServerID) cluster.HostID {
	host, _, _ := strings.Cut(string(id), ".")
	return cluster.HostID(host)
}

func random() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
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
	// A disk that hangs must not hang the caller. Raft answers every future,
	// at the latest when it is closed.
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case <-ctx.Done():
		return cluster.Result{}, fmt.Errorf("write the log: %w", ctx.Err())
	case err := <-done:
		if err != nil {
			return cluster.Result{}, fmt.Errorf("write the log: %w", err)
		}
		return future.Response().(cluster.Result), nil
	}
}

// voters lists the hosts of the present configuration.
func (r *replica) voters() []cluster.HostID {
	var out []cluster.HostID
	for _, s := range r.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			out = append(out, hostOf(s.ID))
		}
	}
	return out
}

func (r *replica) close() error {
	var errs []error
	r.store.stop()
	if r.raft != nil {
		errs = append(errs, r.raft.Shutdown().Error())
	}
	if r.net != nil {
		errs = append(errs, r.net.Close())
	}
	return errors.Join(append(errs, r.store.Close())...)
}

// streams carries raft over the cluster's transport.
type streams struct {
	net.Listener
	transport *transport.Transport
	admit     func(cluster.HostID) bool
}

func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(string(address))
	if err != nil {
		return nil, fmt.Errorf("dial voter %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.transport.Dial(ctx, to, transport.Raft)
}

// Accept lets voters in only: raft itself believes whoever speaks to it.
func (s *streams) Accept() (net.Conn, error) {
	for {
		conn, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c, ok := conn.(*transport.Conn); ok && s.admit(c.Peer()) {
			return conn, nil
		}
		conn.Close()
	}
}
