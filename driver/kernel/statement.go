package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// statement is a part of a rule, in the words of nft and in those of the kernel.
type statement struct {
	text  string
	exprs []expr.Any
}

// Registers of 4 bytes; the first four are register 1.
const reg32 = unix.NFT_REG32_00

func iifname(set string) statement { return linkIn("iifname", expr.MetaKeyIIFNAME, set) }

// iifnameLike asks whether the name of a link begins as all these do: cheap, unlike a
// look into a set, and enough for most packets, those of the host's own links above all.
func iifnameLike(names []string) statement {
	begin := names[0]
	for _, name := range names {
		for !strings.HasPrefix(name, begin) {
			begin = begin[:len(begin)-1]
		}
	}
	if begin == "" {
		return statement{}
	}
	return statement{fmt.Sprintf("iifname %q", begin+"*"), []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, equals([]byte(begin)...)}}
}

func oifname(set string) statement { return linkIn("oifname", expr.MetaKeyOIFNAME, set) }

func linkIn(word string, key expr.MetaKey, set string) statement {
	return statement{word + " @" + set, []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: set}}}
}

// oifnameNot asks for links that are not in a set.
func oifnameNot(set string) statement {
	s := oifname(set)
	s.text = "oifname != @" + set
	s.exprs[1].(*expr.Lookup).Invert = true
	return s
}

// verdictOfLink does what a verdict map says of the link that a packet arrived on.
func verdictOfLink(set string) statement {
	return statement{"iifname vmap @" + set, []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT}}}
}

// outer asks for the packets of tunnels of g's kind, of either family: what most
// packets lack. Each statement is for one protocol.
func (g Guard) outer() (out []statement) {
	switch {
	case g.Kind == GRE:
		return []statement{l4proto(unix.IPPROTO_GRE)}
	case g.Kind == IPIP && g.Tunnel.Addr().Is4():
		return []statement{l4proto(unix.IPPROTO_IPIP)}
	case g.Kind == IPIP:
		return []statement{l4proto(unix.IPPROTO_IPIP), l4proto(unix.IPPROTO_IPV6)}
	}
	return []statement{{fmt.Sprintf("udp dport %d", g.Tunnel.Port()), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equals(binary.BigEndian.AppendUint16(nil, g.Tunnel.Port())...),
	}}}
}

func l4proto(number byte) statement {
	return statement{fmt.Sprintf("meta l4proto %d", number), []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(number)}}
}

// at asks whether an address of the header, saddr or daddr, is that of the tunnel.
func (g Guard) at(field string) statement {
	f := familyOf(g.Tunnel.Addr())
	offset := map[string]uint32{"saddr": f.src, "daddr": f.dst}[field]
	return statement{fmt.Sprintf("%s %s %s", f.word, field, g.Tunnel.Addr()), append(f.ofFamily(), f.load(offset, 1), equals(g.Tunnel.Addr().AsSlice()...))}
}

// text is also the comment by which a dump finds g, a guard of tunnels.
func (g Guard) text() string { return string(g.Rule) + " " + g.end() }

// end is this host's end of the tunnels of g, and readEnd the reverse.
func (g Guard) end() string {
	if g.Kind != "" {
		return string(g.Kind) + " " + g.Tunnel.Addr().String()
	}
	return g.Tunnel.String()
}

func readEnd(text string) (kind Kind, tunnel netip.AddrPort, err error) {
	if name, address, ok := strings.Cut(text, " "); ok {
		a, err := netip.ParseAddr(address)
		return Kind(name), netip.AddrPortFrom(a, 0), err
	}
	tunnel, err = netip.ParseAddrPort(text)
	return "", tunnel, err
}

// noTrack keeps a packet out of connection tracking. Those of a tunnel have a source
// port for each flow inside and none that answers it, so that tracking them costs an
// entry each and is of no use.
func noTrack() statement { return statement{"notrack", []expr.Any{&expr.Notrack{}}} }

// ofFamily asks for the family of a packet, which nft leaves unsaid where
// something else implies it.
func (f ipFamily) ofFamily() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals(f.proto)}
}

// load puts an address of the header into a register.
func (f ipFamily) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// saddr and daddr ask whether an address is in a prefix, or is not.
func (f ipFamily) saddr(p netip.Prefix, is bool) statement { return f.within("saddr", f.src, p, is) }
func (f ipFamily) daddr(p netip.Prefix, is bool) statement { return f.within("daddr", f.dst, p, is) }

