package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
	"golang.org/x/sync/errgroup"
)

const (
	// streamTimeout bounds memberlist's dials and each of its reads. A dial
	// that began in a partition must not hold up the redial after it.
	streamTimeout = 4 * time.Second
	// reclaimTime is how long a failed host's name stays bound to its old
	// address, against flapping between two hosts with one identity.
	reclaimTime = 5 * time.Second
	// datagram is memberlist's packet size where the underlay's MTU allows it.
	datagram = 1400
	// headers are those of IPv6 and UDP, and some tunnel's on the way.
	headers = 60
	// sealing is what memberlist adds to a message but for the label: compound
	// headers, checksum, version, nonce and tag.
	sealing = 2 + 2 + 2 + 1 + 5 + 1 + 12 + 16
	// hintSize bounds a hint where the datagram does not.
	hintSize = 1000
)

// member is one stay in one cluster: a memberlist and the loops around it.
type member struct {
	*Cluster
	id   cluster.ID
	ctx  context.Context // ends with the stay; memberlist knows no contexts
	list *memberlist.Memberlist
	hint int // largest hint in bytes
}

// stay runs membership in a cluster until ctx ends, or until this host belongs
// to another cluster (nil).
func (c *Cluster) stay(ctx context.Context, id cluster.ID) error {
	g, ctx := errgroup.WithContext(ctx)
	m := &member{Cluster: c, id: id, ctx: ctx}
	conf := memberlist.DefaultLANConfig()
	conf.Name = string(c.cfg.ID)
	conf.Label = string(id)
	conf.SecretKey = c.net.GossipKey()
	conf.EnableCompression = false // saves bytes, no packets, at two to three times the CPU
	conf.Transport = &bridge{m}
	conf.BindPort = int(c.net.Addr().Port())
	conf.AdvertisePort = conf.BindPort
	conf.TCPTimeout = streamTimeout
	conf.DeadNodeReclaimTime = reclaimTime
	conf.UDPBufferSize = datagram
	if mtu := c.infoNow().MTU; mtu > 0 {
		conf.UDPBufferSize = max(500, min(datagram, mtu-headers))
	}
	m.hint = min(hintSize, conf.UDPBufferSize-sealing-len(conf.Label))
	d := &delegate{m}
	conf.Delegate, conf.Events, conf.Alive, conf.Conflict = d, d, d, d
	conf.Logger = log.New(c.quiet, "", 0)

	list, err := memberlist.Create(conf)
	if err != nil {
		return fmt.Errorf("start membership: %w", err)
	}
	m.list = list
	c.mu.Lock()
	c.member = m
	c.mu.Unlock()
	g.Go(func() error { return m.watchCluster() })
	g.Go(func() error { return m.keepJoined() })
	g.Go(func() error { return m.keepSynced(g) })
	g.Go(func() error { return m.tell() })
	g.Go(func() error { return m.hear() })

	err = g.Wait()
	c.mu.Lock()
	c.member = nil
	c.mu.Unlock()
	if e := list.Shutdown(); e != nil {
		err = errors.Join(err, fmt.Errorf("stop membership: %w", e))
	}
	if errors.Is(err, errMoved) {
		return nil
	}
	return err
}

// errMoved ends a stay: this host belongs to another cluster now.
var errMoved = errors.New("this host belongs to another cluster now")

func (m *member) watchCluster() error {
	for sleep(m.ctx, m.dice.around(5*time.Second)) {
		id, err := m.cfg.Cluster(m.ctx)
		if err != nil {
			return err
		}
		if id != m.id {
			m.log.WithField("cluster", id).Info("moving to another cluster")
			return errMoved
		}
	}
	return m.ctx.Err()
}

// address parses what memberlist calls an address.
func address(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
}

// nodeAddress is where a node answers.
func nodeAddress(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// bridge puts memberlist on the network. Its channels are the Cluster's, so
// they outlive a stay.
type bridge struct{ m *member }

var _ memberlist.NodeAwareTransport = (*bridge)(nil)

func (b *bridge) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a := b.m.net.Addr()
	return a.Addr().Unmap().AsSlice(), int(a.Port()), nil
}

func (b *bridge) WriteToAddress(p []byte, to memberlist.Address) (time.Time, error) {
	a, err := address(to.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send datagram: %w", err)
	}
	return b.m.net.WritePacket(p, a)
}

func (b *bridge) WriteTo(p []byte, to string) (time.Time, error) {
	return b.WriteToAddress(p, memberlist.Address{Addr: to})
}

// DialAddressTimeout also sees to it that the host that answers is the one
// that is meant.
func (b *bridge) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	a, err := address(to.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	ctx, cancel := context.WithTimeout(b.m.ctx, timeout)
	defer cancel()
	return b.m.dial(ctx, a, transport.Gossip, cluster.HostID(to.Name))
}

func (b *bridge) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	return b.DialAddressTimeout(memberlist.Address{Addr: to}, timeout)
}

func (b *bridge) PacketCh() <-chan *memberlist.Packet { return b.m.packets }
func (b *bridge) StreamCh() <-chan net.Conn           { return b.m.incoming }
func (b *bridge) Shutdown() error                     { return nil }

// answer is what the last dial of an address brought.
type answer struct {
	peer cluster.HostID // who answered, whoever was meant
	err  error
}

// dial opens a stream to the host want, or to anybody if that is empty, and
// remembers what came of it.
func (c *Cluster) dial(ctx context.Context, to netip.AddrPort, p transport.Protocol, want cluster.HostID) (peered, error) {
	conn, err := c.net.Dial(ctx, to, p)
	var a answer
	if err == nil {
		a.peer = conn.Peer()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	refused := c.admit(a.peer)
	switch {
	case err != nil:
		a.err = err
	case a.peer == c.cfg.ID:
		a.err = fmt.Errorf("dial %s: this host itself answers", to)
	case refused != nil:
		a.err = fmt.Errorf("dial %s: host %s is refused: %w", to, a.peer.Short(), refused)
	case want != "" && a.peer != want:
		a.err = fmt.Errorf("dial %s: host %s answers there, not %s", to, a.peer.Short(), want.Short())
	}
	c.answers[to] = a
	if a.err == nil {
		return conn, nil
	}
	if conn != nil {
		_ = conn.Close()
	}
	return nil, a.err
}
