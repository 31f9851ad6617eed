package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Watch implements Kernel. It signals once at the start, and again whenever it
// had to subscribe anew: what happened meanwhile is unknown. Our own changes
// signal too; they end when Diff is empty. Returns nil when ctx ends.
func (k *Linux) Watch(ctx context.Context, changed chan<- struct{}) error {
	for {
		err := k.watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENOBUFS) {
			k.log.Debug("kernel notifications overran their buffer; looking at everything")
			continue
		}
		k.log.WithError(err).Warn("kernel notifications failed; subscribing again")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// watch subscribes, signals, and then reads notifications until something fails.
func (k *Linux) watch(ctx context.Context, signal func()) error {
	route, err := k.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return err
	}
	defer route.Close()
	filter, err := k.subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return err
	}
	defer filter.Close()

	links, err := retry(ctx, k.h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	seen := sight{own: map[int32]bool{}, mtu: map[int32]uint32{}}
	for _, l := range links {
		seen.own[int32(l.Attrs().Index)] = ours(l.Attrs())
		seen.mtu[int32(l.Attrs().Index)] = uint32(l.Attrs().MTU)
	}
	signal()

	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		route.Close()
		filter.Close()
	})
	defer stop()
	g.Go(func() error { return receive(route, seen.concerns, signal) })
	g.Go(func() error { return receive(filter, concernsTables, signal) })
	return g.Wait()
}

func (k *Linux) subscribe(family int, groups ...uint) (s *nl.NetlinkSocket, err error) {
	err = inside(int(k.ns), func() error {
		s, err = nl.Subscribe(family, groups...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink family %d: %w", family, err)
	}
	// Ten thousand entries that we write at once come back as notifications.
	_ = s.SetReceiveBufferSize(4<<20, true)
	return s, nil
}

func receive(s *nl.NetlinkSocket, concerns func(syscall.NetlinkMessage) bool, signal func()) error {
	for {
		msgs, from, err := s.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		wake := false
		for _, m := range msgs { // all of them: concerns learns from each
			wake = concerns(m) || wake
		}
		if wake {
			signal()
		}
	}
}

// sight is what the watcher knows of the links, to tell what concerns us.
type sight struct {
	own map[int32]bool   // is it ours?
	mtu map[int32]uint32 // of all, since the underlay's is part of ours
}

// concerns reports whether a notification is about something of ours, or about
// the underlay: addresses, link MTU, default route.
func (s *sight) concerns(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return s.link(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(m.Data) < 12 {
			return false
		}
		n, err := netlink.NeighDeserialize(m.Data)
		// What a bridge learns about its ports is its own affair.
		return err == nil && s.own[int32(n.LinkIndex)] && (n.Family != unix.AF_BRIDGE || n.Flags&netlink.NTF_SELF != 0)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return false
		}
		a := nl.DeserializeIfAddrmsg(m.Data)
		return !s.own[int32(a.Index)] && a.Scope == unix.RT_SCOPE_UNIVERSE
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg {
			return false
		}
		r := nl.DeserializeRtMsg(m.Data)
		return r.Dst_len == 0 && r.Table == unix.RT_TABLE_MAIN
	}
	return false
}

func (s *sight) link(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	was := s.own[msg.Index]
	if m.Header.Type == unix.RTM_DELLINK && msg.Family == unix.AF_UNSPEC {
		delete(s.own, msg.Index)
		delete(s.mtu, msg.Index)
		return was
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil || msg.Family != unix.AF_UNSPEC {
		return was
	}
	var a netlink.LinkAttrs
	var mtu uint32
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFLA_IFNAME:
			a.Name = nl.BytesToString(attr.Value)
		case unix.IFLA_GROUP:
			a.Group = nl.NativeEndian().Uint32(attr.Value)
		case unix.IFLA_MTU:
			mtu = nl.NativeEndian().Uint32(attr.Value)
		}
	}
	before, known := s.mtu[msg.Index]
	s.own[msg.Index], s.mtu[msg.Index] = ours(&a), mtu
	return was || s.own[msg.Index] || known && before != mtu
}

// concernsTables reports whether an nftables notification is about our tables,
// or about the chains that hold our accept rules.
func concernsTables(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
	if err != nil {
		return true
	}
	text := func(typ uint16) string {
		for _, a := range attrs {
			if a.Attr.Type == typ {
				return nl.BytesToString(a.Value)
			}
		}
		return ""
	}
	// The first attribute of each of these is the table's name.
	table, chain := text(unix.NFTA_TABLE_NAME), ""
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		return table == TableName || table == "filter"
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain = text(unix.NFTA_CHAIN_NAME)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = text(unix.NFTA_RULE_CHAIN)
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
	default:
		return false
	}
	return table == TableName || table == "filter" && slices.Contains(dockerChains, chain)
}
