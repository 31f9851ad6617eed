package transport

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A probe is a datagram of
//
//	magic 4 | kind 1 | length 2 | nonce 8 | HMAC-SHA256 32 | zeros up to length
//
// and its acknowledgement the same with another kind and no zeros: shorter
// than any probe, so that a forged source gains nothing. Membership packets
// never begin with the magic: their first byte is a message type or an
// encryption version, both small, or 244 for a label.
const (
	probeMagic = "\xf5isp"
	probeAsk   = 'p'
	probeAck   = 'a'
	probeHead  = 4 + 1 + 2 + 8
	probeShort = probeHead + sha256.Size // length of an acknowledgement

	probeTries = 3
	probeWait  = 300 * time.Millisecond
)

type probe struct {
	kind   byte
	length uint16 // of the asking datagram's UDP payload
	nonce  [8]byte
}

func isProbe(b []byte) bool { return len(b) >= 4 && string(b[:4]) == probeMagic }

func (p probe) encode(key []byte) []byte {
	b := make([]byte, 0, max(probeShort, int(p.length)))
	b = append(b, probeMagic...)
	b = append(b, p.kind)
	b = binary.BigEndian.AppendUint16(b, p.length)
	b = append(b, p.nonce[:]...)
	b = append(b, probeMAC(key, b)...)
	if p.kind == probeAsk {
		b = b[:p.length]
	}
	return b
}

func probeMAC(key, head []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(head)
	return mac.Sum(nil)
}

// parseProbe accepts only what encode makes with the same key.
func parseProbe(key, b []byte) (probe, bool) {
	if len(b) < probeShort || !isProbe(b) || !hmac.Equal(probeMAC(key, b[:probeHead]), b[probeHead:probeShort]) {
		return probe{}, false
	}
	p := probe{kind: b[4], length: binary.BigEndian.Uint16(b[5:]), nonce: [8]byte(b[7:])}
	switch p.kind {
	case probeAsk:
		return p, len(b) > probeShort && len(b) == int(p.length)
	case probeAck:
		return p, len(b) == probeShort
	}
	return probe{}, false
}

// answerProbe acknowledges a probe from the address that it was sent to.
func (t *Transport) answerProbe(b, oob []byte, from netip.AddrPort) {
	p, ok := parseProbe(t.keys.probe, b)
	if !ok || p.kind != probeAsk {
		return
	}
	p.kind = probeAck
	own, ifindex := t.udp.destination(oob)
	if !own.IsLinkLocalUnicast() {
		ifindex = 0 // the way back is the routes' choice
	}
	if err := t.udp.send(p.encode(t.keys.probe), own, ifindex, from); err != nil {
		t.log.WithField("peer", from).WithError(err).Debug("answer an MTU probe")
	}
}

// headers is what IP and UDP add to a payload.
func headers(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// ProbeMTU sends a datagram that is an IP packet of exactly size bytes, never
// fragmented and whatever path MTU the kernel remembers, and waits for the
// peer to acknowledge it: at most three tries within 0.9 s, or ctx. nil means
// that the path to the peer carries packets of that size. It says nothing of
// the way back.
func (t *Transport) ProbeMTU(ctx context.Context, to netip.AddrPort, size int) error {
	to = unmap(to)
	if err := t.probeMTU(ctx, to, size); err != nil {
		return fmt.Errorf("probe %s with a packet of %d bytes: %w", to, size, err)
	}
	return nil
}

func (t *Transport) probeMTU(ctx context.Context, to netip.AddrPort, size int) error {
	length := size - headers(to.Addr())
	if length <= probeShort || size > 65535 {
		return fmt.Errorf("size out of range (%d to 65535)", probeShort+headers(to.Addr())+1)
	}
	p := probe{kind: probeAsk, length: uint16(length)}
	rand.Read(p.nonce[:])
	datagram := p.encode(t.keys.probe)

	conn, err := dial(ctx, "udp", t.addr.Addr(), to, neverFragment)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	answer := make([]byte, probeShort+1)
	for try := range probeTries {
		if _, err := conn.Write(datagram); err != nil {
			return explainProbe(ctx, to, size, try == 0, err)
		}
		conn.SetReadDeadline(time.Now().Add(probeWait))
		for {
			n, err := conn.Read(answer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return explainProbe(ctx, to, size, false, err)
			}
			if a, ok := parseProbe(t.keys.probe, answer[:n]); ok && a.kind == probeAck && a.nonce == p.nonce && a.length == p.length {
				return nil
			}
		}
	}
	return fmt.Errorf("no answer to %d of them (the path carries less, or a firewall drops UDP port %d)", probeTries, to.Port())
}

// explainProbe translates what the kernel says of a probe. Before anything was
// sent it can only speak of the own link, later of what routers reported.
func explainProbe(ctx context.Context, to netip.AddrPort, size int, first bool, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.EMSGSIZE) && first:
		return fmt.Errorf("packet of %d bytes exceeds the MTU of the link: %w", size, syscall.EMSGSIZE)
	case errors.Is(err, syscall.EMSGSIZE):
		return fmt.Errorf("packet of %d bytes exceeds the MTU of a link on the path: %w", size, syscall.EMSGSIZE)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens on UDP port %d there, or a firewall rejects it: %w", to.Port(), syscall.ECONNREFUSED)
	}
	return err
}

// neverFragment makes datagrams leave whole, with DF, or fail: the remembered
// path MTU is not consulted.
func neverFragment(network, _ string, c syscall.RawConn) error {
	return control(c, func(fd int) error {
		if network == "udp6" {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
}

// FitMTU finds the largest size from low to high that ProbeMTU lets through,
// by bisection. It fails when not even low passes, or with ctx. A size that is
// lost takes 0.9 s, so from 1280 to 1500 it needs at most 8 s.
func (t *Transport) FitMTU(ctx context.Context, to netip.AddrPort, low, high int) (int, error) {
	if err := t.ProbeMTU(ctx, to, low); err != nil {
		return 0, err
	}
	if low >= high || t.ProbeMTU(ctx, to, high) == nil {
		return max(low, high), nil
	}
	for low+1 < high && ctx.Err() == nil {
		if middle := (low + high) / 2; t.ProbeMTU(ctx, to, middle) == nil {
			low = middle
		} else {
			high = middle
		}
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("find the MTU of the path to %s: %w", to, ctx.Err())
	}
	return low, nil
}
