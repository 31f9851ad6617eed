package dhcp_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/dhcp"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// bench is a host on a LAN with one server, in time that does not pass by
// itself.
type bench struct {
	*testing.T
	*lantest.Net
	*server
	dhcp.Client
	start time.Time
}

func bubble(t *testing.T, test func(b *bench)) {
	t.Helper()
	if raceEnabled {
		t.Skip("synctest bubbles crash under the race detector before Go 1.27; TestDnsmasq covers it")
	}
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, Net: &lantest.Net{MAC: mac(100), Own: []netip.Addr{addr("192.0.2.100")}, Delay: time.Millisecond}, start: time.Now()}
		b.server = newServer(1, time.Hour, "192.0.2.10", "192.0.2.11", "192.0.2.12")
		b.Join(b.hear)
		b.Client.Open = func(ifname string, also cluster.MAC) (lan.Wire, error) {
			if ifname != "eth0" {
				return nil, errors.New("no such interface")
			}
			return b.Net.Open(), nil
		}
		test(b)
		if _, open := b.Wires(); open > 0 {
			t.Errorf("%d sockets stay open", open)
		}
	})
}

func of(name string) dhcp.Request {
	return dhcp.Request{Interface: "eth0", ClientID: dhcp.Identity(name), MAC: mac(50), Hostname: name}
}

func (b *bench) obtain(r dhcp.Request) dhcp.Lease {
	b.Helper()
	l, err := b.Obtain(b.Context(), r)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// heard checks what the server heard since the last call.
func (b *bench) heard(want ...string) {
	b.Helper()
	if got := b.said(); got != strings.Join(want, "\n") {
		b.Errorf("the server heard\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestObtain(t *testing.T) {
	bubble(t, func(b *bench) {
		l := b.obtain(of("my_web"))
		b.heard("DISCOVER from 02:00:00:00:00:32, called my-web",
			"REQUEST from 02:00:00:00:00:32, wants 192.0.2.10, of 192.0.2.1, called my-web")
		at := b.start.Add(time.Millisecond) // of the request
		want := dhcp.Lease{
			Request: of("my_web"), Prefix: netip.MustParsePrefix("192.0.2.10/24"), Router: addr("192.0.2.1"),
			DNS: []netip.Addr{addr("192.0.2.2"), addr("192.0.2.3")}, Domain: "example.org", MTU: 1400,
			Server: addr("192.0.2.1"), ServerMAC: mac(1),
			Granted: at, Renew: at.Add(30 * time.Minute), Rebind: at.Add(52*time.Minute + 30*time.Second), Expires: at.Add(time.Hour),
		}
		want.Addr = addr("192.0.2.10")
		if !reflect.DeepEqual(l, want) {
			b.Errorf("lease\n%+v\nwant\n%+v", l, want)
		}
		wish := of("db")
		wish.Addr, wish.MAC = addr("192.0.2.12"), cluster.MAC{}
		if l := b.obtain(wish); l.Prefix.Addr() != wish.Addr || l.MAC != b.Net.MAC {
			b.Errorf("lease of %s for %s", l.Prefix, l.MAC)
		}
		b.heard("DISCOVER from 02:00:00:00:00:64, wants 192.0.2.12, called db",
			"REQUEST from 02:00:00:00:00:64, wants 192.0.2.12, of 192.0.2.1, called db")
	})
}

// Children of one ipvlan parent share its MAC.
func TestObtainOneMAC(t *testing.T) {
	bubble(t, func(b *bench) {
		first, second := b.obtain(of("a")), b.obtain(of("b"))
		if first.Addr == second.Addr || b.obtain(of("a")).Addr != first.Addr {
			b.Errorf("%s and %s", first.Addr, second.Addr)
		}
	})
}

// Answers for others pass by as well, and broken ones.
func TestObtainAmongOthers(t *testing.T) {
	bubble(t, func(b *bench) {
		b.mangle = func(m *dhcpv4.DHCPv4) (out []*dhcpv4.DHCPv4) {
			for _, change := range []func(m *dhcpv4.DHCPv4){
				func(m *dhcpv4.DHCPv4) { m.TransactionID[0]++ },
				func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = append([]byte{}, 2, 0, 0, 0, 0, 51) },
				func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptClientIdentifier([]byte("another"))) },
				func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootRequest },
				func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeInform)) },
			} {
				x, err := dhcpv4.FromBytes(m.ToBytes())
				if err != nil {
					b.Fatal(err)
				}
				change(x)
				x.YourIPAddr = []byte{192, 0, 2, 66}
				out = append(out, x)
			}
			return out
		}
		if l := b.obtain(of("web")); l.Addr != addr("192.0.2.10") {
			b.Errorf("got the address of another: %s", l.Addr)
		}
	})
}

