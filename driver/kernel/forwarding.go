package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// This file is the sysctls of routed networks. Those of all links (ip_forward,
// all.forwarding) are never written: Docker sets its FORWARD policy to DROP only if
// it was Docker who switched forwarding on, and with IPv6 the host would stop to
// listen to its routers.

// readConf reads a sysctl of a link of the calling thread's network namespace;
// empty where there is none.
func readConf(family, dev, name string) string {
	b, _ := os.ReadFile(confFile(family, dev, name))
	return strings.TrimSpace(string(b))
}

func confFile(family, dev, name string) string {
	return "/proc/sys/net/" + family + "/conf/" + dev + "/" + name
}

// writeConf changes one that is different. The thread must be thrown away afterwards.
func writeConf(family, dev, name, value string) error {
	if readConf(family, dev, name) == value {
		return nil
	}
	file := confFile(family, dev, name)
	err := os.WriteFile(file, []byte(value), 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		// A managed plugin has /proc/sys read-only; a view of one's own is not.
		if err = ownProc(); err == nil {
			err = os.WriteFile(file, []byte(value), 0)
		}
	}
	if err != nil {
		return fmt.Errorf("set net.%s.conf.%s.%s=%s: %w", family, dev, name, value, err)
	}
	return nil
}

// forwards reports whether what arrives on a link is forwarded.
func forwards(dev string, ipv6 bool) bool {
	return readConf("ipv4", dev, "forwarding") == "1" && (!ipv6 || forwards6(dev))
}

func forwards6(dev string) bool {
	return readConf("ipv6", "all", "forwarding") == "1" || readConf("ipv6", dev, "force_forwarding") == "1"
}

// forward makes a link forward what arrives on it.
func forward(dev string, ipv6 bool) error {
	if err := writeConf("ipv4", dev, "forwarding", "1"); err != nil {
		return err
	}
	if !ipv6 || forwards6(dev) {
		return nil
	}
	if readConf("ipv6", dev, "disable_ipv6") == "1" {
		if err := writeConf("ipv6", dev, "disable_ipv6", "0"); err != nil {
			return err
		}
	}
	err := writeConf("ipv6", dev, "force_forwarding", "1")
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("the host does not forward IPv6, and its kernel cannot forward for one link alone (Linux 6.17 can): " + allForwarding)
	}
	return err
}

const allForwarding = "run sysctl -w net.ipv6.conf.all.forwarding=1, and sysctl -w net.ipv6.conf.LINK.accept_ra=2 for links that get their routes from router advertisements"

// bridgeFiltered reports whether br_netfilter shows bridged frames to the
// firewall of the calling thread's network namespace.
func bridgeFiltered() bool {
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if b, err := os.ReadFile("/proc/sys/net/bridge/" + name); err == nil && strings.TrimSpace(string(b)) == "1" {
			return true
		}
	}
	return false
}

// oneWay lists the ports, by their bridges, that send nothing back to where it came
// from. With br_netfilter, a container that asks for its own published port is led
// back to itself while its frames are still bridged, which only a port in hairpin
// mode lets happen.
func (k *Linux) oneWay() (map[int][]int, error) {
	req := k.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	out := map[int][]int{}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, fmt.Errorf("list bridge ports: %w", err)
		}
		master, hairpin := 0, true
		for _, a := range attrs {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.IFLA_MASTER:
				master = int(nl.NativeEndian().Uint32(a.Value))
			case unix.IFLA_PROTINFO:
				inner, err := nl.ParseRouteAttr(a.Value)
				if err != nil {
					return nil, fmt.Errorf("list bridge ports: %w", err)
				}
				for _, i := range inner {
					if i.Attr.Type == nl.IFLA_BRPORT_MODE {
						hairpin = i.Value[0] == 1
					}
				}
			}
		}
		if index := int(nl.DeserializeIfInfomsg(m).Index); master != 0 && master != index && !hairpin {
			out[master] = append(out[master], index)
		}
	}
	return out, nil
}

