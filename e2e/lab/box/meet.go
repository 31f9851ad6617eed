package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

type meetCmd struct {
	Name     string        `arg:"" help:"What the others call this one."`
	Addrs    []string      `arg:"" optional:"" help:"Whom to ask."`
	Meeting  string        `help:"What tells it from earlier ones, of which words may still be on the way." default:"meet"`
	Iface    string        `help:"Interface to meet on, or an address of it." default:"eth0"`
	Interval time.Duration `help:"Time between two rounds." default:"100ms"`
}

// Where everybody listens, and what is sent to everybody.
const meetPort = 7200

var (
	meetGroup4 = netip.MustParseAddr("239.7.2.1")
	meetGroup6 = netip.MustParseAddr("ff15::7:201")
	everyone   = netip.MustParseAddr("255.255.255.255")
)

// heard is what came from another one: its question, its answer to a question of
// ours, or what it sent to everybody. Only the first of a kind is told, and the
// first that came twice.
type heard struct {
	From  string `json:"from"`
	Kind  string `json:"kind"`
	Twice bool   `json:"twice,omitempty"`
}

// word is one datagram: who said what as the how many.
type word struct {
	meeting, from, kind, number string
}

func (w word) bytes() []byte {
	return []byte(strings.Join([]string{w.meeting, w.from, w.kind, w.number}, " "))
}

func parseWord(b []byte) (word, bool) {
	f := strings.Fields(string(b))
	if len(f) != 4 {
		return word{}, false
	}
	return word{meeting: f[0], from: f[1], kind: f[2], number: f[3]}, true
}

// Run asks every address, and says something to the multicast groups and to the
// broadcast address, again and again, until its input ends. It answers those who
// ask. It prints {"ready":true} once it listens, then what it hears.
func (m *meetCmd) Run(ctx context.Context) error {
	iface, err := interfaceOf(m.Iface)
	if err != nil {
		return err
	}
	v4, err := m.listen(ctx, "udp4", iface)
	if err != nil {
		return err
	}
	defer v4.Close()
	v6, err := m.listen(ctx, "udp6", iface)
	if err != nil {
		return err
	}
	defer v6.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		io.Copy(io.Discard, bufio.NewReader(os.Stdin))
		cancel()
	}()
	words := make(chan word)
	var listening sync.WaitGroup
	for _, c := range []struct {
		net.PacketConn
		family string
	}{{v4, "4"}, {v6, "6"}} {
		listening.Go(func() { m.hear(ctx, c, c.family, words) })
	}
	report(map[string]any{"ready": true})

	var addrs []netip.Addr
	for _, text := range m.Addrs {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		addrs = append(addrs, a)
	}
	addrs = append(addrs, everyone, meetGroup4, meetGroup6)
	tick := time.NewTicker(m.Interval)
	defer tick.Stop()
	said, told := map[word]bool{}, map[heard]bool{}
	for round := 0; ; {
		select {
		case <-ctx.Done():
			v4.Close()
			v6.Close()
			listening.Wait()
			return nil
		case <-tick.C:
			for _, a := range addrs {
				w, c := word{meeting: m.Meeting, from: m.Name, kind: kindTo(a), number: fmt.Sprint(round)}, v6
				if a.Is4() {
					c = v4
				}
				// That some cannot be reached is what others find out here.
				c.WriteTo(w.bytes(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, meetPort)))
			}
			round++
		case w := <-words:
			if h := (heard{From: w.from, Kind: w.kind, Twice: said[w]}); !told[h] {
				told[h] = true
				report(h)
			}
			said[w] = true
		}
	}
}

// interfaceOf finds an interface by its name, or by an address.
func interfaceOf(what string) (*net.Interface, error) {
	want, err := netip.ParseAddr(what)
	if err != nil {
		return net.InterfaceByName(what)
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, iface := range all {
		addrs, err := iface.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == want {
				return &iface, nil
			}
		}
	}
	return nil, fmt.Errorf("no interface has address %s", want)
}

func kindTo(a netip.Addr) string {
	switch {
	case a == everyone:
		return "broadcast"
	case a.IsMulticast():
		return "multicast"
	}
	return "question"
}

// listen opens the socket of one family on the interface alone.
func (m *meetCmd) listen(ctx context.Context, network string, iface *net.Interface) (net.PacketConn, error) {
	config := net.ListenConfig{Control: control(func(fd int) error {
		err := unix.BindToDevice(fd, iface.Name)
		if network == "udp4" { // else it gets what others of the machine joined
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0))
		}
		return err
	})}
	c, err := config.ListenPacket(ctx, network, portOf(meetPort))
	if err != nil {
		return nil, err
	}
	if network == "udp4" {
		p := ipv4.NewPacketConn(c)
		err = errors.Join(p.JoinGroup(iface, &net.UDPAddr{IP: meetGroup4.AsSlice()}), p.SetMulticastInterface(iface), p.SetMulticastLoopback(false))
	} else {
		p := ipv6.NewPacketConn(c)
		err = errors.Join(p.JoinGroup(iface, &net.UDPAddr{IP: meetGroup6.AsSlice()}), p.SetMulticastInterface(iface), p.SetMulticastLoopback(false))
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("join groups on %s: %w", iface.Name, err)
	}
	return c, nil
}

// hear answers questions and passes on all that others say, until c is closed.
// Errors are those of earlier datagrams, which their senders count as unheard.
func (m *meetCmd) hear(ctx context.Context, c net.PacketConn, family string, words chan<- word) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		w, ok := parseWord(b[:n])
		if err != nil || !ok || w.meeting != m.Meeting {
			continue
		}
		if w.from == m.Name { // it came back, as a switch that reflects frames has it
			continue
		}
		if w.kind == "question" {
			c.WriteTo(word{meeting: m.Meeting, from: m.Name, kind: "answer", number: w.number}.bytes(), from)
		}
		if w.kind != "broadcast" {
			w.kind += family
		}
		select {
		case words <- w:
		case <-ctx.Done():
		}
	}
}
