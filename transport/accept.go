package transport

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// Connections that have not proven themselves: in all, and from one
	// address. A handshake takes milliseconds, so honest peers stay far below.
	strangers        = 512
	strangersPerAddr = 128
)

// accept serves the TCP socket until ctx ends.
func (t *Transport) accept(ctx context.Context, g *errgroup.Group) error {
	for {
		tcp, err := t.tcp.Accept()
		if err != nil {
			if t.pause(ctx, "accept a connection", err) {
				continue
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		from := addrPortOf(tcp.RemoteAddr())
		if !t.gate.enter(from.Addr()) {
			tcp.Close()
			continue
		}
		if t.track(tcp) != nil {
			t.gate.leave(from.Addr())
			tcp.Close()
			continue
		}
		g.Go(func() error {
			c := t.admit(tcp, from)
			t.gate.leave(from.Addr())
			if c == nil {
				t.untrack(tcp)
				tcp.Close()
				return nil
			}
			t.dispatch(ctx, c)
			return nil
		})
	}
}

// admit is the acceptor's half of the handshake; nil when the peer was
// refused.
func (t *Transport) admit(tcp net.Conn, from netip.AddrPort) *Conn {
	tcp.SetDeadline(time.Now().Add(handshakeTime))
	c, err := t.welcome(tcp)
	if err != nil {
		err = t.explainGuest(err)
		cause := causeOf(err)
		t.refused.add(Refusal{Time: time.Now(), Peer: from, Cause: cause, Reason: err.Error()})
		if cause != "" {
			linger(tcp)
		} else {
			t.log.WithField("peer", from).WithError(err).Debug("handshake failed")
		}
		return nil
	}
	tcp.SetDeadline(time.Time{})
	t.refused.clear(from, false)
	return c
}

func (t *Transport) welcome(tcp net.Conn) (*Conn, error) {
	c := &Conn{Conn: tls.Server(tcp, t.tls), t: t, tcp: tcp}
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	for _, p := range protocols {
		if c.ConnectionState().NegotiatedProtocol == p.alpn() {
			c.protocol = p
		}
	}
	if c.protocol == "" {
		return nil, errNotIsthmus("it asks for no protocol of isthmus")
	}
	var err error
	if c.key, err = t.keys.verify(c.ConnectionState()); err != nil {
		return nil, err
	}
	b, err := readFrame(c, preludeLimit)
	if err != nil {
		return nil, err
	}
	peer, err := parsePrelude(b)
	if err != nil {
		return nil, err
	}
	own := t.prelude()
	turnedAway := t.admission(c.protocol, c.Peer())
	switch {
	case turnedAway != nil:
		own.Refusal, own.Cause = printable(turnedAway.Error()), causeOf(turnedAway)
	case !t.serves(c.protocol):
		own.Refusal = string(c.protocol) + " is not served on this host yet"
	}
	// The answer goes out before the check: the dialer shall see the same
	// reason.
	if err := writeJSON(c, preludeLimit, own); err != nil {
		return nil, err
	}
	if err := own.check(peer, c.protocol, c.Peer()); err != nil {
		return nil, err
	}
	if turnedAway != nil {
		return nil, turnedAway
	}
	if own.Refusal != "" {
		return nil, &fault{text: own.Refusal}
	}
	return c, nil
}

// dispatch hands an admitted stream to who serves it.
func (t *Transport) dispatch(ctx context.Context, c *Conn) {
	if c.protocol == RPC {
		t.serve(ctx, c)
		return
	}
	t.mu.Lock()
	l := t.listeners[c.protocol]
	t.mu.Unlock()
	if l != nil && l.offer(c) {
		return
	}
	c.abort()
}

// gate counts the connections that are still strangers.
type gate struct {
	mu      sync.Mutex
	total   int
	perAddr map[netip.Addr]int
}

func (g *gate) enter(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= strangers || g.perAddr[a] >= strangersPerAddr {
		return false
	}
	g.total++
	g.perAddr[a]++
	return true
}

func (g *gate) leave(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.perAddr[a]--; g.perAddr[a] == 0 {
		delete(g.perAddr, a)
	}
}

// listener hands out the accepted streams of one protocol.
type listener struct {
	t     *Transport
	conns chan *Conn
	done  chan struct{}
	once  sync.Once
}

// Listener returns the accepted streams of a protocol, each of type *Conn.
// Until it is called, and after it was closed, dialers are told that the
// protocol is not served. There is one per protocol: a second call returns the
// same, or a new one after Close. RPC has none; its listener is closed.
func (t *Transport) Listener(p Protocol) net.Listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.listeners[p]; l != nil && !l.isShut() {
		return l
	}
	l := &listener{t: t, conns: make(chan *Conn), done: make(chan struct{})}
	if t.closed || p == RPC {
		l.shut()
		return l
	}
	t.listeners[p] = l
	return l
}

func (t *Transport) serves(p Protocol) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.listeners[p]
	return p == RPC || l != nil && !l.isShut()
}

// offer waits for somebody to accept c, as long as a handshake may take.
func (l *listener) offer(c *Conn) bool {
	timer := time.NewTimer(handshakeTime)
	defer timer.Stop()
	select {
	case l.conns <- c:
		return true
	case <-l.done:
	case <-timer.C:
	}
	return false
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.t.addr) }

func (l *listener) Close() error {
	l.shut()
	return nil
}

func (l *listener) shut() { l.once.Do(func() { close(l.done) }) }

func (l *listener) isShut() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}
