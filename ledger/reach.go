package ledger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// hang is how long a dial to a silent address takes at most; see transport.
const hang = 5 * time.Second

// along bounds ctx by the life of the path to an address. Only tests give paths
// an end; what is said on one that has ended is lost in silence.
func (l *Ledger) along(ctx context.Context, to netip.AddrPort) (context.Context, context.CancelFunc, error) {
	if l.path == nil {
		return ctx, func() {}, nil
	}
	life := l.path(to)
	if life.Err() != nil {
		timer := time.NewTimer(hang)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		return nil, nil, fmt.Errorf("dial %s: %w", to, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(life, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

// call asks one host.
func call[Req, Resp any](ctx context.Context, l *Ledger, to netip.AddrPort, method string, req Req) (Resp, error) {
	ctx, done, err := l.along(ctx, to)
	if err != nil {
		var none Resp
		return none, err
	}
	defer done()
	return transport.Call[Req, Resp](ctx, l.cfg.Transport, to, method, req)
}

// dialRaft opens a stream for raft to a host, wherever it is now.
func (l *Ledger) dialRaft(ctx context.Context, host cluster.HostID) (net.Conn, error) {
	err := errors.New("its address is not known")
	for _, at := range l.addressesOf(host) {
		var c *transport.Conn
		if c, err = l.dialAt(ctx, at); err != nil {
			continue
		}
		if c.Peer() == host {
			return c, nil
		}
		err = fmt.Errorf("host %s is at %s now", c.Peer().Short(), at)
		c.Close()
	}
	return nil, err
}

func (l *Ledger) dialAt(ctx context.Context, at netip.AddrPort) (*transport.Conn, error) {
	dialing, done, err := l.along(ctx, at)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := l.cfg.Transport.Dial(dialing, at, transport.Raft)
	if err == nil && l.path != nil {
		context.AfterFunc(l.path(at), func() { c.Close() })
	}
	return c, err
}

// addressesOf lists where a host may be, likeliest first: where it is heard of,
// where the leader knows it, and where it registered.
func (l *Ledger) addressesOf(host cluster.HostID) []netip.AddrPort {
	registered := l.Registry().Hosts[host].Address
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addressesLocked(host, registered)
}

func (l *Ledger) addressesLocked(host cluster.HostID, registered netip.AddrPort) []netip.AddrPort {
	all := []netip.AddrPort{l.addresses[host]}
	for _, v := range l.voters {
		if v.Host == host {
			all = append(all, v.Address)
		}
	}
	var out []netip.AddrPort
	for _, a := range append(all, registered) {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
