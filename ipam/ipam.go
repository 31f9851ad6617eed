package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// AddressSpace is what GetDefaultAddressSpaces answers, for local and global
// networks alike: with one name for both, dockerd does not hold and re-request
// automatic pools (moby, ipams/remote RequestPool). The network driver
// recognises pools of this package by it.
const AddressSpace = "isthmus"

// Ledger is what the cluster agreed, as this package needs it.
type Ledger interface {
	// Propose blocks until the command is applied or refused, bounded by ctx
	// and 5 s. A refusal comes back as *cluster.Refusal; after any other error
	// the command may still be applied later.
	Propose(ctx context.Context, c cluster.Command) (cluster.Result, error)
	// Registry returns the newest local copy, never nil, never changed.
	Registry() *cluster.Registry
	// Fresh reports whether the copy includes this run's own Hello. Copies only
	// get newer: one that is taken after Fresh said so includes it too.
	Fresh() bool
	// Boot says what this host may believe of its own disk since the start.
	Boot() cluster.Boot
	// Await blocks until the copy includes an index of the log, and fails when
	// ctx ends before.
	Await(ctx context.Context, index uint64) error
	// Subscribe returns a one-slot channel that is signalled on any change of
	// the above.
	Subscribe() <-chan struct{}
}

// Config is what an IPAM needs. DB, Host, Ledger and Log are required. The
// functions may be nil; they are called without any lock held and must not
// call the Docker API.
type Config struct {
	DB     *bbolt.DB
	Host   cluster.HostID
	Ledger Ledger
	Log    logrus.FieldLogger

	// Routes lists the destinations in use on the hosts of the cluster, without
	// default routes: pools that the cluster picks avoid them.
	Routes func(ctx context.Context) ([]netip.Prefix, error)
	// Recall asks another host to give back one address of a pool, or, with
	// the zero address, what it does not use (its IPAM.Recalled). A
	// *cluster.Refusal says why it keeps it; any other error, that it gave no
	// answer.
	Recall func(ctx context.Context, host cluster.HostID, pool cluster.PoolKey, addr netip.Addr) error
	// Claimed returns what gossip heard another host claim of a block: a host
	// that the cluster admits, and a claim of it that covers some address of
	// the block (Claim.Overlaps).
	Claimed func(pool cluster.PoolKey, block netip.Prefix) (cluster.HostID, cluster.Claim, bool)
	// StillClaims asks a host whether it keeps any address that claim covers as
	// its own, by whatever lease (its IPAM.Keeps). claim is what this host was
	// granted.
	StillClaims func(ctx context.Context, host cluster.HostID, claim cluster.Claim) (bool, error)
	// Networked reports whether the network driver has a network on the pool
	// here. Only addresses of such pools are swept.
	Networked func(cluster.PoolKey) bool
	// Routed reports whether the containers of the pool's network on this host have no
	// neighbours: their addresses are answered as /32 or /128. Nil: none are.
	Routed func(cluster.PoolKey) bool
	// Live reports whether an endpoint of this host holds the address.
	Live func(cluster.PoolKey, netip.Addr) bool
	// WhoHolds names who uses an address anywhere in the cluster ("web on
	// host2"), or returns "".
	WhoHolds func(cluster.PoolKey, netip.Addr) string
	// Probe reports who outside of the cluster answers for an address of a pool
	// whose network stands in a LAN: asked before an endpoint gets the address,
	// within a second or so. Where nobody can be asked, nobody answers.
	Probe func(ctx context.Context, pool cluster.PoolKey, addr netip.Addr) (holder string, taken bool)
	// Conflicts lists the addresses of a pool that Probe found taken, and that
	// were not found free since.
	Conflicts func(pool cluster.PoolKey) []netip.Addr
	// DHCP serves pools made with --ipam-opt dhcp=on; nil: that is refused.
	DHCP DHCP
	// Now is the clock, time.Now when nil.
	Now func() time.Time
}

const (
	callTime    = 9 * time.Second // of a whole call; dockerd is answered within 10 s
	proposeTime = 5 * time.Second
	backTime    = 3 * time.Second // of a proposal that nobody waits for
	recallTime  = 2 * time.Second
	claimTime   = time.Second             // in which a host must answer whether it keeps a block
	copyTime    = 2 * time.Second         // that a granted block waits for the copy to include it
	trustTime   = 1500 * time.Millisecond // that a call waits for the disk to be trusted
	keepTime    = lease.KeepTime          // that a parked pool, or a block of a freed --ip, is kept for its return
	openTime    = 30 * time.Second        // within which Docker asks for the auxiliary addresses of a new network
	startTime   = 10 * time.Second        // from RequestAddress until the endpoint is known to the driver
	orphanTime  = time.Minute             // that a pool of this host is unknown here before it is taken for the leftover of a lost answer
	holdOff     = time.Minute             // without leasing ahead, after the cluster said Full or Recalled
	alarmTime   = time.Hour               // that an alarm is shown after it was seen last
)

// IPAM answers the IpamDriver calls. Its methods are safe for concurrent use.
type IPAM struct {
	cfg   Config
	store *store
	kick  chan struct{} // one slot: wakes Run

	obtaining sync.RWMutex // taken before mu; held for reading while an address is had from the LAN's server

	mu      sync.Mutex     // never held while a Config function, or Propose, is called
	m       *lease.Machine // blocks and addresses; changed by its steps only
	idle    *sync.Cond     // of mu: a step is done
	pools   map[cluster.PoolKey]*pool
	orphans map[cluster.PoolKey]time.Time // since when the cluster lists this host for a pool unknown here
	news    chan struct{}                 // closed when the ledger changed
	subs    []chan struct{}
	suspect string // as told to subs
}

