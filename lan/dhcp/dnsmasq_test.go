//go:build kernel

package dhcp_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/dhcp"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// site is a host and a dnsmasq on one switch.
type site struct {
	*testing.T
	host, far *lantest.Space
	dir       string
	mac       cluster.MAC // of the host's eth0
	dhcp.Client

	cmd *exec.Cmd
	log safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newSite(t *testing.T, options ...string) *site {
	t.Helper()
	t.Parallel()
	s := &site{T: t, host: lantest.NewSpace(t), far: lantest.NewSpace(t), dir: t.TempDir()}
	wire := lantest.NewSpace(t)
	wire.Switch(s.host, s.far)
	s.far.Sh("ip addr add 192.0.2.1/24 dev eth0")
	err := s.host.In(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			s.mac = cluster.MAC(i.HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Client.Open = func(ifname string, also cluster.MAC) (w lan.Wire, err error) {
		return w, s.host.In(func() error {
			w, err = dhcp.Open(ifname, also)
			return err
		})
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("dnsmasq:\n%s", &s.log)
		}
	})
	s.serve(options...)
	return s
}

const (
	three   = "--dhcp-range=192.0.2.10,192.0.2.12,255.255.255.0,1h"
	noPing  = "--no-ping"
	certain = "--dhcp-authoritative"
)

// serve runs dnsmasq until kill, or the end of the test.
func (s *site) serve(options ...string) {
	s.Helper()
	args := append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file", "--log-facility=-",
		"--interface=eth0", "--bind-interfaces", "--dhcp-leasefile=" + s.leases(),
		"--dhcp-option=option:mtu,1400", "--dhcp-option=option:dns-server,192.0.2.2,192.0.2.3", "--domain=example.org"}, options...)
	s.cmd = exec.Command("dnsmasq", args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.far.In(s.cmd.Start); err != nil {
		s.Fatalf("%v (scripts/install brings it)", err)
	}
	before := strings.Count(s.log.String(), "DHCP, IP range")
	lantest.Await(s, "start dnsmasq", func() error {
		if strings.Count(s.log.String(), "DHCP, IP range") == before {
			return fmt.Errorf("it says %s", &s.log)
		}
		return nil
	})
}

func (s *site) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
	s.cmd = nil
}

func (s *site) leases() string { return filepath.Join(s.dir, "leases") }

// lease returns dnsmasq's account of an address, or "": time of expiry, MAC,
// address, name, client identifier.
func (s *site) lease(a netip.Addr) []string {
	b, err := os.ReadFile(s.leases())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 5 && f[2] == a.String() {
			return f
		}
	}
	return nil
}

func (s *site) get(r dhcp.Request) dhcp.Lease {
	s.Helper()
	l, err := s.Obtain(s.Context(), r)
	if err != nil {
		s.Fatal(err)
	}
	return l
}

// container makes a macvlan child with the MAC and address of a lease.
func (s *site) container(l dhcp.Lease) *lantest.Space {
	s.Helper()
	box := lantest.NewSpace(s)
	s.host.Sh("ip link add c0 link eth0 address %s type macvlan mode bridge; ip link set c0 netns %s", l.MAC, box.Path())
	box.Sh("ip link set c0 name eth0; ip addr add %s dev eth0; ip link set eth0 up", l.Prefix)
	return box
}

