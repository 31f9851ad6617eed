package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
)

// Resolve turns host[:port] entries into addresses. A host is a name, an IPv4
// or an IPv6 address; an IPv6 address needs brackets only before a port. A
// name stands for all its A and AAAA records. The default port is used where
// an entry has none.
//
// What can be resolved is returned, without duplicates and in the order of the
// entries, together with an error that names each entry that could not. Names
// are looked up at the same time, bounded by ctx.
func Resolve(ctx context.Context, entries []string, port uint16) ([]netip.AddrPort, error) {
	found := make([][]netip.AddrPort, len(entries))
	errs := make([]error, len(entries))
	var wg sync.WaitGroup
	for i, entry := range entries {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		wg.Go(func() {
			var err error
			if found[i], err = resolve(ctx, entry, port); err != nil {
				errs[i] = fmt.Errorf("resolve %q: %w", entry, err)
			}
		})
	}
	wg.Wait()

	var out []netip.AddrPort
	seen := map[netip.AddrPort]bool{}
	for _, addrs := range found {
		for _, a := range addrs {
			if !seen[a] {
				seen[a] = true
				out = append(out, a)
			}
		}
	}
	return out, errors.Join(errs...)
}

func resolve(ctx context.Context, entry string, port uint16) ([]netip.AddrPort, error) {
	host, port, err := splitEntry(entry, port)
	if err != nil {
		return nil, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), port)}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), port))
	}
	return out, nil
}

// splitEntry parts host[:port]. More than one colon without brackets is a bare
// IPv6 address.
func splitEntry(entry string, port uint16) (string, uint16, error) {
	host := entry
	if strings.HasPrefix(entry, "[") || strings.Count(entry, ":") == 1 {
		if h, ok := strings.CutPrefix(entry, "["); ok && strings.HasSuffix(h, "]") {
			host = strings.TrimSuffix(h, "]")
		} else {
			h, p, err := net.SplitHostPort(entry)
			if err != nil {
				return "", 0, errors.New("need host, host:port or [IPv6]:port")
			}
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil || n == 0 {
				return "", 0, fmt.Errorf("port %q: need a number from 1 to 65535", p)
			}
			host, port = h, uint16(n)
		}
		if strings.Contains(host, ":") {
			if _, err := netip.ParseAddr(host); err != nil {
				return "", 0, errors.New("no IPv6 address within the brackets")
			}
		}
	} else if strings.Contains(entry, ":") {
		if _, err := netip.ParseAddr(entry); err != nil {
			return "", 0, errors.New("need host, host:port or [IPv6]:port")
		}
	}
	if host == "" {
		return "", 0, errors.New("no host before the port")
	}
	return host, port, nil
}
