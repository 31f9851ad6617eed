package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// Announce implements Kernel. Frames to one container are unicast: a macvlan in
// bridge mode delivers them to its sibling, a bridge to the port of that MAC, and
// nothing reaches the wire. Those to a LAN leave by the parent.
func (k *Linux) Announce(ctx context.Context, list []Announcement) error {
	type device struct {
		index int
		mac   cluster.MAC
	}
	devices := map[string]device{}
	var errs []error
	for _, a := range list {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		d, ok := devices[a.Dev]
		if !ok {
			l, err := k.h.LinkByName(a.Dev)
			if err == nil && len(l.Attrs().HardwareAddr) == 6 {
				d = device{l.Attrs().Index, cluster.MAC(l.Attrs().HardwareAddr)}
			} else if err != nil {
				errs = append(errs, fmt.Errorf("announce from %s: %w", a.Dev, err))
			}
			devices[a.Dev] = d
		}
		if d.index == 0 {
			continue
		}
		if a.MAC.IsZero() {
			a.MAC = d.mac
		}
		if a.To.IsZero() {
			a.To, d.mac = everybody(a.IP), a.MAC
		}
		frame := announceFrame(a, d.mac)
		to := &unix.SockaddrLinklayer{Ifindex: d.index, Halen: 6}
		copy(to.Addr[:], a.To[:])
		if err := unix.Sendto(k.send, frame, 0, to); err != nil {
			errs = append(errs, fmt.Errorf("announce %s at %s to %s: %w", a.IP, a.MAC, a.To, err))
		}
	}
	return errors.Join(errs...)
}

// everybody is whom all machines of a link listen to (RFC 826; RFC 2464, section 7).
func everybody(ip netip.Addr) cluster.MAC {
	if ip.Is4() {
		return cluster.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return cluster.MAC{0x33, 0x33, 0, 0, 0, 1}
}

// announceFrame builds the whole Ethernet frame. From the sending link's own MAC
// no bridge learns anything.
func announceFrame(a Announcement, from cluster.MAC) []byte {
	b := append(a.To[:len(a.To):len(a.To)], from[:]...)
	if a.IP.Is4() {
		// RFC 826, RFC 5227 section 3: a gratuitous reply; Linux asks that the
		// target's hardware address be the sender's.
		ip := a.IP.As4()
		b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2)
		b = append(append(b, a.MAC[:]...), ip[:]...)
		return append(append(b, a.MAC[:]...), ip[:]...)
	}
	// RFC 4861 section 4.4: unsolicited, override, with the target's link-layer
	// address; to all nodes, though the frame is for one (RFC 6085).
	src, dst := a.IP.As16(), netip.IPv6LinkLocalAllNodes().As16()
	icmp := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, src[:]...)
	icmp = append(append(icmp, 2, 1), a.MAC[:]...)
	pseudo := append(append(src[:len(src):len(src)], dst[:]...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))

	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	return append(append(append(b, src[:]...), dst[:]...), icmp...)
}

// checksum is the one of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
