package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// muted is the alias of a link that Mute took down: what somebody else took down
// is not set up again.
const muted = "isthmus: cut off"

// Mute implements Kernel. The mark comes first and goes last, so that one that
// was killed half-way is taken up again.
func (k *Linux) Mute(ctx context.Context, sandbox string, mac cluster.MAC) (bool, error) {
	changed, err := k.visitMAC(ctx, sandbox, mac, func(in *netlink.Handle, l netlink.Link) (bool, error) {
		a := l.Attrs()
		up := a.RawFlags&unix.IFF_UP != 0
		if strings.HasPrefix(a.Name, Prefix) || !up && a.Alias == muted {
			return false, nil
		}
		if err := in.LinkSetAlias(l, muted); err != nil {
			return false, fmt.Errorf("mark: %w", err)
		}
		// Without it the kernel drops the IPv6 addresses; Unmute adds those that it
		// is told of.
		_ = setIPv6(a.Name, "keep_addr_on_down", "1")
		if err := in.LinkSetDown(l); err != nil {
			return false, fmt.Errorf("set down: %w", err)
		}
		return true, nil
	})
	if err != nil {
		return false, fmt.Errorf("cut off the interface %s in sandbox %s: %w", mac, sandbox, err)
	}
	return changed, nil
}

// Unmute implements Kernel.
func (k *Linux) Unmute(ctx context.Context, sandbox string, mac cluster.MAC, addrs []netip.Prefix) (bool, error) {
	changed, err := k.visitMAC(ctx, sandbox, mac, func(in *netlink.Handle, l netlink.Link) (bool, error) {
		if l.Attrs().Alias != muted {
			return false, nil
		}
		if err := giveAddrs(in, l, l.Attrs().Name, addrs); err != nil {
			return false, err
		}
		if err := in.LinkSetUp(l); err != nil {
			return false, fmt.Errorf("set up: %w", err)
		}
		if err := in.LinkSetAlias(l, ""); err != nil {
			return false, fmt.Errorf("remove the mark: %w", err)
		}
		return true, nil
	})
	if err != nil {
		return false, fmt.Errorf("let in the interface %s in sandbox %s: %w", mac, sandbox, err)
	}
	return changed, nil
}

// visitMAC runs fn on the interface with this MAC in a sandbox, if there is one.
func (k *Linux) visitMAC(ctx context.Context, sandbox string, mac cluster.MAC, fn func(*netlink.Handle, netlink.Link) (bool, error)) (changed bool, err error) {
	err = k.visit(sandbox, func(_ *os.File, in *netlink.Handle) error {
		l, err := findMAC(ctx, in, mac)
		if err != nil || l == nil {
			return err
		}
		changed, err = fn(in, l)
		return err
	})
	return changed, err
}
