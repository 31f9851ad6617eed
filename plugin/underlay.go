package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// link is one interface of this host, as far as picking an underlay needs it.
type link struct {
	name     string
	mtu      int
	mac      string
	loopback bool
	addrs    []netip.Prefix // in the kernel's order
}

// findUnderlay looks for the underlay address and the link that has it, now.
// current is the address in use, which is kept where several would do.
func findUnderlay(ctx context.Context, k kernel.Kernel, how Advertise, current netip.Addr) (kernel.Underlay, error) {
	if how == (Advertise{}) {
		u, err := k.Underlay(ctx, netip.Addr{})
		if err != nil {
			return kernel.Underlay{}, fmt.Errorf("find the underlay by the default route: %w; set ADVERTISE where there is none", err)
		}
		if !u.Addr.IsValid() {
			return kernel.Underlay{}, errors.New("find the underlay by the default route: there is none yet; set ADVERTISE where there never is")
		}
		return u, nil
	}
	links, err := hostLinks()
	if err != nil {
		return kernel.Underlay{}, fmt.Errorf("find the underlay: %w", err)
	}
	return pickUnderlay(how, links, current)
}

func hostLinks() ([]link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []link
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		l := link{name: i.Name, mtu: i.MTU, mac: i.HardwareAddr.String(), loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				addr, _ := netip.AddrFromSlice(n.IP)
				bits, _ := n.Mask.Size()
				l.addrs = append(l.addrs, netip.PrefixFrom(addr.Unmap(), bits))
			}
		}
		out = append(out, l)
	}
	return out, nil
}

// pickUnderlay finds the address that how means. Among several it keeps
// current, else takes the first, IPv4 before IPv6.
func pickUnderlay(how Advertise, links []link, current netip.Addr) (kernel.Underlay, error) {
	var found []kernel.Underlay
	for _, l := range links {
		for _, p := range l.addrs {
			u := kernel.Underlay{Name: l.name, MTU: l.mtu, Addr: p.Addr(), MAC: l.mac}
			switch {
			case how.Addr.IsValid():
				// All of a loopback's network is the host's own.
				if how.Addr == p.Addr() || l.loopback && p.Contains(how.Addr) {
					u.Addr = how.Addr
					return u, nil
				}
			case p.Addr().IsLinkLocalUnicast():
			case how.Interface == l.name,
				how.Prefix.IsValid() && how.Prefix.Contains(p.Addr()):
				found = append(found, u)
			}
		}
	}
	if i := slices.IndexFunc(found, func(u kernel.Underlay) bool { return u.Addr == current }); i >= 0 {
		return found[i], nil
	}
	if i := slices.IndexFunc(found, func(u kernel.Underlay) bool { return u.Addr.Is4() }); i >= 0 {
		return found[i], nil
	}
	if len(found) > 0 {
		return found[0], nil
	}
	return kernel.Underlay{}, fmt.Errorf("find the underlay: no address of this host fits ADVERTISE=%s; see ip address", how.value())
}

// lastUnderlay is the one that this host had before it went down: with it the
// networks of a host that boots before its network are there at once.
func lastUnderlay(dir string) (kernel.Underlay, bool) {
	var u kernel.Underlay
	b, err := os.ReadFile(filepath.Join(dir, "underlay"))
	if err != nil || json.Unmarshal(b, &u) != nil {
		return kernel.Underlay{}, false
	}
	return u, u.Addr.IsValid()
}

func storeUnderlay(dir string, u kernel.Underlay) error {
	b, err := json.Marshal(u)
	if err == nil {
		err = writeFile(filepath.Join(dir, "underlay"), b)
	}
	if err != nil {
		return fmt.Errorf("store the underlay: %w", err)
	}
	return nil
}

const (
	underlayEvery = 2 * time.Second
	// movedTwice: a route that flaps is no new address.
	movedTwice = 2
)

// watchUnderlay follows the underlay: a new MTU is passed on, a new address
// ends the node. While there is no address at all, the node goes on with the
// one that it had.
func (n *node) watchUnderlay(ctx context.Context) error {
	tick := time.NewTicker(n.look)
	defer tick.Stop()
	moved := 0
	for {
		was := n.underlay()
		u, err := findUnderlay(ctx, n.kernel, n.cfg.Advertise, was.Addr)
		n.mu.Lock()
		n.belowError = err
		n.mu.Unlock()
		switch {
		case err != nil:
		case u.Addr != was.Addr:
			if moved++; moved == movedTwice {
				n.log.WithField("was", was.Addr).WithField("is", u.Addr).Warn("the underlay address changed")
				return errors.Join(errMoved, storeUnderlay(n.cfg.State, u))
			}
		default:
			moved = 0
			if u != was {
				n.setUnderlay(u)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *node) setUnderlay(u kernel.Underlay) {
	n.mu.Lock()
	n.below = u
	n.mu.Unlock()
	n.log.WithField("link", u.Name).WithField("mtu", u.MTU).Info("the underlay link changed")
	n.gossip.SetInfo(n.info(u))
	n.driver.SetUnderlay(u.Addr, u.MTU)
	if err := storeUnderlay(n.cfg.State, u); err != nil {
		n.log.WithError(err).Warn("the underlay will be looked up at the next start")
	}
}

func (n *node) underlay() kernel.Underlay {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.below
}

func (n *node) underlayProblem() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.belowError
}
