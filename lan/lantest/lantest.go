// Package lantest is a LAN in memory, for tests.
package lantest

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
)

// Machine hears a frame and returns what it answers.
type Machine func(frame []byte) [][]byte

// Net is a LAN. Fields are set before its use.
type Net struct {
	MAC   cluster.MAC   // of the host's interface
	Own   []netip.Addr  // of the host
	Delay time.Duration // of each answer
	Down  error         // that sending fails with

	mu       sync.Mutex
	machines []Machine
	wires    []*wire
	sent     []Sent
	opened   int
}

// Sent is a frame that the host sent.
type Sent struct {
	At    time.Time
	Frame []byte
}

// Join adds a machine.
func (n *Net) Join(m Machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machines = append(n.machines, m)
}

// Sent returns what the host sent since the last call.
func (n *Net) Sent() []Sent {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.sent
	n.sent = nil
	return out
}

// Open returns a Wire of the host. All wires hear all answers.
func (n *Net) Open() lan.Wire {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := &wire{net: n, in: make(chan []byte, 1024)}
	n.wires = append(n.wires, w)
	n.opened++
	return w
}

// Wires returns how many wires were opened, and how many are not closed.
func (n *Net) Wires() (opened, open int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.opened, len(n.wires)
}

// Say delivers a frame of a machine to all wires.
func (n *Net) Say(frame []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.wires {
		w.in <- slices.Clone(frame)
	}
}

type wire struct {
	net *Net
	in  chan []byte
}

func (w *wire) MAC() cluster.MAC { return w.net.MAC }

func (w *wire) Has(a netip.Addr) bool { return slices.Contains(w.net.Own, a) }

func (w *wire) Send(frame []byte) error {
	n := w.net
	n.mu.Lock()
	if n.Down != nil {
		defer n.mu.Unlock()
		return n.Down
	}
	n.sent = append(n.sent, Sent{time.Now(), slices.Clone(frame)})
	machines := slices.Clone(n.machines)
	n.mu.Unlock()
	for _, m := range machines {
		for _, answer := range m(slices.Clone(frame)) {
			if n.Delay == 0 {
				n.Say(answer)
			} else {
				time.AfterFunc(n.Delay, func() { n.Say(answer) })
			}
		}
	}
	return nil
}

func (w *wire) Receive(ctx context.Context) ([]byte, error) {
	select {
	case f := <-w.in:
		return f, nil
	default:
	}
	select {
	case f := <-w.in:
		return f, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *wire) Close() error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	w.net.wires = slices.DeleteFunc(w.net.wires, func(x *wire) bool { return x == w })
	return nil
}
