package dhcp

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
)

// Key names a lease: what it is for (a pool, as text), and its address.
type Key struct {
	Group string     `json:"group"`
	Addr  netip.Addr `json:"addr"`
}

// Speaker does the exchanges; Client is one.
type Speaker interface {
	Obtain(context.Context, Request) (Lease, error)
	Regain(context.Context, Lease) (Lease, error)
	Reboot(context.Context, Lease) (Lease, error)
	Renew(context.Context, Lease) (Lease, error)
	Rebind(context.Context, Lease) (Lease, error)
	Release(context.Context, Lease) error
	Decline(ctx context.Context, l Lease, why string) error
}

// Store keeps leases over a restart. Put and Delete return when it is on disk.
type Store interface {
	Load() (map[Key]Lease, error)
	Put(Key, Lease) error
	Delete(Key) error
}

// Config is what a Keeper needs. Store and Log are required.
type Config struct {
	Store Store
	Log   logrus.FieldLogger
	// Client speaks with the servers; nil: Client{}.
	Client Speaker
	// Probe reports who else answers for an address that a server just gave,
	// or ""; nil: nobody is asked.
	Probe func(ctx context.Context, ifname string, addr netip.Addr) (holder string)
}

const (
	speakTime = 20 * time.Second // of one renewal
	lookTime  = time.Minute      // at least that often the clock is looked at
	speakers  = 8                // renewals at the same time
	declines  = 3                // addresses that are declined before an Obtain fails
)

// Keeper holds leases and renews them. Its methods are safe for concurrent use.
type Keeper struct {
	cfg  Config
	kick chan struct{} // one slot: wakes Run

	mu     sync.Mutex
	leases map[Key]*held
	subs   []chan struct{}
}

// held is one lease. Its fields are guarded by Keeper.mu.
type held struct {
	turn chan struct{} // one slot: taken by whoever speaks about it
	Lease
	condition
	problem string
	gone    bool        // given back
	bearer  cluster.MAC // that the server is to be told of; zero: none
}

// Status describes a lease.
type Status struct {
	Key     Key    `json:"key"`
	Lease   Lease  `json:"lease"`
	Lost    bool   `json:"lost,omitempty"`    // it expired or was taken back: the address belongs to the server again
	Problem string `json:"problem,omitempty"` // why it was not renewed
}

// NewKeeper takes up the leases that an earlier run stored. Run asks the
// servers whether they still hold.
func NewKeeper(cfg Config) (*Keeper, error) {
	if cfg.Client == nil {
		cfg.Client = Client{}
	}
	if cfg.Probe == nil {
		cfg.Probe = func(context.Context, string, netip.Addr) string { return "" }
	}
	stored, err := cfg.Store.Load()
	if err != nil {
		return nil, fmt.Errorf("open DHCP leases: %w", err)
	}
	k := &Keeper{cfg: cfg, kick: make(chan struct{}, 1), leases: map[Key]*held{}}
	for key, l := range stored {
		k.leases[key] = newHeld(l, false)
	}
	return k, nil
}

func newHeld(l Lease, sure bool) *held {
	return &held{turn: make(chan struct{}, 1), Lease: l, condition: condition{sure: sure}}
}

// Obtain gets a lease for a group and keeps it from then on. One that is kept
// for the same client identifier is given again. It is stored before this
// returns.
func (k *Keeper) Obtain(ctx context.Context, group string, r Request) (Lease, error) {
	if l, ok := k.kept(ctx, group, r); ok {
		return l, nil
	}
	for try := 1; ; try++ {
		l, err := k.cfg.Client.Obtain(ctx, r)
		if err != nil {
			return Lease{}, err
		}
		holder := k.cfg.Probe(ctx, r.Interface, l.Prefix.Addr())
		if holder == "" {
			return l, k.keep(Key{group, l.Prefix.Addr()}, l)
		}
		err = fmt.Errorf("DHCP server %s gives address %s, which %s on the LAN answers for", l.Server, l.Prefix.Addr(), holder)
		if derr := k.cfg.Client.Decline(ctx, l, "in use by "+holder); derr != nil {
			return Lease{}, fmt.Errorf("%w; %w", err, derr)
		}
		if try == declines {
			return Lease{}, err
		}
		k.cfg.Log.WithField("interface", r.Interface).WithError(err).Warn("address of the DHCP server declined")
	}
}

