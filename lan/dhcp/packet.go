package dhcp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/frame"
	"github.com/isthmus-net/isthmus/lan"
)

const (
	serverPort = 67
	clientPort = 68
	headers    = 14 + 20 + 8 // Ethernet, IPv4 without options, UDP
)

var (
	broadcastMAC = cluster.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	broadcastIP  = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	anyIP        = netip.AddrFrom4([4]byte{})
)

// answers is the filter of a client: UDP over IPv4 to port 68, no fragments.
var answers = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x0800, SkipTrue: 8},
	bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 14 + 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: 14},
	bpf.LoadIndirect{Off: 14 + 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: clientPort, SkipTrue: 1},
	bpf.RetConstant{Val: 1 << 16},
	bpf.RetConstant{Val: 0},
}

// Open is a Wire on which a client hears answers for its own MAC and for
// everybody, in the network namespace of the calling thread.
func Open(ifname string, mac cluster.MAC) (lan.Wire, error) {
	if mac.IsZero() {
		return lan.Open(ifname, answers)
	}
	return lan.Open(ifname, answers, mac)
}

// ends says between whom a packet goes.
type ends struct {
	fromMAC, toMAC cluster.MAC
	from, to       netip.Addr
}

// wrap makes a frame of a message of a client to a server.
func wrap(e ends, payload []byte) []byte {
	src, dst := e.from.As4(), e.to.As4()
	b := make([]byte, 0, headers+len(payload))
	b = append(append(b, e.toMAC[:]...), e.fromMAC[:]...)
	b = append(b, 0x08, 0x00)

	b = append(b, 0x45, 0x10) // low delay, as all DHCP clients say
	b = binary.BigEndian.AppendUint16(b, uint16(20+8+len(payload)))
	b = append(b, 0, 0, 0x40, 0, 64, 17, 0, 0)
	b = append(append(b, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(b[14+10:], frame.Checksum(b[14:34]))

	udp := binary.BigEndian.AppendUint16(nil, clientPort)
	udp = binary.BigEndian.AppendUint16(udp, serverPort)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, 17)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	sum := frame.Checksum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero says that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return append(b, udp...)
}

// unwrap reads the payload out of a frame from a server to a client, and who
// sent it. It reports false for anything else.
func unwrap(frame []byte) (payload []byte, from ends, ok bool) {
	if len(frame) < headers || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return nil, from, false
	}
	ip := frame[14:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || header < 20 || total > len(ip) || total < header+8 || ip[9] != 17 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return nil, from, false
	}
	udp := ip[header:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != clientPort || length < 8 || length > len(udp) {
		return nil, from, false
	}
	from = ends{
		fromMAC: cluster.MAC(frame[6:12]), toMAC: cluster.MAC(frame[0:6]),
		from: netip.AddrFrom4([4]byte(ip[12:16])), to: netip.AddrFrom4([4]byte(ip[16:20])),
	}
	return udp[8:length], from, true
}
