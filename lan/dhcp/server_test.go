package dhcp_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/isthmus-net/isthmus/cluster"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(last byte) cluster.MAC { return cluster.MAC{2, 0, 0, 0, 0, last} }

// server is a DHCP server in memory, as a machine of a lantest.Net.
type server struct {
	ip    netip.Addr
	mac   cluster.MAC
	free  []netip.Addr
	lease time.Duration

	mu      sync.Mutex
	given   map[string]netip.Addr // by client identifier
	bad     []netip.Addr          // declined
	heard   []string              // what clients said
	silent  bool
	refuse  string                                  // NAK to any REQUEST
	deaf    func(m *dhcpv4.DHCPv4) bool             // does not hear it
	reaches func(ip netip.Addr) bool                // whether a client answers ARP for its address; nil: none
	mangle  func(m *dhcpv4.DHCPv4) []*dhcpv4.DHCPv4 // what is said besides, before
	extra   func(m *dhcpv4.DHCPv4)                  // last change of an answer
}

func newServer(last byte, lease time.Duration, free ...string) *server {
	s := &server{ip: netip.AddrFrom4([4]byte{192, 0, 2, last}), mac: mac(last), lease: lease, given: map[string]netip.Addr{}}
	for _, a := range free {
		s.free = append(s.free, addr(a))
	}
	return s
}

// said returns what clients said since the last call, one line a message.
func (s *server) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.heard, "\n")
	s.heard = nil
	return out
}

func (s *server) do(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

func ip4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// hear is the server as a lantest.Machine.
func (s *server) hear(f []byte) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	dst := netip.AddrFrom4([4]byte(f[30:34]))
	to := cluster.MAC(f[:6])
	if to != s.mac && to[0] != 0xff || dst != s.ip && dst != addr("255.255.255.255") || binary.BigEndian.Uint16(f[36:]) != 67 {
		return nil
	}
	m, err := dhcpv4.FromBytes(f[42:])
	if err != nil {
		panic(err)
	}
	id := m.GetOneOption(dhcpv4.OptionClientIdentifier)
	line := fmt.Sprintf("%s from %s", m.MessageType(), cluster.MAC(f[6:12]))
	if dst == s.ip {
		line += " to me"
	}
	for _, part := range []struct {
		name string
		ip   net.IP
	}{{"in use", m.ClientIPAddr}, {"wants", m.RequestedIPAddress()}, {"of", m.ServerIdentifier()}} {
		if a := ip4(part.ip); a.IsValid() && !a.IsUnspecified() {
			line += fmt.Sprintf(", %s %s", part.name, a)
		}
	}
	if h := m.HostName(); h != "" {
		line += ", called " + h
	}
	if t := m.Message(); t != "" {
		line += ": " + t
	}
	if m.MessageType() != dhcpv4.MessageTypeRelease && m.MessageType() != dhcpv4.MessageTypeDecline && !m.IsBroadcast() {
		line += ", WITHOUT BROADCAST FLAG"
	}
	if src := netip.AddrFrom4([4]byte(f[26:30])); src != ip4(m.ClientIPAddr) {
		line += ", FROM " + src.String()
	}
	if len(id) == 0 {
		line += ", WITHOUT IDENTIFIER"
	}
	s.heard = append(s.heard, line)
	if s.silent || s.deaf != nil && s.deaf(m) {
		return nil
	}
	return s.answer(m, string(id))
}

func (s *server) answer(m *dhcpv4.DHCPv4, id string) [][]byte {
	named := ip4(m.ServerIdentifier())
	mine, has := s.given[id]
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if a := s.pick(id, ip4(m.RequestedIPAddress())); a.IsValid() {
			return s.reply(m, dhcpv4.MessageTypeOffer, a)
		}
	case dhcpv4.MessageTypeRequest:
		wants := ip4(m.RequestedIPAddress())
		if inUse := ip4(m.ClientIPAddr); !inUse.IsUnspecified() {
			wants = inUse
		}
		switch {
		case named.IsValid() && named != s.ip:
			return nil
		case s.refuse != "":
			return s.reply(m, dhcpv4.MessageTypeNak, netip.Addr{})
		case named.IsValid() && s.pick(id, wants) == wants:
			s.given[id] = wants
		case !has:
			return nil // no record of it: silence
		case mine != wants:
			return s.reply(m, dhcpv4.MessageTypeNak, netip.Addr{})
		}
		return s.reply(m, dhcpv4.MessageTypeAck, wants)
	case dhcpv4.MessageTypeRelease:
		if named == s.ip && mine == ip4(m.ClientIPAddr) {
			delete(s.given, id)
		}
	case dhcpv4.MessageTypeDecline:
		if named == s.ip {
			delete(s.given, id)
			s.bad = append(s.bad, ip4(m.RequestedIPAddress()))
		}
	}
	return nil
}

// pick chooses what a client gets: what it has, what it wants, or any.
func (s *server) pick(id string, wants netip.Addr) netip.Addr {
	if a, ok := s.given[id]; ok {
		return a
	}
	usable := func(a netip.Addr) bool {
		for _, g := range s.given {
			if g == a {
				return false
			}
		}
		return slices.Contains(s.free, a) && !slices.Contains(s.bad, a)
	}
	if usable(wants) {
		return wants
	}
	for _, a := range s.free {
		if usable(a) {
			return a
		}
	}
	return netip.Addr{}
}

func (s *server) reply(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, a netip.Addr) [][]byte {
	r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.ip.AsSlice())))
	if err != nil {
		panic(err)
	}
	r.ClientIPAddr = m.ClientIPAddr
	if kind == dhcpv4.MessageTypeNak {
		r.ClientIPAddr = net.IPv4zero
		r.UpdateOption(dhcpv4.OptMessage(s.refuse))
	} else {
		r.YourIPAddr = a.AsSlice()
		r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)))
		r.UpdateOption(dhcpv4.OptRouter(net.IP{192, 0, 2, 1}))
		r.UpdateOption(dhcpv4.OptDNS(net.IP{192, 0, 2, 2}, net.IP{192, 0, 2, 3}))
		r.UpdateOption(dhcpv4.OptDomainName("example.org"))
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x05, 0x78}))
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.lease))
	}
	if s.extra != nil {
		s.extra(r)
	}
	// RFC 2131 section 4.1: to the address in use; a refusal, and what the
	// broadcast flag asks for, to all.
	if inUse := ip4(r.ClientIPAddr); !inUse.IsUnspecified() && (s.reaches == nil || !s.reaches(inUse)) {
		return nil
	}
	var out [][]byte
	if s.mangle != nil {
		for _, x := range s.mangle(r) {
			out = append(out, s.frame(x))
		}
	}
	return append(out, s.frame(r))
}

func (s *server) frame(m *dhcpv4.DHCPv4) []byte {
	payload := m.ToBytes()
	to, dst := bytes.Repeat([]byte{0xff}, 6), []byte{255, 255, 255, 255}
	if inUse := ip4(m.ClientIPAddr); !inUse.IsUnspecified() {
		to, dst = m.ClientHWAddr, inUse.AsSlice()
	}
	b := slices.Concat(to, s.mac[:], []byte{0x08, 0x00, 0x45, 0})
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload)))
	b = slices.Concat(b, []byte{0, 0, 0, 0, 64, 17, 0, 0}, s.ip.AsSlice(), dst, []byte{0, 67, 0, 68})
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return slices.Concat(b, []byte{0, 0}, payload)
}
