package gossip

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// Config is what a Cluster needs.
type Config struct {
	ID        cluster.HostID       // the hash of Identity
	Transport *transport.Transport // its Gossip and Sync streams and its packets belong to this package
	// Cluster returns the cluster that this host belongs to, and waits while
	// there is none. It is asked again every few seconds.
	Cluster  func(ctx context.Context) (cluster.ID, error)
	Info     cluster.HostInfo
	Join     []string // host[:port] of members; may name this host as well
	Port     uint16   // for entries of Join without one
	DB       *bbolt.DB
	Identity ed25519.PrivateKey
	// Admit says why a host may not take part, such as that the cluster forgot
	// it; nil lets it. It is asked often, with locks held: it must not block, nor
	// call this package. Without Admit every host may.
	Admit func(cluster.HostID) error
	Log   logrus.FieldLogger
}

// Cluster is this host's view of the others, and its voice among them. All
// methods are safe for concurrent use, and none but Run and Leave blocks.
type Cluster struct {
	cfg   Config
	log   logrus.FieldLogger
	quiet *quiet
	net   network
	dice  *dice

	packets   chan *memberlist.Packet // to memberlist
	incoming  chan net.Conn           // to memberlist
	heardMsgs chan []byte             // from memberlist
	queue     memberlist.TransmitLimitedQueue
	alive     atomic.Int32 // hosts, with this one

	// One-slot signals to the loops.
	published chan struct{} // the own stream changed
	syncNow   chan struct{} // exchange soon
	save      chan struct{} // the address book changed

	mu          sync.Mutex // no method of memberlist is called with it held
	table       *table
	book        *book
	info        cluster.HostInfo
	records     []cluster.Record
	speaks      bool // Publish was called
	leaving     bool // Leave was called
	started     time.Time
	settled     bool
	exchanged   time.Time // first exchange that was not cut short
	trusted     bool      // there was one with a host that had settled
	renewed     time.Time // last rise of the epoch
	heard       map[cluster.HostID]rumour
	wanted      map[cluster.HostID]bool // partners of the next exchanges
	answers     map[netip.AddrPort]answer
	knocks      map[cluster.HostID]knock // of refused hosts
	trouble     error                    // of the last round of dials, while this host is alone
	member      *member                  // of the present stay; nil while there is none
	subscribers []chan struct{}
}

// Open reads the address book and begins a new epoch of this host's stream.
// Nothing is sent before Run.
func Open(cfg Config) (*Cluster, error) {
	return open(cfg, real{cfg.Transport}, rand.Uint64())
}

func open(cfg Config, n network, seed uint64) (*Cluster, error) {
	if id := cluster.HostIDOf(cfg.Identity.Public().(ed25519.PublicKey)); id != cfg.ID {
		return nil, fmt.Errorf("open gossip: identity key belongs to host %s, not %s", id.Short(), cfg.ID.Short())
	}
	book, epoch, err := load(cfg.DB)
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	c := &Cluster{
		cfg: cfg, log: cfg.Log, net: n, dice: newDice(seed),
		packets:   make(chan *memberlist.Packet),
		incoming:  make(chan net.Conn),
		heardMsgs: make(chan []byte, 1024),
		published: make(chan struct{}, 1),
		syncNow:   make(chan struct{}, 1),
		save:      make(chan struct{}, 1),
		table:     newTable(cfg.Identity, epoch),
		book:      book,
		info:      cfg.Info,
		started:   time.Now(),
		heard:     map[cluster.HostID]rumour{},
		wanted:    map[cluster.HostID]bool{},
		answers:   map[netip.AddrPort]answer{},
		knocks:    map[cluster.HostID]knock{},
		quiet:     newQuiet(cfg.Log),
	}
	c.alive.Store(1)
	c.queue.RetransmitMult = memberlist.DefaultLANConfig().RetransmitMult
	c.queue.NumNodes = func() int { return int(c.alive.Load()) }
	return c, nil
}

// Run takes part until ctx ends. Ending is no good-bye: others take this host
// for failed after a while and keep its records.
func (c *Cluster) Run(caller context.Context) error {
	g, ctx := errgroup.WithContext(caller)
	g.Go(func() error { return c.acceptPackets(ctx) })
	g.Go(func() error { return c.acceptStreams(ctx) })
	g.Go(func() error { return c.answer(ctx) })
	g.Go(func() error { return c.keepBook(ctx) })
	g.Go(func() error {
		for {
			id, err := c.cfg.Cluster(ctx)
			if err != nil {
				return fmt.Errorf("learn cluster: %w", err)
			}
			if err := c.enter(id); err != nil {
				return err
			}
			if err := c.stay(ctx, id); err != nil {
				return err
			}
		}
	})
	err := g.Wait()
	// The transport may end with the same context, and a moment earlier.
	if caller.Err() != nil {
		return nil
	}
	return fmt.Errorf("run gossip: %w", err)
}