// Two servers: the one that offered first is asked, and only it.
func TestObtainOfTwoServers(t *testing.T) {
	bubble(t, func(b *bench) {
		other := newServer(2, time.Hour, "192.0.2.20")
		other.refuse = "not authoritative"
		b.Join(other.hear)
		b.Delay = 0 // in order
		if l := b.obtain(of("web")); l.Addr != addr("192.0.2.10") || l.Server != addr("192.0.2.1") {
			b.Errorf("lease of %s from %s", l.Addr, l.Server)
		}
	})
}

func TestObtainFails(t *testing.T) {
	bubble(t, func(b *bench) {
		try := func(limit time.Duration, r dhcp.Request) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(b.Context(), limit)
			defer cancel()
			start := time.Now()
			_, err := b.Obtain(ctx, r)
			return time.Since(start), err
		}
		b.silent = true
		took, err := try(time.Minute, of("web"))
		if !errors.Is(err, dhcp.ErrSilent) || took != 6*time.Second || err.Error() != "obtain an address by DHCP on eth0: no DHCP server answers" {
			b.Errorf("without a server: %v after %s", err, took)
		}
		line := "DISCOVER from 02:00:00:00:00:32, called web"
		b.heard(line, line, line)
		sent := b.Sent()
		if !reflect.DeepEqual(sent[0].Frame[46:50], sent[2].Frame[46:50]) || sent[2].Frame[51] != 3 { // xid; secs
			b.Error("a repeated DISCOVER is another exchange, or does not say since when")
		}
		if took, err := try(1500*time.Millisecond, of("web")); !errors.Is(err, dhcp.ErrSilent) || !strings.HasSuffix(err.Error(), "answers (context deadline exceeded)") || took != 1500*time.Millisecond {
			b.Errorf("with a limit: %v after %s", err, took)
		}
		b.heard(line, line)
		b.silent, b.free = false, nil
		if _, err := try(time.Minute, of("web")); !errors.Is(err, dhcp.ErrSilent) {
			b.Errorf("without a free address: %v", err)
		}
		b.free = []netip.Addr{addr("192.0.2.100")}
		if _, err := try(time.Minute, of("web")); !errors.Is(err, dhcp.ErrOwn) || !strings.Contains(err.Error(), "192.0.2.100") {
			b.Errorf("the host's own address: %v", err)
		}
		b.free, b.refuse = []netip.Addr{addr("192.0.2.10")}, "go away"
		b.said()
		_, err = try(time.Minute, of("web"))
		if nak := (*dhcp.NAK)(nil); !errors.As(err, &nak) || err.Error() != "obtain an address by DHCP on eth0: DHCP server 192.0.2.1 refuses the address: go away" {
			b.Errorf("refused: %v", err)
		}
		if n := strings.Count(b.said(), "DISCOVER"); n != 2 {
			b.Errorf("after a refusal %d DISCOVERs", n)
		}
		for want, r := range map[string]dhcp.Request{
			"no such interface": {Interface: "eth1", ClientID: dhcp.Identity("web")},
			"client identifier": {Interface: "eth0"},
		} {
			if _, err := try(time.Minute, r); err == nil || !strings.Contains(err.Error(), want) {
				b.Errorf("%v, want %q", err, want)
			}
		}
		b.Down = errors.New("network is down")
		if _, err := try(time.Minute, of("web")); !errors.Is(err, b.Down) {
			b.Errorf("on a dead interface: %v", err)
		}
	})
}

func TestExtend(t *testing.T) {
	const from = " from 02:00:00:00:00:32"
	for _, c := range []struct {
		name  string
		up    bool // the container answers ARP
		with  func(b *bench, l dhcp.Lease) (dhcp.Lease, error)
		heard []string
		took  time.Duration
	}{
		{"renew", true, func(b *bench, l dhcp.Lease) (dhcp.Lease, error) { return b.Renew(b.Context(), l) },
			[]string{"REQUEST" + from + " to me, in use 192.0.2.10, called web"}, 0},
		{"renew for a container that is down", false, func(b *bench, l dhcp.Lease) (dhcp.Lease, error) { return b.Renew(b.Context(), l) },
			[]string{"REQUEST" + from + " to me, in use 192.0.2.10, called web", "REQUEST" + from + " to me, in use 192.0.2.10, called web",
				"REQUEST" + from + " to me, in use 192.0.2.10, called web", "REQUEST" + from + ", wants 192.0.2.10, called web"}, 6 * time.Second},
		{"rebind", true, func(b *bench, l dhcp.Lease) (dhcp.Lease, error) { return b.Rebind(b.Context(), l) },
			[]string{"REQUEST" + from + ", in use 192.0.2.10, called web"}, 0},
		{"reboot", false, func(b *bench, l dhcp.Lease) (dhcp.Lease, error) { return b.Reboot(b.Context(), l) },
			[]string{"REQUEST" + from + ", wants 192.0.2.10, called web"}, 0},
		{"regain", false, func(b *bench, l dhcp.Lease) (dhcp.Lease, error) { return b.Regain(b.Context(), l) },
			[]string{"DISCOVER" + from + ", wants 192.0.2.10, called web", "REQUEST" + from + ", wants 192.0.2.10, of 192.0.2.1, called web"}, time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.reaches = func(netip.Addr) bool { return c.up }
				old := b.obtain(of("web"))
				b.said()
				time.Sleep(40 * time.Minute)
				before := time.Now()
				l, err := c.with(b, old)
				if err != nil {
					b.Fatal(err)
				}
				b.heard(c.heard...)
				want := old
				want.Granted = before.Add(c.took)
				want.Renew, want.Rebind, want.Expires = want.Granted.Add(30*time.Minute), want.Granted.Add(52*time.Minute+30*time.Second), want.Granted.Add(time.Hour)
				if !reflect.DeepEqual(l, want) {
					b.Errorf("lease\n%+v\nwant\n%+v", l, want)
				}
				delete(b.given, string(old.ClientID))
				b.refuse = "moved"
				var nak *dhcp.NAK
				if _, err := c.with(b, l); !errors.As(err, &nak) || nak.Server != addr("192.0.2.1") {
					b.Errorf("refused: %v", err)
				}
				b.silent = true
				if _, err := c.with(b, l); !errors.Is(err, dhcp.ErrSilent) || !strings.Contains(err.Error(), " address 192.0.2.10 by DHCP on eth0: no DHCP server answers") {
					b.Errorf("unanswered: %v", err)
				}
			})
		})
	}
}

