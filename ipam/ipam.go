package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
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
	// Fresh reports whether the copy includes this run's own Hello.
	Fresh() bool
	// Subscribe returns a one-slot channel that is signalled on any change.
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

	// Routes lists the destinations in use on this host, without default
	// routes: pools that the cluster picks avoid them.
	Routes func(ctx context.Context) ([]netip.Prefix, error)
	// Recall asks another host to give up what it holds of a pool and does
	// not use (its IPAM.Recalled).
	Recall func(ctx context.Context, host cluster.HostID, pool cluster.PoolKey) error
	// Networked reports whether the network driver has a network on the pool
	// here. Only addresses of such pools are swept.
	Networked func(cluster.PoolKey) bool
	// Live reports whether an endpoint of this host holds the address.
	Live func(cluster.PoolKey, netip.Addr) bool
	// WhoHolds names who uses an address anywhere in the cluster ("web on
	// host2"), or returns "".
	WhoHolds func(cluster.PoolKey, netip.Addr) string
	// Now is the clock, time.Now when nil.
	Now func() time.Time
}

const (
	callTime    = 9 * time.Second // of a whole call; dockerd is answered within 10 s
	proposeTime = 5 * time.Second
	backTime    = 3 * time.Second // of a proposal that nobody waits for
	recallTime  = 2 * time.Second
	keepTime    = 24 * time.Hour   // that a parked pool, or a block of a freed --ip, is kept for its return
	openTime    = 30 * time.Second // within which Docker asks for the auxiliary addresses of a new network
	startTime   = 10 * time.Second // from RequestAddress until the endpoint is known to the driver
	orphanTime  = time.Minute      // that a pool of this host is unknown here before it is taken for the leftover of a lost answer
	holdOff     = time.Minute      // without leasing ahead, after the cluster said Full or Recalled
)

// IPAM answers the IpamDriver calls. Its methods are safe for concurrent use.
type IPAM struct {
	cfg   Config
	store *store
	kick  chan struct{} // one slot: wakes Run

	mu       sync.Mutex // never held while a Config function, or Propose, is called
	pools    map[cluster.PoolKey]*pool
	returned map[uint64]bool               // leases given back in this run: a late reply or old copy must not revive them
	orphans  map[cluster.PoolKey]time.Time // since when the cluster lists this host for a pool unknown here
	turn     uint64                        // of the newest use
	news     chan struct{}                 // closed when the registry changed
}

// pool is what this host knows of one pool. All but hold is guarded by IPAM.mu.
type pool struct {
	key  cluster.PoolKey
	hold chan struct{} // one slot: taken by whoever proposes for the pool, so that one request is outstanding

	rec    *record // nil: this host is not attached
	blocks map[uint64]block
	used   map[netip.Addr]use
	freed  map[netip.Addr]freed
	pinned map[netip.Addr]bool // on their way to become gateway or reserved

	leaving bool      // being given up: not to be used from the local copy
	left    uint64    // index at which the host was detached; older copies do not count
	opening int       // networks requested by Docker but not yet prepared by the driver
	opened  time.Time // when Docker last spoke of one of those
	peak    peak
	quiet   time.Time // no leasing ahead before
	problem string    // for status
}

// Open reads the state that an earlier run left in cfg.DB. Addresses can be
// handed out at once; Run does the rest.
func Open(cfg Config) (*IPAM, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	i := &IPAM{
		cfg:      cfg,
		store:    &store{db: cfg.DB},
		kick:     make(chan struct{}, 1),
		pools:    map[cluster.PoolKey]*pool{},
		returned: map[uint64]bool{},
		news:     make(chan struct{}),
	}
	if err := i.store.load(i.pool); err != nil {
		return nil, fmt.Errorf("open addresses: %w", err)
	}
	return i, nil
}

