package kernel

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/isthmus-net/isthmus/cluster"
)

// This file is what stands on a parent: macvlan and ipvlan links, by the words
// that ip has for their modes.

var (
	macvlanModes = map[string]netlink.MacvlanMode{
		"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA,
		"passthru": netlink.MACVLAN_MODE_PASSTHRU, "source": netlink.MACVLAN_MODE_SOURCE,
	}
	ipvlanModes = map[string]netlink.IPVlanMode{"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}
	ipvlanFlags = map[string]netlink.IPVlanFlag{"bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}
	vlanProtos  = map[string]netlink.VlanProtocol{"802.1q": netlink.VLAN_PROTOCOL_8021Q, "802.1ad": netlink.VLAN_PROTOCOL_8021AD}
)

// wordOf is the key of a value.
func wordOf[V comparable](words map[string]V, value V) string {
	for word, v := range words {
		if v == value {
			return word
		}
	}
	return fmt.Sprint(value)
}

// stationOf turns a macvlan or ipvlan link into what the library creates, with
// attributes a that hold its parent.
func stationOf(l Link, a netlink.LinkAttrs) (netlink.Link, error) {
	if l.Kind == IPvlan {
		mode, ok := ipvlanModes[cmp.Or(l.Mode, "l2")]
		flag, known := ipvlanFlags[cmp.Or(l.Flag, "bridge")]
		if !ok || !known {
			return nil, fmt.Errorf("no such ipvlan mode: %q, flag %q", l.Mode, l.Flag)
		}
		if !l.MAC.IsZero() {
			return nil, errors.New("an ipvlan link has the MAC of its parent and none of its own: use macvlan for that")
		}
		return &netlink.IPVlan{LinkAttrs: a, Mode: mode, Flag: flag}, nil
	}
	mode, ok := macvlanModes[cmp.Or(l.Mode, "bridge")]
	if !ok {
		return nil, fmt.Errorf("no such macvlan mode: %q", l.Mode)
	}
	if mode == netlink.MACVLAN_MODE_PASSTHRU && !l.MAC.IsZero() {
		return nil, errors.New("a macvlan link in mode passthru has the MAC of its parent: one of its own would become the parent's")
	}
	return &netlink.Macvlan{LinkAttrs: a, Mode: mode, BCQueueLen: uint32(l.BCQueue)}, nil
}

// readStation puts into o what l says of mode, flag and queue.
func readStation(l netlink.Link, o *Link) {
	switch l := l.(type) {
	case *netlink.Macvlan:
		o.Mode, o.BCQueue = wordOf(macvlanModes, l.Mode), int(l.BCQueueLen)
		var macs []cluster.MAC
		for _, m := range l.MACAddrs {
			macs = append(macs, cluster.MAC(m))
		}
		o.Sources = JoinMACs(macs)
		if l.Mode == netlink.MACVLAN_MODE_PASSTHRU {
			o.MAC = cluster.MAC{} // it is the parent's
		}
	case *netlink.IPVlan:
		o.Mode, o.Flag = wordOf(ipvlanModes, l.Mode), wordOf(ipvlanFlags, l.Flag)
		o.MAC = cluster.MAC{}
	}
	*o = o.normal()
}

// setMode makes the mode, flag, queue and sources of an existing macvlan or
// ipvlan link those of want, where they differ. ask makes requests to the
// namespace of in.
func setMode(ask asker, in *netlink.Handle, l netlink.Link, have, want Link) error {
	if want.Kind != Macvlan && want.Kind != IPvlan {
		return nil
	}
	have, want = have.normal(), want.normal()
	if have.Mode != want.Mode || have.Flag != want.Flag || have.BCQueue != want.BCQueue {
		if err := changeStation(ask, l.Attrs().Index, want); err != nil {
			return fmt.Errorf("set mode %s: %w", strings.TrimSpace(cmp.Or(want.Mode, "to its default")+" "+want.Flag), err)
		}
	}
	if want.Mode == "source" && have.Sources != want.Sources {
		macs, err := splitMACs(want.Sources)
		if err != nil {
			return err
		}
		if err := in.MacvlanMACAddrSet(l, macs); err != nil {
			return fmt.Errorf("set %d sources: %w", len(macs), err)
		}
	}
	return nil
}

func splitMACs(sources string) (macs []net.HardwareAddr, err error) {
	for _, text := range strings.FieldsFunc(sources, func(r rune) bool { return r == ',' }) {
		m, err := net.ParseMAC(text)
		if err != nil || len(m) != 6 {
			return nil, fmt.Errorf("parse source %q: it is no MAC", text)
		}
		macs = append(macs, m)
	}
	slices.SortFunc(macs, func(a, b net.HardwareAddr) int { return bytes.Compare(a, b) })
	return macs, nil
}
