package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// handshakeTime bounds everything before a stream is usable, on both ends:
// connection, TLS and prelude.
const handshakeTime = 5 * time.Second

// Conn is an authenticated stream. It is a net.Conn; CloseWrite ends one
// direction, which the peer reads as io.EOF while it may still send.
type Conn struct {
	*tls.Conn
	t        *Transport
	tcp      net.Conn
	key      ed25519.PublicKey
	protocol Protocol
}

// Peer is the other host: the hash of the key that it proved to hold.
func (c *Conn) Peer() cluster.HostID { return cluster.HostIDOf(c.key) }

// PeerKey is the other host's identity key.
func (c *Conn) PeerKey() ed25519.PublicKey { return c.key }

// Close says good-bye and closes the stream. It may take up to five seconds
// when the peer does not read.
func (c *Conn) Close() error {
	defer c.t.untrack(c.tcp) // until then Run's end may cut the farewell short
	return c.Conn.Close()
}

// abort closes the stream at once, from any goroutine.
func (c *Conn) abort() {
	c.t.untrack(c.tcp)
	c.tcp.Close()
}

// Dial opens a stream to a peer, within five seconds or ctx. The error is a
// *DialError, whose text is meant for people as it is. A host may dial itself.
func (t *Transport) Dial(ctx context.Context, to netip.AddrPort, p Protocol) (*Conn, error) {
	to = unmap(to)
	bounded, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	c, err := t.open(bounded, to, p)
	if err == nil {
		t.refused.clear(to, true)
		return c, nil
	}
	failed := &DialError{Peer: to, Cause: causeOf(err), Err: err}
	t.refused.add(Refusal{Time: time.Now(), Peer: to, Outgoing: true, Cause: failed.Cause, Reason: err.Error()})
	return nil, failed
}

func (t *Transport) open(ctx context.Context, to netip.AddrPort, p Protocol) (*Conn, error) {
	tcp, err := dial(ctx, "tcp", t.addr.Addr(), to, tuneTCP)
	if err != nil {
		return nil, explainConnect(ctx, to, err)
	}
	if err := t.track(tcp); err != nil {
		tcp.Close()
		return nil, err
	}
	// Closing the connection interrupts every step below.
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	own := t.prelude()
	if ctx.Value(anonymous{}) != nil {
		own.Cluster = ""
	}
	c, err := t.greet(tcp, p, own)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		t.untrack(tcp)
		if causeOf(err) != "" {
			linger(tcp)
		}
		tcp.Close()
		return nil, t.explainHandshake(ctx, err)
	}
	return c, nil
}

type anonymous struct{}

// Anonymous makes Dial and Call name no cluster, so that a host of another
// cluster answers. Only RPC is let through then.
func Anonymous(ctx context.Context) context.Context {
	return context.WithValue(ctx, anonymous{}, true)
}

// greet is the dialer's half of the handshake.
func (t *Transport) greet(tcp net.Conn, p Protocol, own prelude) (*Conn, error) {
	config := t.tls.Clone()
	config.NextProtos = []string{p.alpn()}
	c := &Conn{Conn: tls.Client(tcp, config), t: t, tcp: tcp, protocol: p}
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	if c.ConnectionState().NegotiatedProtocol != p.alpn() {
		return nil, errNotIsthmus("it does not know the protocol " + string(p))
	}
	var err error
	if c.key, err = t.keys.verify(c.ConnectionState()); err != nil {
		return nil, err
	}
	if err := writeJSON(c, preludeLimit, own); err != nil {
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
	if err := own.check(peer, p, c.Peer()); err != nil {
		return nil, err
	}
	if err := t.admission(p, c.Peer()); err != nil {
		return nil, err
	}
	if peer.Refusal != "" {
		return nil, &fault{cause: peer.Cause, text: "the peer refused: " + peer.Refusal}
	}
	return c, nil
}

// admission asks Config.Admit.
func (t *Transport) admission(p Protocol, peer cluster.HostID) error {
	if p == RPC {
		return nil
	}
	if err := t.admits(peer); err != nil {
		return &fault{cause: NotAdmitted, text: err.Error(), err: err}
	}
	return nil
}

func (t *Transport) prelude() prelude {
	return prelude{Version: wireVersion, Cluster: t.cluster(), Host: t.host}
}

// linger lets the peer read why it was refused: closing a socket with unread
// data would reset the connection and destroy what was sent.
func linger(tcp net.Conn) {
	if c, ok := tcp.(*net.TCPConn); ok {
		c.CloseWrite()
	}
	tcp.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
	io.Copy(io.Discard, io.LimitReader(tcp, 64<<10))
}
