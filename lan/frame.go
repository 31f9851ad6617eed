package lan

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	icmpv6    = 58
	solicit   = 135 // neighbour solicitation, RFC 4861 section 4.3
	advertise = 136 // neighbour advertisement, section 4.4
)

// probes is the filter of a prober: ARP, and neighbour discovery without
// extension headers (RFC 6980 forbids fragments; nobody sends others).
var probes = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP, SkipTrue: 6},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv6, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 14 + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpv6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: 14 + 40, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: solicit, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: advertise, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

// allNodes is where neighbour advertisements to a prober are sent: ff02::1.
var allNodes = cluster.MAC{0x33, 0x33, 0, 0, 0, 1}

// probeFrame asks who has the address, so that nobody learns anything from it:
// an ARP probe (RFC 5227 section 2.1.1), or the solicitation of duplicate
// address detection (RFC 4862 section 5.4.2).
func probeFrame(from cluster.MAC, ip netip.Addr) []byte {
	if ip.Is4() {
		b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:]...)
		b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
		b = append(append(b, from[:]...), 0, 0, 0, 0)
		b = append(append(b, 0, 0, 0, 0, 0, 0), ip.AsSlice()...)
		return append(b, make([]byte, 60-len(b))...) // the shortest frame
	}
	target := ip.As16()
	group := solicitedNode(ip)
	icmp := append([]byte{solicit, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	dst := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(dst[13:], target[13:])
	pseudo := append(make([]byte, 16), dst[:]...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(icmp)), 0, 0, 0, icmpv6)
	binary.BigEndian.PutUint16(icmp[2:], Checksum(append(pseudo, icmp...)))

	b := append(group[:], from[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), icmpv6, 255)
	b = append(append(b, make([]byte, 16)...), dst[:]...)
	return append(b, icmp...)
}

// solicitedNode is the group in which whoever takes an address asks for it.
func solicitedNode(ip netip.Addr) cluster.MAC {
	b := ip.As16()
	return cluster.MAC{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// claim reads a frame of somebody else that says that its sender has an
// address, or is about to take it: any ARP of it (RFC 5227 section 2.1.1: sender,
// or target of another's probe), an advertisement, or another's solicitation
// from :: (RFC 4862 section 5.4.3, 5.4.4). own is the prober's address, whose frames may
// come back from a switch.
func claim(frame []byte, own cluster.MAC) (ip netip.Addr, mac cluster.MAC, ok bool) {
	if len(frame) < 14 || cluster.MAC(frame[6:12]) == own {
		return ip, mac, false
	}
	body := frame[14:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		if len(body) < 28 || [6]byte(body[:6]) != [6]byte{0, 1, 0x08, 0, 6, 4} {
			return ip, mac, false
		}
		mac, ip = cluster.MAC(body[8:14]), netip.AddrFrom4([4]byte(body[14:18]))
		if op := binary.BigEndian.Uint16(body[6:]); op == 1 && ip.IsUnspecified() {
			ip = netip.AddrFrom4([4]byte(body[24:28]))
		}
		return ip, mac, mac != own && !ip.IsUnspecified()
	case etherIPv6:
		if len(body) < 40+24 || body[6] != icmpv6 || body[7] != 255 {
			return ip, mac, false
		}
		src, icmp := netip.AddrFrom16([16]byte(body[8:24])), body[40:]
		ip, mac = netip.AddrFrom16([16]byte(icmp[8:24])), cluster.MAC(frame[6:12])
		switch {
		case icmp[0] == solicit:
			return ip, mac, src.IsUnspecified()
		case icmp[0] == advertise:
			// The option names the holder where another one answers for it.
			if o := icmp[24:]; len(o) >= 8 && o[0] == 2 && o[1] == 1 {
				mac = cluster.MAC(o[2:8])
			}
			return ip, mac, mac != own
		}
	}
	return ip, mac, false
}

// Checksum is the one of RFC 1071, of IPv4, UDP and ICMPv6 alike.
func Checksum(b []byte) uint16 {
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
