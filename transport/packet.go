package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	packetQueue  = 1024
	packetBuffer = 2 << 20 // of the kernel, bytes; a burst of gossip is some hundred packets
)

// Packet is one membership datagram. Its receiver owns Data.
type Packet struct {
	Data []byte
	From netip.AddrPort
	Time time.Time // of reception
}

// Packets returns the membership datagrams that arrived. When nobody reads,
// new ones are dropped. The channel is never closed.
func (t *Transport) Packets() <-chan Packet { return t.packets }

// Dropped counts the datagrams that Packets had no room for.
func (t *Transport) Dropped() uint64 { return t.dropped.Load() }

// WritePacket sends one datagram as it is, neither encrypted nor
// authenticated. It returns the time of sending.
func (t *Transport) WritePacket(b []byte, to netip.AddrPort) (time.Time, error) {
	err := t.udp.send(b, source(t.addr.Addr(), to.Addr()), 0, to)
	if err != nil {
		return time.Time{}, fmt.Errorf("send packet to %s: %w", to, err)
	}
	return time.Now(), nil
}

// receive sorts datagrams until ctx ends: probes are answered, the rest is
// membership's.
func (t *Transport) receive(ctx context.Context) error {
	buf := make([]byte, 64<<10)
	oob := make([]byte, 256)
	for {
		n, oobn, _, from, err := t.udp.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if t.pause(ctx, "receive a packet", err) {
				continue
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		now, from := time.Now(), unmap(from)
		if isProbe(buf[:n]) {
			t.answerProbe(buf[:n], oob[:oobn], from)
			continue
		}
		select {
		case t.packets <- Packet{Data: append([]byte(nil), buf[:n]...), From: from, Time: now}:
		default:
			t.dropped.Add(1)
		}
	}
}

// packetSocket is a UDP socket that can choose the source of each datagram.
type packetSocket struct {
	*net.UDPConn
	v6 bool // AF_INET6, for both families
}

func listenUDP(addr string, own netip.Addr) (*packetSocket, error) {
	s := &packetSocket{}
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		s.v6 = strings.HasSuffix(network, "6")
		return control(c, s.tune)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		return nil, err
	}
	s.UDPConn = conn.(*net.UDPConn)
	// The kernel caps it without an error; less only drops more in a burst.
	if err := s.SetReadBuffer(packetBuffer); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// tune lets routers fragment datagrams, and asks for the address that each was
// sent to.
func (s *packetSocket) tune(fd int) error {
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	if !s.v6 {
		return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	}
	return errors.Join(err,
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
}

// send writes one datagram, from an address of this host when that is valid
// and still its own. A link-local source needs its interface.
func (s *packetSocket) send(b []byte, from netip.Addr, ifindex int, to netip.AddrPort) error {
	to = unmap(to)
	if from.IsValid() {
		_, _, err := s.WriteMsgUDPAddrPort(b, s.pktinfo(from, ifindex), to)
		if err == nil || !lostSource(err) {
			return err
		}
	}
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

func (s *packetSocket) pktinfo(from netip.Addr, ifindex int) []byte {
	if s.v6 {
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16(), Ifindex: uint32(ifindex)})
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4(), Ifindex: int32(ifindex)})
}

// destination reads the address that a datagram was sent to, and the interface
// that it came by.
func (s *packetSocket) destination(oob []byte) (netip.Addr, int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, 0
	}
	for _, m := range messages {
		if s.v6 {
			if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo {
				return netip.AddrFrom16([16]byte(m.Data)).Unmap(), int(binary.NativeEndian.Uint32(m.Data[16:]))
			}
		} else if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			return netip.AddrFrom4([4]byte(m.Data[4:])), int(binary.NativeEndian.Uint32(m.Data)) // index, local address, destination
		}
	}
	return netip.Addr{}, 0
}
