package gossip

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// memNet is a network in memory with partitions, loss and delay. It keeps the
// clock of the bubble that it is used in.
type memNet struct {
	delay time.Duration // one way

	mu    sync.Mutex
	rand  *rand.Rand
	nodes map[netip.AddrPort]*memNode
	loss  float64                            // of datagrams
	cut   func(from, to netip.AddrPort) bool // may be nil

	datagrams, datagramBytes, streams, streamBytes int
}

func newMemNet(seed uint64, delay time.Duration) *memNet {
	return &memNet{delay: delay, rand: rand.New(rand.NewPCG(seed, 0)), nodes: map[netip.AddrPort]*memNode{}}
}

func (n *memNet) setCut(cut func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
}

func (n *memNet) setLoss(loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = loss
}

func (n *memNet) isCut(a, b netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut != nil && n.cut(a, b)
}

// reset begins a new count of the traffic.
func (n *memNet) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.datagrams, n.datagramBytes, n.streams, n.streamBytes = 0, 0, 0, 0
}

// memNode is one host's end of a memNet.
type memNode struct {
	net       *memNet
	id        cluster.HostID
	addr      netip.AddrPort
	key       []byte
	packets   chan transport.Packet
	listeners map[transport.Protocol]*memListener
}

var _ network = (*memNode)(nil)

// node puts a host on the network, in the place of one that was there.
func (n *memNet) node(id cluster.HostID, addr netip.AddrPort, key []byte) *memNode {
	node := &memNode{net: n, id: id, addr: addr, key: key, packets: make(chan transport.Packet, 256)}
	node.listeners = map[transport.Protocol]*memListener{
		transport.Gossip: newMemListener(addr),
		transport.Sync:   newMemListener(addr),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[addr] = node
	return node
}

// unplug takes the host off again.
func (n *memNode) unplug() {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if n.net.nodes[n.addr] == n {
		delete(n.net.nodes, n.addr)
	}
}

func (n *memNode) Addr() netip.AddrPort                       { return n.addr }
func (n *memNode) GossipKey() []byte                          { return n.key }
func (n *memNode) Packets() <-chan transport.Packet           { return n.packets }
func (n *memNode) Listener(p transport.Protocol) net.Listener { return n.listeners[p] }

func (n *memNode) WritePacket(b []byte, to netip.AddrPort) (time.Time, error) {
	m := n.net
	m.mu.Lock()
	m.datagrams++
	m.datagramBytes += len(b) + 28
	lost := m.cut != nil && m.cut(n.addr, to) || m.rand.Float64() < m.loss
	m.mu.Unlock()
	if !lost {
		p := transport.Packet{Data: append([]byte(nil), b...), From: n.addr}
		time.AfterFunc(m.delay, func() {
			m.mu.Lock()
			peer := m.nodes[to]
			m.mu.Unlock()
			if peer == nil {
				return
			}
			p.Time = time.Now()
			select {
			case peer.packets <- p:
			default: // as a full socket buffer
			}
		})
	}
	return time.Now(), nil
}

// Dial takes two round trips, as TCP and TLS do. Into a cut it tries again
// every second, as TCP does.
func (n *memNode) Dial(ctx context.Context, to netip.AddrPort, p transport.Protocol) (peered, error) {
	for n.net.isCut(n.addr, to) || n.net.isCut(to, n.addr) {
		if !sleep(ctx, time.Second) {
			return nil, ctx.Err()
		}
	}
	if !sleep(ctx, 4*n.net.delay) {
		return nil, ctx.Err()
	}
	n.net.mu.Lock()
	peer := n.net.nodes[to]
	n.net.streams++
	n.net.mu.Unlock()
	if peer == nil {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	mine := &memConn{Conn: here, peer: peer.id, net: n.net, from: n.addr, to: to}
	theirs := &memConn{Conn: there, peer: n.id, net: n.net, from: to, to: n.addr}
	select {
	case peer.listeners[p].conns <- theirs:
		return mine, nil
	case <-peer.listeners[p].closed:
		return nil, errors.New("connection reset")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// memConn is a stream. What is written into a cut waits for its end, or for
// the deadline.
type memConn struct {
	net.Conn
	peer     cluster.HostID
	net      *memNet
	from, to netip.AddrPort

	mu       sync.Mutex
	deadline time.Time
	closed   bool
}

func (c *memConn) Peer() cluster.HostID { return c.peer }
func (c *memConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.from) }
func (c *memConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.to) }

func (c *memConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

func (c *memConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.Conn.Close()
}

func (c *memConn) Write(b []byte) (int, error) {
	for c.net.isCut(c.from, c.to) {
		c.mu.Lock()
		deadline, closed := c.deadline, c.closed
		c.mu.Unlock()
		if closed {
			return 0, net.ErrClosed
		}
		if !deadline.IsZero() && time.Now().After(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		time.Sleep(time.Second)
	}
	time.Sleep(c.net.delay)
	c.net.mu.Lock()
	c.net.streamBytes += len(b)
	c.net.mu.Unlock()
	return c.Conn.Write(b)
}

type memListener struct {
	addr   netip.AddrPort
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newMemListener(addr netip.AddrPort) *memListener {
	return &memListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
