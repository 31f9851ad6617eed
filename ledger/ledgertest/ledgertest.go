package ledgertest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// ErrUnreachable is what Propose returns while a host is cut off.
var ErrUnreachable = errors.New("reach the voter: cut off; new networks and blocks wait until it returns")

// ErrLost is what Propose returns when the answer to a command that was done
// got lost.
var ErrLost = errors.New("reach the voter: the answer was lost; new networks and blocks wait until it returns")

// TB is the part of testing.TB, and of rapid.T, that is used.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Cluster is the log that the hosts share. Safe for concurrent use.
type Cluster struct {
	t     TB
	mu    sync.Mutex
	r     *cluster.Registry
	index uint64 // of the newest entry of the log; a rebuilt registry begins a new one
	hosts []*Host
}

// New founds a cluster without hosts.
func New(t TB) *Cluster {
	c := &Cluster{t: t, r: rules.New()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apply(cluster.Command{Found: &cluster.Found{Cluster: "00000000c0ffee00"}})
	return c
}

// Registry is the newest state.
func (c *Cluster) Registry() *cluster.Registry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r
}

// Host adds a host, with an identity that follows from its name, and says
// hello for it. The first one has VTEP 192.0.2.1, the next 192.0.2.2.
func (c *Cluster) Host(name string) *Host {
	c.t.Helper()
	h := c.Stranger(name)
	if err := h.Hello(); err != nil {
		c.t.Fatalf("say hello for %s: %v", name, err)
	}
	return h
}

// Stranger adds a host that has not said hello: it proposes nothing and is not
// Fresh until Hello.
func (c *Cluster) Stranger(name string) *Host {
	seed := sha256.Sum256([]byte(name))
	key := ed25519.NewKeyFromSeed(seed[:])
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.add(key, name, cluster.Machine{ID: name})
}

// add enters a host, with an address of its own. The lock is held.
func (c *Cluster) add(key ed25519.PrivateKey, name string, m cluster.Machine) *Host {
	vtep := netip.AddrFrom4([4]byte{192, 0, 2, byte(len(c.hosts) + 1)})
	h := &Host{
		c: c, key: key, copy: c.r, reachable: true, boot: cluster.Boot{Settled: true},
		id: cluster.HostIDOf(key.Public().(ed25519.PublicKey)),
		self: cluster.Hello{
			PublicKey: key.Public().(ed25519.PublicKey), Name: name, VTEP: vtep,
			Address: netip.AddrPortFrom(vtep, 7950), Machine: m,
		},
	}
	c.hosts = append(c.hosts, h)
	return h
}

// Rebuild puts the registry together again from a copy and from what hosts
// testify, as Recover does, and returns the claims that nobody got. All
// sessions are over: each host is to say Hello again.
func (c *Cluster) Rebuild(base *cluster.Registry, heard ...rules.Testimony) []rules.Unproven {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	next, unproven := rules.Renew(base, c.r.Gen+1, heard)
	c.r, c.index = rules.New(), 0
	if res := c.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: next}}); res.Refused != nil {
		c.t.Fatalf("rebuild the registry: %v", res.Refused)
	}
	return unproven
}

// apply commits a command and tells all hosts in reach. The lock is held.
func (c *Cluster) apply(cmd cluster.Command) cluster.Result {
	c.t.Helper()
	b, err := json.Marshal(cmd)
	if err != nil {
		c.t.Fatalf("encode command: %v", err)
	}
	var sent cluster.Command
	if err := json.Unmarshal(b, &sent); err != nil {
		c.t.Fatalf("decode command %s: %v", b, err)
	}
	c.index++
	next, res := rules.Apply(c.r, sent, c.index)
	if err := rules.Check(next); err != nil {
		c.t.Fatalf("after command %s: %v", b, err)
	}
	c.r = next
	for _, h := range c.hosts {
		h.catchUp()
	}
	return res
}

// Host is one host's ledger. Safe for concurrent use.
type Host struct {
	c    *Cluster
	id   cluster.HostID
	key  ed25519.PrivateKey
	self cluster.Hello

	// All below is guarded by c.mu.
	copy      *cluster.Registry
	session   uint64
	request   uint64
	nonce     uint64
	reachable bool
	lose      int
	boot      cluster.Boot
	claims    func() []cluster.Claim
	prepare   func(gen uint64) error
	prepared  uint64
	subs      []chan struct{}
}

// ID is the identity of the host.
func (h *Host) ID() cluster.HostID { return h.id }

// Key is the private half of its identity.
func (h *Host) Key() ed25519.PrivateKey { return h.key }

