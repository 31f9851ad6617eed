package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/isthmus-net/isthmus/cluster"
)

// ask is a message of a client, less the number of its exchange.
type ask struct {
	Request
	kind   dhcpv4.MessageType
	ciaddr netip.Addr // set when the address is in use: renewing, rebinding, release
	server netip.Addr // named when one is chosen
	text   string     // why, for people
}

// The messages of RFC 2131, table 4 and 5.
func discover(r Request) ask { return ask{Request: r, kind: dhcpv4.MessageTypeDiscover} }

func request(r Request, addr, server netip.Addr) ask {
	r.Addr = addr
	return ask{Request: r, kind: dhcpv4.MessageTypeRequest, server: server}
}

func reboot(l Lease) ask { return ask{Request: l.again(), kind: dhcpv4.MessageTypeRequest} }

// renew is also what a client says that rebinds: it differs only in to whom.
func renew(l Lease) ask {
	r := l.Request
	r.Addr = netip.Addr{}
	return ask{Request: r, kind: dhcpv4.MessageTypeRequest, ciaddr: l.Prefix.Addr()}
}

func release(l Lease) ask {
	a := renew(l)
	a.kind, a.server, a.Hostname = dhcpv4.MessageTypeRelease, l.Server, ""
	return a
}

func decline(l Lease, why string) ask {
	return ask{Request: l.again(), kind: dhcpv4.MessageTypeDecline, server: l.Server, text: why}
}

// encode writes a message. xid numbers its exchange.
func (a ask) encode(xid dhcpv4.TransactionID, since time.Duration) ([]byte, error) {
	m, err := dhcpv4.New(
		dhcpv4.WithTransactionID(xid),
		dhcpv4.WithHwAddr(a.MAC[:]),
		dhcpv4.WithBroadcast(true),
		dhcpv4.WithMessageType(a.kind),
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(a.ClientID)),
	)
	if err != nil {
		return nil, err
	}
	m.NumSeconds = uint16(min(since/time.Second, 0xffff))
	if a.ciaddr.IsValid() {
		m.ClientIPAddr = a.ciaddr.AsSlice()
	}
	if a.Addr.IsValid() {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(a.Addr.AsSlice()))
	}
	if a.server.IsValid() {
		m.UpdateOption(dhcpv4.OptServerIdentifier(a.server.AsSlice()))
	}
	if a.text != "" {
		m.UpdateOption(dhcpv4.OptMessage(a.text))
	}
	if a.kind == dhcpv4.MessageTypeDiscover || a.kind == dhcpv4.MessageTypeRequest {
		if name := hostname(a.Hostname); name != "" {
			m.UpdateOption(dhcpv4.OptHostName(name))
		}
		m.UpdateOption(dhcpv4.OptMaxMessageSize(1500))
		m.UpdateOption(dhcpv4.OptParameterRequestList(
			dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName,
			dhcpv4.OptionInterfaceMTU, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue))
	} else {
		m.SetUnicast() // it has no answer
	}
	return m.ToBytes(), nil
}

// answer is a message of a server.
type answer struct {
	*dhcpv4.DHCPv4
	ends
}

// answerTo reads a frame, and reports whether it answers that exchange.
func answerTo(a ask, xid dhcpv4.TransactionID, frame []byte) (answer, bool) {
	payload, ends, ok := unwrap(frame)
	if !ok {
		return answer{}, false
	}
	m, err := dhcpv4.FromBytes(payload)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != xid || !bytes.Equal(m.ClientHWAddr, a.MAC[:]) {
		return answer{}, false
	}
	if id := m.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil && !bytes.Equal(id, a.ClientID) { // RFC 6842
		return answer{}, false
	}
	return answer{m, ends}, true
}

// NAK is a server's refusal: the address cannot be had, or not here.
type NAK struct {
	Server  netip.Addr
	Message string // of the server; often empty
}

func (n *NAK) Error() string {
	if n.Message != "" {
		return fmt.Sprintf("DHCP server %s refuses the address: %s", n.Server, n.Message)
	}
	return fmt.Sprintf("DHCP server %s refuses the address", n.Server)
}

// server is who sent an answer.
func (a answer) server() netip.Addr {
	if s := addrOf(a.ServerIdentifier()); s.IsValid() {
		return s
	}
	return a.from
}

// lease reads what an ACK grants. asked is when the answered message was first
// sent, from which all times count (RFC 2131 section 4.4.1).
func (a answer) lease(r Request, asked time.Time) (Lease, error) {
	l := Lease{Request: r, Server: a.server(), ServerMAC: a.fromMAC, Granted: asked, Domain: a.DomainName()}
	l.Addr = addrOf(a.YourIPAddr)
	if !l.Addr.IsValid() {
		return l, errors.New("the answer names no address")
	}
	bits := 32
	if mask := a.SubnetMask(); len(mask) == 4 {
		if ones, size := mask.Size(); size == 32 && ones > 0 {
			bits = ones
		}
	}
	l.Prefix = netip.PrefixFrom(l.Addr, bits)
	if routers := addrsOf(a.DHCPv4.Router()); len(routers) > 0 {
		l.Router = routers[0]
	}
	l.DNS = addrsOf(a.DHCPv4.DNS())
	if b := a.GetOneOption(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(b[0])<<8 | int(b[1]); mtu >= 68 { // RFC 2132 section 5.1
			l.MTU = mtu
		}
	}
	whole := a.IPAddressLeaseTime(0)
	const infinite = 0xffffffff * time.Second
	switch {
	case whole <= 0:
		return l, errors.New("the answer names no lease time")
	case whole == infinite:
		return l, nil
	}
	t1, t2 := a.IPAddressRenewalTime(0), a.IPAddressRebindingTime(0)
	if t2 <= 0 || t2 >= whole {
		t2 = whole / 8 * 7
	}
	if t1 <= 0 || t1 >= t2 {
		t1 = min(whole/2, t2)
	}
	l.Renew, l.Rebind, l.Expires = asked.Add(t1), asked.Add(t2), asked.Add(whole)
	return l, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || !a.Is4() || a.IsUnspecified() || a == broadcastIP || a.IsMulticast() {
		return netip.Addr{}
	}
	return a
}

func addrsOf(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a := addrOf(ip); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// path says between whom a message goes, which the address in use and the
// state decide. toServer: to the server of the lease alone.
func (a ask) path(l Lease, toServer bool) ends {
	e := ends{fromMAC: a.MAC, toMAC: broadcastMAC, from: anyIP, to: broadcastIP}
	if a.ciaddr.IsValid() {
		e.from = a.ciaddr
	}
	if toServer {
		e.to = l.Server
		if e.toMAC = l.ServerMAC; e.toMAC == (cluster.MAC{}) {
			e.toMAC = broadcastMAC
		}
	}
	return e
}
