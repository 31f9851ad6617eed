package ledger

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
)

// wire is a listener that a test dials.
type wire chan net.Conn

func (w wire) Accept() (net.Conn, error) {
	c, ok := <-w
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (w wire) Close() error   { close(w); return nil }
func (w wire) Addr() net.Addr { return serverAddr("") }

func TestStreams(t *testing.T) {
	for _, test := range []struct {
		name   string
		to     raft.ServerID
		change func(dialer, acceptor *streams)
		want   string // in the dialer's error
	}{
		{"well", "b.1", func(_, _ *streams) {}, ""},
		{"its log is gone", "b.0", func(_, _ *streams) {}, "b.0 does not exist here any more"},
		{"no member", "b.1", func(_, b *streams) { b.admit = func(raft.ServerID) bool { return false } }, "in no configuration"},
		{"it speaks for another", "b.1", func(_, b *streams) { b.peer = func(net.Conn) cluster.HostID { return "c" } }, "runs on another host"},
		{"the dialer was set back", "b.1", func(_, b *streams) { b.meet = func(greeting) error { return errSetBack } }, "set back"},
		{"the acceptor was set back", "b.1", func(a, _ *streams) { a.meet = func(greeting) error { return errSetBack } }, "set back"},
		{"another server answers", "b.1", func(_, b *streams) {
			b.greet = func(to string) greeting { return greeting{To: to, Here: position{Server: "b.2"}} }
		}, "b.2 answers there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := make(wire)
			open := func(id raft.ServerID) *streams {
				ctx, cancel := context.WithCancel(t.Context())
				return &streams{
					server: id, ctx: ctx, cancel: cancel, accepted: make(chan net.Conn), conns: map[net.Conn]struct{}{},
					listener: make(wire),
					greet:    func(to string) greeting { return greeting{To: to, Here: position{Server: string(id)}} },
					heard:    func(greeting) {}, meet: func(greeting) error { return nil },
					admit: func(raft.ServerID) bool { return true },
					peer:  func(net.Conn) cluster.HostID { return "a" },
				}
			}
			a, b := open("a.1"), open("b.1")
			b.listener = w
			a.dial = func(_ context.Context, host cluster.HostID) (net.Conn, error) {
				if host != "b" {
					return nil, errors.New("unknown host")
				}
				here, there := net.Pipe()
				w <- there
				return here, nil
			}
			test.change(a, b)
			b.open()
			defer a.Close()
			defer b.Close()
			conn, err := a.Dial(serverAddress(test.to), 5*time.Second)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("%v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			other, err := b.Accept()
			if err != nil {
				t.Fatal(err)
			}
			go conn.Write([]byte("raft"))
			got := [4]byte{}
			if _, err := io.ReadFull(other, got[:]); err != nil || string(got[:]) != "raft" {
				t.Errorf("read %q: %v", got, err)
			}
			if a.Addr().String() != "a.1" {
				t.Errorf("raft takes %q for the address", a.Addr())
			}
		})
	}
}
