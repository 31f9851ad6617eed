package ipam

import (
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestHostAddress: hosts have addresses of their own, distinct from all others
// and inside --ip-range, as long as the driver says so; a restart asks nobody.
func TestHostAddress(t *testing.T) {
	l := newLab(t, "h1", "h2")
	seen := map[netip.Addr]bool{}
	for _, h := range l.hosts {
		id := must[string](t)(h.network("10.0.0.0/24", "10.0.0.128/25", "10.0.0.1"))
		a := must[netip.Addr](t)(h.HostAddress(t.Context(), keyOf(id)))
		if seen[a] || !netip.MustParsePrefix("10.0.0.128/25").Contains(a) {
			t.Errorf("%s got %s", h.name, a)
		}
		seen[a] = true
		h.setLive(id, a, true)
		for range 3 {
			b := must[netip.Addr](t)(h.start(id, "", ""))
			if seen[b] {
				t.Errorf("%s got %s again", h.name, b)
			}
			seen[b] = true
		}
		h.reboot()
		h.setLive(id, a, true)
		l.pass(2 * time.Hour)
		h.work()
		if _, err := h.start(id, a.String(), "web"); err == nil {
			t.Errorf("a container on %s got %s, which is the host's", h.name, a)
		}
		h.setLive(id, a, false)
		if err := h.ReleaseHostAddress(t.Context(), keyOf(id), a); err != nil {
			t.Error(err)
		}
		if err := h.ReleaseHostAddress(t.Context(), keyOf(id), a); err != nil {
			t.Errorf("given back again: %v", err)
		}
		if b := must[netip.Addr](t)(h.start(id, a.String(), "web")); b != a {
			t.Errorf("%s got %s, wants %s", h.name, b, a)
		}
	}
	_, err := l.hosts[0].HostAddress(t.Context(), cluster.PoolKey{Prefix: netip.MustParsePrefix("10.9.0.0/24")})
	wantErr(t, err, "pool 10.9.0.0/24 belongs to no network of this host")
}

// TestHostAddressOfALAN: what something else answers for is the host's no more
// than a container's; where the LAN's server chooses, it chooses this one too.
func TestHostAddressOfALAN(t *testing.T) {
	_, h := newStreet(t, "10.0.0.2")
	id := must[string](t)(h.network("10.0.0.0/24", "", "10.0.0.1"))
	if a := must[netip.Addr](t)(h.HostAddress(t.Context(), keyOf(id))); a == addr("10.0.0.2") {
		t.Errorf("got %s, which something else has", a)
	}

	_, hosts, id := newOffice(t, "10.0.0.70", "10.0.0.71")
	first := must[netip.Addr](t)(hosts[0].HostAddress(t.Context(), keyOf(id)))
	other := must[netip.Addr](t)(hosts[0].start(id, "", "web"))
	if first == other || !first.IsValid() {
		t.Errorf("the host has %s, and web %s", first, other)
	}
}

// A crash between the answer and its use costs no address, and neither does a
// network that came to nothing.
func TestHostAddressAgain(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/29", "", "10.0.0.1"))
	first := must[netip.Addr](t)(h.HostAddress(t.Context(), keyOf(id)))
	h.reboot()
	if again := must[netip.Addr](t)(h.HostAddress(t.Context(), keyOf(id))); again != first {
		t.Errorf("got %s after a crash, had %s", again, first)
	}
	l.pass(startTime)
	for range 2 {
		h.sweep()
		l.pass(forgottenTime)
	}
	if used := h.Used(keyOf(id)); len(used) > 0 {
		t.Errorf("used by nobody, and kept: %v", used)
	}
	// What a container has is not the host's to give back.
	web := must[netip.Addr](t)(h.start(id, "", "web"))
	if err := h.ReleaseHostAddress(t.Context(), keyOf(id), web); err != nil || len(h.Used(keyOf(id))) != 1 {
		t.Errorf("%v, %v", err, h.Used(keyOf(id)))
	}
	h.remove(id)
	if _, err := h.HostAddress(t.Context(), keyOf(id)); err == nil {
		t.Error("an address of a pool that is parked")
	}
}

// Where the LAN's server names the router, Docker is told of no address that
// anybody could have; --gateway goes before.
func TestGatewayByDHCP(t *testing.T) {
	l := newLab(t, "h1", "h2")
	o := &office{given: map[string]netip.Addr{}, steps: make(chan string, 100), free: []netip.Addr{addr("10.0.0.1")}}
	for _, h := range l.hosts {
		o.desk(h)
	}
	id := must[string](t)(l.hosts[0].officeNetwork(""))
	if g := l.hosts[0].Status()[0].Gateway; g.IsValid() {
		t.Errorf("the gateway is %s for all hosts", g)
	}
	if g := must[netip.Addr](t)(l.hosts[0].requestAddress(id, "", forGateway)); g != addr("10.0.0.0") {
		t.Errorf("the gateway is %s", g)
	}
	if a := must[netip.Addr](t)(l.hosts[0].start(id, "", "web")); a != addr("10.0.0.1") {
		t.Errorf("web got %s", a)
	}
	l.hosts[0].free(id, addr("10.0.0.0"))
	must[string](t)(l.hosts[1].officeNetwork("10.0.0.9"))
	if g := must[netip.Addr](t)(l.hosts[0].requestAddress(id, "", forGateway)); g != addr("10.0.0.9") {
		t.Errorf("the gateway is %s, and was said to be 10.0.0.9", g)
	}
}

func TestByDHCP(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	(&office{given: map[string]netip.Addr{}}).desk(h)
	for _, c := range []struct {
		subnet, value string
		want          bool
	}{{"10.0.0.0/24", "on", true}, {"10.1.0.0/24", "off", false}, {"fd00:1::/64", "on", true}, {"fd00:1::/64", "off", false}} {
		id, _, err := h.requestPool(c.subnet, "", options{"dhcp": c.value})
		if err != nil || h.ByDHCP(keyOf(id)) != c.want {
			t.Errorf("%s with dhcp=%s: %v, %v", c.subnet, c.value, h.ByDHCP(keyOf(id)), err)
		}
	}
}