// setGateway sets the sysctls of a link of ours, and the mode of its ports; what is
// removed gets back those that a new link has.
func (k *Linux) setGateway(action Action, g Gateway) error {
	if err := k.setSysctls(action, g); err != nil || action == Remove {
		return err
	}
	lacks, err := k.lacksHairpin([]Gateway{g})
	if err != nil {
		return err
	}
	for _, index := range lacks[g.Dev] {
		port := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
		if err := k.h.LinkSetHairpin(port, true); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) { // it went meanwhile
			return fmt.Errorf("set hairpin mode of a port of %s: %w", g.Dev, err)
		}
	}
	return nil
}

// lacksHairpin lists the ports of gateways, with a container at the other end, that need to be in hairpin mode and are
// not, by gateway.
func (k *Linux) lacksHairpin(gateways []Gateway) (map[string][]int, error) {
	filtered := false
	if err := inside(int(k.ns), func() error { filtered = bridgeFiltered(); return nil }); err != nil || !filtered || len(gateways) == 0 {
		return nil, err
	}
	ports, err := k.oneWay()
	if err != nil {
		return nil, err
	}
	out := map[string][]int{}
	for _, g := range gateways {
		l, err := k.h.LinkByName(g.Dev)
		if err != nil {
			continue
		}
		for _, index := range ports[l.Attrs().Index] {
			// Not a tunnel: two hosts would return each other's frames for ever.
			if port, err := k.h.LinkByIndex(index); err == nil && port.Type() == string(Veth) {
				out[g.Dev] = append(out[g.Dev], index)
			}
		}
	}
	return out, nil
}

func (k *Linux) setSysctls(action Action, g Gateway) error {
	return inside(int(k.ns), func() error {
		if _, err := netlink.LinkByName(g.Dev); err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) && action == Remove {
				return nil
			}
			return err
		}
		if action == Remove {
			return errors.Join(restore("ipv4", g.Dev, "forwarding"), restore("ipv4", g.Dev, "route_localnet"), restore("ipv6", g.Dev, "force_forwarding"))
		}
		return errors.Join(forward(g.Dev, g.IPv6), writeConf("ipv4", g.Dev, "route_localnet", "1"))
	})
}

// restore gives a link the value of new ones.
func restore(family, dev, name string) error {
	value := readConf(family, "default", name)
	if value == "" || readConf(family, dev, name) == "" {
		return nil
	}
	return writeConf(family, dev, name, value)
}

// setUplink sets the sysctls of a link of the user's, if he said so, and says else
// what is missing. old is what it was before.
func (k *Linux) setUplink(action Action, u, old Uplink) error {
	return inside(int(k.ns), func() error {
		switch {
		case readConf("ipv4", u.Dev, "forwarding") == "":
			if action == Remove {
				return nil
			}
			return fmt.Errorf("there is no link %s", u.Dev)
		case action == Remove || old.Forward && !u.Forward:
			if !old.Forward {
				return nil
			}
			// It was ours to switch on. Where all links forward it stays.
			var errs []error
			if readConf("ipv4", "all", "forwarding") != "1" {
				errs = append(errs, writeConf("ipv4", u.Dev, "forwarding", "0"))
			}
			if readConf("ipv6", u.Dev, "force_forwarding") == "1" && readConf("ipv6", "all", "forwarding") != "1" {
				errs = append(errs, writeConf("ipv6", u.Dev, "force_forwarding", "0"))
			}
			return errors.Join(errs...)
		case u.Forward:
			return forward(u.Dev, u.IPv6)
		case readConf("ipv4", u.Dev, "forwarding") != "1":
			return fmt.Errorf("%s does not forward what it receives, so that containers get no answers: run sysctl -w net.ipv4.conf.%s.forwarding=1", u.Dev, u.Dev)
		case u.IPv6 && !forwards6(u.Dev):
			how := fmt.Sprintf("run sysctl -w net.ipv6.conf.%s.force_forwarding=1", u.Dev)
			if readConf("ipv6", u.Dev, "force_forwarding") == "" {
				how = allForwarding
			}
			return fmt.Errorf("%s does not forward the IPv6 that it receives, so that containers get no answers: %s", u.Dev, how)
		}
		return nil
	})
}
