package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// This file is how other hosts are reached, and whether they are.

// Hop implements Kernel.
func (k *Linux) Hop(_ context.Context, to netip.Addr) (Hop, error) {
	routes, err := k.h.RouteGet(to.Unmap().AsSlice())
	switch {
	case err != nil:
		return Hop{}, fmt.Errorf("find the way to %s: %w", to, err)
	case len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST:
		return Hop{}, fmt.Errorf("find the way to %s: it is no other host", to)
	}
	r := routes[0]
	names, err := k.namesOf(linkIndex(r))
	if err != nil {
		return Hop{}, fmt.Errorf("find the way to %s: %w", to, err)
	}
	return Hop{Via: addrOf(r.Gw), Dev: names[linkIndex(r)], Src: addrOf(r.Src)}, nil
}

// Foreigns implements Kernel.
func (k *Linux) Foreigns(ctx context.Context) ([]Foreign, error) {
	links, err := retry(ctx, k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var out []Foreign
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := k.routes(ctx, family, unix.RT_TABLE_MAIN)
		if err != nil && !isNoFamily(err) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			dst := prefixOf(r.Dst)
			if r.Protocol == Protocol || isDefault(r) || !dst.IsValid() || dst.Addr().IsLinkLocalUnicast() || dst.Addr().IsMulticast() {
				continue
			}
			out = append(out, Foreign{dst, addrOf(r.Gw), names[linkIndex(r)], r.Protocol.String()})
		}
	}
	slices.SortFunc(out, func(a, b Foreign) int {
		return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.String(), b.String()))
	})
	return out, nil
}

// Echo implements Kernel: one socket of each family, which sends all requests and
// takes the answers.
func (k *Linux) Echo(ctx context.Context, probes []Probe) ([]bool, error) {
	out := make([]bool, len(probes))
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range []echoFamily{echo4, echo6} {
		var mine []int
		for i, p := range probes {
			if p.Dst.Is4() == f.v4 {
				mine = append(mine, i)
			}
		}
		if len(mine) > 0 {
			g.Go(func() error { return k.echo(ctx, f, probes, mine, out) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("ask other hosts by ICMP: %w", err)
	}
	return out, nil
}

// echoFamily is what differs between ICMP and ICMPv6.
type echoFamily struct {
	v4             bool
	network, any   string
	protocol       int
	request, reply icmp.Type
}

var (
	echo4 = echoFamily{true, "ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	echo6 = echoFamily{false, "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
)

// echo asks those of probes that mine counts up. Answers of one batch bear its id
// and the place in mine as their number.
func (k *Linux) echo(ctx context.Context, f echoFamily, probes []Probe, mine []int, answered []bool) error {
	var conn net.PacketConn
	err := inside(int(k.ns), func() (err error) {
		conn, err = net.ListenPacket(f.network, f.any)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(timeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	p4, p6 := ipv4.NewPacketConn(conn), ipv6.NewPacketConn(conn)
	if f.v4 {
		var only ipv4.ICMPFilter
		only.SetAll(true)
		only.Accept(ipv4.ICMPTypeEchoReply)
		err = p4.SetICMPFilter(&only)
	} else {
		var only ipv6.ICMPFilter
		only.SetAll(true)
		only.Accept(ipv6.ICMPTypeEchoReply)
		err = p6.SetICMPFilter(&only)
	}
	if err != nil {
		return err
	}
	id := rand.IntN(1 << 16)
	for n, i := range mine {
		m := icmp.Message{Type: f.request, Body: &icmp.Echo{ID: id, Seq: n, Data: []byte("isthmus")}}
		b, err := m.Marshal(nil) // the kernel fills in the checksum of ICMPv6
		if err != nil {
			return err
		}
		to, src := &net.IPAddr{IP: probes[i].Dst.AsSlice()}, net.IP(probes[i].Src.AsSlice())
		if f.v4 {
			_, _ = p4.WriteTo(b, &ipv4.ControlMessage{Src: src}, to) // one that cannot be sent is not answered
		} else {
			_, _ = p6.WriteTo(b, &ipv6.ControlMessage{Src: src}, to)
		}
	}
	b := make([]byte, 1500)
	for left := len(mine); left > 0; {
		n, from, err := conn.ReadFrom(b)
		if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ECONNREFUSED) {
			continue // of one of them
		}
		if err != nil {
			return nil // the time is over
		}
		m, err := icmp.ParseMessage(f.protocol, b[:n])
		if err != nil {
			continue
		}
		e, ok := m.Body.(*icmp.Echo)
		if !ok || m.Type != f.reply || e.ID != id || e.Seq >= len(mine) {
			continue
		}
		i := mine[e.Seq]
		if ip, ok := from.(*net.IPAddr); ok && addrOf(ip.IP) == probes[i].Dst && !answered[i] {
			answered[i] = true
			left--
		}
	}
	return nil
}
