package ledger

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// In raft's eyes the address of a server is its ID. Where the host of that ID
// is to be found is looked up at each dial: addresses change, and what stands in
// the log does not.

// serverAddress is what raft takes for the address of a server.
func serverAddress(id raft.ServerID) raft.ServerAddress { return raft.ServerAddress(id) }

// addressBook maps servers to what raft takes for their addresses, whatever
// stands in the log.
type addressBook struct{}

func (addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return serverAddress(id), nil
}

// serverAddr is that address as a net.Addr.
type serverAddr raft.ServerID

func (a serverAddr) Network() string { return "raft" }
func (a serverAddr) String() string  { return string(a) }

// hostOf is the host that a server runs on.
func hostOf(id raft.ServerID) cluster.HostID {
	host, _, _ := strings.Cut(string(id), ".")
	return cluster.HostID(host)
}

// greeting is what both ends of a raft stream say first, and what servers tell
// each other while their logs grow: who speaks to whom, where the log of the
// speaker is, and what it knows of the other's.
type greeting struct {
	To      string    `json:"to"`
	Here    position  `json:"here"`
	Seen    *position `json:"seen,omitempty"`
	Refused string    `json:"refused,omitempty"`
}

const (
	greetingLimit = 8 << 10
	greetingTime  = 2 * time.Second
)

// streams carries raft over the cluster's transport. No stream is used before
// both ends agreed who they are, and that neither log was set back: raft itself
// believes whoever speaks to it, and every disk.
type streams struct {
	server   raft.ServerID
	listener net.Listener
	dial     func(context.Context, cluster.HostID) (net.Conn, error)
	greet    func(to string) greeting      // what to say first
	heard    func(greeting)                // is called with it once the other end has it
	meet     func(greeting) error          // judges what the other end said
	admit    func(raft.ServerID) bool      // who may speak raft to this host
	peer     func(net.Conn) cluster.HostID // proven by the transport

	ctx      context.Context
	cancel   context.CancelFunc
	accepted chan net.Conn
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func peerOf(c net.Conn) cluster.HostID {
	if c, ok := c.(*transport.Conn); ok {
		return c.Peer()
	}
	return ""
}

// open begins to accept streams.
func (s *streams) open() {
	s.wg.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			if !s.track(conn) {
				return
			}
			s.wg.Go(func() { s.receive(conn) })
		}
	})
}

// receive is the acceptor's half of a greeting.
func (s *streams) receive(conn net.Conn) {
	c := &stream{Conn: conn, s: s}
	conn.SetDeadline(time.Now().Add(greetingTime))
	theirs, err := readGreeting(conn)
	if err != nil {
		c.Close()
		return
	}
	from := raft.ServerID(theirs.Here.Server)
	switch {
	case theirs.To != string(s.server):
		err = errors.New("the log of server " + theirs.To + " does not exist here any more")
	case hostOf(from) != s.peer(conn):
		err = errors.New("server " + theirs.Here.Server + " runs on another host")
	default:
		if err = s.meet(theirs); err == nil && !s.admit(from) {
			err = errors.New("server " + theirs.Here.Server + " is in no configuration that is known here")
		}
	}
	ours := s.greet(theirs.Here.Server)
	if err != nil {
		ours.Refused = err.Error()
	}
	if writeGreeting(conn, ours) != nil || err != nil {
		c.Close()
		return
	}
	s.heard(ours)
	conn.SetDeadline(time.Time{})
	select {
	case s.accepted <- c:
	case <-s.ctx.Done():
		c.Close()
	}
}

// Dial is the other half.
func (s *streams) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	to := raft.ServerID(address)
	conn, err := s.dial(ctx, hostOf(to))
	if err != nil {
		return nil, fmt.Errorf("dial voter %s: %w", hostOf(to).Short(), err)
	}
	if !s.track(conn) {
		return nil, net.ErrClosed
	}
	c := &stream{Conn: conn, s: s}
	if err := s.introduce(c, string(to)); err != nil {
		c.Close()
		return nil, fmt.Errorf("greet voter %s: %w", hostOf(to).Short(), err)
	}
	return c, nil
}

func (s *streams) introduce(conn net.Conn, to string) error {
	conn.SetDeadline(time.Now().Add(greetingTime))
	ours := s.greet(to)
	if err := writeGreeting(conn, ours); err != nil {
		return err
	}
	theirs, err := readGreeting(conn)
	if err != nil {
		return err
	}
	// What it says of this host's log counts even if it refuses.
	if theirs.Here.Server == to {
		if err := s.meet(theirs); err != nil {
			return err
		}
	}
	if theirs.Refused != "" {
		return errors.New(theirs.Refused)
	}
	if theirs.Here.Server != to {
		return fmt.Errorf("server %s answers there", theirs.Here.Server)
	}
	s.heard(ours)
	return conn.SetDeadline(time.Time{})
}

func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (s *streams) Addr() net.Addr { return serverAddr(s.server) }

// Close ends all streams at once.
func (s *streams) Close() error {
	s.cancel()
	s.listener.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.SetDeadline(time.Unix(1, 0)) // a farewell would wait for the peer
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// track notes a stream; it closes it and reports false after Close.
func (s *streams) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// stream is a tracked connection.
type stream struct {
	net.Conn
	s *streams
}

func (c *stream) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c.Conn)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

func writeGreeting(w io.Writer, g greeting) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readGreeting(r io.Reader) (greeting, error) {
	var g greeting
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return g, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > greetingLimit {
		return g, fmt.Errorf("read greeting: %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return g, err
	}
	return g, json.Unmarshal(b, &g)
}
