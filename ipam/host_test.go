package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	docker "github.com/docker/go-plugins-helpers/ipam"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/ledgertest"
)

// lab is a cluster in memory: one log, and hosts that can recall each other.
type lab struct {
	t     testing.TB
	log   *ledgertest.Cluster
	hosts []*host

	mu  sync.Mutex
	now time.Time
}

// host is one host of a lab, with the part of Docker and of the network
// driver that IPAM sees.
type host struct {
	*IPAM
	*ledgertest.Host
	lab  *lab
	name string
	path string
	db   *bbolt.DB
	down bool // crashed

	silent bool   // does not answer other hosts
	id     string // of its network, for tests with one

	mu        sync.Mutex
	live      map[string]bool
	networked map[cluster.PoolKey]bool
	routes    []netip.Prefix
	holders   map[netip.Addr]string
	cut       func(cluster.Command) (before, after bool)                                // crash at a proposal
	refuse    func(context.Context) error                                               // what every proposal is answered
	lag       func() bool                                                               // the copy stays as it was
	seen      *cluster.Registry                                                         // by a copy that lags
	boot      func() cluster.Boot                                                       // nil: nothing speaks against the disk
	claims    map[netip.Prefix]foreign                                                  // heard of others
	foreign   func(cluster.PoolKey, netip.Prefix) (cluster.HostID, cluster.Claim, bool) // in their place
}

func newLab(t testing.TB, names ...string) *lab {
	t.Helper()
	l := &lab{t: t, log: ledgertest.New(t), now: time.Unix(1.7e9, 0)}
	for _, name := range names {
		h := &host{
			Host: l.log.Host(name), lab: l, name: name, path: filepath.Join(t.TempDir(), name+".db"),
			live: map[string]bool{}, networked: map[cluster.PoolKey]bool{}, holders: map[netip.Addr]string{},
		}
		l.hosts = append(l.hosts, h)
		h.open()
		t.Cleanup(func() { h.db.Close() })
	}
	return l
}

func (l *lab) clock() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

func (l *lab) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = l.now.Add(d)
}

var quiet = func() *logrus.Logger {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	return log
}()

func (h *host) open() {
	h.lab.t.Helper()
	db, err := bbolt.Open(h.path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true})
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.db = db
	h.IPAM, err = Open(Config{
		DB: db, Host: h.ID(), Ledger: cutLedger{h.Host, h}, Log: quiet, Now: h.lab.clock,
		Routes: func(context.Context) ([]netip.Prefix, error) { return h.routes, nil },
		Recall: h.lab.recall,
		Networked: func(k cluster.PoolKey) bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.networked[k]
		},
		Live: func(k cluster.PoolKey, a netip.Addr) bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.live[k.String()+" "+a.String()]
		},
		WhoHolds: func(_ cluster.PoolKey, a netip.Addr) string { return h.holders[a] },
		Claimed: func(key cluster.PoolKey, block netip.Prefix) (cluster.HostID, cluster.Claim, bool) {
			if h.foreign != nil {
				return h.foreign(key, block)
			}
			for p, f := range h.claims {
				if p.Overlaps(block) {
					return f.host, f.claim, true
				}
			}
			return "", cluster.Claim{}, false
		},
		StillClaims: h.lab.stillClaims,
	})
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.Host.SetClaims(h.IPAM.Claims)
	h.down = false
}

// snapshot copies the disk, and setBack ends the process and puts the copy in
// its place.
func (h *host) snapshot() {
	h.lab.t.Helper()
	if err := h.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(h.path+".old", 0o600) }); err != nil {
		h.lab.t.Fatal(err)
	}
}

func (h *host) setBack() {
	h.lab.t.Helper()
	h.crash()
	if err := os.Rename(h.path+".old", h.path); err != nil {
		h.lab.t.Fatal(err)
	}
}

// witness is what all others could say of a host.
func (l *lab) witness(h *host) cluster.Witness {
	r := l.log.Registry()
	w := cluster.Witness{Cluster: r.Cluster, Gen: r.Gen, Index: r.Index, Host: r.Hosts[h.ID()]}
	for _, lease := range r.Leases {
		if lease.Holder == h.ID() {
			w.Leases = append(w.Leases, lease)
		}
	}
	return w
}

// crash ends the host's process; what was committed stays.
func (h *host) crash() {
	h.db.Close()
	h.Restart()
	h.down = true
}

// reboot crashes, and opens what is on disk. Without the log in reach it does
// not say hello.
func (h *host) reboot() {
	h.lab.t.Helper()
	h.crash()
	h.open()
	_ = h.Hello() // out of reach: not fresh
}

// foreign is a claim as gossip heard it.
type foreign struct {
	host  cluster.HostID
	claim cluster.Claim
}

var errDown = errors.New("connection refused")

func (l *lab) recall(ctx context.Context, id cluster.HostID, key cluster.PoolKey, a netip.Addr) error {
	for _, h := range l.hosts {
		switch {
		case h.ID() != id || h.down || !h.Host.Fresh():
		case h.silent:
			<-ctx.Done()
			return ctx.Err()
		default:
			return h.Recalled(ctx, key, a)
		}
	}
	return errDown
}

func (l *lab) stillClaims(_ context.Context, id cluster.HostID, claim cluster.Claim) (bool, error) {
	for _, h := range l.hosts {
		if h.ID() == id && !h.down && !h.silent {
			return h.Keeps(claim), nil
		}
	}
	return false, errDown
}

var errCrash = errors.New("crashed")

// cutLedger crashes its host before or after a proposal is done.
type cutLedger struct {
	*ledgertest.Host
	h *host
}

