package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/lan/dhcp"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// landlord is a DHCP server that gives the addresses from 10.50.0.100 on.
type landlord struct {
	mu    sync.Mutex
	given map[string]netip.Addr // by client identifier
	asked []dhcp.Request
	log   []string
	err   error
}

func (l *landlord) Obtain(_ context.Context, r dhcp.Request) (dhcp.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, r)
	if l.err != nil {
		return dhcp.Lease{}, l.err
	}
	a, ok := l.given[string(r.ClientID)]
	for a = later(a, netip.MustParseAddr("10.50.0.100")); !ok; a = a.Next() {
		ok = true
		for _, other := range l.given {
			ok = ok && other != a
		}
		if ok {
			break
		}
	}
	l.given[string(r.ClientID)] = a
	return l.lease(dhcp.Lease{Request: r, Prefix: netip.PrefixFrom(a, 24)}), nil
}

func later(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func (l *landlord) lease(old dhcp.Lease) dhcp.Lease {
	now := time.Now()
	old.Router, old.Server, old.MTU = netip.MustParseAddr("10.50.0.254"), netip.MustParseAddr("10.50.0.253"), 1400
	old.Granted, old.Renew, old.Rebind, old.Expires = now, now.Add(time.Hour), now.Add(2*time.Hour), now.Add(3*time.Hour)
	return old
}

func (l *landlord) again(_ context.Context, old dhcp.Lease) (dhcp.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return old, l.err
	}
	return l.lease(old), nil
}

func (l *landlord) Regain(ctx context.Context, old dhcp.Lease) (dhcp.Lease, error) {
	return l.again(ctx, old)
}
func (l *landlord) Reboot(ctx context.Context, old dhcp.Lease) (dhcp.Lease, error) {
	return l.again(ctx, old)
}
func (l *landlord) Renew(ctx context.Context, old dhcp.Lease) (dhcp.Lease, error) {
	return l.again(ctx, old)
}
func (l *landlord) Rebind(ctx context.Context, old dhcp.Lease) (dhcp.Lease, error) {
	return l.again(ctx, old)
}

func (l *landlord) Release(_ context.Context, old dhcp.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.given, string(old.ClientID))
	l.log = append(l.log, "release "+old.Prefix.Addr().String())
	return nil
}

func (l *landlord) Decline(_ context.Context, old dhcp.Lease, why string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, "decline "+old.Prefix.Addr().String()+": "+why)
	return nil
}

// fail is what is answered from now on; nil: as usual.
func (l *landlord) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// tenants counts who has an address.
func (l *landlord) tenants() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.given)
}

func (l *landlord) last() dhcp.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[len(l.asked)-1]
}

// stranger answers ARP for an address.
func stranger(ip string, who cluster.MAC) lantest.Machine {
	target := netip.MustParseAddr(ip).As4()
	return func(frame []byte) [][]byte {
		if frame[12] != 0x08 || frame[13] != 0x06 || !bytes.Equal(frame[38:42], target[:]) {
			return nil
		}
		b := append(slices.Clone(frame[6:12]), who[:]...)
		b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2)
		b = append(append(b, who[:]...), target[:]...)
		return [][]byte{append(b, frame[22:32]...)}
	}
}

// onLAN makes hosts whose eth1 leads to one LAN.
func onLAN(t *testing.T, n int) []*host {
	hosts := newHosts(t, n, "")
	for i, h := range hosts {
		h.lan.MAC = cluster.MAC{2, 0, 0, 0, 1, byte(i)}
		h.kernel.SetDevice(kernel.Device{Name: "eth1", Kind: "device", MTU: 1500, MAC: h.lan.MAC, Up: true, Carrier: true})
		h.start()
		h.awaitUp()
	}
	return hosts
}

func (h *host) hasProblem(text string) bool {
	return slices.ContainsFunc(h.status().Problems, func(p driver.Problem) bool { return strings.Contains(p.String(), text) })
}

