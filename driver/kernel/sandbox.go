package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/cluster"
)

// unfinished is the link group of an interface that Mend is still making. It
// becomes Group in the last step, so that a Mend that was killed half-way is
// taken up again, while an interface that Docker is just configuring is left
// to Docker.
const unfinished = Group + 1

// Hand implements Kernel.
func (k *Linux) Hand(ctx context.Context, h Handover) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := k.hand(h); err != nil {
		return fmt.Errorf("make interface %s: %w", h.Link.Name, err)
	}
	return nil
}

func (k *Linux) hand(h Handover) error {
	if err := k.clear(h); err != nil {
		return err
	}
	link, err := k.endpoint(h, h.Link.Name, Group)
	if err != nil {
		return err
	}
	if err := k.h.LinkAdd(link); err != nil {
		return k.explain(h.Link, err)
	}
	if h.Link.Kind == Veth {
		err = k.adopt(h)
	} else {
		err = k.complete(h)
	}
	if err != nil {
		return errors.Join(err, k.removeLink(h.Link.Name))
	}
	return nil
}

// complete gives a fresh link in the host's namespace what cannot be said in the
// act of creation.
func (k *Linux) complete(h Handover) error {
	l, err := k.h.LinkByName(h.Link.Name)
	if err != nil {
		return err
	}
	return furnish(k.request, k.h, l, h.Link)
}

