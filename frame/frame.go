// Package frame builds the Ethernet frames by which machines of a link learn who
// has an address: ARP for IPv4, neighbour discovery for IPv6. It sends nothing.
package frame

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// EtherTypes, and the types of ICMPv6 messages.
const (
	ARP  = 0x0806
	IPv6 = 0x86dd

	ICMPv6    = 58
	Solicit   = 135 // neighbour solicitation, RFC 4861 section 4.3
	Advertise = 136 // neighbour advertisement, section 4.4
)

// Probe asks who has an address, so that nobody learns anything from it: an ARP
// probe (RFC 5227 section 2.1.1), or the solicitation of duplicate address
// detection (RFC 4862 section 5.4.2). from is the link that sends it.
func Probe(from cluster.MAC, ip netip.Addr) []byte {
	if ip.Is4() {
		b := arp(Everybody(ip), from, 1, from, netip.IPv4Unspecified(), cluster.MAC{}, ip)
		return append(b, make([]byte, 60-len(b))...) // the shortest frame
	}
	target := ip.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], target[13:])
	return discovery(SolicitedNode(ip), from, netip.IPv6Unspecified(), netip.AddrFrom16(group), Solicit, 0, target[:])
}

// Announce says that ip is at mac, without being asked (RFC 5227 section 3: a
// gratuitous reply; Linux asks that the target's hardware address be the
// sender's; RFC 4861 section 4.4: unsolicited, override, to all nodes, even if the
// frame is for one, RFC 6085). to may be Everybody; from is the link that sends it,
// of which bridges learn where it is.
func Announce(to, from cluster.MAC, ip netip.Addr, mac cluster.MAC) []byte {
	if ip.Is4() {
		return arp(to, from, 2, mac, ip, mac, ip)
	}
	const override = 0x20
	target := ip.As16()
	return discovery(to, from, ip, netip.IPv6LinkLocalAllNodes(), Advertise, override, slices.Concat(target[:], []byte{2, 1}, mac[:]))
}

// Everybody is whom all machines of a link listen to (RFC 826; RFC 2464 section 7),
// in the family of ip.
func Everybody(ip netip.Addr) cluster.MAC {
	if ip.Is4() {
		return cluster.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return cluster.MAC{0x33, 0x33, 0, 0, 0, 1}
}

// SolicitedNode is the group in which whoever takes an IPv6 address asks for it.
func SolicitedNode(ip netip.Addr) cluster.MAC {
	b := ip.As16()
	return cluster.MAC{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// arp is a whole frame of RFC 826, with the sender and the target that it says.
func arp(to, from cluster.MAC, op byte, sender cluster.MAC, senderIP netip.Addr, target cluster.MAC, targetIP netip.Addr) []byte {
	return slices.Concat(to[:], from[:], []byte{ARP >> 8, ARP & 0xff, 0, 1, 0x08, 0, 6, 4, 0, op},
		sender[:], senderIP.AsSlice(), target[:], targetIP.AsSlice())
}

// discovery is a whole frame of neighbour discovery.
func discovery(to, from cluster.MAC, src, dst netip.Addr, kind, flags byte, body []byte) []byte {
	icmp := slices.Concat([]byte{kind, 0, 0, 0, flags, 0, 0, 0}, body)
	ends := slices.Concat(src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(icmp[2:], Checksum(slices.Concat(ends, []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, ICMPv6}, icmp)))
	return slices.Concat(to[:], from[:], []byte{IPv6 >> 8, IPv6 & 0xff, 0x60, 0, 0, 0, 0, byte(len(icmp)), ICMPv6, 255}, ends, icmp)
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
