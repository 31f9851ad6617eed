package transport

import (
	"bytes"
	"net"
	"testing"
	"time"
)

func receive(t *testing.T, n node) Packet {
	t.Helper()
	select {
	case p := <-n.Packets():
		return p
	case <-time.After(5 * time.Second):
		t.Fatal("no packet")
		return Packet{}
	}
}

func TestPackets(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		a, b := open(t, at, keyA, "c1"), open(t, at, keyA, "c1")
		run(t, a)
		run(t, b)
		// All first bytes that membership uses, and an empty datagram's
		// neighbour: one byte.
		for _, first := range []byte{0, 1, 13, 244, 0xf5} {
			data := append([]byte{first}, "payload"...)
			sent, err := a.WritePacket(data, b.Addr())
			if err != nil || time.Since(sent) > time.Second {
				t.Fatalf("sent at %v, %v", sent, err)
			}
			p := receive(t, b)
			if !bytes.Equal(p.Data, data) || p.From != a.Addr() || time.Since(p.Time) > time.Second {
				t.Errorf("got %q from %v at %v", p.Data, p.From, p.Time)
			}
		}
	}
}

func TestWildcardSocketSpeaksBothFamilies(t *testing.T) {
	t.Parallel()
	w := open(t, "0.0.0.0:0", keyA, "c1")
	run(t, w)
	w.Listener(Gossip)
	for _, at := range []string{"127.0.0.1", "::1"} {
		a := open(t, net.JoinHostPort(at, "0"), keyA, "c1")
		run(t, a)
		to := unmap(addrPortOf(&net.TCPAddr{IP: net.ParseIP(at), Port: int(w.Addr().Port())}))
		if _, err := a.WritePacket([]byte("x"), to); err != nil {
			t.Fatal(err)
		}
		p := receive(t, w)
		if p.From != a.Addr() {
			t.Errorf("from %v, want %v", p.From, a.Addr())
		}
		if _, err := w.WritePacket([]byte("y"), p.From); err != nil {
			t.Fatal(err)
		}
		if p := receive(t, a); p.From != to {
			t.Errorf("answered from %v, want %v", p.From, to)
		}
		c, err := a.Dial(t.Context(), to, Gossip)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := a.ProbeMTU(t.Context(), to, 1400); err != nil {
			t.Error(err)
		}
	}
}

func TestSlowPacketReaderLosesPackets(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c1")
	eventually(t, "the queue overflows", func() bool {
		for range 100 {
			if _, err := a.WritePacket([]byte("x"), b.Addr()); err != nil {
				t.Fatal(err)
			}
		}
		return b.Dropped() > 0
	})
	// The reader of the socket is not held up: probes are answered.
	if err := a.ProbeMTU(t.Context(), b.Addr(), 1000); err != nil {
		t.Error(err)
	}
	if len(b.Packets()) != packetQueue {
		t.Errorf("%d packets wait", len(b.Packets()))
	}
}
