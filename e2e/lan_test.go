//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestLAN runs what three hosts in a LAN must do with macvlan, on one lab. What
// takes a minute by itself begins early and is looked at in the end.
func TestLAN(t *testing.T) {
	l := &lan{site: newSite(t, lab.Config{Hosts: 3})}
	l.machine = l.station(t, "machine", machine4+"/24", machine6+"/64")
	before := snapshots(t, l.site)
	dir := t.TempDir() // which the parts leave to each other
	var dhcp *dhcpSite
	var strangers func(*testing.T)
	for _, part := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"host-access", l.hostAccess},
		{"dhcp", func(t *testing.T) { dhcp = l.dhcp(t, dir) }},
		{"sixty", func(t *testing.T) { strangers = l.sixty(t) }},
		{"migrate", l.migrate},
		{"refusals", l.refusals},
		{"faults", l.faults},
		{"dhcp-kept", func(t *testing.T) { dhcp.kept(t) }},
		{"strangers-gone", func(t *testing.T) { strangers(t) }},
		{"nothing-left", func(t *testing.T) { nothingLeft(t, l.site, before) }},
	} {
		if !t.Run(part.name, part.do) {
			return
		}
	}
}

// asked is anything that runs commands: a host, a station, a container.
type asked func(ctx context.Context, args ...string) (string, error)

// reaches pings each address once.
func (from asked) reaches(t *testing.T, addrs ...string) error {
	script := `for a; do ping -c 1 -W 1 "$a" >/dev/null 2>&1 || { echo "$a is not reached"; exit 1; }; done`
	out, err := from(t.Context(), append([]string{"sh", "-c", script, "sh"}, addrs...)...)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// status waits until isthmus status of a host has all words.
func (l *lan) status(t *testing.T, h *lab.Host, words ...string) { says(t, h, true, words) }

// statusWithout waits until it has none of them.
func (l *lan) statusWithout(t *testing.T, h *lab.Host, words ...string) { says(t, h, false, words) }

func says(t *testing.T, h *lab.Host, want bool, words []string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		out, err := isthmus(t.Context(), h, "status")
		for _, word := range words {
			if err == nil && strings.Contains(out, word) != want {
				err = fmt.Errorf("status of %s names %q: %t, want %t:\n%s", h.Name, word, !want, want, out)
			}
		}
		return err
	})
}

// hostAccess: host and containers reach each other by host_access, by both
// families, as everybody else does, and nothing changes in the host's own address.
func (l *lan) hostAccess(t *testing.T) {
	before := snapshots(t, l.site)
	own := func(h *lab.Host) string {
		return normal(lab.Must(t)(h.Exec(t.Context(), "ip", "-o", "address", "show", "eth0")))
	}
	was := own(l.Host(1))
	l.createNetwork(t, "near", slices.Concat(lanArgs, []string{"-o", "mode=macvlan", "-o", "parent=eth0", "-o", "host_access=on"}))
	boxes := l.boxes(t, "near", "A", "B", "C")
	a, b, c := boxes["A"], boxes["B"], boxes["C"]
	h := l.Host(1)
	mine := l.hostAddrs(t, h)
	for _, try := range []struct {
		what string
		from asked
		to   []string
	}{
		{"host to its own containers", h.Exec, []string{a.ip4, a.ip6, b.ip4, b.ip6}},
		{"host to a container elsewhere", h.Exec, []string{c.ip4, c.ip6}},
		{"host to the machine and another host", h.Exec, []string{machine4, machine6, l.Host(2).IP().String(), l.Host(2).IP6().String()}},
		{"container to its own host", a.exec, append(mine, h.IP().String())},
		{"container to everybody else", a.exec, []string{l.Host(2).IP().String(), l.Host(2).IP6().String(), machine4, machine6, b.ip4, c.ip4, c.ip6}},
		{"machine to containers and hosts", l.machine.Exec, []string{a.ip4, a.ip6, c.ip4, c.ip6, h.IP().String(), h.IP6().String()}},
		{"host without a container there", l.Host(3).Exec, []string{a.ip4, a.ip6, c.ip4, c.ip6}},
	} {
		eventually(t, 10*time.Second, func() error {
			if err := try.from.reaches(t, try.to...); err != nil {
				return fmt.Errorf("%s: %w", try.what, err)
			}
			return nil
		})
	}
	if now := own(h); now != was {
		t.Errorf("addresses of eth0 were\n%s\nand are\n%s", was, now)
	}
	// A stranger's IPv6 address is not handed out either.
	if _, err := start(t.Context(), h, "stranger6", "near", "--ip6", machine6); err == nil || !strings.Contains(err.Error(), machine6) {
		t.Errorf("--ip6 of the machine: %v, want it refused", err)
	}
	h.Docker(t.Context(), "rm", "-f", "stranger6")

	removeBoxes(t, a, b, c)
	l.removeNetwork(t, "near")
	nothingLeft(t, l.site, before)
	forget(t, lanSubnet4, l.Hosts()...)
}

