package ledger

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// machine is raft's state machine: the rules, run on what was committed, and
// the feeds to those who follow.
type machine struct {
	applied func(*cluster.Registry) // called in order, for each new registry

	mu       sync.Mutex
	registry *cluster.Registry
	servers  []raft.Server // of the newest configuration that is known to be committed
	feeds    map[*feed]struct{}
}

var _ raft.ConfigurationStore = (*machine)(nil)

// entry is one committed command as it stands in the log.
type entry struct {
	Index   uint64          `json:"index"`
	Command json.RawMessage `json:"command"`
}

// step does an entry. What cannot be read is refused like any nonsense, so
// that it means the same on all hosts.
func step(r *cluster.Registry, e entry) (*cluster.Registry, cluster.Result) {
	var c cluster.Command
	if err := json.Unmarshal(e.Command, &c); err != nil {
		c = cluster.Command{}
	}
	return rules.Apply(r, c, e.Index)
}

func newMachine(applied func(*cluster.Registry)) *machine {
	return &machine{applied: applied, registry: rules.New(), feeds: map[*feed]struct{}{}}
}

func (m *machine) Registry() *cluster.Registry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.registry
}

// Apply returns a cluster.Result.
func (m *machine) Apply(log *raft.Log) any {
	e := entry{log.Index, log.Data}
	m.mu.Lock()
	defer m.mu.Unlock()
	next, res := step(m.registry, e)
	m.registry = next
	for f := range m.feeds {
		f.add(e, next)
	}
	m.applied(next)
	return res
}

// StoreConfiguration is called for each configuration that is committed.
func (m *machine) StoreConfiguration(_ uint64, c raft.Configuration) { m.settled(c.Servers) }

// settled notes that a configuration is committed.
func (m *machine) settled(servers []raft.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = servers
}

// members is the newest configuration that is known to be committed. A leader
// that is ready knows it.
func (m *machine) members() []raft.Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.servers
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	return snapshot{m.Registry()}, nil
}

func (m *machine) Restore(from io.ReadCloser) error {
	defer from.Close()
	b, err := io.ReadAll(from)
	if err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	r, err := rules.Decode(b)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.registry = r
	for f := range m.feeds {
		f.reset(r)
	}
	m.applied(r)
	return nil
}

// snapshot is a registry on its way to disk. It needs no copy: registries are
// never changed.
type snapshot struct{ *cluster.Registry }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s.Registry); err != nil {
		sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

func (s snapshot) Release() {}

// feedLimit bounds what is kept for a follower that reads slowly; beyond, it
// gets the whole registry instead.
const feedLimit = 1024

// feed is what one follower has not been sent yet: a registry, or nil, and the
// entries after it.
type feed struct {
	wake chan struct{}

	mu       sync.Mutex
	registry *cluster.Registry
	entries  []entry
}

// follow returns a feed that begins with the present registry. The caller
// gives it back to unfollow.
func (m *machine) follow() *feed {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := &feed{wake: make(chan struct{}, 1)}
	f.reset(m.registry)
	m.feeds[f] = struct{}{}
	return f
}

func (m *machine) unfollow(f *feed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.feeds, f)
}

func (f *feed) add(e entry, after *cluster.Registry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.registry != nil || len(f.entries) >= feedLimit {
		f.registry, f.entries = after, nil
	} else {
		f.entries = append(f.entries, e)
	}
	signal(f.wake)
}

func (f *feed) reset(r *cluster.Registry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.registry, f.entries = r, nil
	signal(f.wake)
}

func (f *feed) take() (*cluster.Registry, []entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, entries := f.registry, f.entries
	f.registry, f.entries = nil, nil
	return r, entries
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
