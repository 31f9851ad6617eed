package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file says what our tables hold; nft.go reads and writes them.

// TableName is the name of our nftables tables, in the families inet and arp.
const TableName = "isthmus"

// layout begins the comment of each rule of ours; that of a tunnel's rules
// goes on with " notrack ADDRESS:PORT" or " drop-strangers ADDRESS:PORT". Tables
// of another layout, or with other rules, are replaced.
const layout = "isthmus layout 4"

// table is a table of ours.
type table struct {
	family nftables.TableFamily
	sets   []set
	chains []chain
}

// set holds the guards of one rule, or those of one address family.
type set struct {
	name  string
	key   nftables.SetDatatype
	order binaryutil.ByteOrder // of key, which nft needs to show it
	put   func(Guard) []byte   // its key; nil if it has no place here
	get   func([]byte) Guard   // the reverse
}

// chain is a base chain of ours.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	drops    [][]nameIn                      // each a list of conditions
	tunnel   GuardRule                       // has a rule for each tunnel of this kind
	rule     func(netip.AddrPort) []expr.Any // makes it
}

// nameIn holds when the name of the input (or output) interface is in a set, or,
// if not, when it is not.
type nameIn struct {
	key expr.MetaKey
	set set
	not bool
}

var (
	dropLinks   = linkSet("drop_links", DropInput)
	dropBridges = linkSet("drop_bridges", DropBridgeInput)
	admitted4   = peerSet("admitted4", nftables.TypeIPAddr)
	admitted6   = peerSet("admitted6", nftables.TypeIP6Addr)

	fromLink   = nameIn{expr.MetaKeyIIFNAME, dropLinks, false}
	fromBridge = nameIn{expr.MetaKeyIIFNAME, dropBridges, false}
	notToOne   = nameIn{expr.MetaKeyOIFNAME, dropBridges, true}
)

// ownTables is what we keep in nftables. Arriving frames that a macvlan child
// or a bridge port takes never come here; what does come here would enter the
// host's own stack: its sockets, its neighbour table, its routing.
//
// Each rule costs every packet of the host something: those that match nothing
// are left out, with their chains.
var ownTables = []table{
	{nftables.TableFamilyINet, []set{dropLinks, dropBridges, admitted4, admitted6}, []chain{
		{"prerouting", nftables.ChainHookPrerouting, -310, [][]nameIn{{fromLink}}, NoTrack, trackNotTo},
		{"output", nftables.ChainHookOutput, -310, nil, NoTrack, trackNotFrom},
		{"input", nftables.ChainHookInput, -310, [][]nameIn{{fromBridge}}, DropStrangers, dropStrangers},
		// What br_netfilter shows of bridged frames has the bridge on both sides.
		{"forward", nftables.ChainHookForward, -310, [][]nameIn{{fromBridge, notToOne}}, "", nil},
	}},
	{nftables.TableFamilyARP, []set{dropLinks, dropBridges}, []chain{
		{"input", nftables.ChainHookRef(0), 0, [][]nameIn{{fromLink}, {fromBridge}}, "", nil},
	}},
}

// linkSet holds the names of the links that a rule is for.
func linkSet(name string, rule GuardRule) set {
	return set{name, nftables.TypeIFName, binaryutil.NativeEndian,
		func(g Guard) []byte {
			if g.Rule != rule {
				return nil
			}
			key := make([]byte, unix.IFNAMSIZ)
			copy(key[:unix.IFNAMSIZ-1], g.Dev)
			return key
		},
		func(key []byte) Guard {
			dev, _, _ := bytes.Cut(key, []byte{0})
			return Guard{Rule: rule, Dev: string(dev)}
		},
	}
}

// peerSet holds the peers of one family that are admitted.
func peerSet(name string, key nftables.SetDatatype) set {
	return set{name, key, binaryutil.BigEndian,
		func(g Guard) []byte {
			if ip := g.Peer.AsSlice(); g.Rule == Admit && len(ip) == int(key.Bytes) {
				return ip
			}
			return nil
		},
		func(key []byte) Guard {
			peer, _ := netip.AddrFromSlice(key)
			return Guard{Rule: Admit, Peer: peer}
		},
	}
}

// elements lists the keys of the guards in s, sorted.
func (s set) elements(guards State) (out [][]byte) {
	for _, g := range guards {
		if key := s.put(g.(Guard)); key != nil {
			out = append(out, key)
		}
	}
	slices.SortFunc(out, bytes.Compare)
	return out
}

// placed reports whether g is a guard of our tables.
func placed(g Guard) bool {
	for _, t := range ownTables {
		if slices.ContainsFunc(t.sets, func(s set) bool { return s.put(g) != nil }) ||
			slices.ContainsFunc(t.chains, func(c chain) bool { return c.tunnel == g.Rule && g.Tunnel.IsValid() }) {
			return true
		}
	}
	return false
}

// comments lists those of the rules that c has for guards, in order.
func (c chain) comments(guards State) []string {
	var out []string
	for _, conditions := range c.drops {
		if len(conditions[0].set.elements(guards)) > 0 {
			out = append(out, layout)
		}
	}
	for _, end := range c.tunnels(guards) {
		out = append(out, c.mark()+end.String())
	}
	return out
}

// mark begins the comment of a tunnel's rule.
func (c chain) mark() string { return layout + " " + string(c.tunnel) + " " }

// tunnels lists those that c has a rule for, sorted.
func (c chain) tunnels(guards State) (out []netip.AddrPort) {
	for _, g := range guards {
		if g := g.(Guard); g.Rule == c.tunnel {
			out = append(out, g.Tunnel)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// trackNotTo and trackNotFrom keep the packets of a tunnel that arrive and leave
// out of connection tracking, which begins at priority -200. They have a source
// port for each flow inside and none that answers it, so that tracking them
// costs an entry each and is of no use.
func trackNotTo(end netip.AddrPort) []expr.Any {
	return append(tunnelled(end, 16, 24), equals(end.Addr().AsSlice()...), &expr.Notrack{})
}

func trackNotFrom(end netip.AddrPort) []expr.Any {
	return append(tunnelled(end, 12, 8), equals(end.Addr().AsSlice()...), &expr.Notrack{})
}

// dropStrangers drops the packets of a tunnel that no admitted peer sent.
// Whatever their destination: the kernel takes them at all of its addresses.
func dropStrangers(end netip.AddrPort) []expr.Any {
	admitted := admitted4
	if end.Addr().Is6() {
		admitted = admitted6
	}
	return append(tunnelled(end, 12, 8), &expr.Lookup{SourceRegister: 1, SetName: admitted.name, Invert: true},
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// tunnelled matches the UDP packets to the port of end, and loads the address at
// an offset of their IP header, which is of the family of end. What most packets
// lack is asked first.
func tunnelled(end netip.AddrPort, offset4, offset6 uint32) []expr.Any {
	size, proto, offset := uint32(4), byte(unix.NFPROTO_IPV4), offset4
	if end.Addr().Is6() {
		size, proto, offset = 16, unix.NFPROTO_IPV6, offset6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equals(binary.BigEndian.AppendUint16(nil, end.Port())...),
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}
}

func equals(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
