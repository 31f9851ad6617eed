package gossip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// network is what gossip needs of the transport; tests put one with
// partitions, loss and delay in its place.
type network interface {
	// Addr is where peers reach this host.
	Addr() netip.AddrPort
	// Dial opens a stream; it gives up when ctx ends.
	Dial(ctx context.Context, to netip.AddrPort, p transport.Protocol) (peered, error)
	// Listener accepts streams of one protocol, each of them a peered.
	Listener(p transport.Protocol) net.Listener
	// Packets are what others sent; the receiver owns the bytes.
	Packets() <-chan transport.Packet
	// WritePacket sends a datagram: no delivery is promised. It does not block
	// and does not keep b.
	WritePacket(b []byte, to netip.AddrPort) (time.Time, error)
	// GossipKey encrypts datagrams; nil for none.
	GossipKey() []byte
}

// peered is a stream whose other end is authenticated.
type peered interface {
	net.Conn
	Peer() cluster.HostID
}

// real makes a transport.Transport a network.
type real struct{ *transport.Transport }

func (r real) Dial(ctx context.Context, to netip.AddrPort, p transport.Protocol) (peered, error) {
	conn, err := r.Transport.Dial(ctx, to, p)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// acceptPackets hands datagrams to memberlist.
func (c *Cluster) acceptPackets(ctx context.Context) error {
	for {
		var p transport.Packet
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p = <-c.net.Packets():
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c.packets <- &memberlist.Packet{Buf: p.Data, From: net.UDPAddrFromAddrPort(p.From), Timestamp: p.Time}:
		}
	}
}

// acceptStreams hands streams to memberlist.
func (c *Cluster) acceptStreams(ctx context.Context) error {
	l := c.net.Listener(transport.Gossip)
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept membership stream: %w", err)
		}
		if c.turnAway(conn.(peered).Peer()) {
			_ = conn.Close()
			continue
		}
		select {
		case <-ctx.Done():
			_ = conn.Close()
			return ctx.Err()
		case c.incoming <- conn:
		}
	}
}
