//go:build kernel

package lan_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// site is a host and a stranger on one switch.
type site struct {
	t                  *testing.T
	host, wire, alien  *lantest.Space
	hostMAC, strangers cluster.MAC
	*lan.Prober
}

func newSite(t *testing.T) *site {
	t.Helper()
	t.Parallel()
	s := &site{t: t, host: lantest.NewSpace(t), wire: lantest.NewSpace(t), alien: lantest.NewSpace(t)}
	s.wire.Switch(s.host, s.alien)
	s.hostMAC, s.strangers = macOf(t, s.host, "eth0"), macOf(t, s.alien, "eth0")
	log := logrus.New()
	log.SetOutput(t.Output())
	s.Prober = lan.New(lan.Config{Log: log})
	return s
}

func macOf(t *testing.T, s *lantest.Space, dev string) (mac cluster.MAC) {
	t.Helper()
	if err := s.In(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			mac = cluster.MAC(i.HardwareAddr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mac
}

func (s *site) probe(ifname string, ips ...string) (map[netip.Addr]cluster.MAC, error) {
	s.t.Helper()
	var list []netip.Addr
	for _, ip := range ips {
		list = append(list, addr(ip))
	}
	var held map[netip.Addr]cluster.MAC
	err := s.host.In(func() (err error) {
		held, err = s.Probe(s.t.Context(), ifname, list...)
		return err
	})
	return held, err
}

// is checks who holds the addresses on an interface: "" for nobody.
func (s *site) is(ifname string, want map[string]cluster.MAC) {
	s.t.Helper()
	var ips []string
	for ip := range want {
		ips = append(ips, ip)
	}
	held, err := s.probe(ifname, ips...)
	if err != nil {
		s.t.Fatal(err)
	}
	for ip, mac := range want {
		if held[addr(ip)] != mac {
			s.t.Errorf("%s on %s is held by %s, want %s", ip, ifname, held[addr(ip)], mac)
		}
	}
}

// Real machines answer, both families at once; nobody learns of the probes.
func TestLinuxProbe(t *testing.T) {
	s := newSite(t)
	s.host.Sh("ip addr add 192.0.2.1/24 dev eth0")
	s.alien.Sh("ip addr add 192.0.2.9/24 dev eth0; ip addr add fd00::9/64 dev eth0 nodad; ip neigh flush all")
	s.is("eth0", map[string]cluster.MAC{
		"192.0.2.9": s.strangers, "fd00::9": s.strangers, "192.0.2.1": s.hostMAC,
		"192.0.2.8": {}, "fd00::8": {}, "198.51.100.7": {},
	})
	if out := s.alien.Sh("ip neigh show"); strings.Contains(out, s.hostMAC.String()) && strings.Contains(out, "192.0.2.1") {
		t.Errorf("the stranger learned from a probe: %s", out)
	}
	s.alien.Sh("ip addr del 192.0.2.9/24 dev eth0")
	s.is("eth0", map[string]cluster.MAC{"192.0.2.9": {}})
}

// The host's parent may have neither address nor IPv6, and bear macvlan
// children, the stranger may be one.
func TestLinuxProbeBareParent(t *testing.T) {
	s := newSite(t)
	s.host.Sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link add m0 link eth0 type macvlan mode bridge; ip link set m0 up")
	s.alien.Sh("sysctl -qw net.ipv4.conf.all.arp_ignore=1; ip link add m0 link eth0 type macvlan mode bridge; ip link set m0 up; ip addr add 192.0.2.9/24 dev m0; ip addr add fd00::9/64 dev m0 nodad")
	child := macOf(t, s.alien, "m0")
	s.is("eth0", map[string]cluster.MAC{"192.0.2.9": child, "fd00::9": child, "192.0.2.8": {}, "fd00::8": {}})
}

// A passthru child takes all frames of its parent: they are seen before.
func TestLinuxProbeBelowPassthru(t *testing.T) {
	s := newSite(t)
	s.alien.Sh("ip addr add 192.0.2.9/24 dev eth0; ip addr add fd00::9/64 dev eth0 nodad")
	s.host.Sh("ip link add m0 link eth0 type macvlan mode passthru; ip link set m0 up")
	s.is("eth0", map[string]cluster.MAC{"192.0.2.9": s.strangers, "fd00::9": s.strangers, "192.0.2.8": {}})
}

// A machine that is just taking the address counts, though nobody has it yet.
func TestLinuxProbeRival(t *testing.T) {
	s := newSite(t)
	ask := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, s.strangers[:]...)
	ask = append(append(ask, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1), s.strangers[:]...)
	ask = append(ask, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9)
	probed := make(chan struct{})
	rival := make(chan error, 1)
	go func() {
		rival <- s.alien.In(func() error {
			w, err := lan.Open("eth0", nil)
			if err != nil {
				return err
			}
			defer w.Close()
			for tick := time.Tick(20 * time.Millisecond); ; <-tick {
				if err := w.Send(ask); err != nil {
					return err
				}
				select {
				case <-probed:
					return nil
				default:
				}
			}
		})
	}()
	s.is("eth0", map[string]cluster.MAC{"192.0.2.9": s.strangers})
	close(probed)
	if err := <-rival; err != nil {
		t.Fatal(err)
	}
}

// The filter keeps out what does not belong to the interface.
func TestLinuxSocketFilter(t *testing.T) {
	s := newSite(t)
	err := s.host.In(func() error {
		w, err := lan.Open("eth0", nil)
		if err != nil {
			return err
		}
		defer w.Close()
		frame := func(tag ...byte) []byte {
			b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, s.strangers[:]...)
			return append(append(b, tag...), append([]byte{0x88, 0xb5}, make([]byte, 60)...)...)
		}
		send := func(from *lantest.Space, f []byte) {
			t.Helper()
			if err := from.In(func() error {
				x, err := lan.Open("eth0", nil)
				if err != nil {
					return err
				}
				defer x.Close()
				return x.Send(f)
			}); err != nil {
				t.Fatal(err)
			}
		}
		send(s.host, frame())                        // own
		send(s.alien, frame(0x81, 0x00, 0x00, 0x05)) // VLAN 5
		marked := frame()
		marked[14] = 42
		send(s.alien, marked)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for {
			b, err := w.Receive(ctx)
			if err != nil {
				return err
			}
			if len(b) > 14 && b[12] == 0x88 && b[13] == 0xb5 {
				if b[14] != 42 {
					t.Errorf("own or tagged frame received: %x", b[:16])
					continue
				}
				return nil
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLinuxSocketErrors(t *testing.T) {
	s := newSite(t)
	if _, err := s.probe("eth7", "192.0.2.9"); err == nil || !strings.Contains(err.Error(), "listen on eth7: ") {
		t.Errorf("missing interface: %v", err)
	}
	s.host.Sh("ip link set eth0 down")
	if _, err := s.probe("eth0", "192.0.2.9"); err == nil || !strings.Contains(err.Error(), "network is down") {
		t.Errorf("interface that is down: %v", err)
	}
	s.host.Sh("ip link set eth0 up")
	err := s.host.In(func() error {
		w, err := lan.Open("eth0", nil)
		if err != nil {
			return err
		}
		defer w.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := w.Receive(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("receive after the end: %v", err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		for err == nil { // other frames may come
			_, err = w.Receive(ctx)
		}
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("receive until the end: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
