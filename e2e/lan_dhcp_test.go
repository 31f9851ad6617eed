//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const (
	dhcpSubnet = "10.95.0.0/24"
	dhcpRouter = "10.95.0.1"
	dhcpMAC    = "02:5f:00:00:00:99"
)

// dhcpSite is a network whose addresses come from a server in the LAN, with a
// container on each of two hosts, and one whose MAC the user chose.
type dhcpSite struct {
	*lan
	dir, leases   string // of dnsmasq, and its file in there
	hosts         []*lab.Host
	a, b, chosen  *box
	expires, seen time.Time // of the lease of a, when it was looked at
}

// dhcp: containers have their addresses and their router from the LAN's own
// server, which is dnsmasq, knows them by their MACs, and keeps their leases
// whatever becomes of the plugin.
func (l *lan) dhcp(t *testing.T, dir string) *dhcpSite {
	d := &dhcpSite{lan: l, hosts: l.Hosts()[:2], dir: dir}
	d.serve(t)
	l.createNetwork(t, "dhcp", []string{"--subnet", dhcpSubnet, "--ipam-opt", "dhcp=on", "-o", "mode=macvlan", "-o", "parent=eth0"}, d.hosts...)
	d.a = run(t, d.hosts[0], "dhcp-a", "dhcp")
	d.b = run(t, d.hosts[1], "dhcp-b", "dhcp")
	d.chosen = run(t, d.hosts[1], "dhcp-chosen", "dhcp", "--mac-address", dhcpMAC)
	distinct(t, []*box{d.a, d.b, d.chosen})
	for _, b := range []*box{d.a, d.b, d.chosen} {
		d.leased(t, b)
		if routes := b.must(t, "ip", "route"); !strings.Contains(routes, "default via "+dhcpRouter) {
			t.Errorf("routes of %s: %s; want the server's router", b.name, routes)
		}
		if link := b.must(t, "ip", "link", "show", "eth0"); !strings.Contains(link, "mtu 1400 ") {
			t.Errorf("eth0 of %s: %s; want the server's MTU", b.name, link)
		}
		if err := asked(b.exec).reaches(t, dhcpRouter, d.a.ip4, d.b.ip4); err != nil {
			t.Errorf("%s: %v", b.name, err)
		}
	}
	if d.chosen.mac != dhcpMAC {
		t.Errorf("--mac-address %s gave %s", dhcpMAC, d.chosen.mac)
	}
	d.expires, d.seen = d.lease(t, d.a.ip4).expires, time.Now()

	was := d.chosen.ip4
	docker(t, d.chosen.host, "restart", "-t", "0", d.chosen.name)
	if err := d.chosen.inspect(t.Context()); err != nil || d.chosen.ip4 != was || d.chosen.mac != dhcpMAC {
		t.Errorf("after a restart %s has %s with MAC %s, and had %s: %v", d.chosen.name, d.chosen.ip4, d.chosen.mac, was, err)
	}
	d.leased(t, d.chosen)

	// Leases outlive the plugin's process, in both ways that it can end.
	was = d.a.ip4
	if _, err := d.hosts[0].Exec(t.Context(), "kill", "-9", pluginPID(t, d.hosts[0])); err != nil {
		t.Fatal(err)
	}
	docker(t, d.hosts[1], "plugin", "disable", "-f", driverName)
	docker(t, d.hosts[1], "plugin", "enable", driverName)
	l.awaitMembers(t, len(l.Hosts()))
	if err := d.a.inspect(t.Context()); err != nil || d.a.ip4 != was {
		t.Errorf("%s had %s and has %s: %v", d.a.name, was, d.a.ip4, err)
	}
	for _, b := range []*box{d.a, d.b, d.chosen} {
		d.lease(t, b.ip4)
	}
	return d
}

// serve starts a DHCP server on a machine of the LAN, with leases of two
// minutes, the shortest there are. It ends with the lab.
func (d *dhcpSite) serve(t *testing.T) {
	t.Helper()
	server := d.station(t, "dhcp", dhcpRouter+"/24")
	d.leases = filepath.Join(d.dir, "leases")
	cmd := server.Command(context.WithoutCancel(t.Context()), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file",
		"--log-facility=-", "--interface=eth0", "--bind-interfaces", "--dhcp-leasefile="+d.leases, "--dhcp-authoritative",
		"--dhcp-range=10.95.0.100,10.95.0.199,255.255.255.0,2m", "--dhcp-option=option:router,"+dhcpRouter, "--dhcp-option=option:mtu,1400")
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (scripts/install brings it)", err)
	}
	go cmd.Wait() // nobody needs to know how it ends
	eventually(t, 10*time.Second, func() error {
		b, err := os.ReadFile(log.Name())
		if err == nil && !bytes.Contains(b, []byte("DHCP, IP range")) {
			err = fmt.Errorf("dnsmasq does not serve yet: %s", b)
		}
		return err
	})
}

// A lease is one line of dnsmasq's file.
type dhcpLease struct {
	expires time.Time
	mac     string
}

func (d *dhcpSite) find(addr string) (dhcpLease, bool, error) {
	b, err := os.ReadFile(d.leases)
	if err != nil {
		return dhcpLease{}, false, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // expiry, MAC, address, name, client id
		if len(f) < 3 || f[2] != addr {
			continue
		}
		n, err := strconv.ParseInt(f[0], 10, 64)
		return dhcpLease{time.Unix(n, 0), f[1]}, true, err
	}
	return dhcpLease{}, false, nil
}

// lease wants the server to have leased an address of its range.
func (d *dhcpSite) lease(t *testing.T, addr string) dhcpLease {
	t.Helper()
	if a, err := netip.ParseAddr(addr); err != nil || a.Less(netip.MustParseAddr("10.95.0.100")) || netip.MustParseAddr("10.95.0.199").Less(a) {
		t.Errorf("%q is not of the server's range", addr)
	}
	got, ok, err := d.find(addr)
	if err != nil || !ok {
		t.Errorf("the server has no lease of %s: %v", addr, err)
	}
	return got
}

// leased waits until the server knows a container by its MAC.
func (d *dhcpSite) leased(t *testing.T, b *box) {
	t.Helper()
	d.lease(t, b.ip4)
	eventually(t, 15*time.Second, func() error {
		got, ok, err := d.find(b.ip4)
		if err == nil && (!ok || got.mac != b.mac) {
			err = fmt.Errorf("%s has %s with MAC %s, and the server a lease with %q", b.name, b.ip4, b.mac, got.mac)
		}
		return err
	})
}

// kept: leases are renewed while containers run, and given back when they are
// removed.
func (d *dhcpSite) kept(t *testing.T) {
	eventually(t, time.Until(d.seen.Add(90*time.Second)), func() error { // half of the lease is 60 s
		got, ok, err := d.find(d.a.ip4)
		if err == nil && (!ok || !got.expires.After(d.expires)) {
			err = fmt.Errorf("lease of %s: %t, until %s, and was until %s", d.a.ip4, ok, got.expires, d.expires)
		}
		return err
	})
	removeBoxes(t, d.a, d.b, d.chosen)
	for _, b := range []*box{d.a, d.b, d.chosen} {
		took := eventually(t, 15*time.Second, func() error {
			_, ok, err := d.find(b.ip4)
			if err == nil && ok {
				err = fmt.Errorf("the server still leases %s of %s, who is removed", b.ip4, b.name)
			}
			return err
		})
		t.Logf("%s is given back after %s", b.ip4, took.Round(10*time.Millisecond))
	}
	d.removeNetwork(t, "dhcp", d.hosts...)
	forget(t, dhcpSubnet, d.hosts...)
}