// TestStrangersOnTheLAN: what others have in the LAN is not handed out, and said
// to be in conflict until it is gone; the host has an address of its own.
func TestStrangersOnTheLAN(t *testing.T) {
	h := onLAN(t, 1)[0]
	h.lan.Join(stranger("10.50.0.2", cluster.MAC{2, 9, 9, 9, 9, 9}))
	h.lan.Own = []netip.Addr{netip.MustParseAddr("10.50.0.3")} // of the host, on some other interface
	pool, err := h.create(id64("01"), "10.50.0.0/24", nil, map[string]string{"mode": "macvlan", "parent": "eth1", "host_access": "on"})
	if err != nil {
		t.Fatal(err)
	}
	own := h.status().Networks[0].Host
	if len(own) != 1 || own[0] != netip.MustParseAddr("10.50.0.4") {
		t.Errorf("the host has %v", own)
	}
	e := h.startContainer(id64("01"), pool, id64("e1"))
	if e.addr != "10.50.0.5/24" || e.gateway != "10.50.0.1" {
		t.Errorf("the container has %s and gateway %s", e.addr, e.gateway)
	}
	for _, text := range []string{
		"address 10.50.0.2 of pool 10.50.0.0/24 is in use on the LAN by 02:09:09:09:09:09: no container of this host gets it: keep the cluster off it",
		"address 10.50.0.3 of pool 10.50.0.0/24 is in use on the LAN by this host itself",
	} {
		if !h.hasProblem(text) {
			t.Errorf("not said: %s; but %v", text, h.status().Problems)
		}
	}
	out, err := runCommand(t, "--socket", h.cfg.Socket, "ipam")
	if !errors.Is(err, errNotWell) || !strings.Contains(out, "10.50.0.2 is in use on the LAN by 02:09:09:09:09:09") {
		t.Errorf("isthmus ipam: %v\n%s", err, out)
	}
	if out, err := runCommand(t, "--socket", h.cfg.Socket, "networks"); err != nil || !strings.Contains(out, "eth1") || !strings.Contains(out, "This host has 10.50.0.4 in 10.50.0.0/24.") || strings.Contains(out, "VNI") {
		t.Errorf("isthmus networks: %v\n%s", err, out)
	}
	text := h.kernel.String()
	for _, want := range []string{"addr 10.50.0.4/32", "10.50.0.5/32"} {
		if !strings.Contains(text, want) {
			t.Errorf("the kernel has no %s:\n%s", want, text)
		}
	}
	// A restart keeps what the host has, and asks nobody for it.
	h.stop()
	h.lan.Sent()
	h.start()
	h.awaitUp()
	h.await("the host's address is as it was", func() bool { n := h.status().Networks; return len(n) == 1 && slices.Equal(n[0].Host, own) })
	if sent := h.lan.Sent(); len(sent) > 0 {
		t.Errorf("asked for %d addresses", len(sent))
	}
	h.stopContainer(id64("01"), e)
	h.call("IpamDriver.ReleasePool", map[string]any{"PoolID": pool})
	h.call("NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": id64("01")})
	if text := h.kernel.String(); text != "" {
		t.Errorf("left in the kernel:\n%s", text)
	}
	var pools []PoolReport
	if h.get("ipam", &pools); len(pools) != 1 || len(pools[0].Used) > 0 {
		t.Errorf("left in use: %+v", pools)
	}
	if opened, open := h.lan.Wires(); opened == 0 || open != 0 {
		t.Errorf("%d sockets were opened, and %d not closed", opened, open)
	}
}

