package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// knock speaks to a transport as the test says.
func knock(t *testing.T, to netip.AddrPort, say func(net.Conn)) {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	say(c)
}

func TestGuestsThatAreNotIsthmus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		say  func(t *testing.T, c net.Conn)
		says string
	}{
		{"garbage", func(_ *testing.T, c net.Conn) { c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, "does not speak TLS"},
		{"browser", func(_ *testing.T, c net.Conn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
		}, "application protocols"},
		{"no ALPN", func(t *testing.T, c net.Conn) {
			k, _ := deriveKeys([]byte(keyA))
			cert, err := k.certify(identity(t))
			if err != nil {
				t.Fatal(err)
			}
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}).Handshake()
		}, "asks for no protocol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := start(t, keyA, "c1")
			knock(t, b.Addr(), func(c net.Conn) { tt.say(t, c) })
			eventually(t, "refused", func() bool { return len(b.Refusals()) == 1 })
			if r := b.Refusals()[0]; r.Cause != NotIsthmus {
				t.Errorf("refusal: %+v", r)
			} else {
				wantText(t, "reason", r.Reason, tt.says)
			}
		})
	}
}

// impostor completes TLS with b as a member would, and hands over the stream
// before the prelude.
func impostor(t *testing.T, b node) *tls.Conn {
	t.Helper()
	k, _ := deriveKeys([]byte(keyA))
	cert, err := k.certify(identity(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", b.Addr().String(), &tls.Config{
		InsecureSkipVerify: true,
		Certificates:       []tls.Certificate{cert},
		NextProtos:         []string{Gossip.alpn()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBadPreludes(t *testing.T) {
	t.Parallel()
	oversize := binary.BigEndian.AppendUint32(nil, preludeLimit+1)
	for _, tt := range []struct {
		name  string
		bytes []byte
		cause Cause
	}{
		{"oversize", append(oversize, make([]byte, preludeLimit+1)...), ""},
		{"not JSON", append(binary.BigEndian.AppendUint32(nil, 3), "xyz"...), NotIsthmus},
		{"another host", append(binary.BigEndian.AppendUint32(nil, 41), `{"version":1,"cluster":"c1","host":"abc"}`...), NotIsthmus},
		{"another version", append(binary.BigEndian.AppendUint32(nil, 41), `{"version":9,"cluster":"c1","host":"abc"}`...), OtherVersion},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := start(t, keyA, "c1")
			l := b.Listener(Gossip)
			c := impostor(t, b)
			c.Write(tt.bytes)
			if tt.cause != "" {
				eventually(t, "refused", func() bool { return len(b.Refusals()) == 1 && b.Refusals()[0].Cause == tt.cause })
			}
			// It is hung up on, and nobody accepts it.
			c.SetReadDeadline(time.Now().Add(3 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the stream stays open: %v", err)
			}
			select {
			case <-l.(*listener).conns:
				t.Error("accepted")
			default:
			}
		})
	}
}

func TestSlowGuestsAreCutOff(t *testing.T) {
	t.Parallel()
	b := start(t, keyA, "c1")
	b.Listener(Gossip)
	began := time.Now()
	silent, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow := impostor(t, b)
	go func() {
		for { // one byte of a prelude at a time
			if _, err := slow.Write([]byte{0}); err != nil {
				return
			}
			select {
			case <-t.Context().Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	for _, c := range []net.Conn{silent, slow} {
		c.SetReadDeadline(began.Add(handshakeTime + 3*time.Second))
		_, err := io.Copy(io.Discard, c)
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Error("a slow guest is still connected")
		}
	}
	eventually(t, "no stranger left", func() bool {
		b.gate.mu.Lock()
		defer b.gate.mu.Unlock()
		return b.gate.total == 0 && len(b.gate.perAddr) == 0
	})
}

func TestStrangersAreFew(t *testing.T) {
	t.Parallel()
	b := start(t, keyA, "c1")
	b.Listener(Gossip)
	var cs []net.Conn
	for range strangersPerAddr {
		knock(t, b.Addr(), func(c net.Conn) { cs = append(cs, c) })
	}
	eventually(t, "the gate is full", func() bool {
		b.gate.mu.Lock()
		defer b.gate.mu.Unlock()
		return b.gate.total == strangersPerAddr
	})
	a := start(t, keyA, "c1")
	_, err := a.Dial(within(t, 3*time.Second), b.Addr(), Gossip)
	if err == nil {
		t.Fatal("one stranger too many")
	}
	wantText(t, "error", err.Error(), "overloaded")
	for _, c := range cs {
		c.Close()
	}
	eventually(t, "room again", func() bool {
		c, err := a.Dial(within(t, time.Second), b.Addr(), Gossip)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})

	g := gate{perAddr: map[netip.Addr]int{}}
	for i := range strangers {
		if !g.enter(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})) {
			t.Fatalf("stranger %d is refused", i)
		}
	}
	if g.enter(netip.MustParseAddr("10.1.1.1")) {
		t.Error("no bound on all strangers")
	}
}

func TestRunEndsEverything(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), open(t, "127.0.0.1:0", keyA, "c1")
	stop := run(t, b)
	l := b.Listener(Gossip)
	a.Listener(Gossip)
	in, err := a.Dial(t.Context(), b.Addr(), Gossip) // accepted by b
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	out, err := b.Dial(t.Context(), a.Addr(), Gossip)
	if err != nil {
		t.Fatal(err)
	}
	knock(t, b.Addr(), func(net.Conn) {}) // a stranger in mid-handshake
	stop()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := out.Read(make([]byte, 1)); err == nil {
		t.Error("a dialed stream survives")
	}
	if _, err := in.Read(make([]byte, 1)); err == nil {
		t.Error("an accepted stream survives")
	}
	if _, err := b.WritePacket([]byte("x"), a.Addr()); err == nil {
		t.Error("the UDP socket survives")
	}
	if _, err := b.Listener(Sync).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a listener of a stopped transport: %v", err)
	}
	again, err := Listen(Config{Address: b.Addr(), Identity: identity(t), Cluster: func() cluster.ID { return "" }, Log: b.Transport.log})
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	run(t, node{again, b.log})
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	a := start(t, keyA, "c1")
	_, err := Listen(Config{Address: a.Addr(), Identity: identity(t), Cluster: func() cluster.ID { return "" }, Log: a.Transport.log})
	if err == nil {
		t.Fatal("bound twice")
	}
	wantText(t, "error", err.Error(), "another process has it", "GOSSIP_PORT")
}
