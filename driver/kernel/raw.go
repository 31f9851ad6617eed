package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// This file says by hand what the libraries cannot.

func (k *Linux) request(typ, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(typ, flags)
	r.Sockets = k.raw
	return r
}

// asker makes requests to one network namespace: Linux.request to the host's, and
// nl.NewNetlinkRequest to that of the calling thread.
type asker func(typ, flags int) *nl.NetlinkRequest

// changeStation changes mode, flag and queue of an existing macvlan or ipvlan
// link. The library's LinkModify repeats the link's name, which kernels before
// 6.2 take for renaming it, and refuse while it is up.
func changeStation(ask asker, index int, l Link) error {
	req := ask(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(l.Kind)))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	described, err := stationOf(Link{Kind: l.Kind, Mode: l.Mode, Flag: l.Flag}, netlink.LinkAttrs{})
	if err != nil {
		return err
	}
	switch d := described.(type) {
	case *netlink.IPVlan:
		data.AddRtAttr(nl.IFLA_IPVLAN_MODE, nl.Uint16Attr(uint16(d.Mode)))
		data.AddRtAttr(nl.IFLA_IPVLAN_FLAG, nl.Uint16Attr(uint16(d.Flag)))
	case *netlink.Macvlan:
		data.AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(1<<(d.Mode-netlink.MACVLAN_MODE_PRIVATE)))
		data.AddRtAttr(nl.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(uint32(cmp.Or(l.BCQueue, defaultBCQueue))))
	}
	req.AddData(info)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setLocal changes a VXLAN device's own VTEP in place. The library's changelink
// always repeats attributes that the kernel refuses to see again.
func (k *Linux) setLocal(index int, local netip.Addr) error {
	req := k.request(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	attr := nl.IFLA_VXLAN_LOCAL
	if local.Is6() {
		attr = nl.IFLA_VXLAN_LOCAL6
	}
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(attr, local.AsSlice())
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// rawRule is a rule in a chain of somebody else: no more of it is read than
// what tells ours from theirs, so that no match or target of theirs, of
// whatever version, can make a dump fail.
type rawRule struct {
	handle  uint64
	comment string // "isthmus DEV" of ours, else empty
	jumps   bool   // it leads to DOCKER-USER
}

// rules lists the rules of a chain; none when there is no such chain.
func (k *Linux) rules(family uint8, table, chain string) ([]rawRule, error) {
	req := k.request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(table)))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE)
	if err != nil {
		return nil, err
	}
	var out []rawRule
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		var r rawRule
		for _, a := range attrs {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.NFTA_RULE_HANDLE:
				r.handle = binary.BigEndian.Uint64(a.Value)
			case unix.NFTA_RULE_USERDATA, unix.NFTA_RULE_EXPRESSIONS:
				r.jumps = r.jumps || bytes.Contains(a.Value, []byte(dockerChains[0]+"\x00"))
				// Our comment is user data; iptables-save and -restore turn it
				// into a comment match.
				if i := bytes.Index(a.Value, []byte(commentPrefix)); i >= 0 {
					text, _, _ := bytes.Cut(a.Value[i:], []byte{0})
					r.comment = string(text)
				}
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// probe asks the kernel to create a link of a kind, in words that it refuses
// whatever the kind: without the link below and without the properties that it
// needs, and with an address that is none.
func (k *Linux) probe(kind Kind) error {
	req := k.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(Prefix+"probe")))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{0}))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(string(kind)))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// nl80211 in include/uapi/linux/nl80211.h.
const (
	nl80211GetInterface = 5 // NL80211_CMD_GET_INTERFACE
	nl80211Ifindex      = 3 // NL80211_ATTR_IFINDEX
)

// wireless lists the wireless links by index; none where no driver is loaded.
func (k *Linux) wireless() (map[int]bool, error) {
	family, err := k.h.GenlFamilyGet("nl80211")
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find netlink family nl80211: %w", err)
	}
	req := k.request(int(family.ID), unix.NLM_F_DUMP)
	req.AddData(&nl.Genlmsg{Command: nl80211GetInterface})
	msgs, err := req.Execute(unix.NETLINK_GENERIC, family.ID)
	if err != nil {
		return nil, fmt.Errorf("list wireless links: %w", err)
	}
	out := map[int]bool{}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, fmt.Errorf("list wireless links: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == nl80211Ifindex && len(a.Value) == 4 {
				out[int(nl.NativeEndian().Uint32(a.Value))] = true
			}
		}
	}
	return out, nil
}
