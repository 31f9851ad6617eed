package kernel

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// muted ends the alias of a link that Mute took down: what somebody else took
// down is not set up again.
const muted = " isthmus: cut off"

// Mute implements Kernel. The mark comes first and goes last, so that one that
// was killed half-way is taken up again.
func (k *Linux) Mute(ctx context.Context, h Handover) (bool, error) {
	changed, err := k.visitOne(ctx, h, func(in *netlink.Handle, l netlink.Link) (bool, error) {
		a := l.Attrs()
		up, marked := a.RawFlags&unix.IFF_UP != 0, strings.HasSuffix(a.Alias, muted)
		if strings.HasPrefix(a.Name, Prefix) || !up && marked {
			return false, nil
		}
		if err := in.LinkSetAlias(l, strings.TrimSuffix(a.Alias, muted)+muted); err != nil {
			return false, fmt.Errorf("mark: %w", err)
		}
		// Without it the kernel drops the IPv6 addresses; Unmute adds those that it
		// is told of, and the routes, which go in any case.
		_ = setIPv6(a.Name, "keep_addr_on_down", "1")
		if err := in.LinkSetDown(l); err != nil {
			return false, fmt.Errorf("set down: %w", err)
		}
		return true, nil
	})
	if err != nil {
		return false, fmt.Errorf("cut off %s in sandbox %s: %w", h.who(), h.Sandbox, err)
	}
	return changed, nil
}

// Unmute implements Kernel.
func (k *Linux) Unmute(ctx context.Context, h Handover) (bool, error) {
	changed, err := k.visitOne(ctx, h, func(in *netlink.Handle, l netlink.Link) (bool, error) {
		alias, marked := strings.CutSuffix(l.Attrs().Alias, muted)
		if !marked {
			return false, nil
		}
		if err := giveAddrs(in, l, l.Attrs().Name, h.Addrs); err != nil {
			return false, err
		}
		if err := in.LinkSetUp(l); err != nil {
			return false, fmt.Errorf("set up: %w", err)
		}
		if err := giveRoutes(in, l, h.Routes); err != nil {
			return false, err
		}
		if err := in.LinkSetAlias(l, alias); err != nil {
			return false, fmt.Errorf("remove the mark: %w", err)
		}
		return true, nil
	})
	if err != nil {
		return false, fmt.Errorf("let in %s in sandbox %s: %w", h.who(), h.Sandbox, err)
	}
	return changed, nil
}

// visitOne runs fn on h's interface in its sandbox, if it is there.
func (k *Linux) visitOne(ctx context.Context, h Handover, fn func(*netlink.Handle, netlink.Link) (bool, error)) (changed bool, err error) {
	err = k.visit(h.Sandbox, func(_ *os.File, in *netlink.Handle) error {
		l, err := find(ctx, in, h)
		if err != nil || l == nil {
			return err
		}
		changed, err = fn(in, l)
		return err
	})
	return changed, err
}

// who names the interface for people.
func (h Handover) who() string {
	if h.Link.MAC.IsZero() {
		return "interface " + h.Link.Name
	}
	return "interface " + h.Link.MAC.String()
}