// Propose stamps and does a command. A refusal is returned as a
// *cluster.Refusal, like the real ledger does.
func (h *Host) Propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error) {
	if err := ctx.Err(); err != nil {
		return cluster.Result{}, fmt.Errorf("reach the voter: %w", err)
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	cmd.Host, cmd.Session = h.id, h.session
	h.request++
	cmd.Request = h.request
	if why := rules.Validate(cmd); why != nil {
		return cluster.Result{}, why
	}
	if !h.reachable {
		return cluster.Result{}, ErrUnreachable
	}
	res := h.c.apply(cmd)
	if h.lose > 0 {
		h.lose--
		return cluster.Result{}, ErrLost
	}
	if res.Refused != nil {
		return res, res.Refused
	}
	return res, nil
}

// Registry is the host's copy: the newest state, or the one it had when it was
// cut off.
func (h *Host) Registry() *cluster.Registry {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.copy
}

// Fresh reports whether the copy includes the host's own Hello of this run. It
// ends when the registry is rebuilt, or the host forgotten.
func (h *Host) Fresh() bool {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.session != 0 && h.copy.Hosts[h.id].Session == h.session
}

// Boot is what the host may believe of its disk: all, unless SetBoot said
// otherwise.
func (h *Host) Boot() cluster.Boot {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.boot
}

// SetBoot makes the host settle, or doubt its disk, and tells its subscribers.
func (h *Host) SetBoot(b cluster.Boot) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.boot = b
	h.signal()
}

// SetClaims names the blocks that the host claims in each Hello.
func (h *Host) SetClaims(claims func() []cluster.Claim) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.claims = claims
}

// SetPrepare says what makes the host ready for a registry that was rebuilt,
// before a Hello to it.
func (h *Host) SetPrepare(prepare func(gen uint64) error) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.prepare = prepare
}

// ready prepares the host for the registry as it is, once in each run. The lock
// is not held, as with claimed.
func (h *Host) ready() error {
	h.c.mu.Lock()
	gen, prepare := h.c.r.Gen, h.prepare
	need := gen > max(1, h.prepared)
	h.c.mu.Unlock()
	if need && prepare != nil {
		if err := prepare(gen); err != nil {
			return fmt.Errorf("prepare for generation %d: %w", gen, err)
		}
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.prepared = max(h.prepared, gen)
	return nil
}

// Await waits until the copy includes an index, like the real ledger does.
func (h *Host) Await(ctx context.Context, index uint64) error {
	changed := h.Subscribe()
	for h.Registry().Index < index {
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow the log up to %d: %w", index, ctx.Err())
		case <-changed:
		}
	}
	return nil
}

// Clone adds a host with the same identity on another machine. It has not said
// hello.
func (h *Host) Clone() *Host {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.c.add(h.key, h.self.Name, cluster.Machine{ID: "clone of " + h.self.Machine.ID})
}

// Testimony is what the host says when the registry is put together again.
func (h *Host) Testimony() rules.Testimony {
	claims := h.claimed()
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return rules.Testimony{Host: h.copy.Hosts[h.id], Claims: claims}
}

// claimed asks for the claims. The lock is not held: whoever knows them asks
// for the registry.
func (h *Host) claimed() []cluster.Claim {
	h.c.mu.Lock()
	claims := h.claims
	h.c.mu.Unlock()
	if claims == nil {
		return nil
	}
	return claims()
}

// Subscribe returns a channel that is signalled on every change of the copy.
func (h *Host) Subscribe() <-chan struct{} {
	ch := make(chan struct{}, 1)
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.subs = append(h.subs, ch)
	return ch
}

// Hello opens a new session, as the ledger does at each start.
func (h *Host) Hello() error {
	h.c.mu.Lock()
	reachable := h.reachable
	h.c.mu.Unlock()
	if !reachable {
		return ErrUnreachable
	}
	if err := h.ready(); err != nil {
		return err
	}
	claims := h.claimed()
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if !h.reachable {
		return ErrUnreachable
	}
	h.nonce++
	hello := h.self
	hello.Nonce, hello.Gen, hello.Claims = h.nonce, h.prepared, claims
	res := h.c.apply(cluster.Command{Host: h.id, Hello: &hello})
	if res.Refused != nil {
		return res.Refused
	}
	h.session = res.Index
	h.signal()
	return nil
}

// Restart ends the session as the end of the process does: until Hello, the
// host is not Fresh, and its copy is the one it had.
func (h *Host) Restart() {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.session, h.prepared = 0, 0
	h.subs = nil
}

// Reach cuts the host off from the log, or joins it again. While cut off its
// copy does not change.
func (h *Host) Reach(ok bool) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.reachable = ok
	h.catchUp()
}

// LoseAnswers lets the next n commands be done, but their answers be lost.
func (h *Host) LoseAnswers(n int) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.lose = n
}

// catchUp is called with the lock held.
func (h *Host) catchUp() {
	if h.reachable && h.copy != h.c.r {
		h.copy = h.c.r
		h.signal()
	}
}

func (h *Host) signal() {
	for _, ch := range h.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