// pool is what this host knows of one pool. All but hold is guarded by IPAM.mu.
type pool struct {
	key  cluster.PoolKey
	hold chan struct{} // one slot: taken by whoever asks for a block of the pool, so that one request is outstanding

	*lease.Pool         // the machine's part
	rec         *record // nil: this host is not attached
	dead        map[netip.Addr]dead
	found       map[netip.Addr]bool // in a running container, before the cluster confirmed this run
	wished      bool                // IPv6: dhcp=on was said with the newest request for it

	leaving bool                 // being given up: not to be used from the local copy
	left    uint64               // index at which the host was detached; older copies do not count
	opening int                  // networks requested by Docker but not yet prepared by the driver
	opened  time.Time            // when Docker last spoke of one of those
	quiet   time.Time            // no leasing ahead before
	secured time.Time            // no leasing of what is in use without a lease before
	problem string               // for status
	alarms  map[string]time.Time // for status: what should not be, and when that was seen last

	conflicts map[netip.Addr]string // pinned, since something on the LAN answers for them: what
}

// dead is a use without an endpoint.
type dead struct {
	turn  uint64
	since time.Time
}

// Open reads the state that an earlier run left in cfg.DB. Run does the rest;
// addresses are handed out as soon as the ledger's Boot has settled.
func Open(cfg Config) (*IPAM, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	i := &IPAM{
		cfg:   cfg,
		store: &store{db: cfg.DB},
		kick:  make(chan struct{}, 1),
		pools: map[cluster.PoolKey]*pool{},
		news:  make(chan struct{}),
	}
	i.idle = sync.NewCond(&i.mu)
	records, disk, err := i.store.load()
	if err != nil {
		return nil, fmt.Errorf("open addresses: %w", err)
	}
	i.m = lease.Load(cfg.Host, disk)
	for key := range disk.Pools {
		i.pool(key)
	}
	for key, rec := range records {
		i.pool(key).rec = &rec
	}
	// A stored copy is no proof that the blocks were held against it.
	if err := i.Rebuilt(cfg.Ledger.Registry().Cluster, cfg.Ledger.Registry().Gen); err != nil {
		return nil, fmt.Errorf("open addresses: %w", err)
	}
	i.m.Boot(cfg.Ledger.Boot())
	i.suspect = i.m.Suspect()
	return i, nil
}

// pool returns the state of a pool, new if need be. The caller holds i.mu.
func (i *IPAM) pool(key cluster.PoolKey) *pool {
	p, ok := i.pools[key]
	if !ok {
		p = &pool{key: key, hold: make(chan struct{}, 1), Pool: i.m.Pool(key), dead: map[netip.Addr]dead{}, found: map[netip.Addr]bool{}, alarms: map[string]time.Time{}}
		i.pools[key] = p
	}
	return p
}

// find returns the pool if the host is attached to it.
func (i *IPAM) find(key cluster.PoolKey) (*pool, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p, ok := i.pools[key]
	return p, ok && p.rec != nil
}

// lock takes the pool's turn to propose.
func (i *IPAM) lock(ctx context.Context, p *pool) (unlock func(), err error) {
	select {
	case p.hold <- struct{}{}:
		return func() { <-p.hold }, nil
	case <-ctx.Done():
		i.mu.Lock()
		defer i.mu.Unlock()
		if p.problem != "" {
			return nil, fmt.Errorf("wait for an earlier request on pool %s: %s", p.key, p.problem)
		}
		return nil, fmt.Errorf("wait for an earlier request on pool %s: %w", p.key, ctx.Err())
	}
}

func (i *IPAM) wake() {
	select {
	case i.kick <- struct{}{}:
	default:
	}
}

// commit stores what a step wrote, and more, and then lets the step count. The
// caller holds i.mu.
func (i *IPAM) commit(s lease.Step, more ...op) error {
	ops := append(opsOf(s.Writes), more...)
	if len(ops) == 0 {
		i.m.Done(s, nil)
		return nil
	}
	err := i.store.commit(ops...)
	i.done(s, err)
	return err
}

// finish waits for the writes of an address step, and lets it count.
func (i *IPAM) finish(s lease.Step, w *write) error {
	err := i.store.wait(w)
	i.mu.Lock()
	i.done(s, err)
	i.mu.Unlock()
	i.wake()
	return err
}

// done ends a step. The caller holds i.mu.
func (i *IPAM) done(s lease.Step, err error) {
	i.m.Done(s, err)
	i.idle.Broadcast()
	if slices.ContainsFunc(s.Writes, i.shows) {
		i.tell()
	}
}

// Subscribe returns a one-slot channel that is signalled when Claims, Lost or
// Suspect have changed.
func (i *IPAM) Subscribe() <-chan struct{} {
	ch := make(chan struct{}, 1)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.subs = append(i.subs, ch)
	return ch
}

// tell signals the subscribers. The caller holds i.mu.
func (i *IPAM) tell() {
	for _, ch := range i.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (i *IPAM) propose(ctx context.Context, c cluster.Command) (cluster.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	return i.cfg.Ledger.Propose(ctx, c)
}

// refused returns the refusal that err carries, if it has one of the codes.
func refused(err error, codes ...cluster.Code) (*cluster.Refusal, bool) {
	var r *cluster.Refusal
	if errors.As(err, &r) && slices.Contains(codes, r.Code) {
		return r, true
	}
	return nil, false
}

func isRefusal(err error) bool {
	var r *cluster.Refusal
	return errors.As(err, &r)
}

// copy returns the registry, and whether it includes this run's Hello. The
// order of the two questions matters: the copy may become fresh in between.
func (i *IPAM) copy() (*cluster.Registry, bool) {
	fresh := i.cfg.Ledger.Fresh()
	return i.cfg.Ledger.Registry(), fresh
}
