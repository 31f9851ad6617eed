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
	seen := sight{links: map[int]glimpse{}, heeds: k.heeds}
	for range 2 { // a VLAN device is told by its parent's name
		for _, l := range links {
			seen.links[l.Attrs().Index] = seen.glance(l)
		}
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

// Heed implements Kernel. Who looks at the links afterwards misses nothing.
func (k *Linux) Heed(names ...string) {
	set := map[string]bool{}
	for _, name := range names {
		set[name] = true
	}
	k.heeded.Store(&set)
}

func (k *Linux) heeds(name string) bool {
	set := k.heeded.Load()
	return set != nil && (*set)[name]
}

// sight is what the watcher knows of the links, to tell what concerns us.
type sight struct {
	links map[int]glimpse        // of all, since the underlay's MTU is part of ours
	heeds func(name string) bool // is this link of somebody else to be heeded?
}

// glimpse is what is worth to be told of a link when it changes.
type glimpse struct {
	name, mac   string
	own         bool
	mtu, master int
	flags       uint32 // up, and with carrier
}

func (s *sight) glance(l netlink.Link) glimpse {
	a := l.Attrs()
	names := map[int]string{a.ParentIndex: s.links[a.ParentIndex].name}
	return glimpse{
		name: a.Name, mac: a.HardwareAddr.String(), own: ours(l, names),
		mtu: a.MTU, master: a.MasterIndex, flags: a.RawFlags & (unix.IFF_UP | unix.IFF_LOWER_UP),
	}
}

// concerns reports whether a notification is about something of ours, about
// a link that is heeded, or about the underlay: addresses, link MTU, default route.
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
		return err == nil && s.links[n.LinkIndex].own && (n.Family != unix.AF_BRIDGE || n.Flags&netlink.NTF_SELF != 0)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return false
		}
		a := nl.DeserializeIfAddrmsg(m.Data)
		return a.Scope == unix.RT_SCOPE_UNIVERSE || s.links[int(a.Index)].own
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg {
			return false
		}
		r := nl.DeserializeRtMsg(m.Data)
		return (r.Dst_len == 0 || r.Protocol == Protocol) && r.Table == unix.RT_TABLE_MAIN
	}
	return false
}

func (s *sight) link(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	msg := nl.DeserializeIfInfomsg(m.Data)
	was, known := s.links[int(msg.Index)]
	if m.Header.Type == unix.RTM_DELLINK && msg.Family == unix.AF_UNSPEC {
		delete(s.links, int(msg.Index))
		return was.own || s.heeds(was.name)
	}
	if msg.Family != unix.AF_UNSPEC {
		return was.own
	}
	l, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		return was.own
	}
	is := s.glance(l)
	s.links[int(msg.Index)] = is
	return was.own || is.own || known && was.mtu != is.mtu || was != is && (s.heeds(was.name) || s.heeds(is.name))
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
