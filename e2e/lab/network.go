package lab

import (
	"context"
	"errors"
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
	if err := l.connect(ctx, h.node, h.Name, "eth0", mac(h.Index)); err != nil {
		return err
	}
	lines := append([]string{"link set lo up", "link set eth0 up"}, l.addressLines("eth0", h.Index)...)
	if !l.config.IPv6Underlay {
		lines = append(lines, "route add default via "+address(underlay4, switchIndex).String())
	}
	lines = append(lines, "route add default via "+address(underlay6, switchIndex).String())
	return h.batch(ctx, lines...)
}

// connect makes a port of the switch that leads to a new interface dev of n, with
// the hardware address mac, or a random one.
func (l *Lab) connect(ctx context.Context, n *node, port, dev, mac string) error {
	mtu := strconv.Itoa(l.config.MTU)
	// A node's first process has a number in the machine's pid namespace, but
	// none in the switch's.
	args := []string{"ip", "link", "add", port, "mtu", mtu, "type", "veth",
		"peer", "name", dev, "mtu", mtu, "netns", strconv.Itoa(n.pid().Pid)}
	if mac != "" {
		args = append(args, "address", mac)
	}
	add := l.sw.enter(ctx, []string{"-n"}, args)
	if _, err := l.sw.run(add, add.Args); err != nil {
		return err
	}
	return l.sw.batch(ctx, fmt.Sprintf("link set %s master %s up", port, bridge))
}

// portsOf names the ports of the switch that lead to a node: its own, and those
// of AddLink.
func (l *Lab) portsOf(ctx context.Context, name string) ([]string, error) {
	out, err := l.sw.ip(ctx, "-o", "link", "show", "master", bridge)
	var ports []string
	for line := range strings.Lines(out) {
		_, rest, _ := strings.Cut(line, ": ")
		port, _, _ := strings.Cut(rest, "@") // 7: host1@if2: <...
		if port == name || strings.HasPrefix(port, name+"-") {
			ports = append(ports, port)
		}
	}
	return ports, err
}

// unplug removes the switch's ends, which the kernel would do by itself, but
// only some time after the node is gone.
func (l *Lab) unplug(ctx context.Context, name string) error {
	ports, err := l.portsOf(ctx, name)
	for _, port := range ports {
		_, failed := l.sw.ip(ctx, "link", "del", port)
		gone := failed != nil && (strings.Contains(failed.Error(), "Cannot find device") || strings.Contains(failed.Error(), "No such device"))
		if failed != nil && !gone { // before ip looked, or after
			err = errors.Join(err, failed)
		}
	}
	return err
}
