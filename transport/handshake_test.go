package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestStreamCarriesBytesAndProvesThePeer(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{keyA, ""} {
		a, b := start(t, secret, "c1"), start(t, secret, "c1")
		for _, p := range []Protocol{Gossip, Sync, Raft} {
			l := b.Listener(p)
			ca, err := a.Dial(t.Context(), b.Addr(), p)
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			cb := accepted.(*Conn)
			if ca.Peer() != b.Host() || cb.Peer() != a.Host() {
				t.Errorf("peers are %s and %s, want %s and %s", ca.Peer(), cb.Peer(), b.Host(), a.Host())
			}
			// One direction ends while the other goes on.
			ca.Write([]byte("ping"))
			ca.CloseWrite()
			if got, err := io.ReadAll(cb); string(got) != "ping" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			cb.Write([]byte("pong"))
			cb.Close()
			if got, err := io.ReadAll(ca); string(got) != "pong" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			ca.Close()
		}
		self, err := b.Dial(t.Context(), b.Addr(), Raft)
		if err != nil {
			t.Fatal(err)
		}
		if self.Peer() != b.Host() {
			t.Errorf("dialed itself and met %s", self.Peer())
		}
		self.Close()
		if len(a.Refusals())+len(b.Refusals()) != 0 {
			t.Errorf("refusals: %v, %v", a.Refusals(), b.Refusals())
		}
	}
}

func TestStrangersAreRefusedAndBothSidesSayWhy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		dialer, acceptor   string
		dialerIn, accIn    cluster.ID
		cause              Cause
		dialerSays, accSay []string
	}{
		{"other key", keyA, keyB, "c1", "c1", OtherKey,
			[]string{"the peer holds another cluster key (CLUSTER_KEY or key file differ)"},
			[]string{"the peer holds another cluster key, or none"}},
		{"dialer has none", "", keyB, "c1", "c1", OtherKey,
			[]string{"the peer holds a cluster key and this host has none"},
			[]string{"the peer holds another cluster key, or none"}},
		{"acceptor has none", keyA, "", "c1", "c1", OtherKey,
			[]string{"the peer has no cluster key and this host has one"},
			[]string{"the peer holds a cluster key and this host has none"}},
		{"other cluster", keyA, keyA, "c1", "c2", OtherCluster,
			[]string{"cluster c2", "this host to cluster c1", "isthmus reset"},
			[]string{"cluster c1", "this host to cluster c2", "isthmus reset"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b := start(t, tt.dialer, tt.dialerIn), start(t, tt.acceptor, tt.accIn)
			b.Listener(Gossip)
			for _, p := range []Protocol{Gossip, RPC} {
				_, err := a.Dial(t.Context(), b.Addr(), p)
				var failed *DialError
				if !errors.As(err, &failed) || failed.Cause != tt.cause {
					t.Fatalf("dial: %v", err)
				}
				wantText(t, "error", err.Error(), append(tt.dialerSays, "dial "+b.Addr().String()+": ")...)
			}
			eventually(t, "two refusals counted", func() bool {
				r := b.Refusals()
				return len(r) == 1 && r[0].Count == 2
			})
			ra, rb := a.Refusals()[0], b.Refusals()[0]
			if ra.Cause != tt.cause || rb.Cause != tt.cause || !ra.Outgoing || rb.Outgoing ||
				ra.Peer != b.Addr() || rb.Peer.Addr() != a.Addr().Addr() {
				t.Errorf("refusals: %+v and %+v", ra, rb)
			}
			wantText(t, "dialer's refusal", ra.Reason, tt.dialerSays...)
			wantText(t, "acceptor's refusal", rb.Reason, tt.accSay...)
			if lines := strings.Count(b.log.String(), "\n"); lines != 1 {
				t.Errorf("%d log lines, want one for the same peer:\n%s", lines, b.log)
			}
			wantText(t, "log", b.log.String(), "127.0.0.1", string(tt.cause))
			for _, text := range []string{a.log.String(), b.log.String(), ra.Reason, rb.Reason} {
				if strings.Contains(text, keyA) || strings.Contains(text, keyB) {
					t.Errorf("a secret is told: %s", text)
				}
			}
		})
	}
}

func TestPeerThatGetsThroughIsNoLongerListed(t *testing.T) {
	t.Parallel()
	var joined atomic.Bool
	a, b := start(t, keyA, "c1"), open(t, "127.0.0.1:0", keyA, "")
	b.cluster = func() cluster.ID {
		if joined.Load() {
			return "c1"
		}
		return "c2"
	}
	run(t, b)
	b.Listener(Gossip)
	if _, err := a.Dial(t.Context(), b.Addr(), Gossip); err == nil {
		t.Fatal("dialed another cluster")
	}
	eventually(t, "refused", func() bool { return len(b.Refusals()) == 1 })
	joined.Store(true)
	c, err := a.Dial(t.Context(), b.Addr(), Gossip)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "forgotten", func() bool { return len(a.Refusals())+len(b.Refusals()) == 0 })
}

