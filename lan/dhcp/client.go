package dhcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
)

// What a caller may want to tell apart, besides *NAK.
var (
	ErrSilent = errors.New("no DHCP server answers")
	ErrOwn    = errors.New("the DHCP server offers the address of this host itself: it tells clients apart by MAC; let the host's own DHCP client send a client identifier")
)

// patience is how long each copy of a message waits for an answer. A server
// may look for three seconds whether an address is free before it offers it.
var patience = []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}

// Client speaks with DHCP servers, one exchange at a time and call. The zero
// value is ready for use in the namespace of the calling thread. Its methods
// are safe for concurrent use, and bounded by their ctx and by seconds.
type Client struct {
	// Open opens the interface for one exchange; nil: the package's Open.
	Open func(ifname string, mac cluster.MAC) (lan.Wire, error)
}

// open opens the interface of r, and completes r.
func (c Client) open(r *Request) (lan.Wire, error) {
	if len(r.ClientID) < 2 || len(r.ClientID) > 255 {
		return nil, errors.New("a client identifier of 2 to 255 bytes is needed")
	}
	open := c.Open
	if open == nil {
		open = Open
	}
	w, err := open(r.Interface, r.MAC)
	if err == nil && r.MAC.IsZero() {
		r.MAC = w.MAC()
	}
	return w, err
}

// Obtain gets an address for a client that has none: DISCOVER, OFFER, REQUEST,
// ACK. The first offer is taken. A lease of the same client identifier at the
// server is given again.
func (c Client) Obtain(ctx context.Context, r Request) (Lease, error) {
	l, err := c.obtain(ctx, r, netip.Addr{})
	if err != nil {
		return Lease{}, fmt.Errorf("obtain an address by DHCP on %s: %w", r.Interface, err)
	}
	return l, nil
}

// Regain is Obtain for a lease that was lost: no other address will do.
func (c Client) Regain(ctx context.Context, l Lease) (Lease, error) {
	fresh, err := c.obtain(ctx, l.again(), l.Prefix.Addr())
	if err != nil {
		return Lease{}, fmt.Errorf("regain address %s by DHCP on %s: %w", l.Prefix.Addr(), l.Interface, err)
	}
	return fresh, nil
}

// obtain takes the first offer, or when only is valid the first one of that.
func (c Client) obtain(ctx context.Context, r Request, only netip.Addr) (Lease, error) {
	w, err := c.open(&r)
	if err != nil {
		return Lease{}, err
	}
	defer w.Close()
	refused := error(nil)
	for range 2 { // an address may go to somebody else between offer and request
		var other netip.Addr
		offer, err := exchange(ctx, w, discover(r), Lease{}, false, func(a answer) bool {
			addr := addrOf(a.YourIPAddr)
			if a.MessageType() != dhcpv4.MessageTypeOffer || !addr.IsValid() || !a.server().IsValid() {
				return false
			}
			if only.IsValid() && addr != only {
				other = addr // another server may still offer the right one
				return false
			}
			return true
		})
		switch {
		case err != nil && other.IsValid() && errors.Is(err, ErrSilent):
			return Lease{}, fmt.Errorf("the DHCP server offers %s now instead", other)
		case err != nil && refused != nil:
			return Lease{}, fmt.Errorf("%w; then: %w", refused, err)
		case err != nil:
			return Lease{}, err
		}
		addr := addrOf(offer.YourIPAddr)
		if w.Has(addr) {
			return Lease{}, fmt.Errorf("address %s: %w", addr, ErrOwn)
		}
		l, err := grant(ctx, w, request(r, addr, offer.server()), Lease{}, false)
		if nak := (*NAK)(nil); !errors.As(err, &nak) {
			return l, err
		}
		refused = err
	}
	return Lease{}, refused
}

// Reboot asks whether a lease from an earlier run still holds, and extends it:
// INIT-REBOOT. The question and its answer are broadcast, so that it matters
// neither whether the container is up nor which server answers. *NAK: it does
// not hold; ErrSilent: no server knows it.
func (c Client) Reboot(ctx context.Context, l Lease) (Lease, error) {
	return c.extend(ctx, l, "confirm", step{reboot(l), false})
}

// Renew extends a lease at the server that gave it: RENEWING.
func (c Client) Renew(ctx context.Context, l Lease) (Lease, error) {
	return c.extend(ctx, l, "renew", step{renew(l), true}, step{reboot(l), false})
}

// Rebind extends a lease at any server: REBINDING.
func (c Client) Rebind(ctx context.Context, l Lease) (Lease, error) {
	return c.extend(ctx, l, "rebind", step{renew(l), false}, step{reboot(l), false})
}