func (f ipFamily) within(field string, offset uint32, p netip.Prefix, is bool) statement {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	op, not := expr.CmpOpEq, ""
	if !is {
		op, not = expr.CmpOpNeq, "!= "
	}
	value := p.String()
	if p.IsSingleIP() {
		value = p.Addr().String()
	}
	return statement{fmt.Sprintf("%s %s %s%s", f.word, field, not, value), append(f.ofFamily(), f.load(offset, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()})}
}

// saddrIn and daddrIn ask whether an address is in a set, or is not.
func (f ipFamily) saddrIn(set string, is bool) statement { return f.among("saddr", f.src, set, is) }
func (f ipFamily) daddrIn(set string, is bool) statement { return f.among("daddr", f.dst, set, is) }

func (f ipFamily) among(field string, offset uint32, set string, is bool) statement {
	not := ""
	if !is {
		not = "!= "
	}
	return statement{fmt.Sprintf("%s %s %s@%s", f.word, field, not, set), append(f.ofFamily(), f.load(offset, 1), &expr.Lookup{SourceRegister: 1, SetName: set, Invert: !is})}
}

// verdictOf does what a verdict map says of an address.
func (f ipFamily) verdictOf(field string, set string) statement {
	offset := f.src
	if field == "daddr" {
		offset = f.dst
	}
	return statement{fmt.Sprintf("%s %s vmap @%s", f.word, field, set), append(f.ofFamily(), f.load(offset, 1),
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})}
}

// from asks whether a packet comes with an address that its link may send from.
func (f ipFamily) from(set string) statement {
	return statement{fmt.Sprintf("iifname . %s saddr @%s", f.word, set), append(f.ofFamily(),
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, f.load(f.src, reg32+4),
		&expr.Lookup{SourceRegister: 1, SetName: set})}
}

// dnat gives a packet the destination that a map has for its own address and port,
// or for its port alone.
func (f ipFamily) dnat(set string, any bool) statement {
	var exprs []expr.Any
	text, next := fmt.Sprintf("dnat %s to %s daddr . meta l4proto . th dport map @%s", f.word, f.word, set), f.size/4
	if any {
		text, next = fmt.Sprintf("fib daddr type local dnat %s to meta l4proto . th dport map @%s", f.word, set), 0
		exprs = append(exprs, &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, equals(native32(unix.RTN_LOCAL)...))
	} else {
		exprs = append(exprs, f.load(f.dst, 1))
	}
	start := uint32(reg32)
	exprs = append(f.ofFamily(), exprs...)
	exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: start + next},
		&expr.Payload{DestRegister: start + next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: 1},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1, RegProtoMin: start + f.size/4})
	return statement{text, exprs}
}

// dnatted asks for connections whose destination was translated.
func dnatted() statement {
	const dnat = 1 << 5 // IPS_DST_NAT
	return statement{"ct status dnat", []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native32(dnat), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native32(0)}}}
}

// syn asks for the packets that open a TCP connection.
func syn() statement {
	return statement{"tcp flags & (syn | rst) == syn", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{6}, Xor: []byte{0}}, equals(2),
	}}
}

// maxSegment lowers the segment size that a SYN offers to what its route carries.
func maxSegment() statement {
	return statement{"tcp option maxseg size set rt mtu", []expr.Any{
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}}
}

// masquerade gives a packet the address of the link that it leaves by.
func masquerade() statement { return statement{"masquerade", []expr.Any{&expr.Masq{}}} }

// masqueradeFrom does so with UDP of a port, and gives it another port.
func masqueradeFrom(port uint16) statement {
	return statement{fmt.Sprintf("udp sport %d masquerade fully-random", port), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		equals(binary.BigEndian.AppendUint16(nil, port)...),
		&expr.Masq{FullyRandom: true},
	}}
}

func verdict(kind expr.VerdictKind, text string) statement {
	return statement{text, []expr.Any{&expr.Verdict{Kind: kind}}}
}

func back() statement { return verdict(expr.VerdictReturn, "return") }

// drop counts what it drops.
func drop() statement {
	return statement{"counter drop", []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
}

func jump(chain string) statement {
	return statement{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// goTo is a jump that does not come back.
func goTo(chain string) statement {
	return statement{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

func equals(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// message asks for one of ICMP, by its protocol (of IPv4 or IPv6) and type.
func message(protocol, kind byte, text string) statement {
	return statement{text, append(l4proto(protocol).exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1}, equals(kind))}
}

// multicast asks for frames to more than one: they are bridged, not routed.
func multicast() statement {
	return statement{"meta pkttype != host", []expr.Any{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.PACKET_HOST}}}}
}
