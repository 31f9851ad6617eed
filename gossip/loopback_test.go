package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"io"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

// loopHost is a host on a real transport.
type loopHost struct {
	*Cluster
	transport *transport.Transport
	stop      func()
}

func startLoop(t *testing.T, addr netip.AddrPort, key ed25519.PrivateKey, secret string, id cluster.ID, db string, join ...string) *loopHost {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	tr, err := transport.Listen(transport.Config{
		Address: addr, Secret: []byte(secret), Identity: key, Log: log,
		Cluster: func() cluster.ID { return id },
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := bbolt.Open(db, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(Config{
		ID: tr.Host(), Transport: tr, Identity: key, DB: store, Log: log, Join: join,
		Info:    cluster.HostInfo{Name: tr.Addr().String()},
		Cluster: func(context.Context) (cluster.ID, error) { return id, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return tr.Run(ctx) })
	g.Go(func() error { return c.Run(ctx) })
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return &loopHost{Cluster: c, transport: tr, stop: stop}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// await waits for a condition that the changes of a host bring about.
func (h *loopHost) await(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	sub := h.Subscribe()
	deadline := time.After(limit)
	for !cond() {
		select {
		case <-sub:
		case <-deadline:
			t.Fatalf("%s: not within %v; members %+v, streams %+v", what, limit, h.Members(), h.Streams())
		}
	}
}

func (h *loopHost) hears(peer *loopHost, r cluster.Record) func() bool {
	return func() bool {
		for _, s := range h.Streams() {
			if s.Owner == peer.cfg.ID {
				return s.Records[r.Key()] == r
			}
		}
		return false
	}
}

func (h *loopHost) sees(peer *loopHost, state cluster.MemberState) func() bool {
	return func() bool {
		for _, m := range h.Members() {
			if m.ID == peer.cfg.ID {
				return m.State == state && m.Address == peer.transport.Addr()
			}
		}
		return false
	}
}

func TestThreeHostsOnLoopback(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	dir := t.TempDir()
	any4 := netip.MustParseAddrPort("127.0.0.1:0")
	const id = "00000000000000c1"
	const limit = 30 * time.Second // generous: the machine may be busy

	keys := []ed25519.PrivateKey{newKey(t), newKey(t), newKey(t)}
	a := startLoop(t, any4, keys[0], "secret", id, filepath.Join(dir, "a"))
	seed := a.transport.Addr().String()
	b := startLoop(t, any4, keys[1], "secret", id, filepath.Join(dir, "b"), seed)
	c := startLoop(t, any4, keys[2], "secret", id, filepath.Join(dir, "c"), seed)
	hosts := []*loopHost{a, b, c}
	for n, h := range hosts {
		h.Publish(recordsOf(1, n, n+1))
	}
	for _, h := range hosts {
		for m, peer := range hosts {
			if h != peer {
				h.await(t, limit, "member", h.sees(peer, cluster.Alive))
				h.await(t, limit, "record", h.hears(peer, record(1, m)))
			}
		}
		h.await(t, limit, "settled", h.Settled)
	}

	// Many records do not fit a datagram: this goes by stream.
	many := recordsOf(2, 0, 3000)
	b.Publish(many)
	c.await(t, limit, "many records", c.hears(b, many[2999]))
	c.Publish(many[:1])
	start := time.Now()
	a.await(t, limit, "one record", a.hears(c, many[0]))
	t.Logf("one record after %v", time.Since(start))

	// Another key, and another cluster: neither is let in, and both ends of
	// the transport can say why.
	x := startLoop(t, any4, newKey(t), "other", id, filepath.Join(dir, "x"), seed)
	y := startLoop(t, any4, newKey(t), "secret", "00000000000000c2", filepath.Join(dir, "y"), seed)
	x.Publish(nil)
	y.Publish(nil)
	said := func() bool {
		return len(x.transport.Refusals()) > 0 && len(y.transport.Refusals()) > 0 && len(a.transport.Refusals()) >= 2 &&
			x.Trouble() != nil && y.Trouble() != nil
	}
	for deadline := time.Now().Add(limit); !said(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("refusals: %v, %v, %v; strangers are alone because of: %v, %v", x.transport.Refusals(), y.transport.Refusals(), a.transport.Refusals(), x.Trouble(), y.Trouble())
		}
	}
	if n := len(a.Members()); n != 3 || x.Settled() || y.Settled() {
		t.Errorf("%d members; strangers settled: %v, %v", n, x.Settled(), y.Settled())
	}

	t.Logf("strangers are alone because of: %v; %v", x.Trouble(), y.Trouble())

	// A host dies, and comes back with its state on the same address.
	addr := c.transport.Addr()
	c.stop()
	a.await(t, limit, "failure", a.sees(c, cluster.Failed))
	if !a.hears(c, many[0])() {
		t.Error("records of the failed host were dropped")
	}
	c = startLoop(t, addr, keys[2], "secret", id, filepath.Join(dir, "c"))
	a.await(t, limit, "return", a.sees(c, cluster.Alive))
	c.Publish(many[1:2])
	a.await(t, limit, "new record", a.hears(c, many[1]))
	if a.hears(c, many[0])() {
		t.Error("a record of the earlier run is still there")
	}

	for _, h := range []*loopHost{a, b, c, x, y} {
		h.stop()
	}
	// memberlist ends its probes when they are over.
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		if err := goleak.Find(leaks); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestIPv6Underlay(t *testing.T) {
	dir := t.TempDir()
	any6 := netip.MustParseAddrPort("[::1]:0")
	const id = "00000000000000c1"
	a := startLoop(t, any6, newKey(t), "", id, filepath.Join(dir, "a"))
	b := startLoop(t, any6, newKey(t), "", id, filepath.Join(dir, "b"), a.transport.Addr().String())
	a.Publish(recordsOf(1, 0, 1))
	b.Publish(recordsOf(1, 1, 2))
	const limit = 30 * time.Second
	a.await(t, limit, "member", a.sees(b, cluster.Alive))
	b.await(t, limit, "member", b.sees(a, cluster.Alive))
	a.await(t, limit, "record", a.hears(b, record(1, 1)))
	b.await(t, limit, "record", b.hears(a, record(1, 0)))
}
