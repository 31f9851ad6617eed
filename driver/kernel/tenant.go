package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

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
	names, below := map[int]string{}, map[int]Link{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		if o, ok := linkOf(l, names); ok && ours(l.Attrs()) {
			below[l.Attrs().Index] = o
		}
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

// tenants lists those of one sandbox, unless it was seen; below are our links
// in the host's namespace by index.
func (k *Linux) tenants(ctx context.Context, sandbox string, below map[int]Link, seen map[uint64]bool) (out []Tenant, err error) {
	err = k.visit(sandbox, func(ns *os.File, in *netlink.Handle) error {
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
			a := l.Attrs()
			on, ours := below[a.ParentIndex]
			if !ours || host < 0 || a.NetNsID != host {
				continue
			}
			o, ok := linkOf(l, nil)
			if !ok || o.Kind == Macvlan && on.Kind != VXLAN || o.Kind == Veth && on.Kind != Veth {
				continue
			}
			t := Tenant{Sandbox: sandbox, Name: a.Name, MAC: o.MAC, Kind: o.Kind, Below: on.Name, Master: on.Master, Muted: a.Alias == muted}
			if o.Kind == Macvlan {
				t.Master = ""
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
		}
		return nil
	})
	return out, err
}