func TestRegainAnother(t *testing.T) {
	bubble(t, func(b *bench) {
		l := b.obtain(of("web"))
		delete(b.given, string(l.ClientID))
		b.given["another"] = l.Addr
		b.said()
		if _, err := b.Regain(b.Context(), l); err == nil || err.Error() != "regain address 192.0.2.10 by DHCP on eth0: the DHCP server offers 192.0.2.11 now instead" {
			b.Error(err)
		}
		line := "DISCOVER from 02:00:00:00:00:32, wants 192.0.2.10, called web"
		b.heard(line, line, line)
	})
}

// A server that knows nothing of the lease, and says so to all, is first to
// speak: it counts only where the right one is silent.
func TestExtendBesideAnother(t *testing.T) {
	bubble(t, func(b *bench) {
		l := b.obtain(of("web"))
		b.Delay = 2 * time.Millisecond
		b.reaches = func(netip.Addr) bool { return true }
		other := newServer(2, time.Hour, "192.0.2.20")
		other.refuse = "wrong network"
		b.Join(func(f []byte) [][]byte {
			for _, a := range other.hear(f) {
				b.Say(a)
			}
			return nil
		})
		for name, extend := range map[string]func(context.Context, dhcp.Lease) (dhcp.Lease, error){"rebind": b.Rebind, "reboot": b.Reboot, "regain": b.Regain} {
			if fresh, err := extend(b.Context(), l); err != nil || fresh.Server != l.Server {
				b.Errorf("%s: from %s, %v", name, fresh.Server, err)
			}
		}
		b.silent = true
		for name, extend := range map[string]func(context.Context, dhcp.Lease) (dhcp.Lease, error){"rebind": b.Rebind, "reboot": b.Reboot} {
			start := time.Now()
			var nak *dhcp.NAK
			if _, err := extend(b.Context(), l); !errors.As(err, &nak) || nak.Server != addr("192.0.2.2") || time.Since(start) != 6*time.Second {
				b.Errorf("%s: %v after %s", name, err, time.Since(start))
			}
		}
		if _, err := b.Regain(b.Context(), l); err == nil || !strings.HasSuffix(err.Error(), "the DHCP server offers 192.0.2.20 now instead") {
			b.Errorf("regain: %v", err)
		}
	})
}

func TestGiveBack(t *testing.T) {
	bubble(t, func(b *bench) {
		l := b.obtain(of("web"))
		b.said()
		if err := b.Release(b.Context(), l); err != nil {
			b.Error(err)
		}
		b.heard("RELEASE from 02:00:00:00:00:32 to me, in use 192.0.2.10, of 192.0.2.1")
		if len(b.given) > 0 {
			b.Error("it is not released")
		}
		l = b.obtain(of("web"))
		b.said()
		if err := b.Decline(b.Context(), l, "in use"); err != nil {
			b.Error(err)
		}
		b.heard("DECLINE from 02:00:00:00:00:32, wants 192.0.2.10, of 192.0.2.1: in use")
		if l := b.obtain(of("web")); l.Addr != addr("192.0.2.11") {
			b.Errorf("after a DECLINE: %s", l.Addr)
		}
		b.Down = errors.New("network is down")
		if err := b.Release(b.Context(), l); !errors.Is(err, b.Down) || !strings.HasPrefix(err.Error(), "release address 192.0.2.10 by DHCP on eth0: ") {
			b.Errorf("on a dead interface: %v", err)
		}
	})
}
