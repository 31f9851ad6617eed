package transport

import (
	"context"
	"crypto/ed25519"
	"net"
	"net/netip"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/sirupsen/logrus"
)

type Protocol string

const (
	Gossip Protocol = "gossip"
	Sync   Protocol = "sync"
	Raft   Protocol = "raft"
	RPC    Protocol = "rpc"
)

type Config struct {
	Address  netip.AddrPort
	Secret   []byte
	Identity ed25519.PrivateKey
	Cluster  func() cluster.ID
	Log      logrus.FieldLogger
}
type Transport struct{}
type Conn struct{ net.Conn }
type Packet struct {
	Data []byte
	From netip.AddrPort
	Time time.Time
}

func Listen(Config) (*Transport, error)        { panic("skeleton") }
func (t *Transport) Run(context.Context) error { panic("skeleton") }
func (t *Transport) Addr() netip.AddrPort      { panic("skeleton") } // advertised, with the bound port
func (t *Transport) Host() cluster.HostID      { panic("skeleton") }
func (t *Transport) Dial(ctx context.Context, to netip.AddrPort, p Protocol) (*Conn, error) {
	panic("skeleton")
}
func (t *Transport) Listener(p Protocol) net.Listener { panic("skeleton") }
func (c *Conn) Peer() cluster.HostID                  { panic("skeleton") }
func (c *Conn) PeerKey() ed25519.PublicKey            { panic("skeleton") }
func (c *Conn) CloseWrite() error                     { panic("skeleton") }
func (t *Transport) Packets() <-chan Packet           { panic("skeleton") }
func (t *Transport) WritePacket(b []byte, to netip.AddrPort) (time.Time, error) {
	panic("skeleton")
}
func (t *Transport) GossipKey() []byte { panic("skeleton") }
func (t *Transport) ProbeMTU(ctx context.Context, to netip.AddrPort, size int) error {
	panic("skeleton")
}
func (t *Transport) FitMTU(ctx context.Context, to netip.AddrPort, low, high int) (int, error) {
	panic("skeleton")
}
func (t *Transport) Refusals() []Refusal { panic("skeleton") }
func Handle[Req, Resp any](t *Transport, method string, fn func(ctx context.Context, from cluster.HostID, req Req) (Resp, error)) {
	panic("skeleton")
}
func Call[Req, Resp any](ctx context.Context, t *Transport, to netip.AddrPort, method string, req Req) (Resp, error) {
	panic("skeleton")
}
func HandleStream[Req any](t *Transport, method string, fn func(ctx context.Context, from cluster.HostID, req Req, send func(any) error) error) {
	panic("skeleton")
}

// CallStream calls each for every message, until the handler there returns (nil), each fails, or the peer is gone.
func CallStream[Req, Msg any](ctx context.Context, t *Transport, to netip.AddrPort, method string, req Req, each func(Msg) error) error {
	panic("skeleton")
}