// hostAddrs are those that a host has from the cluster itself, by host_access: one
// of each family.
func (l *lan) hostAddrs(t *testing.T, h *lab.Host) []string {
	t.Helper()
	out, err := isthmus(t.Context(), h, "networks", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var networks []struct{ Host []string }
	if err := decode(out, &networks); err != nil {
		t.Fatal(err)
	}
	if len(networks) != 1 || len(networks[0].Host) != 2 {
		t.Fatalf("%s has the networks %s, want one with two addresses of the host", h.Name, out)
	}
	return networks[0].Host
}

// forget drops what hosts keep for a network's return, and waits until the
// cluster has given its subnet up.
func forget(t *testing.T, subnet string, hosts ...*lab.Host) {
	t.Helper()
	each(t, hosts, func(h *lab.Host) error {
		out, err := h.Exec(t.Context(), "isthmus", "networks", "forget", subnet)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	for _, h := range hosts {
		eventually(t, 20*time.Second, func() error {
			out, err := isthmus(t.Context(), h, "ipam")
			if err == nil && strings.Contains(out, subnet) {
				err = fmt.Errorf("%s still knows %s:\n%s", h.Name, subnet, out)
			}
			return err
		})
	}
}

// sixty: containers of three hosts on one network have distinct addresses, and
// none that a stranger has, as long as that is there. It returns what is to be
// looked at a minute later.
func (l *lan) sixty(t *testing.T) func(t *testing.T) {
	const on = 20
	var taken []netip.Prefix
	for i := range 15 { // whatever blocks the hosts lease, each has some in them
		taken = append(taken, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(131 + 8*i)}), 24))
	}
	strangers, err := l.Station(t.Context(), "strangers", taken...)
	if err != nil {
		t.Fatal(err)
	}
	isTaken := func(a string) bool {
		return slices.ContainsFunc(taken, func(p netip.Prefix) bool { return p.Addr().String() == a })
	}
	l.createNetwork(t, "sixty", []string{"--subnet", lanSubnet4, "--gateway", router4, "--ip-range", "10.99.0.128/25", "-o", "mode=macvlan", "-o", "parent=eth0"})
	begun := time.Now()
	var mu sync.Mutex // guards boxes
	var boxes []*box
	each(t, l.Hosts(), func(h *lab.Host) error {
		work := make(chan int)
		go func() {
			defer close(work)
			for i := range on {
				work <- i
			}
		}()
		var failed error
		var wait sync.WaitGroup
		for range 2 { // at once; more would starve the cluster of CPU on a small machine
			wait.Go(func() {
				for i := range work {
					b, err := startQuick(t.Context(), h, fmt.Sprintf("sixty-%s-%d", h.Name, i), "sixty")
					mu.Lock()
					if err != nil {
						failed = err
					} else {
						boxes = append(boxes, b)
					}
					mu.Unlock()
				}
			})
		}
		wait.Wait()
		return failed
	})
	t.Logf("%d containers started in %s", len(boxes), time.Since(begun).Round(100*time.Millisecond))
	if len(boxes) != on*len(l.Hosts()) {
		t.Fatalf("%d containers, want %d", len(boxes), on*len(l.Hosts()))
	}
	distinct(t, boxes)
	for _, b := range boxes {
		if a, err := netip.ParseAddr(b.ip4); err != nil || !netip.MustParsePrefix("10.99.0.128/25").Contains(a) || isTaken(b.ip4) {
			t.Errorf("%s on %s has %q, which is a stranger's or outside of the range", b.name, b.host.Name, b.ip4)
		}
	}
	// Each host met some, and says so.
	var known string
	for _, h := range l.Hosts() {
		eventually(t, 15*time.Second, func() error {
			out, err := isthmus(t.Context(), h, "status")
			if err != nil {
				return err
			}
			for _, p := range taken {
				if a := p.Addr().String(); strings.Contains(out, a) {
					known = a
					return nil
				}
			}
			return fmt.Errorf("status of %s names no stranger:\n%s", h.Name, out)
		})
	}
	h := l.Host(3)
	_, err = start(t.Context(), h, "instead", "sixty", "--ip", known)
	if err == nil || !strings.Contains(err.Error(), known) || !strings.Contains(err.Error(), "in use on the LAN") {
		t.Errorf("--ip of a stranger: %v, want it refused with the reason", err)
	}
	h.Docker(t.Context(), "rm", "-f", "instead")
	each(t, l.Hosts(), func(h *lab.Host) error { return removeAll(t.Context(), h, "sixty") })

	if err := strangers.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	b := run(t, h, "instead", "sixty", "--ip", known)
	if b.ip4 != known {
		t.Errorf("--ip %s gave %s", known, b.ip4)
	}
	if err := asked(l.machine.Exec).reaches(t, known); err != nil {
		t.Error(err)
	}
	removeBoxes(t, b)
	return func(t *testing.T) {
		for _, h := range l.Hosts() {
			eventually(t, time.Until(gone.Add(75*time.Second)), func() error {
				out, err := isthmus(t.Context(), h, "status")
				for _, p := range taken {
					if err == nil && strings.Contains(out, p.Addr().String()) {
						err = fmt.Errorf("status of %s names %s, who is gone for %s:\n%s", h.Name, p.Addr(), time.Since(gone), out)
					}
				}
				return err
			})
		}
		t.Logf("no stranger is named %s after they are gone, or earlier", time.Since(gone).Round(time.Second))
		l.drop(t, "sixty", nil, lanSubnet4)
	}
}