// kept finds the lease of a client identifier, as far as it is good.
func (k *Keeper) kept(ctx context.Context, group string, r Request) (Lease, bool) {
	k.mu.Lock()
	var found *held
	for key, h := range k.leases {
		if key.Group == group && bytes.Equal(h.ClientID, r.ClientID) && h.Interface == r.Interface {
			found = h
		}
	}
	k.mu.Unlock()
	if found == nil {
		return Lease{}, false
	}
	select {
	case found.turn <- struct{}{}:
		defer func() { <-found.turn }()
	case <-ctx.Done():
		return Lease{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return found.Lease, found.sure && !found.lost && !found.gone && !found.Expired(time.Now())
}

// keep stores a new lease. Another one of the same address is over: the server
// gave it anew.
func (k *Keeper) keep(key Key, l Lease) error {
	if err := k.cfg.Store.Put(key, l); err != nil {
		return fmt.Errorf("store the DHCP lease of %s: %w", key.Addr, err)
	}
	k.mu.Lock()
	if old, ok := k.leases[key]; ok {
		old.gone = true
	}
	k.leases[key] = newHeld(l, true)
	k.mu.Unlock()
	k.wake()
	return nil
}

// Release gives a lease back to its server, which is not asked whether it
// heard, and forgets it. One that is not kept is a success.
func (k *Keeper) Release(ctx context.Context, key Key) error {
	return k.drop(ctx, key, func(l Lease) error { return k.cfg.Client.Release(ctx, l) })
}

// Decline gives a lease back that cannot be used, so that the server gives
// another address next.
func (k *Keeper) Decline(ctx context.Context, key Key, why string) error {
	return k.drop(ctx, key, func(l Lease) error { return k.cfg.Client.Decline(ctx, l, why) })
}

func (k *Keeper) drop(ctx context.Context, key Key, tell func(Lease) error) error {
	k.mu.Lock()
	h, ok := k.leases[key]
	k.mu.Unlock()
	if !ok {
		return nil
	}
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return fmt.Errorf("give back the DHCP lease of %s: %w", key.Addr, ctx.Err())
	}
	k.mu.Lock()
	l, gone, ended := h.Lease, h.gone, h.lost || h.Expired(time.Now())
	k.mu.Unlock()
	if gone {
		return nil
	}
	if !ended {
		if err := tell(l); err != nil { // the lease ends by itself
			k.cfg.Log.WithField("address", key.Addr.String()).WithError(err).Warn("DHCP server cannot be told that an address is free")
		}
	}
	if err := k.cfg.Store.Delete(key); err != nil {
		return fmt.Errorf("forget the DHCP lease of %s: %w", key.Addr, err)
	}
	k.mu.Lock()
	h.gone = true
	if k.leases[key] == h {
		delete(k.leases, key)
	}
	k.mu.Unlock()
	k.tell()
	return nil
}

// Bear tells the server, under Run, with which MAC an address is in use: another
// one than it was asked for. A server that does not take it keeps the lease as it
// is.
func (k *Keeper) Bear(key Key, mac cluster.MAC) {
	k.mu.Lock()
	h, ok := k.leases[key]
	if ok = ok && h.MAC != mac; ok {
		h.bearer = mac
	}
	k.mu.Unlock()
	if ok {
		signal(k.kick)
	}
}

// Lease returns what is kept of an address.
func (k *Keeper) Lease(key Key) (Lease, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h, ok := k.leases[key]; ok {
		return h.Lease, true
	}
	return Lease{}, false
}

// Held lists the addresses that are kept for a group, sorted.
func (k *Keeper) Held(group string) []netip.Addr {
	var out []netip.Addr
	for _, s := range k.Status() {
		if s.Key.Group == group {
			out = append(out, s.Key.Addr)
		}
	}
	return out
}

// Status lists all leases, by group and address.
func (k *Keeper) Status() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Status
	now := time.Now()
	for key, h := range k.leases {
		out = append(out, Status{Key: key, Lease: h.Lease, Lost: h.lost || h.Expired(now), Problem: h.problem})
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Key.Group, b.Key.Group), a.Key.Addr.Compare(b.Key.Addr))
	})
	return out
}

// Subscribe returns a one-slot channel that is signalled when a lease came,
// went, was lost, or says something else than before.
func (k *Keeper) Subscribe() <-chan struct{} {
	ch := make(chan struct{}, 1)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.subs = append(k.subs, ch)
	return ch
}

func (k *Keeper) tell() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ch := range k.subs {
		signal(ch)
	}
}

func (k *Keeper) wake() {
	signal(k.kick)
	k.tell()
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run renews the leases. It returns when ctx ends; leases stay, for the next
// run.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		next := k.round(ctx)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-k.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// round does what is due, and says how long nothing will be.
func (k *Keeper) round(ctx context.Context) time.Duration {
	var work errgroup.Group
	work.SetLimit(speakers)
	k.mu.Lock()
	now := time.Now()
	for key, h := range k.leases {
		if what, _ := due(h.Lease, h.condition, now); what != wait || !h.bearer.IsZero() {
			work.Go(func() error { k.tend(ctx, key, h); return nil })
		}
	}
	k.mu.Unlock()
	_ = work.Wait()

	k.mu.Lock()
	defer k.mu.Unlock()
	now = time.Now()
	next := lookTime
	for _, h := range k.leases {
		if !h.bearer.IsZero() { // said meanwhile, or somebody else speaks about it
			next = min(next, time.Second)
		}
		if _, at := due(h.Lease, h.condition, now); !at.IsZero() {
			next = min(next, at.Sub(now))
		}
	}
	return max(next, 0)
}
