package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// segment bounds TCP segments both ways, so that no packet is larger than
	// the 1280 bytes that every IPv6 path carries.
	segment = 1280 - 40 - 20
	// deadPeer bounds how long sent data may stay unacknowledged, and a silent
	// peer unnoticed.
	deadPeer = 10 * time.Second
	// bindTries bounds the search for a port that is free for TCP and UDP.
	bindTries = 32
)

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 3 * time.Second, Count: 2}

// tuneTCP sets what a listener hands down to its connections.
func tuneTCP(_, _ string, c syscall.RawConn) error {
	return control(c, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, segment),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds())),
		)
	})
}

func control(c syscall.RawConn, set func(fd int) error) error {
	var failed error
	if err := c.Control(func(fd uintptr) { failed = set(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// bind opens the TCP and the UDP socket on one port number.
func bind(addr netip.AddrPort) (*net.TCPListener, *packetSocket, error) {
	host := ""
	if addr.Addr().IsLoopback() {
		host = addr.Addr().String()
	}
	lc := net.ListenConfig{Control: tuneTCP, KeepAliveConfig: keepAlive}
	lc.SetMultipathTCP(false) // knows neither of the options
	for try := 1; ; try++ {
		ln, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(int(addr.Port()))))
		if err != nil {
			return nil, nil, bindError("TCP", addr.Port(), err)
		}
		tcp := ln.(*net.TCPListener)
		port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		udp, err := listenUDP(net.JoinHostPort(host, strconv.Itoa(int(port))), addr.Addr())
		if err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
		if addr.Port() != 0 || try == bindTries || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, bindError("UDP", port, err)
		}
	}
}

func bindError(network string, port uint16, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen on %s port %d: another process has it (choose another GOSSIP_PORT on all hosts): %w", network, port, err)
	}
	return fmt.Errorf("listen on %s port %d: %w", network, port, err)
}

// source is the local address to speak from to a peer, invalid where the
// kernel shall choose.
func source(own, peer netip.Addr) netip.Addr {
	own, peer = own.Unmap(), peer.Unmap()
	if !own.IsValid() || own.IsUnspecified() || own.IsLoopback() || own.IsLinkLocalUnicast() || own.Is4() != peer.Is4() {
		return netip.Addr{}
	}
	return own
}

// lostSource reports whether an error may mean that the source address is no
// longer this host's: bind, IPv6 and IPv4 routing each have their own.
func lostSource(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENETUNREACH)
}

// dial connects from the advertised address, or from any when that is gone.
func dial(ctx context.Context, network string, own netip.Addr, to netip.AddrPort, tune func(string, string, syscall.RawConn) error) (net.Conn, error) {
	d := net.Dialer{Control: tune, KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	if src := source(own, to.Addr()); src.IsValid() {
		switch network {
		case "tcp":
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
		case "udp":
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
		}
	}
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil && d.LocalAddr != nil && lostSource(err) {
		d.LocalAddr = nil
		conn, err = d.DialContext(ctx, network, to.String())
	}
	return conn, err
}

// addrPortOf reads the address of a TCP or UDP connection.
func addrPortOf(a net.Addr) netip.AddrPort {
	if ap, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return unmap(ap.AddrPort())
	}
	return netip.AddrPort{}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
