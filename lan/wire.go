package lan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// Wire sends and receives whole Ethernet frames on one interface, without
// VLAN tag and checksum. It is used by one goroutine at a time.
type Wire interface {
	// MAC is the interface's own address.
	MAC() cluster.MAC
	// Has reports whether this host itself has the address, on any interface.
	Has(netip.Addr) bool
	Send(frame []byte) error
	// Receive waits for the next frame, which is valid until the next call.
	// The error is that of ctx when it ends first.
	Receive(ctx context.Context) ([]byte, error)
	Close() error
}

// Socket is a Wire: a packet socket, packet(7). It needs CAP_NET_RAW.
type Socket struct {
	name   string
	mac    cluster.MAC
	own    []netip.Addr
	file   *os.File
	buffer []byte
}

// Open listens on an interface of the calling thread's network namespace, for
// frames from others that filter lets pass; nil: all. also are group or unicast
// addresses whose frames the interface is to accept besides its own.
func Open(ifname string, filter []bpf.Instruction, also ...cluster.MAC) (*Socket, error) {
	s := &Socket{name: ifname, buffer: make([]byte, 65536)}
	if err := s.open(filter, also); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", ifname, err)
	}
	return s, nil
}

func (s *Socket) open(filter []bpf.Instruction, also []cluster.MAC) (err error) {
	dev, err := net.InterfaceByName(s.name)
	if err != nil {
		return err
	}
	if len(dev.HardwareAddr) != 6 {
		return errors.New("it is no Ethernet interface")
	}
	s.mac = cluster.MAC(dev.HardwareAddr)
	if s.own, err = ownAddresses(); err != nil {
		return err
	}
	if filter == nil {
		filter = []bpf.Instruction{bpf.RetConstant{Val: 1 << 16}}
	}
	raw, err := bpf.Assemble(slices.Concat(foreignOnly, filter))
	if err != nil {
		return err
	}
	// Protocol 0 receives nothing until the filter is in place and Bind names one.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("set a filter: %w", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
		return err
	}
	for _, mac := range also {
		m := unix.PacketMreq{Ifindex: int32(dev.Index), Type: unix.PACKET_MR_UNICAST, Alen: 6}
		if mac[0]&1 != 0 {
			m.Type = unix.PACKET_MR_MULTICAST
		}
		copy(m.Address[:], mac[:])
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			return fmt.Errorf("accept frames for %s: %w", mac, err)
		}
	}
	s.file = os.NewFile(uintptr(fd), "packets of "+s.name)
	return nil
}

// foreignOnly drops frames of VLANs above the interface, and those that leave
// this host; the others go on to the filter.
var foreignOnly = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
}

func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

// MAC implements Wire.
func (s *Socket) MAC() cluster.MAC { return s.mac }

// Has implements Wire, as of Open.
func (s *Socket) Has(a netip.Addr) bool { return slices.Contains(s.own, a) }

// Send implements Wire.
func (s *Socket) Send(frame []byte) error {
	if _, err := s.file.Write(frame); err != nil {
		return fmt.Errorf("send on %s: %w", s.name, cause(err))
	}
	return nil
}

// Receive implements Wire.
func (s *Socket) Receive(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	_ = s.file.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
		close(ended)
	})
	n, err := s.file.Read(s.buffer)
	if !stop() {
		<-ended
	}
	switch {
	case err == nil:
		return s.buffer[:n], nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("receive on %s: %w", s.name, cause(err))
}

// Close implements Wire.
func (s *Socket) Close() error { return s.file.Close() }

// cause drops what package os says of the call: the caller says it better.
func cause(err error) error {
	if path := (*os.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}
