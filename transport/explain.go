package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// explainConnect says why no TCP connection came to be, and what to look at.
func explainConnect(ctx context.Context, to netip.AddrPort, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return &fault{Unreachable, fmt.Sprintf("no answer (is the host up? a firewall must let TCP and UDP port %d through; GOSSIP_PORT and the port in JOIN must agree)", to.Port()), context.DeadlineExceeded}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &fault{Unreachable, fmt.Sprintf("connection refused: nothing listens on TCP port %d there, or a firewall rejects it (is the plugin enabled there? GOSSIP_PORT and the port in JOIN must agree)", to.Port()), err}
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return &fault{Unreachable, "no route to the host (is it up, and is the address right? a firewall may reject TCP as well)", err}
	}
	return err
}

// explainHandshake says what a dialer met behind an open port.
func (t *Transport) explainHandshake(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if f := (*fault)(nil); errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil {
		return &fault{Unreachable, "the port accepts connections and then says nothing (not an isthmus port? check the port in JOIN, and GOSSIP_PORT on both hosts; or the host hangs)", context.DeadlineExceeded}
	}
	if tls := (tls.RecordHeaderError{}); errors.As(err, &tls) {
		return errNotIsthmus("what listens there does not speak TLS")
	}
	if alert, ok := remoteAlert(err); ok {
		return t.explainAlert(alert)
	}
	if lost(err) {
		return fmt.Errorf("the peer closed the connection during the handshake (it is stopping, overloaded, or not an isthmus port): %w", err)
	}
	if strings.HasPrefix(err.Error(), "tls: ") {
		return errNotIsthmus(err.Error())
	}
	return err
}

// explainGuest says who knocked at this host's port.
func (t *Transport) explainGuest(err error) error {
	if f := (*fault)(nil); errors.As(err, &f) {
		return f
	}
	if tls := (tls.RecordHeaderError{}); errors.As(err, &tls) {
		return &fault{cause: NotIsthmus, text: "not an isthmus host: it does not speak TLS"}
	}
	if alert, ok := remoteAlert(err); ok {
		return t.explainAlert(alert)
	}
	switch text := err.Error(); {
	case lost(err) || !strings.HasPrefix(text, "tls: "):
		return err
	case strings.Contains(text, "application protocols") && strings.Contains(text, "isthmus-"):
		return errOtherVersion()
	default:
		return &fault{cause: NotIsthmus, text: "not an isthmus host: " + text}
	}
}

// remoteAlert returns the text of a TLS alert that the peer sent.
func remoteAlert(err error) (string, bool) {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error(), true
	}
	return "", false
}

// explainAlert translates the two alerts that isthmus hosts send each other.
func (t *Transport) explainAlert(alert string) error {
	switch {
	case strings.Contains(alert, "bad certificate") && t.keys.secret:
		return &fault{cause: OtherKey, text: "the peer holds another cluster key, or none (CLUSTER_KEY or key file differ)"}
	case strings.Contains(alert, "bad certificate"):
		return &fault{cause: OtherKey, text: "the peer holds a cluster key and this host has none (set CLUSTER_KEY or the key file)"}
	case strings.Contains(alert, "application protocol"):
		return errOtherVersion()
	}
	return errNotIsthmus("it ended the handshake with " + alert)
}

func errOtherVersion() error {
	return &fault{cause: OtherVersion, text: fmt.Sprintf("the peer does not speak wire version %d (run one isthmus release on both)", wireVersion)}
}

// lost reports whether an error only says that the connection went away.
func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