// pool returns the state of a pool, new if need be. The caller holds i.mu.
func (i *IPAM) pool(key cluster.PoolKey) *pool {
	p, ok := i.pools[key]
	if !ok {
		p = &pool{
			key:    key,
			hold:   make(chan struct{}, 1),
			blocks: map[uint64]block{},
			used:   map[netip.Addr]use{},
			freed:  map[netip.Addr]freed{},
			pinned: map[netip.Addr]bool{},
		}
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

// definition returns the newest that is known of an attached pool: from the
// registry's copy, or from the answer to the host's own newer command. The
// caller holds i.mu.
func (i *IPAM) definition(p *pool) cluster.Pool {
	if p.rec == nil {
		return cluster.Pool{Key: p.key}
	}
	r := i.cfg.Ledger.Registry()
	if def, ok := r.Pools[p.key]; ok && r.Index >= p.rec.Index {
		return def
	}
	return p.rec.Pool
}

// learn stores what an own command made of the pool. The caller holds i.mu.
func (i *IPAM) learn(p *pool, res cluster.Result) error {
	rec := *p.rec
	if res.Index > rec.Index {
		rec.Pool, rec.Index = res.Pool, res.Index
	}
	return i.record(p, rec)
}

// record stores and then sets the pool's record. The caller holds i.mu.
func (i *IPAM) record(p *pool, rec record) error {
	if err := i.store.commit(put(poolBucket, poolKey(p.key), rec)); err != nil {
		return err
	}
	p.rec = &rec
	return nil
}

// scope returns the choice that a pool offers within a range; the whole pool
// when the range is invalid. The caller holds i.mu.
func (i *IPAM) scope(p *pool, within netip.Prefix) scope {
	def := i.definition(p)
	if !within.IsValid() {
		within = p.key.Prefix
	}
	return scope{pool: p.key.Prefix, within: within, gateway: def.Gateway, reserved: def.Reserved}
}

// active lists the blocks that addresses may be chosen from, by address; those
// leased for one --ip only when exact is set.
func (p *pool) active(exact bool) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range p.sorted() {
		if !b.Draining && (exact || !b.Exact) {
			out = append(out, b.Prefix)
		}
	}
	return out
}

func (p *pool) sorted() []block {
	return slices.SortedFunc(maps.Values(p.blocks), compareBlocks)
}

// covering returns the block that an address lies in.
func (p *pool) covering(a netip.Addr) (block, bool) {
	for _, b := range p.blocks {
		if b.Prefix.Contains(a) {
			return b, true
		}
	}
	return block{}, false
}

func (p *pool) taken(a netip.Addr) bool {
	_, used := p.used[a]
	return used || p.pinned[a]
}

// empty reports whether no address of a block is in use.
func (p *pool) empty(b block) bool {
	for a := range p.used {
		if b.Prefix.Contains(a) {
			return false
		}
	}
	for a := range p.pinned {
		if b.Prefix.Contains(a) {
			return false
		}
	}
	return true
}

// ranges lists what the Docker networks here choose addresses from: their
// --ip-range, or the whole pool as an invalid prefix.
func (p *pool) ranges() []netip.Prefix {
	var out []netip.Prefix
	for id, n := range p.rec.Uses {
		if pid, err := parsePoolID(id); err == nil && n > 0 && !slices.Contains(out, pid.within) {
			out = append(out, pid.within)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}

func (p *pool) parked() bool { return p.rec != nil && p.rec.uses() == 0 }

// creating reports whether Docker is in the middle of making a network on the
// pool: what it requests now are gateway and auxiliary addresses.
func (p *pool) creating(now time.Time) bool {
	return p.opening > 0 && now.Sub(p.opened) < openTime
}

func (i *IPAM) networked(key cluster.PoolKey) bool {
	return i.cfg.Networked != nil && i.cfg.Networked(key)
}

func (i *IPAM) live(p *pool, a netip.Addr) bool {
	return i.cfg.Live != nil && i.cfg.Live(p.key, a)
}