func TestDnsmasqLease(t *testing.T) {
	s := newSite(t, three, noPing)
	l := s.get(of("my_web"))
	if l.Prefix.Bits() != 24 || l.Router != addr("192.0.2.1") || l.MTU != 1400 || len(l.DNS) != 2 || l.Domain != "example.org" || l.Server != addr("192.0.2.1") ||
		l.ServerMAC.IsZero() || l.Expires.Sub(l.Granted) != time.Hour || l.Renew.Sub(l.Granted).Round(time.Minute) != 30*time.Minute {
		t.Errorf("lease %+v", l)
	}
	f := s.lease(l.Addr)
	if f == nil || f[1] != mac(50).String() || f[3] != "my-web" || strings.ReplaceAll(f[4], ":", "") != hex.EncodeToString(dhcp.Identity("my_web")) {
		t.Errorf("dnsmasq has %v", f)
	}
	if again := s.get(of("my_web")); again.Addr != l.Addr {
		t.Errorf("the same client got %s, then %s", l.Addr, again.Addr)
	}
	if err := s.Release(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	lantest.Await(t, "release", func() error {
		if f := s.lease(l.Addr); f != nil {
			return fmt.Errorf("dnsmasq has %v", f)
		}
		return nil
	})
}

// A server that looks for three seconds whether the address is free.
func TestDnsmasqPings(t *testing.T) {
	s := newSite(t, three)
	s.get(of("web"))
}

// As many addresses as identifiers, for one MAC; and no more than there are.
func TestDnsmasqOneMAC(t *testing.T) {
	s := newSite(t, three, noPing)
	seen := map[netip.Addr]dhcp.Lease{}
	for _, name := range []string{"a", "b", "c"} {
		r := of(name)
		r.MAC = cluster.MAC{}
		l := s.get(r)
		seen[l.Addr] = l
		if l.MAC != s.mac {
			t.Errorf("MAC %s, want the parent's, %s", l.MAC, s.mac)
		}
	}
	if len(seen) != 3 {
		t.Fatalf("three clients share %v", seen)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := s.Obtain(ctx, of("d")); !errors.Is(err, dhcp.ErrSilent) {
		t.Errorf("a fourth of three addresses: %v", err)
	}
	for a, l := range seen {
		if err := s.Release(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if l := s.get(of("d")); l.Addr != a {
			t.Errorf("%s was released, %s given", a, l.Addr)
		}
		break
	}
}

// dnsmasq takes a client with the MAC of the host for the host, when that
// sends no identifier.
func TestDnsmasqHost(t *testing.T) {
	s := newSite(t, three, noPing)
	script := filepath.Join(s.dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" != bound ] || ip addr add $ip/24 dev $interface\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.host.Sh("busybox udhcpc -i eth0 -C -q -n -f -s %s", script)
	own := s.host.Sh("ip -4 -o addr show dev eth0")
	r := of("web")
	r.MAC = cluster.MAC{}
	if _, err := s.Obtain(t.Context(), r); !errors.Is(err, dhcp.ErrOwn) {
		t.Errorf("with the host's MAC: %v", err)
	}
	r.MAC = dhcp.MACOf(r.ClientID)
	if l := s.get(r); strings.Contains(own, l.Addr.String()) {
		t.Errorf("the host has %s", l.Addr)
	}
	if after := s.host.Sh("ip -4 -o addr show dev eth0"); after != own {
		t.Errorf("the host's address changed from %s to %s", own, after)
	}
}

// noted is a Wire that remembers to whom the last frame went.
type noted struct {
	lan.Wire
	to *netip.Addr
}

func (w noted) Receive(ctx context.Context) ([]byte, error) {
	b, err := w.Wire.Receive(ctx)
	if err == nil {
		*w.to = netip.AddrFrom4([4]byte(b[30:34]))
	}
	return b, err
}

// The answer to a renewal goes to the container, and is seen as it passes; that
// for one that is down, to all.
func TestDnsmasqRenews(t *testing.T) {
	s := newSite(t, three, noPing)
	var to netip.Addr
	open := s.Client.Open
	s.Client.Open = func(ifname string, also cluster.MAC) (lan.Wire, error) {
		w, err := open(ifname, also)
		return noted{w, &to}, err
	}
	for _, up := range []bool{true, false} {
		l := s.get(of(fmt.Sprint("up ", up)))
		if up {
			s.container(l)
		}
		for _, c := range []struct {
			name   string
			extend func(context.Context, dhcp.Lease) (dhcp.Lease, error)
			all    bool
		}{{"renew", s.Renew, !up}, {"rebind", s.Rebind, !up}, {"reboot", s.Reboot, true}} {
			fresh, err := c.extend(t.Context(), l)
			if err != nil {
				t.Fatalf("%s, container up %v: %v", c.name, up, err)
			}
			if fresh.Expires.Sub(fresh.Granted) != time.Hour || !fresh.Granted.After(l.Granted) || fresh.Server != l.Server {
				t.Errorf("%s, container up %v: %+v after %+v", c.name, up, fresh, l)
			}
			want := l.Addr
			if c.all {
				want = addr("255.255.255.255")
			}
			if to != want {
				t.Errorf("%s, container up %v: answered to %s, want %s", c.name, up, to, want)
			}
		}
	}
}

// With its lease file the server knows its clients after a restart; without,
// it refuses or is silent, and gives the same address on demand.
func TestDnsmasqRestarts(t *testing.T) {
	s := newSite(t, three, noPing)
	l := s.get(of("web"))
	s.container(l)
	s.kill()
	s.serve(three, noPing)
	if _, err := s.Renew(t.Context(), l); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	s.kill()
	if err := os.Remove(s.leases()); err != nil {
		t.Fatal(err)
	}
	s.serve(three, noPing)
	var nak *dhcp.NAK
	if _, err := s.Renew(t.Context(), l); !errors.As(err, &nak) {
		t.Errorf("after it forgot: %v", err)
	}
	if _, err := s.Regain(t.Context(), l); err != nil {
		t.Error(err)
	}
	if s.lease(l.Addr) == nil {
		t.Error("dnsmasq knows nothing of what was regained")
	}
	s.kill() // the LAN was renumbered
	s.serve("--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,1h", noPing, certain)
	if _, err := s.Reboot(t.Context(), l); !errors.As(err, &nak) || nak.Server != addr("192.0.2.1") {
		t.Errorf("an address of yesterday: %v", err)
	}
	if _, err := s.Regain(t.Context(), l); err == nil || !strings.Contains(err.Error(), "instead") {
		t.Errorf("an address of yesterday: %v", err)
	}
}

// A Keeper over a database: renewals, a dead server, a restart, and the end.
func TestDnsmasqKeeper(t *testing.T) {
	short := "--dhcp-option=option:T1,3"
	s := newSite(t, three, noPing, short)
	db, err := bbolt.Open(filepath.Join(s.dir, "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	log := logrus.New()
	log.SetOutput(t.Output())
	run := func() (*dhcp.Keeper, func()) {
		k, err := dhcp.NewKeeper(dhcp.Config{Store: dhcp.Bolt{DB: db}, Log: log, Client: s.Client})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		return k, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	k, stop := run()
	l, err := k.Obtain(t.Context(), "lab", of("web"))
	if err != nil {
		t.Fatal(err)
	}
	key := dhcp.Key{Group: "lab", Addr: l.Addr}
	s.container(l)
	renewed := func(since time.Time) func() error {
		return func() error {
			if l, ok := k.Lease(key); !ok || !l.Granted.After(since) {
				return fmt.Errorf("lease %+v, log %s", l, &s.log)
			}
			return nil
		}
	}
	lantest.Await(t, "renew", renewed(l.Granted))
	s.kill()
	s.serve(three, noPing, short)
	lantest.Await(t, "renew after a restart of the server", renewed(time.Now()))
	stop()
	restarted := time.Now()
	k, stop = run()
	defer func() { stop() }()
	lantest.Await(t, "resume", renewed(restarted))
	if st := k.Status(); len(st) != 1 || st[0].Lost || st[0].Problem != "" {
		t.Errorf("status %+v", st)
	}
	k.Bear(key, mac(77))
	lantest.Await(t, "another MAC", func() error {
		if f := s.lease(l.Addr); f == nil || f[1] != mac(77).String() {
			return fmt.Errorf("dnsmasq has %v", f)
		}
		return nil
	})
	if err := k.Release(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	lantest.Await(t, "release", func() error {
		if f := s.lease(l.Addr); f != nil {
			return fmt.Errorf("dnsmasq has %v", f)
		}
		return nil
	})
}