// furnish gives a fresh link its alias, by which find knows it, and its sources.
func furnish(ask asker, in *netlink.Handle, l netlink.Link, want Link) error {
	if want.MAC.IsZero() && l.Attrs().Alias != want.Name {
		if err := in.LinkSetAlias(l, want.Name); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	have, _ := linkOf(l, nil)
	return setMode(ask, in, l, have, want)
}

// clear removes what stands in the host's namespace under h's names.
func (k *Linux) clear(h Handover) error {
	for _, name := range []string{h.Link.Name, h.Host.Name} {
		if name == "" {
			continue
		}
		l, err := k.h.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if g := l.Attrs().Group; g != Group && g != unfinished {
			return fmt.Errorf("a link called %s stands in the way that isthmus did not make: delete it (ip link delete %s) or rename it", name, name)
		}
		if err := k.h.LinkDel(l); err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}

// endpoint describes the container's end of h under some name, down. A veth
// brings its host end along.
func (k *Linux) endpoint(h Handover, name string, group uint32) (netlink.Link, error) {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.Group = name, h.Link.MTU, group
	if !h.Link.MAC.IsZero() {
		a.HardwareAddr = net.HardwareAddr(h.Link.MAC[:])
	}
	switch h.Link.Kind {
	case Macvlan, IPvlan:
		parent, err := k.h.LinkByName(h.Link.Parent)
		if err != nil {
			return nil, fmt.Errorf("find parent %s: %w", h.Link.Parent, err)
		}
		a.ParentIndex = parent.Attrs().Index
		return stationOf(h.Link, a)
	case Veth:
		v := netlink.NewVeth(a)
		v.PeerName = h.Host.Name
		v.PeerMTU = uint32(h.Host.MTU)
		if !h.Host.MAC.IsZero() {
			v.PeerHardwareAddr = net.HardwareAddr(h.Host.MAC[:])
		}
		return v, nil
	}
	return nil, fmt.Errorf("cannot hand over a link of kind %q", h.Link.Kind)
}

// adopt marks the host end of a fresh veth pair as ours, and sets it up. (The
// library cannot give the peer its group in the act of creation.)
func (k *Linux) adopt(h Handover) error {
	host, err := k.h.LinkByName(h.Host.Name)
	if err != nil {
		return err
	}
	if err := k.h.LinkSetGroup(host, Group); err != nil {
		return fmt.Errorf("set group of %s: %w", h.Host.Name, err)
	}
	if err := k.setLink(h.Host); err != nil {
		return fmt.Errorf("set up %s: %w", h.Host.Name, err)
	}
	return nil
}

// Observe implements Kernel. An interface that Docker moved but did not rename
// yet has no name.
func (k *Linux) Observe(ctx context.Context, h Handover) (string, error) {
	var name string
	err := k.visit(h.Sandbox, func(_ *os.File, in *netlink.Handle) error {
		l, err := find(ctx, in, h)
		if err == nil && l != nil && !strings.HasPrefix(l.Attrs().Name, Prefix) {
			name = l.Attrs().Name
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("look into sandbox %s: %w", h.Sandbox, err)
	}
	return name, nil
}

// Mend implements Kernel.
func (k *Linux) Mend(ctx context.Context, h Handover) (bool, error) {
	made := false
	err := k.visit(h.Sandbox, func(ns *os.File, in *netlink.Handle) error {
		l, err := find(ctx, in, h)
		if err != nil {
			return err
		}
		if l != nil && l.Attrs().Group != unfinished {
			return follow(in, l, h)
		}
		if h.Link.Down {
			return nil // to finish one would set it up
		}
		if l == nil {
			if err := k.plant(h, ns); err != nil {
				return err
			}
			if l, err = find(ctx, in, h); err != nil {
				return err
			}
			if l == nil {
				return errors.New("the new interface vanished")
			}
		}
		if h.Link.Kind == Veth {
			k.mu.Lock()
			err = k.adopt(h)
			k.mu.Unlock()
			if err != nil {
				return err
			}
		}
		made = true
		return finish(in, l, h)
	})
	if err != nil {
		return false, fmt.Errorf("make interface %s in sandbox %s again: %w", h.Link.Name, h.Sandbox, err)
	}
	return made, nil
}

// follow gives an interface in a sandbox what may have changed of h since. A
// macvlan follows its parent's MTU down, an ipvlan down and up, a veth nobody's.
func follow(in *netlink.Handle, l netlink.Link, h Handover) error {
	have, ok := linkOf(l, nil)
	if !ok {
		return nil // of another kind: the user's own affair
	}
	if mtu := h.Link.MTU; mtu != 0 && (have.MTU > mtu || have.MTU < mtu && h.Follow) {
		if err := in.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set mtu to %d: %w", mtu, err)
		}
	}
	if have.Kind != h.Link.Kind {
		return nil
	}
	return setMode(nl.NewNetlinkRequest, in, l, have, h.Link)
}

// plant makes h's interface directly inside the sandbox, under the name that
// it had when it was handed over. It never exists in the host's namespace, so
// neither Diff nor udev there sees it.
func (k *Linux) plant(h Handover, ns *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.clear(h); err != nil {
		return err
	}
	l, err := k.endpoint(h, h.Link.Name, unfinished)
	if err != nil {
		return err
	}
	l.Attrs().Namespace = netlink.NsFd(ns.Fd())
	if v, ok := l.(*netlink.Veth); ok {
		v.PeerNamespace = netlink.NsFd(int(k.ns))
	}
	return k.explain(h.Link, k.h.LinkAdd(l))
}

// finish gives the interface name, addresses and routes, and sets it up. Each
// step may be repeated.
func finish(in *netlink.Handle, l netlink.Link, h Handover) error {
	if err := furnish(nl.NewNetlinkRequest, in, l, h.Link); err != nil {
		return err
	}
	name, err := freeName(in, l.Attrs().Name, h)
	if err != nil {
		return err
	}
	if name != l.Attrs().Name {
		if err := in.LinkSetName(l, name); err != nil {
			return fmt.Errorf("rename to %s: %w", name, err)
		}
	}
	if err := giveAddrs(in, l, name, h.Addrs); err != nil {
		return err
	}
	if err := in.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if err := giveRoutes(in, l, h.Routes); err != nil {
		return err
	}
	if err := in.LinkSetGroup(l, Group); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	return nil
}

// giveRoutes gives the interface, which is up, the routes that it had. Where the
// container has another one to a destination, that stays.
func giveRoutes(in *netlink.Handle, l netlink.Link, routes []Route) error {
	for _, r := range routes {
		n := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.Dst), Scope: netlink.SCOPE_LINK}
		if r.Via.IsValid() {
			n.Gw, n.Scope = r.Via.AsSlice(), netlink.SCOPE_UNIVERSE
		}
		if err := in.RouteAdd(&n); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// giveAddrs gives the interface, of that name by now, addresses that it has
// already or had before.
func giveAddrs(in *netlink.Handle, l netlink.Link, name string, addrs []netip.Prefix) error {
	for _, p := range addrs {
		a := netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Docker switches IPv6 off for a sandbox as a whole, and on for each
			// interface that has an IPv6 address.
			if err := allowIPv6(name); err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD // the address never left: it is leased to this endpoint
		}
		if err := in.AddrReplace(l, &a); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// freeName is the name that h's interface shall have: its own, or, when that
// is unknown or taken by another interface, the first free one of its row.
func freeName(in *netlink.Handle, current string, h Handover) (string, error) {
	row := strings.TrimRight(h.Name, "0123456789")
	if row == "" {
		row = "eth"
	}
	for n := -1; n < 1000; n++ {
		name := h.Name
		if n >= 0 {
			name = fmt.Sprint(row, n)
		} else if name == "" {
			continue
		}
		if name == current {
			return name, nil
		}
		if _, err := in.LinkByName(name); isNotFound(err) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("no interface name %sN is free", row)
}

// visit runs fn inside a sandbox, with a netlink handle there.
func (k *Linux) visit(sandbox string, fn func(ns *os.File, in *netlink.Handle) error) error {
	ns, err := os.Open(sandbox)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return ErrNoSandbox
		}
		return err
	}
	defer ns.Close()
	// Where Docker has not mounted the namespace yet, or not any more, there
	// is an empty file.
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(ns.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return ErrNoSandbox
	}
	return inside(int(ns.Fd()), func() error {
		in, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer in.Close()
		if err := in.SetSocketTimeout(timeout); err != nil {
			return err
		}
		return fn(ns, in)
	})
}

// find returns h's interface in the sandbox, or nil: by its MAC, or where it has
// none of its own by its alias, or by the name that it has before it got that.
func find(ctx context.Context, in *netlink.Handle, h Handover) (netlink.Link, error) {
	links, err := retry(ctx, in.LinkList)
	if err != nil {
		return nil, err
	}
	mac := h.Link.MAC
	for _, l := range links {
		a := l.Attrs()
		if mac.IsZero() && (strings.TrimSuffix(a.Alias, muted) == h.Link.Name || a.Name == h.Link.Name) ||
			!mac.IsZero() && len(a.HardwareAddr) == len(mac) && cluster.MAC(a.HardwareAddr) == mac {
			return l, nil
		}
	}
	return nil, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
