package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
)

// Protocol says what a stream is for. Its name and the wire version make the
// ALPN value.
type Protocol string

const (
	Gossip Protocol = "gossip" // membership's own streams
	Sync   Protocol = "sync"   // anti-entropy of endpoint records
	Raft   Protocol = "raft"   // the replicated log
	RPC    Protocol = "rpc"    // served by Handle and HandleStream
)

var protocols = []Protocol{Gossip, Sync, Raft, RPC}

// wireVersion is part of the ALPN value and of the prelude. Raise it when two
// releases could misunderstand each other.
const wireVersion = 1

func (p Protocol) alpn() string { return fmt.Sprintf("isthmus-%s/%d", p, wireVersion) }

// Config is what a Transport is made from.
type Config struct {
	// Address is advertised, and the source of what this host sends. Its port
	// is bound for TCP and UDP; 0 picks one, which Addr tells. A loopback
	// address is bound as it is, every other one through the wildcard.
	Address netip.AddrPort
	// Secret is the cluster's; empty means no authentication and no
	// membership key. It is not kept.
	Secret   []byte
	Identity ed25519.PrivateKey
	// Cluster is asked at every stream for the cluster of this host, "" while
	// it has none. Where both ends name one, they must be equal; where either
	// is "", only RPC is let through. It must not block.
	Cluster func() cluster.ID
	// Admit says whether a host may speak to this one, and why not; nil admits
	// all. RPC is open to everybody, so that a host can be told. It must not
	// block.
	Admit func(cluster.HostID) error
	Log   logrus.FieldLogger
}

// Transport is one host's end of all control traffic. All methods may be
// called at the same time, and before Run.
type Transport struct {
	host    cluster.HostID
	addr    netip.AddrPort
	keys    keys
	tls     *tls.Config
	cluster func() cluster.ID
	admits  func(cluster.HostID) error
	log     logrus.FieldLogger

	tcp *net.TCPListener
	udp *packetSocket

	packets chan Packet
	dropped atomic.Uint64

	refused refusals
	gate    gate
	done    chan struct{} // closed when Run ends

	mu        sync.Mutex
	closed    bool
	conns     map[net.Conn]struct{} // TCP connections in use
	listeners map[Protocol]*listener
	handlers  map[string]handler
}

// Listen binds the port for TCP and UDP. Nothing is served before Run; the
// sockets are closed when Run ends.
func Listen(c Config) (*Transport, error) {
	if len(c.Identity) != ed25519.PrivateKeySize || c.Cluster == nil || c.Log == nil {
		return nil, errors.New("open transport: Identity, Cluster and Log are needed")
	}
	if c.Admit == nil {
		c.Admit = func(cluster.HostID) error { return nil }
	}
	k, err := deriveKeys(c.Secret)
	if err != nil {
		return nil, fmt.Errorf("open transport: %w", err)
	}
	cert, err := k.certify(c.Identity)
	if err != nil {
		return nil, fmt.Errorf("open transport: %w", err)
	}
	tcp, udp, err := bind(c.Address)
	if err != nil {
		return nil, err
	}
	port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
	t := &Transport{
		host:      cluster.HostIDOf(c.Identity.Public().(ed25519.PublicKey)),
		addr:      netip.AddrPortFrom(c.Address.Addr().Unmap(), port),
		keys:      k,
		cluster:   c.Cluster,
		admits:    c.Admit,
		log:       c.Log,
		tcp:       tcp,
		udp:       udp,
		packets:   make(chan Packet, packetQueue),
		refused:   refusals{log: c.Log},
		gate:      gate{perAddr: map[netip.Addr]int{}},
		done:      make(chan struct{}),
		conns:     map[net.Conn]struct{}{},
		listeners: map[Protocol]*listener{},
		handlers:  map[string]handler{},
	}
	t.tls = &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS13,
		// Both ends verify in VerifyConnection: by key, without names or time.
		InsecureSkipVerify:     true,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := k.verify(state)
			return err
		},
	}
	for _, p := range protocols {
		t.tls.NextProtos = append(t.tls.NextProtos, p.alpn())
	}
	return t, nil
}

// Addr is the advertised address with the port that was bound.
func (t *Transport) Addr() netip.AddrPort { return t.addr }

// Host is the identity that this host proves to its peers.
func (t *Transport) Host() cluster.HostID { return t.host }

// GossipKey returns the 32-byte membership key, nil without a secret.
func (t *Transport) GossipKey() []byte { return t.keys.gossip }

// Refusals lists the peers of the last ten minutes that refused this host or
// were refused by it, newest first. A peer that got through since is not
// listed.
func (t *Transport) Refusals() []Refusal { return t.refused.list(time.Now()) }

// Run serves until ctx ends, then closes sockets, listeners and every stream,
// dialed ones too, and waits for the handlers. It returns an error only when a
// socket failed before ctx ended. It may be called once.
func (t *Transport) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		t.close()
		return nil
	})
	g.Go(func() error { return t.receive(ctx) })
	g.Go(func() error { return t.accept(ctx, g) })
	return g.Wait()
}

func (t *Transport) close() {
	close(t.done)
	t.tcp.Close()
	t.udp.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	// The TCP connections are closed below TLS: a farewell to a dead peer
	// would block.
	for c := range t.conns {
		c.Close()
	}
	for _, l := range t.listeners {
		l.shut()
	}
}

// track notes a TCP connection, to be closed when Run ends.
func (t *Transport) track(c net.Conn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("this host is stopping: %w", net.ErrClosed)
	}
	t.conns[c] = struct{}{}
	return nil
}

func (t *Transport) untrack(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// patience is how long a failing socket is left alone before the next try.
const patience = 100 * time.Millisecond

// pause waits before a failed socket call is tried again. It reports whether
// to go on: not when the transport was closed.
func (t *Transport) pause(ctx context.Context, what string, err error) bool {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return false
	}
	t.log.WithError(err).Warn(what)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(patience):
		return true
	}
}