// step is a message, and whether it goes to the lease's server alone.
type step struct {
	ask
	toServer bool
}

// extend tries one question after the other until one is answered.
func (c Client) extend(ctx context.Context, l Lease, verb string, steps ...step) (Lease, error) {
	fail := func(err error) (Lease, error) {
		return Lease{}, fmt.Errorf("%s address %s by DHCP on %s: %w", verb, l.Prefix.Addr(), l.Interface, err)
	}
	w, err := c.open(&l.Request)
	if err != nil {
		return fail(err)
	}
	defer w.Close()
	for _, s := range steps {
		s.MAC = l.MAC
		var fresh Lease
		if fresh, err = grant(ctx, w, s.ask, l, s.toServer); err == nil {
			if fresh.Prefix.Addr() != l.Prefix.Addr() {
				return fail(fmt.Errorf("the DHCP server acknowledges %s instead", fresh.Prefix.Addr()))
			}
			return fresh, nil
		}
		if !errors.Is(err, ErrSilent) || ctx.Err() != nil {
			break
		}
	}
	return fail(err)
}

// Release gives a lease back: RELEASE, which nobody answers.
func (c Client) Release(ctx context.Context, l Lease) error {
	if err := c.tell(ctx, l, release(l), true); err != nil {
		return fmt.Errorf("release address %s by DHCP on %s: %w", l.Prefix.Addr(), l.Interface, err)
	}
	return nil
}

// Decline gives a lease back that cannot be used, so that the server does not
// offer the address for a while: DECLINE, which nobody answers. why is for its
// log.
func (c Client) Decline(ctx context.Context, l Lease, why string) error {
	if err := c.tell(ctx, l, decline(l, why), false); err != nil {
		return fmt.Errorf("decline address %s by DHCP on %s: %w", l.Prefix.Addr(), l.Interface, err)
	}
	return nil
}

func (c Client) tell(ctx context.Context, l Lease, a ask, toServer bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w, err := c.open(&a.Request)
	if err != nil {
		return err
	}
	defer w.Close()
	b, err := a.encode(newXID(), 0)
	if err != nil {
		return err
	}
	return w.Send(wrap(a.path(l, toServer), b))
}

// grant sends a REQUEST and reads the lease that its ACK brings. A NAK comes
// as *NAK: at once from the server that was asked, or that gave l; from any other
// only if no ACK comes after it.
func grant(ctx context.Context, w lan.Wire, a ask, l Lease, toServer bool) (Lease, error) {
	asked := time.Now()
	var nak *NAK
	got, err := exchange(ctx, w, a, l, toServer, func(got answer) bool {
		from := got.server()
		if a.server.IsValid() && from != a.server {
			return false
		}
		if got.MessageType() == dhcpv4.MessageTypeNak {
			nak = &NAK{from, got.Message()}
			return from == a.server || from == l.Server
		}
		return got.MessageType() == dhcpv4.MessageTypeAck
	})
	switch {
	case nak != nil && (err == nil && got.MessageType() == dhcpv4.MessageTypeNak || errors.Is(err, ErrSilent)):
		return Lease{}, nak
	case err != nil:
		return Lease{}, err
	}
	r := a.Request
	if l.Prefix.IsValid() {
		r.Hostname = l.Hostname
	}
	return got.lease(r, asked)
}

// exchange sends a message, again and again with patience, until an answer to
// it is accepted.
func exchange(ctx context.Context, w lan.Wire, a ask, l Lease, toServer bool, accept func(answer) bool) (answer, error) {
	xid, start := newXID(), time.Now()
	for _, wait := range patience {
		b, err := a.encode(xid, time.Since(start))
		if err != nil {
			return answer{}, err
		}
		if err := w.Send(wrap(a.path(l, toServer), b)); err != nil {
			return answer{}, err
		}
		got, err := await(ctx, w, a, xid, wait, accept)
		if !errors.Is(err, ErrSilent) || ctx.Err() != nil {
			return got, err
		}
	}
	return answer{}, ErrSilent
}

func await(ctx context.Context, w lan.Wire, a ask, xid dhcpv4.TransactionID, wait time.Duration, accept func(answer) bool) (answer, error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		b, err := w.Receive(within)
		switch {
		case err == nil:
			if got, ok := answerTo(a, xid, b); ok && accept(got) {
				return got, nil
			}
		case errors.Is(err, context.DeadlineExceeded):
			if ctx.Err() != nil {
				return answer{}, fmt.Errorf("%w (%w)", ErrSilent, ctx.Err())
			}
			return answer{}, ErrSilent
		default:
			return answer{}, err
		}
	}
}

func newXID() (xid dhcpv4.TransactionID) {
	rand.Read(xid[:])
	return xid
}