func TestHostWithoutClusterHasOnlyRPC(t *testing.T) {
	t.Parallel()
	member, newcomer := start(t, keyA, "c1"), start(t, keyA, "")
	for _, d := range []struct {
		from, to node
		says     string
	}{
		{newcomer, member, "this host belongs to no cluster yet"},
		{member, newcomer, "the peer belongs to no cluster yet"},
	} {
		d.to.Listener(Raft)
		_, err := d.from.Dial(t.Context(), d.to.Addr(), Raft)
		var failed *DialError
		if !errors.As(err, &failed) || failed.Cause != NoCluster {
			t.Errorf("dial: %v", err)
		} else {
			wantText(t, "error", err.Error(), d.says)
		}
		c, err := d.from.Dial(t.Context(), d.to.Addr(), RPC)
		if err != nil {
			t.Fatalf("RPC: %v", err)
		}
		c.Close()
		if len(d.from.Refusals()) != 0 {
			t.Errorf("a passing state is listed: %v", d.from.Refusals())
		}
	}
}

func TestProtocolWithoutListener(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	refused := func() {
		t.Helper()
		_, err := a.Dial(t.Context(), b.Addr(), Sync)
		if err == nil {
			t.Fatal("dialed")
		}
		wantText(t, "error", err.Error(), "the peer refused: sync is not served on this host yet")
	}
	refused()
	l := b.Listener(Sync)
	if b.Listener(Sync) != l {
		t.Error("a second listener")
	}
	c, err := a.Dial(t.Context(), b.Addr(), Sync)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", err)
	}
	refused()
	if b.Listener(Sync) == l {
		t.Error("the closed listener is given out again")
	}
	if _, err := b.Listener(RPC).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept RPC: %v", err)
	}
}

// service is a TCP port on loopback that does what the test says.
func service(t *testing.T, serve func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return addrPortOf(l.Addr())
}

func TestPortsThatAreNotIsthmus(t *testing.T) {
	t.Parallel()
	a := start(t, keyA, "c1")
	plain := func(answer string) func(net.Conn) {
		return func(c net.Conn) {
			c.Write([]byte(answer))
			io.Copy(io.Discard, c)
		}
	}
	web := func(config *tls.Config) func(net.Conn) {
		key := identity(t)
		der, err := x509.CreateCertificate(nil, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
		return func(c net.Conn) { tls.Server(c, config).Handshake() }
	}
	for _, tt := range []struct {
		name  string
		serve func(net.Conn)
		cause Cause
		says  string
	}{
		{"ssh", plain("SSH-2.0-OpenSSH_9.2\r\n"), NotIsthmus, "does not speak TLS"},
		{"http", plain("HTTP/1.1 400 Bad Request\r\n\r\n"), NotIsthmus, "does not speak TLS"},
		{"https", web(&tls.Config{}), NotIsthmus, "its certificate is of another service"},
		{"old tls", web(&tls.Config{MaxVersion: tls.VersionTLS12}), NotIsthmus, "not an isthmus port"},
		{"hangs up", func(c net.Conn) { c.Read(make([]byte, 1)) }, "", "closed the connection"},
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }, Unreachable, "says nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			to := service(t, tt.serve)
			began := time.Now()
			_, err := a.Dial(within(t, time.Second), to, Gossip)
			var failed *DialError
			if !errors.As(err, &failed) || failed.Cause != tt.cause {
				t.Fatalf("dial: %v", err)
			}
			wantText(t, "error", err.Error(), to.String(), tt.says, "not an isthmus port")
			if time.Since(began) > 2*time.Second {
				t.Errorf("took %v", time.Since(began))
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	a := start(t, keyA, "c1")
	closed := open(t, "127.0.0.1:0", keyA, "c1")
	run(t, closed)()
	_, err := a.Dial(t.Context(), closed.Addr(), Gossip)
	var failed *DialError
	if !errors.As(err, &failed) || failed.Cause != Unreachable {
		t.Fatalf("dial: %v", err)
	}
	wantText(t, "error", err.Error(), "connection refused", "GOSSIP_PORT", "JOIN")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Dial(ctx, closed.Addr(), Gossip); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with an ended context: %v", err)
	}
	if _, err := closed.Dial(t.Context(), a.Addr(), Gossip); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Run: %v", err)
	}
}

func TestOtherVersion(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	b.Listener(Gossip)

	// Another ALPN version, as a later release would offer.
	config := b.tls.Clone()
	config.NextProtos = []string{"isthmus-gossip/2"}
	c, err := tls.Dial("tcp", b.Addr().String(), config)
	if err == nil {
		c.Close()
		t.Fatal("another version was let in")
	}
	eventually(t, "refused", func() bool { return len(b.Refusals()) == 1 })
	if r := b.Refusals()[0]; r.Cause != OtherVersion {
		t.Errorf("refusal: %+v", r)
	}

	to := service(t, func(c net.Conn) { tls.Server(c, config).Handshake() })
	_, err = a.Dial(t.Context(), to, Gossip)
	var failed *DialError
	if !errors.As(err, &failed) || failed.Cause != OtherVersion {
		t.Errorf("dial: %v", err)
	}
}