// TestAddressesByDHCP: the LAN's server chooses, with the router and the MTU; the
// leases are shown, outlive the plugin, and go back.
func TestAddressesByDHCP(t *testing.T) {
	hosts := onLAN(t, 2)
	h := hosts[0]
	options := map[string]string{"mode": "macvlan", "parent": "eth1.50"}
	if _, err := h.create(id64("00"), "10.50.0.0/24", map[string]string{"dhcp": "on"}, nil); err == nil || !strings.Contains(err.Error(), "--ipam-opt dhcp=on does not work with mode vxlan") {
		t.Errorf("in vxlan: %v", err)
	}
	pool, err := h.create(id64("01"), "10.50.0.0/24", map[string]string{"dhcp": "on"}, options)
	if err != nil {
		t.Fatal(err)
	}
	web := h.startNamed(id64("01"), pool, id64("e1"), "web")
	if web.addr != "10.50.0.100/24" || web.gateway != "10.50.0.254" {
		t.Errorf("web has %s and gateway %s", web.addr, web.gateway)
	}
	if r := h.server.last(); r.Interface != "eth1.50" || r.Hostname != "web" || r.MAC.IsZero() || !strings.Contains(h.kernel.String(), r.MAC.String()) {
		t.Errorf("the server was asked %+v; the kernel has\n%s", r, h.kernel)
	}
	if text := h.kernel.String(); !strings.Contains(text, "mtu 1400") {
		t.Errorf("the MTU is not the server's:\n%s", text)
	}
	out, err := runCommand(t, "--socket", h.cfg.Socket, "ipam")
	if err != nil || !strings.Contains(out, "10.50.0.100  web   10.50.0.253  10.50.0.254") {
		t.Errorf("isthmus ipam: %v\n%s", err, out)
	}

	// Another host asks as somebody else, whatever its containers are called.
	first := h.server.last().ClientID
	far, err := hosts[1].create(id64("02"), "10.50.0.0/24", map[string]string{"dhcp": "on"}, options)
	if err != nil {
		t.Fatal(err)
	}
	hosts[1].server = h.server // for the next start
	hosts[1].stop()
	hosts[1].start()
	hosts[1].awaitUp()
	other := hosts[1].startNamed(id64("02"), far, id64("e2"), "web")
	if other.addr != "10.50.0.101/24" || bytes.Equal(h.server.last().ClientID, first) {
		t.Errorf("the other web has %s", other.addr)
	}

	// The plugin restarts; the server is away, and then takes the address back.
	h.stop()
	h.server.fail(errors.New("no DHCP server answers"))
	h.start()
	h.awaitUp()
	h.await("says that it is not renewed", func() bool {
		return h.hasProblem("address 10.50.0.100 of pool 10.50.0.0/24, which container web has from DHCP server 10.50.0.253, is not renewed: no DHCP server answers")
	})
	h.stop()
	h.server.fail(&dhcp.NAK{})
	h.start()
	h.awaitUp()
	h.await("says that it is lost", func() bool {
		return h.hasProblem("belongs to the server again") && h.hasProblem("restart container web")
	})
	h.stop()
	h.server.fail(nil)
	h.start()
	h.awaitUp()
	h.await("all is well", func() bool { return len(h.status().Problems) == 0 })

	// The same name gets the same address again; what is not used goes back.
	h.stopContainer(id64("01"), web)
	h.await("is given back", func() bool { return h.server.tenants() == 1 })
	if web = h.startNamed(id64("01"), pool, id64("e3"), "web"); web.addr != "10.50.0.100/24" || !bytes.Equal(h.server.last().ClientID, first) {
		t.Errorf("web has %s now", web.addr)
	}
	h.stopContainer(id64("01"), web)
	hosts[1].stopContainer(id64("02"), other)
	h.await("all is given back", func() bool { return h.server.tenants() == 0 })

	// Where the engine tells no name, who restarts alone takes up what it gave back.
	for range 2 {
		one, two := h.startContainer(id64("01"), pool, id64("e5")), h.startContainer(id64("01"), pool, id64("e6"))
		was := h.server.last().ClientID
		h.stopContainer(id64("01"), two)
		h.await("is given back", func() bool { return h.server.tenants() == 1 })
		again := h.startContainer(id64("01"), pool, id64("e7"))
		if again.addr != two.addr || again.addr == one.addr || !bytes.Equal(h.server.last().ClientID, was) || h.server.last().Addr.String()+"/24" != two.addr {
			t.Errorf("had %s and has %s, beside %s", two.addr, again.addr, one.addr)
		}
		h.stopContainer(id64("01"), again)
		h.stopContainer(id64("01"), one)
		h.await("both are given back", func() bool { return h.server.tenants() == 0 })
	}
	h.await("all is given back", func() bool { return h.server.tenants() == 0 })

	// So does all that a host has when it is reset.
	h.startNamed(id64("01"), pool, id64("e4"), "web")
	if _, err := runCommand(t, "--socket", h.cfg.Socket, "reset", "--force"); err != nil {
		t.Fatal(err)
	}
	if n := h.server.tenants(); n != 0 {
		t.Errorf("%d addresses are kept after a reset", n)
	}
	h.await("its kernel is empty", func() bool {
		return !strings.Contains(h.kernel.String(), "link is-") && !strings.Contains(h.kernel.String(), "eth1.50")
	})
}

// TestWithoutALAN: an address is never waited for long because of a LAN that is
// not there.
func TestWithoutALAN(t *testing.T) {
	h := onLAN(t, 1)[0]
	pool, err := h.create(id64("01"), "10.50.0.0/24", nil, map[string]string{"mode": "macvlan", "parent": "eth1"})
	if err != nil {
		t.Fatal(err)
	}
	leased, err := h.create(id64("02"), "10.51.0.0/24", map[string]string{"dhcp": "on"}, map[string]string{"mode": "macvlan", "parent": "eth1"})
	if err != nil {
		t.Fatal(err)
	}
	h.kernel.RemoveDevice("eth1")
	h.await("the parent is missing", func() bool { return h.hasProblem("parent eth1 does not exist") })
	h.lan.Sent()
	h.call("IpamDriver.RequestAddress", map[string]any{"PoolID": pool, "Address": "", "Options": map[string]string{}})
	if sent := h.lan.Sent(); len(sent) > 0 {
		t.Errorf("asked %d times in a LAN that is not there", len(sent))
	}
	_, err = h.try("IpamDriver.RequestAddress", map[string]any{"PoolID": leased, "Address": "", "Options": map[string]string{}})
	if err == nil || !strings.Contains(err.Error(), "leads to no LAN now, so no DHCP server can be asked: see isthmus status") {
		t.Errorf("by DHCP: %v", err)
	}
	// Nor by one that is there, and does not let anything be asked.
	h.kernel.SetDevice(kernel.Device{Name: "eth1", Kind: "device", MTU: 1500, MAC: h.lan.MAC, Up: true, Carrier: true})
	h.await("it is back", func() bool { return len(h.status().Problems) == 0 })
	h.lan.Down = errors.New("operation not permitted")
	h.call("IpamDriver.RequestAddress", map[string]any{"PoolID": pool, "Address": "", "Options": map[string]string{}})
}