func (c cutLedger) Propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error) {
	if c.h.refuse != nil {
		return cluster.Result{}, c.h.refuse(ctx)
	}
	if c.h.cut == nil {
		return c.Host.Propose(ctx, cmd)
	}
	before, after := c.h.cut(cmd)
	if before {
		c.h.crash()
		return cluster.Result{}, errCrash
	}
	res, err := c.Host.Propose(ctx, cmd)
	if after {
		c.h.crash()
		return cluster.Result{}, errCrash
	}
	return res, err
}

func (c cutLedger) Registry() *cluster.Registry {
	newest := c.Host.Registry()
	if c.h.lag == nil {
		return newest
	}
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.h.seen == nil || !c.h.lag() {
		c.h.seen = newest
	}
	return c.h.seen
}

// Await waits for the copy that Registry shows, which may lag.
func (c cutLedger) Await(ctx context.Context, index uint64) error {
	for c.Registry().Index < index {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (c cutLedger) Boot() cluster.Boot {
	if c.h.boot == nil {
		return cluster.Boot{Settled: true}
	}
	return c.h.boot()
}

func (c cutLedger) Fresh() bool {
	id := c.h.ID()
	return c.Host.Fresh() && c.Registry().Hosts[id].Session == c.Host.Registry().Hosts[id].Session
}

// work does what Run does in one turn.
func (h *host) work() {
	for range 3 {
		if h.cfg.Ledger.Fresh() {
			h.reconcile(h.lab.t.Context(), h.cfg.Ledger.Registry())
		}
		if h.maintain(h.lab.t.Context()) != nil {
			return
		}
	}
}

type options map[string]string

func (h *host) requestPool(subnet, ipRange string, o options) (string, netip.Prefix, error) {
	v6 := strings.Contains(subnet, ":") || o["v6"] != ""
	delete(o, "v6")
	res, err := h.RequestPool(h.lab.t.Context(), &docker.RequestPoolRequest{
		AddressSpace: AddressSpace, Pool: subnet, SubPool: ipRange, Options: o, V6: v6,
	})
	if err != nil {
		return "", netip.Prefix{}, err
	}
	return res.PoolID, prefix(res.Pool), nil
}

func (h *host) requestAddress(id, address string, o options) (netip.Addr, error) {
	res, err := h.RequestAddress(h.lab.t.Context(), &docker.RequestAddressRequest{PoolID: id, Address: address, Options: o})
	if err != nil {
		return netip.Addr{}, err
	}
	p := prefix(res.Address)
	if pid, _ := parsePoolID(id); p.Masked() != pid.key.Prefix {
		return p.Addr(), fmt.Errorf("answer %s is not in %s", res.Address, pid.key)
	}
	return p.Addr(), nil
}

var forGateway = options{requestType: gatewayType}

// network makes a network as Docker does: the pool, its gateway, auxiliary
// addresses, and the network driver's Prepare.
func (h *host) network(subnet, ipRange, gateway string, aux ...string) (string, error) {
	id, _, err := h.requestPool(subnet, ipRange, nil)
	if err != nil {
		return "", err
	}
	undo := func(err error) (string, error) {
		if !h.down {
			_ = h.release(id)
		}
		return "", err
	}
	if _, err := h.requestAddress(id, gateway, forGateway); err != nil {
		return undo(err)
	}
	for _, a := range aux {
		if _, err := h.requestAddress(id, a, nil); err != nil {
			return undo(err)
		}
	}
	key := keyOf(id)
	if err := h.Prepare(h.lab.t.Context(), []cluster.PoolKey{key}); err != nil {
		return undo(err)
	}
	h.setNetworked(key, true)
	return id, nil
}

func keyOf(id string) cluster.PoolKey {
	pid, err := parsePoolID(id)
	if err != nil {
		panic(err)
	}
	return pid.key
}

func (h *host) release(id string) error {
	return h.ReleasePool(h.lab.t.Context(), &docker.ReleasePoolRequest{PoolID: id})
}

// remove takes a network down as Docker does.
func (h *host) remove(id string) {
	h.lab.t.Helper()
	for _, s := range h.Status() {
		if s.Pool == keyOf(id) && s.Gateway.IsValid() {
			h.free(id, s.Gateway)
		}
	}
	if err := h.release(id); err != nil {
		h.lab.t.Fatalf("release pool %s: %v", id, err)
	}
	h.setNetworked(keyOf(id), false)
}

// start hands out an address and brings its endpoint to life.
func (h *host) start(id, address, name string) (netip.Addr, error) {
	var o options
	if name != "" {
		o = options{endpointName: name}
	}
	a, err := h.requestAddress(id, address, o)
	if err == nil {
		h.setLive(id, a, true)
	}
	return a, err
}

func (h *host) setNetworked(key cluster.PoolKey, networked bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.networked[key] = networked
}

func (h *host) setLive(id string, a netip.Addr, live bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := keyOf(id).String() + " " + a.String(); live {
		h.live[k] = true
	} else {
		delete(h.live, k)
	}
}

func (h *host) stop(id string, a netip.Addr) {
	h.lab.t.Helper()
	h.setLive(id, a, false)
	h.free(id, a)
}

func (h *host) free(id string, a netip.Addr) {
	h.lab.t.Helper()
	if err := h.ReleaseAddress(h.lab.t.Context(), &docker.ReleaseAddressRequest{PoolID: id, Address: a.String()}); err != nil {
		h.lab.t.Fatalf("release %s of %s: %v", a, id, err)
	}
}

// must is for calls that have to succeed.
func must[V any](t testing.TB) func(V, error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || err.Error() != text {
		t.Errorf("error reads\n  %v\nwant\n  %s", err, text)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// offset returns the nth address of a prefix.
func offset(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}
