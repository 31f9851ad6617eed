package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tenants implements Kernel.
func (k *Linux) Tenants(ctx context.Context, dirs ...string) ([]Tenant, error) {
	k.mu.Lock()
	links, err := retry(ctx, k.h.LinkList)
	k.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("look for tenants: %w", err)
	}
	names, below := map[int]string{}, map[int]ground{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		g := ground{Link: Link{Name: l.Attrs().Name}}
		if o, ok := linkOf(l, names); ok && ours(l, names) {
			g = ground{o, true}
		}
		below[l.Attrs().Index] = g
	}
	var own unix.Stat_t
	if err := unix.Fstat(int(k.ns), &own); err != nil {
		return nil, fmt.Errorf("look for tenants: %w", err)
	}
	var tenants []Tenant
	var errs []error
	// Docker may show one sandbox under two names, such as that of the host.
	seen := map[uint64]bool{own.Ino: true}
	for _, dir := range append([]string{k.dir}, dirs...) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, fmt.Errorf("look for tenants: %w", err))
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return tenants, errors.Join(append(errs, ctx.Err())...)
			}
			path := filepath.Join(dir, e.Name())
			found, err := k.tenants(ctx, path, below, seen)
			if err != nil && !errors.Is(err, ErrNoSandbox) {
				errs = append(errs, fmt.Errorf("look for tenants in sandbox %s: %w", path, err))
			}
			tenants = append(tenants, found...)
		}
	}
	return tenants, errors.Join(errs...)
}

// ground is a link in the host's namespace that a tenant may stand on.
type ground struct {
	Link
	ours bool
}

// bears reports whether o, in a sandbox and with this link group, is a tenant
// on g. On a link of somebody else it needs our mark, which it keeps there.
func (g ground) bears(o Link, group uint32) bool {
	marked := group == Group || group == unfinished
	switch o.Kind {
	case Macvlan:
		return marked || g.ours && g.Kind == VXLAN
	case IPvlan:
		return marked
	case Veth:
		return g.ours && g.Kind == Veth
	}
	return false
}

// tenants lists those of one sandbox, unless it was seen; below are the links
// in the host's namespace by index.
func (k *Linux) tenants(ctx context.Context, sandbox string, below map[int]ground, seen map[uint64]bool) (out []Tenant, err error) {
	err = k.lodgers(ctx, sandbox, seen, func(in *netlink.Handle, l netlink.Link) error {
		a := l.Attrs()
		on, known := below[a.ParentIndex]
		o, ok := linkOf(l, nil)
		if !known || !ok || !on.bears(o, a.Group) {
			return nil
		}
		t := Tenant{Sandbox: sandbox, Name: a.Name, MAC: o.MAC, Kind: o.Kind, Below: on.Name}
		t.Link, t.Muted = strings.CutSuffix(a.Alias, muted)
		if o.Kind == Veth {
			t.Master = on.Master
		}
		if !o.MAC.IsZero() {
			t.Link = ""
		}
		addrs, err := retry(ctx, func() ([]netlink.Addr, error) { return in.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, p := range addrs {
			bits, _ := p.Mask.Size()
			if ip := addrOf(p.IP); ip.IsValid() && !ip.IsLinkLocalUnicast() {
				t.Addrs = append(t.Addrs, netip.PrefixFrom(ip, bits))
			}
		}
		out = append(out, t)
		return nil
	})
	return out, err
}

// lodgers calls fn inside a sandbox, unless it was seen, for each link there that
// stands on one in the host's namespace: its ParentIndex is of that.
func (k *Linux) lodgers(ctx context.Context, sandbox string, seen map[uint64]bool, fn func(in *netlink.Handle, l netlink.Link) error) error {
	return k.visit(sandbox, func(ns *os.File, in *netlink.Handle) error {
		var st unix.Stat_t
		if err := unix.Fstat(int(ns.Fd()), &st); err != nil || seen[st.Ino] {
			return err
		}
		seen[st.Ino] = true
		// What the host's namespace is called there: of a link whose other end is
		// elsewhere, the index means nothing here.
		host, err := in.GetNetNsIdByFd(int(k.ns))
		if err != nil {
			return fmt.Errorf("name the host's namespace: %w", err)
		}
		links, err := retry(ctx, in.LinkList)
		if err != nil {
			return err
		}
		for _, l := range links {
			if host < 0 || l.Attrs().NetNsID != host {
				continue
			}
			if err := fn(in, l); err != nil {
				return err
			}
		}
		return nil
	})
}
