package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// forgetFlows drops what connection tracking knows of UDP and SCTP to ports whose
// target is another one now, or none: a client that goes on sending would reach
// the old one, or the host itself, as long as it does. (TCP finds out by itself.)
// A zero To is none.
func (k *Linux) forgetFlows(ports []Publish) error {
	byFamily := map[bool][]Publish{}
	for _, p := range ports {
		if p.Proto != "tcp" {
			byFamily[p.Host.Addr().Is4()] = append(byFamily[p.Host.Addr().Is4()], p)
		}
	}
	if len(byFamily) == 0 {
		return nil
	}
	return inside(int(k.ns), func() error {
		own, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		local := map[netip.Addr]bool{}
		for _, a := range own {
			local[addrOf(a.IP)] = true
		}
		var errs []error
		for four, list := range byFamily {
			family := uint8(unix.AF_INET6)
			if four {
				family = unix.AF_INET
			}
			errs = append(errs, deleteFlows(family, movedPorts{list, local}.match))
		}
		return errors.Join(errs...)
	})
}

// flow is the part that matters of a flow that connection tracking knows: its
// protocol, where its first packet was sent to, and who answers.
type flow struct {
	proto    byte
	dest, by netip.AddrPort
}

// deleteFlows deletes the flows of an address family that match. (netlink's own
// ConntrackDeleteFilters knows the ports of TCP and UDP only.)
func deleteFlows(family uint8, match func(flow) bool) error {
	request := func(kind, flags int) *nl.NetlinkRequest {
		r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|kind, flags)
		r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		return r
	}
	list, err := request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return fmt.Errorf("list flows: %w", err)
	}
	var errs []error
	for _, message := range list {
		attributes := message[min(nl.SizeofNfgenmsg, len(message)):]
		f, err := readFlow(attributes)
		if err == nil && !match(f) {
			continue
		}
		if err == nil {
			r := request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
			r.AddRawData(attributes)
			_, err = r.Execute(unix.NETLINK_NETFILTER, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // gone by itself meanwhile
			errs = append(errs, fmt.Errorf("delete flow: %w", err))
		}
	}
	return errors.Join(errs...)
}

// readFlow reads the attributes of linux/netfilter/nfnetlink_conntrack.h that
// matter; others are passed over.
func readFlow(attributes []byte) (f flow, err error) {
	err = eachAttribute(attributes, func(kind uint16, tuple []byte) error {
		if kind != nl.CTA_TUPLE_ORIG && kind != nl.CTA_TUPLE_REPLY {
			return nil
		}
		var src, dst netip.Addr
		var from, to uint16
		err := eachAttribute(tuple, func(part uint16, fields []byte) error {
			return eachAttribute(fields, func(field uint16, value []byte) error {
				switch {
				case part == nl.CTA_TUPLE_IP && (field == nl.CTA_IP_V4_SRC || field == nl.CTA_IP_V6_SRC):
					src, _ = netip.AddrFromSlice(value)
				case part == nl.CTA_TUPLE_IP && (field == nl.CTA_IP_V4_DST || field == nl.CTA_IP_V6_DST):
					dst, _ = netip.AddrFromSlice(value)
				case part == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_NUM && len(value) == 1:
					f.proto = value[0]
				case part == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_SRC_PORT && len(value) == 2:
					from = binary.BigEndian.Uint16(value)
				case part == nl.CTA_TUPLE_PROTO && field == nl.CTA_PROTO_DST_PORT && len(value) == 2:
					to = binary.BigEndian.Uint16(value)
				}
				return nil
			})
		})
		if kind == nl.CTA_TUPLE_ORIG {
			f.dest = netip.AddrPortFrom(dst, to)
		} else {
			f.by = netip.AddrPortFrom(src, from)
		}
		return err
	})
	return f, err
}

// eachAttribute calls do with the type and the value of each attribute.
func eachAttribute(b []byte, do func(kind uint16, value []byte) error) error {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return fmt.Errorf("read attributes: %w", err)
	}
	for _, a := range list {
		if err := do(a.Attr.Type&nl.NLA_TYPE_MASK, a.Value); err != nil {
			return err
		}
	}
	return nil
}

// movedPorts matches the flows to ports of this host that do not go to their target.
type movedPorts struct {
	ports []Publish
	local map[netip.Addr]bool // addresses of this host
}

func (m movedPorts) match(f flow) bool {
	for _, p := range m.ports {
		host := f.dest.Addr()
		if f.proto != protocols[p.Proto] || f.dest.Port() != p.Host.Port() || f.by == p.To {
			continue
		}
		// What others send through this host to the same port elsewhere goes on.
		if host == p.Host.Addr() || p.Host.Addr().IsUnspecified() && (m.local[host] || host.IsLoopback()) {
			return true
		}
	}
	return false
}