// enter begins a stay. What was heard in another cluster, now or in an earlier
// run, stays behind.
func (c *Cluster) enter(id cluster.ID) error {
	was, err := swapCluster(c.cfg.DB, id)
	if err != nil || was == id || was == "" {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.book.clear()
	for owner := range c.table.streams {
		if owner != c.cfg.ID {
			c.table.drop(owner)
		}
	}
	clear(c.heard)
	c.queue.Reset() // hints of hosts that are not in this cluster
	for len(c.heardMsgs) > 0 {
		<-c.heardMsgs
	}
	c.settled, c.trusted, c.exchanged = false, false, time.Time{}
	c.countAlive()
	signal(c.save)
	c.changed()
	return nil
}

// Publish makes records the full set of what this host says of itself, beside
// its HostInfo. The difference to the last call is told to the others at once.
// Before the first call this host says nothing, and others keep what it said
// before it restarted; so call it, with nil if there is nothing, as soon as
// the set is known.
func (c *Cluster) Publish(records []cluster.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records = slices.Clone(records)
	c.speaks = true
	c.restate()
}

// SetInfo changes what this host says of itself.
func (c *Cluster) SetInfo(info cluster.HostInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.info == info {
		return
	}
	c.info = info
	if c.speaks {
		c.restate()
	}
	c.changed()
}

func (c *Cluster) infoNow() cluster.HostInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// restate renews the own stream; call with mu held.
func (c *Cluster) restate() {
	entries := entriesOf(c.info, c.records)
	if c.leaving {
		entries = append(entriesOf(c.info, nil), entry{leftKey, "1"})
	}
	entries = append(entries, entry{addressKey, c.net.Addr().String()})
	if c.table.publish(sorted(entries)) {
		signal(c.published)
	}
}

// Members returns all hosts that are known, this one included, by name and id.
func (c *Cluster) Members() []cluster.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []cluster.Member{{ID: c.cfg.ID, Address: c.net.Addr(), State: cluster.Alive, Since: c.started, Info: c.info}}
	for id, h := range c.book.hosts {
		if c.admit(id) != nil {
			continue
		}
		m := cluster.Member{ID: id, State: h.state(), Since: h.since, Info: cluster.HostInfo{Name: h.Name}}
		if len(h.Addresses) > 0 {
			m.Address = h.Addresses[0]
		}
		if s := c.table.streams[id]; s != nil {
			m.Info = s.view.Info
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b cluster.Member) int {
		return cmp.Or(cmp.Compare(a.Info.Name, b.Info.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// Streams returns what the other hosts say of themselves, by owner, those that
// failed included. The streams are never changed again.
func (c *Cluster) Streams() []cluster.Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]cluster.Stream, 0, len(c.table.streams))
	for owner, s := range c.table.streams {
		if owner != c.cfg.ID && c.admit(owner) == nil {
			out = append(out, s.view)
		}
	}
	slices.SortFunc(out, func(a, b cluster.Stream) int { return cmp.Compare(a.Owner, b.Owner) })
	return out
}

// Settled reports whether what is not in Streams may be taken for gone: this
// host compared notes with the others, or there are none. While hosts are
// known and none of them answers it stays false.
func (c *Cluster) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settled
}

// Trouble says why this host is alone although others are known or named in
// Join, and which hosts are refused that lately tried to take part; nil when
// there is neither.
func (c *Cluster) Trouble() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(append([]error{c.trouble}, c.refusals()...)...)
}

// Subscribe returns a channel that receives a value after Members, Streams or
// Settled changed. Changes that are not yet received count as one.
func (c *Cluster) Subscribe() <-chan struct{} {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscribers = append(c.subscribers, ch)
	return ch
}

// Leave says good-bye: the others drop this host's records and dial it no
// more. It returns when one of them knows. Taking part again needs a new Run
// of the program.
func (c *Cluster) Leave(ctx context.Context) error {
	c.mu.Lock()
	c.leaving = true
	c.restate()
	m := c.member
	var peers []cluster.HostID
	addrs := map[cluster.HostID]netip.AddrPort{}
	for _, id := range c.alivePeers() {
		peers = append(peers, id)
		addrs[id] = c.book.hosts[id].Addresses[0]
	}
	c.mu.Unlock()
	if m == nil || len(peers) == 0 {
		return nil // nobody to tell
	}
	var errs []error
	for _, id := range peers {
		if ctx.Err() != nil {
			break
		}
		err := m.exchange(id, addrs[id])
		if err == nil {
			// The other hosts learn it from that one.
			if err := m.list.Leave(time.Second); err != nil {
				c.log.WithError(err).Debug("leave membership")
			}
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("leave cluster: tell another host: %w", errors.Join(append(errs, ctx.Err())...))
}

// learned follows up a change of another host's stream; call with mu held.
func (c *Cluster) learned(owner cluster.HostID) {
	s := c.table.streams[owner]
	if r, ok := c.heard[owner]; ok && s.compare(r.version) >= 0 {
		delete(c.heard, owner)
	}
	c.introduce(owner, s)
	c.changed()
}

// introduce notes what a stream says of where its owner is: memberlist may not
// have met it, or no longer know it. Call with mu held.
func (c *Cluster) introduce(owner cluster.HostID, s *stream) {
	left, name := s.get(leftKey) != "", s.view.Info.Name
	at, err := netip.ParseAddrPort(s.get(addressKey))
	h := c.book.hosts[owner]
	moved := err == nil && (h == nil || !h.alive && !h.isAt(at))
	if h != nil && h.Left == left && h.Name == name && !moved {
		return
	}
	h = c.book.meet(owner)
	h.Left, h.Name = left, name
	if moved {
		h.at(at)
	}
	signal(c.save)
}

// countAlive feeds the length of gossip; call with mu held.
func (c *Cluster) countAlive() { c.alive.Store(int32(1 + len(c.alivePeers()))) }

// changed tells the subscribers; call with mu held.
func (c *Cluster) changed() {
	for _, ch := range c.subscribers {
		signal(ch)
	}
}

// signal fills a one-slot channel.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
