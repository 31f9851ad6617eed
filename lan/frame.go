package lan

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/frame"
)

// probes is the filter of a prober: ARP, and neighbour discovery without
// extension headers (RFC 6980 forbids fragments; nobody sends others).
var probes = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: frame.ARP, SkipTrue: 6},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: frame.IPv6, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 14 + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: frame.ICMPv6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: 14 + 40, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: frame.Solicit, SkipTrue: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: frame.Advertise, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

// claim reads a frame of somebody else that says that its sender has an
// address, or is about to take it: any ARP of it (RFC 5227 section 2.1.1: sender,
// or target of another's probe), an advertisement, or another's solicitation
// from :: (RFC 4862 section 5.4.3, 5.4.4). own is the prober's address, whose frames may
// come back from a switch.
func claim(b []byte, own cluster.MAC) (ip netip.Addr, mac cluster.MAC, ok bool) {
	if len(b) < 14 || cluster.MAC(b[6:12]) == own {
		return ip, mac, false
	}
	body := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case frame.ARP:
		if len(body) < 28 || [6]byte(body[:6]) != [6]byte{0, 1, 0x08, 0, 6, 4} {
			return ip, mac, false
		}
		mac, ip = cluster.MAC(body[8:14]), netip.AddrFrom4([4]byte(body[14:18]))
		if op := binary.BigEndian.Uint16(body[6:]); op == 1 && ip.IsUnspecified() {
			ip = netip.AddrFrom4([4]byte(body[24:28]))
		}
		return ip, mac, mac != own && !ip.IsUnspecified()
	case frame.IPv6:
		if len(body) < 40+24 || body[6] != frame.ICMPv6 || body[7] != 255 {
			return ip, mac, false
		}
		src, icmp := netip.AddrFrom16([16]byte(body[8:24])), body[40:]
		ip, mac = netip.AddrFrom16([16]byte(icmp[8:24])), cluster.MAC(b[6:12])
		switch {
		case icmp[0] == frame.Solicit:
			return ip, mac, src.IsUnspecified()
		case icmp[0] == frame.Advertise:
			// The option names the holder where another one answers for it.
			if o := icmp[24:]; len(o) >= 8 && o[0] == 2 && o[1] == 1 {
				mac = cluster.MAC(o[2:8])
			}
			return ip, mac, mac != own
		}
	}
	return ip, mac, false
}
