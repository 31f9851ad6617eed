package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

type recvCmd struct {
	Group string `arg:"" optional:"" help:"Multicast group to join. None: whatever comes to the port."`
	Iface string `help:"Interface to join the group on."`
	Port  int    `help:"UDP port." default:"7100"`
	Count int    `help:"End after so many. 0: when told to."`
}

// delivery is one datagram as it came; a duplicate is one more.
type delivery struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Iface   string `json:"iface"`
	Payload string `json:"payload"`
}

// Run prints {"ready":true} once it listens, then each delivery.
func (r *recvCmd) Run(ctx context.Context) error {
	// Without this option Linux gives a socket the datagrams of groups that
	// others of the machine joined, on any interface.
	config := net.ListenConfig{Control: control(func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	})}
	conn, err := config.ListenPacket(ctx, "udp4", portOf(r.Port))
	if err != nil {
		return err
	}
	conn6, err := config.ListenPacket(ctx, "udp6", portOf(r.Port))
	if err != nil {
		return err
	}
	v4, v6 := ipv4.NewPacketConn(conn), ipv6.NewPacketConn(conn6)
	if err := v4.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return err
	}
	if err := v6.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
		return err
	}
	if r.Group != "" {
		if err := r.join(v4, v6); err != nil {
			return fmt.Errorf("join group %s on %q: %w", r.Group, r.Iface, err)
		}
	}
	deliveries := make(chan delivery)
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, m, from, err := v4.ReadFrom(b)
			if err != nil {
				return
			}
			deliveries <- delivery{From: host(from), To: m.Dst.String(), Iface: ifaceName(m.IfIndex), Payload: string(b[:n])}
		}
	}()
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, m, from, err := v6.ReadFrom(b)
			if err != nil {
				return
			}
			deliveries <- delivery{From: host(from), To: m.Dst.String(), Iface: ifaceName(m.IfIndex), Payload: string(b[:n])}
		}
	}()
	report(map[string]any{"ready": true})
	for i := 0; r.Count == 0 || i < r.Count; i++ {
		select {
		case <-ctx.Done():
			if r.Count == 0 {
				return nil
			}
			return fmt.Errorf("receive: %d of %d came", i, r.Count)
		case d := <-deliveries:
			report(d)
		}
	}
	return nil
}

func (r *recvCmd) join(v4 *ipv4.PacketConn, v6 *ipv6.PacketConn) error {
	group, err := netip.ParseAddr(r.Group)
	if err != nil {
		return err
	}
	iface, err := net.InterfaceByName(r.Iface)
	if err != nil {
		return err
	}
	to := &net.UDPAddr{IP: group.AsSlice()}
	if group.Is4() {
		return v4.JoinGroup(iface, to)
	}
	return v6.JoinGroup(iface, to)
}

type sendCmd struct {
	Addr     string        `arg:"" help:"Where to: unicast, broadcast or multicast."`
	Payload  string        `arg:"" help:"What to send; the number of the datagram is added when there are several."`
	Iface    string        `help:"Interface to send on, whatever the routes say."`
	Port     int           `help:"UDP port." default:"7100"`
	Count    int           `help:"Datagrams to send." default:"1"`
	Interval time.Duration `help:"Time between two." default:"10ms"`
}

func (s *sendCmd) Run(ctx context.Context) error {
	to, err := netip.ParseAddr(s.Addr)
	if err != nil {
		return err
	}
	network := "udp6"
	if to.Is4() {
		network = "udp4"
	}
	config := net.ListenConfig{Control: control(func(fd int) error {
		if s.Iface == "" {
			return nil
		}
		return unix.BindToDevice(fd, s.Iface)
	})}
	c, err := config.ListenPacket(ctx, network, ":0")
	if err != nil {
		return err
	}
	defer c.Close()
	if s.Iface != "" && to.IsMulticast() {
		iface, err := net.InterfaceByName(s.Iface)
		if err != nil {
			return err
		}
		if to.Is4() {
			err = ipv4.NewPacketConn(c).SetMulticastInterface(iface)
		} else {
			err = ipv6.NewPacketConn(c).SetMulticastInterface(iface)
		}
		if err != nil {
			return err
		}
	}
	for i := range s.Count {
		payload := s.Payload
		if s.Count > 1 {
			payload += " " + strconv.Itoa(i)
		}
		if _, err := c.WriteTo([]byte(payload), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, uint16(s.Port)))); err != nil {
			return err
		}
		if i+1 < s.Count {
			time.Sleep(s.Interval)
		}
	}
	report(map[string]any{"sent": s.Count})
	return nil
}

// control sets options of a socket before it is bound.
func control(set func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		if controlErr := raw.Control(func(fd uintptr) { err = set(int(fd)) }); controlErr != nil {
			return controlErr
		}
		return err
	}
}

func host(a net.Addr) string {
	return a.(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("").String()
}

func ifaceName(index int) string {
	iface, err := net.InterfaceByIndex(index)
	if err != nil {
		return strconv.Itoa(index)
	}
	return iface.Name
}
