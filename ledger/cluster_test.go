package ledger

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
	"github.com/isthmus-net/isthmus/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is one host: its state on disk, and its process while it runs.
type node struct {
	*Ledger
	t    *testing.T
	name string
	dir  string
	key  ed25519.PrivateKey
	addr netip.AddrPort
	path func(to netip.AddrPort) context.Context // see Ledger
	book map[cluster.HostID]netip.AddrPort       // what its gossip remembers
	stop func() error
	ran  chan error // the end of Ledger.Run

	mu   sync.Mutex
	kept map[uint64]cluster.Claim // the blocks that it keeps, as its ipam would
}

func (n *node) claims() []cluster.Claim {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.kept))
}

// block leases a block and keeps it.
func (n *node) block(prefix string) cluster.Lease {
	n.t.Helper()
	lease := n.must(grant(prefix)).Lease
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kept[lease.ID] = lease.Claim()
	return lease
}

var (
	loopback = [4]byte{127, byte(1 + mathrand.IntN(250)), byte(mathrand.IntN(250)), 1}
	ports    atomic.Uint32
)

// nextAddr is an address that nobody else has: not another test of this run,
// nor another run on this machine, nor an outgoing connection.
func nextAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(loopback), uint16(10000+ports.Add(1)))
}

// newNode makes a host.
func newNode(t *testing.T, name string) *node {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, name: name, dir: t.TempDir(), key: key, addr: nextAddr(), kept: map[uint64]cluster.Claim{}}
	t.Cleanup(n.kill)
	return n
}

func (n *node) id() cluster.HostID { return cluster.HostIDOf(n.key.Public().(ed25519.PublicKey)) }

func (n *node) logger() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	if testing.Verbose() {
		log.SetOutput(os.Stderr)
	}
	return log.WithField("host", n.name)
}

func (n *node) listen() *transport.Transport {
	n.t.Helper()
	tr, err := transport.Listen(transport.Config{
		Address: n.addr, Secret: []byte("secret"), Identity: n.key, Log: n.logger(),
		Cluster: func() cluster.ID {
			if n.Ledger == nil {
				return ""
			}
			return n.ID()
		},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return tr
}

// start runs the host with this JOIN.
func (n *node) start(join ...string) *node {
	n.t.Helper()
	return n.startWith(func(c *Config) { c.Join = join })
}

func (n *node) startWith(change func(*Config)) *node {
	n.t.Helper()
	if n.stop != nil {
		n.t.Fatal("it runs already")
	}
	n.Ledger = nil
	tr := n.listen()
	db, err := bolt.Open(filepath.Join(n.dir, "state.db"), 0o600, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	cfg := Config{
		Transport: tr, DB: db, Dir: filepath.Join(n.dir, "raft"), Host: n.id(), Port: n.addr.Port(), Log: n.logger(),
		Claims: n.claims,
		Self:   cluster.Hello{PublicKey: n.key.Public().(ed25519.PublicKey), Name: n.name, VTEP: n.addr.Addr(), Address: n.addr},
	}
	change(&cfg)
	if n.Ledger, err = Open(cfg); err != nil {
		n.t.Fatal(err)
	}
	n.Ledger.path = n.path
	n.Ledger.UpdateAddresses(n.book)
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return tr.Run(ctx) })
	n.ran = make(chan error, 1)
	g.Go(func() error {
		err := n.Ledger.Run(ctx)
		n.ran <- err
		return err
	})
	n.stop = func() error {
		cancel()
		err := g.Wait()
		db.Close()
		return err
	}
	return n
}

// kill ends the process of the host; its state stays.
func (n *node) kill() {
	n.t.Helper()
	if n.stop == nil {
		return
	}
	if err := n.stop(); err != nil {
		n.t.Errorf("%s: %v", n.name, err)
	}
	n.stop = nil
}

// ended waits until the ledger's Run returns by itself, and returns why.
func (n *node) ended() error {
	n.t.Helper()
	select {
	case err := <-n.ran:
		if n.stop() == nil {
			n.t.Errorf("%s: it ended without a reason", n.name)
		}
		n.stop = nil
		return err
	case <-time.After(20 * time.Second):
		n.t.Fatalf("%s: it does not end; %+v", n.name, n.Status())
		return nil
	}
}

// await waits until ok holds on this host.
func (n *node) await(what string, ok func() bool) {
	n.t.Helper()
	changed := n.mirror.subscribe()
	defer n.mirror.unsubscribe(changed)
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	tick := time.NewTicker(50 * time.Millisecond) // not all that is awaited is signalled
	defer tick.Stop()
	for !ok() {
		select {
		case <-changed:
		case <-tick.C:
		case <-timeout.C:
			n.t.Fatalf("%s: waited too long until %s; %+v", n.name, what, n.Status())
		}
	}
}

// fresh brings the host into a cluster, and waits until it has a session.
func (n *node) fresh() *node {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := n.want(ctx); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	n.await("it is fresh", n.Fresh)
	return n
}

func (n *node) must(c cluster.Command) cluster.Result {
	n.t.Helper()
	var res cluster.Result
	var err error
	// On a starved machine voters take longer to agree on a leader than a call waits.
	n.await("a command is answered", func() bool {
		res, err = n.Propose(context.Background(), c)
		return err == nil || errors.As(err, new(*cluster.Refusal))
	})
	if err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	if got := n.Registry().Index; got < res.Index {
		n.t.Errorf("%s: the copy is at %d after a result at %d", n.name, got, res.Index)
	}
	if err := rules.Check(n.Registry()); err != nil {
		n.t.Error(err)
	}
	return res
}

func attach(prefix string) cluster.Command {
	return cluster.Command{AttachPool: &cluster.AttachPool{Prefix: netip.MustParsePrefix(prefix)}}
}

func grant(prefix string) cluster.Command {
	return cluster.Command{Grant: &cluster.Grant{Pool: cluster.PoolKey{Prefix: netip.MustParsePrefix(prefix)}, Want: 8}}
}

// hosts makes hosts host1, host2 ... that do not run yet.
func hosts(t *testing.T, n int) (nodes []*node, join []string) {
	t.Helper()
	for i := range n {
		nodes = append(nodes, newNode(t, fmt.Sprintf("host%d", i+1)))
		join = append(join, nodes[i].addr.String())
	}
	return nodes, join
}

// silence takes connections at an address, and says nothing.
func silence(t *testing.T, at netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}
