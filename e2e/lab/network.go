package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const bridge = "br0"

// ip runs ip(8) of the machine in the node's network.
func (n *node) ip(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"ip"}, args...)
	return n.run(n.tool(ctx, args...), args)
}

// batch runs one ip(8) command a line, all in one process.
func (n *node) batch(ctx context.Context, lines ...string) error {
	cmd := n.tool(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	_, err := n.run(cmd, cmd.Args)
	return err
}

func (n *node) setSysctl(ctx context.Context, name, value string) error {
	_, err := n.Exec(ctx, "sysctl", "-q", "-w", name+"="+value)
	return err
}

func (l *Lab) startSwitch(ctx context.Context) error {
	if err := installTool(l.toolPath(), l.sw); err != nil {
		return err
	}
	if err := l.sw.boot(l.toolPath(), l.config.Detached); err != nil {
		return err
	}
	if err := l.remember(l.sw); err != nil {
		return err
	}
	lines := append([]string{
		"link set lo up",
		fmt.Sprintf("link add %s address %s mtu %d type bridge mcast_snooping 0 forward_delay 0", bridge, mac(switchIndex), l.config.MTU),
		"link set " + bridge + " up",
	}, l.addressLines(bridge, switchIndex)...)
	if err := l.sw.batch(ctx, lines...); err != nil {
		return err
	}
	// A switch does not route, and shows no frame to the IP firewall.
	for _, family := range []string{"arptables", "iptables", "ip6tables"} {
		if err := l.sw.setSysctl(ctx, "net.bridge.bridge-nf-call-"+family, "0"); err != nil {
			return err
		}
	}
	return l.startRegistry(ctx)
}

func (l *Lab) addressLines(dev string, index int) []string {
	var lines []string
	for _, p := range []netip.Prefix{underlay4, underlay6} {
		if p == underlay4 && l.config.IPv6Underlay {
			continue
		}
		option := ""
		if p == underlay6 {
			option = " nodad"
		}
		lines = append(lines, fmt.Sprintf("addr add %s/%d dev %s%s", address(p, index), p.Bits(), dev, option))
	}
	return lines
}

// plugIn connects a host that has booted with the switch, by the same hardware
// address each time.
func (l *Lab) plugIn(ctx context.Context, h *Host) error {
	mtu := strconv.Itoa(l.config.MTU)
	// The host's first process has a number in the machine's pid namespace, but
	// none in the switch's.
	add := l.sw.enter(ctx, []string{"-n"}, []string{"ip", "link", "add", h.Name, "mtu", mtu, "type", "veth",
		"peer", "name", "eth0", "address", mac(h.Index), "mtu", mtu, "netns", strconv.Itoa(h.pid().Pid)})
	if _, err := l.sw.run(add, add.Args); err != nil {
		return err
	}
	if err := l.sw.batch(ctx, fmt.Sprintf("link set %s master %s up", h.Name, bridge)); err != nil {
		return err
	}
	lines := append([]string{"link set lo up", "link set eth0 up"}, l.addressLines("eth0", h.Index)...)
	if !l.config.IPv6Underlay {
		lines = append(lines, "route add default via "+address(underlay4, switchIndex).String())
	}
	lines = append(lines, "route add default via "+address(underlay6, switchIndex).String())
	return h.batch(ctx, lines...)
}

// unplug removes the switch's end, which the kernel would do by itself, but
// only some time after the host is gone.
func (l *Lab) unplug(ctx context.Context, h *Host) error {
	_, err := l.sw.ip(ctx, "link", "del", h.Name)
	if err != nil && (strings.Contains(err.Error(), "Cannot find device") || strings.Contains(err.Error(), "No such device")) {
		return nil // before ip looked, or after
	}
	return err
}
