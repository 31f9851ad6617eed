package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

type frameCmd struct {
	Iface   string `arg:"" help:"Interface to send on."`
	To      string `help:"Destination hardware address." default:"ff:ff:ff:ff:ff:ff"`
	From    string `help:"Source hardware address, if not the interface's."`
	Type    uint16 `help:"EtherType; the default is one kept for experiments." default:"0x88b5"`
	Payload string `help:"What follows the EtherType, in hexadecimal."`
}

func (f *frameCmd) Run() error {
	iface, err := net.InterfaceByName(f.Iface)
	if err != nil {
		return err
	}
	from := iface.HardwareAddr
	if f.From != "" {
		if from, err = net.ParseMAC(f.From); err != nil {
			return err
		}
	}
	to, err := net.ParseMAC(f.To)
	if err != nil {
		return err
	}
	payload, err := hex.DecodeString(f.Payload)
	if err != nil {
		return err
	}
	frame := slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, f.Type), payload)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: iface.Index, Halen: 6}); err != nil {
		return fmt.Errorf("send frame on %s: %w", f.Iface, err)
	}
	return nil
}

type raCmd struct {
	Iface    string        `arg:"" help:"Interface to send on."`
	Prefix   netip.Prefix  `arg:"" help:"Prefix to announce, for addresses without state."`
	Lifetime time.Duration `help:"How long the sender is a default router." default:"30m"`
}

// Run sends an advertisement as RFC 4861, section 4.2, has it, to all nodes.
func (r *raCmd) Run() error {
	iface, err := net.InterfaceByName(r.Iface)
	if err != nil {
		return err
	}
	c, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	defer c.Close()
	body := []byte{64, 0}
	body = binary.BigEndian.AppendUint16(body, uint16(r.Lifetime.Seconds()))
	body = append(body, make([]byte, 8)...)                               // reachable time, retransmission timer
	body = append(body, 3, 4, byte(r.Prefix.Bits()), 0xc0)                // prefix option: on-link, autonomous
	body = binary.BigEndian.AppendUint32(body, 3600)                      // valid lifetime
	body = binary.BigEndian.AppendUint32(body, 1800)                      // preferred lifetime
	body = append(append(body, 0, 0, 0, 0), r.Prefix.Addr().AsSlice()...) // reserved, prefix
	message := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}
	b, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	p := c.IPv6PacketConn()
	if err := p.SetMulticastInterface(iface); err != nil {
		return err
	}
	if err := p.SetMulticastHopLimit(255); err != nil {
		return err
	}
	if _, err := p.WriteTo(b, nil, &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: r.Iface}); err != nil {
		return fmt.Errorf("send router advertisement on %s: %w", r.Iface, err)
	}
	return nil
}
