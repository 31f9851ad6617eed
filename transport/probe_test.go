package transport

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestProbe(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{keyA, ""} {
		for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
			a, b := open(t, at, secret, "c1"), open(t, at, secret, "c1")
			run(t, a)
			run(t, b)
			for _, size := range []int{96, 1280, 1500, 9000, 65535} {
				if err := a.ProbeMTU(t.Context(), b.Addr(), size); err != nil {
					t.Errorf("%v", err)
				}
			}
			if fit, err := a.FitMTU(t.Context(), b.Addr(), 1280, 9000); fit != 9000 || err != nil {
				t.Errorf("fit %d, %v", fit, err)
			}
			for _, size := range []int{0, 60, 65536} {
				if err := a.ProbeMTU(t.Context(), b.Addr(), size); err == nil {
					t.Errorf("a packet of %d bytes", size)
				} else {
					wantText(t, "error", err.Error(), "size out of range")
				}
			}
			if len(b.Packets()) != 0 {
				t.Error("a probe was taken for membership's")
			}
		}
	}
}

func TestProbeOfAStranger(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyB, "c1")
	began := time.Now()
	err := a.ProbeMTU(t.Context(), b.Addr(), 1000)
	if err == nil {
		t.Fatal("answered under another key")
	}
	wantText(t, "error", err.Error(), "probe "+b.Addr().String(), "no answer to 3", "firewall")
	if d := time.Since(began); d < 2*probeWait {
		t.Errorf("took %v", d)
	}
	if _, err := a.FitMTU(t.Context(), b.Addr(), 1000, 1500); err == nil {
		t.Error("found an MTU without an answer")
	}
	if err := a.ProbeMTU(within(t, 10*time.Millisecond), b.Addr(), 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("probe with a short context: %v", err)
	}
}

func TestProbeOfAClosedPort(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), open(t, "127.0.0.1:0", keyA, "c1")
	run(t, b)()
	err := a.ProbeMTU(t.Context(), b.Addr(), 1000)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("probe: %v", err)
	}
}

// raw sends one datagram and returns the answer, nil when none comes before
// that of a good probe that is sent after it.
func raw(t *testing.T, to netip.AddrPort, datagram []byte) []byte {
	t.Helper()
	c, err := net.Dial("udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k, _ := deriveKeys([]byte(keyA))
	last := probe{kind: probeAsk, length: 100, nonce: [8]byte{0xee}}
	c.Write(datagram)
	c.Write(last.encode(k.probe))
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 2000)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := parseProbe(k.probe, b[:n]); ok && p.nonce == last.nonce {
		return nil
	}
	return b[:n]
}

func TestOnlyGoodProbesAreAnsweredAndNeverAmplified(t *testing.T) {
	t.Parallel()
	b := start(t, keyA, "c1")
	k, _ := deriveKeys([]byte(keyA))
	good := probe{kind: probeAsk, length: 200, nonce: [8]byte{1}}.encode(k.probe)
	if got := raw(t, b.Addr(), good); len(got) != probeShort || len(got) >= len(good) {
		t.Errorf("the answer to a good probe has %d bytes", len(got))
	}
	flipped := bytes.Clone(good)
	flipped[8]++
	for name, bad := range map[string][]byte{
		"cut":                       good[:150],
		"extended":                  append(bytes.Clone(good), 0),
		"flipped":                   flipped,
		"an answer":                 probe{kind: probeAck, length: 200, nonce: [8]byte{1}}.encode(k.probe),
		"no longer than its answer": probe{kind: probeAsk, length: probeShort}.encode(k.probe),
		"magic alone":               []byte(probeMagic),
	} {
		if got := raw(t, b.Addr(), bad); got != nil {
			t.Errorf("%s: answered with %d bytes", name, len(got))
		}
	}
}

// TestMagicIsNoMembershipPacket watches what memberlist itself puts on the
// wire.
func TestMagicIsNoMembershipPacket(t *testing.T) {
	t.Parallel()
	for _, secret := range [][]byte{nil, bytes.Repeat([]byte{7}, 32)} {
		for _, label := range []string{"", "c1"} {
			network := &memberlist.MockNetwork{}
			other := network.NewTransport("other")
			config := memberlist.DefaultLANConfig()
			config.Transport = network.NewTransport("self")
			config.SecretKey, config.Label = secret, label
			config.LogOutput = &journal{}
			m, err := memberlist.Create(config)
			if err != nil {
				t.Fatal(err)
			}
			_, port, err := other.FinalAdvertiseAddr("", 0)
			if err != nil {
				t.Fatal(err)
			}
			to := memberlist.Address{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Name: "other"}
			sent := make(chan error, 1)
			go func() { sent <- m.SendToAddress(to, []byte(strings.Repeat("x", 50))) }() // blocks until it is received
			p := <-other.PacketCh()
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if isProbe(p.Buf) || p.Buf[0] == probeMagic[0] {
				t.Errorf("a membership packet begins with % x", p.Buf[:4])
			}
			if err := m.Shutdown(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func FuzzParseProbe(f *testing.F) {
	k, err := deriveKeys([]byte(keyA))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(probe{kind: probeAsk, length: 100}.encode(k.probe))
	f.Add(probe{kind: probeAck, length: 100}.encode(k.probe))
	f.Add([]byte(probeMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseProbe(k.probe, b); ok && !bytes.Equal(p.encode(k.probe)[:probeShort], b[:probeShort]) {
			t.Errorf("accepted what was never made: % x", b)
		}
	})
}
