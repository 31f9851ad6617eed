package ipam

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// street is a LAN with strangers on it, as Probe and Conflicts show it.
type street struct {
	mu     sync.Mutex
	alien  map[netip.Addr]string // who answers for an address
	found  map[netip.Addr]bool   // and was found to
	probed []netip.Addr
	all    string // answers for every address
}

func (s *street) watch(h *host) {
	h.cfg.Probe = func(_ context.Context, _ cluster.PoolKey, a netip.Addr) (string, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.probed = append(s.probed, a)
		who, taken := s.alien[a]
		if s.all != "" {
			who, taken = s.all, true
		}
		if delete(s.found, a); taken {
			s.found[a] = true
		}
		return who, taken
	}
	h.cfg.Conflicts = func(key cluster.PoolKey) []netip.Addr {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.DeleteFunc(slices.Collect(maps.Keys(s.found)), func(a netip.Addr) bool { return !key.Prefix.Contains(a) })
	}
}

func newStreet(t *testing.T, alien ...string) (*street, *host) {
	t.Helper()
	s := &street{alien: map[netip.Addr]string{}, found: map[netip.Addr]bool{}}
	for _, a := range alien {
		s.alien[addr(a)] = "02:00:00:00:00:63"
	}
	h := newLab(t, "h1", "h2").hosts[0]
	s.watch(h)
	return s, h
}

func conflicts(h *host) string {
	var out []string
	for _, s := range h.Status() {
		for _, c := range s.Conflicts {
			out = append(out, c.Addr.String()+" "+c.Holder)
		}
	}
	return strings.Join(out, ", ")
}

// What a stranger has is skipped, shown, and handed out once it is gone.
func TestStrangersAreSkipped(t *testing.T) {
	s, h := newStreet(t, "10.0.0.2", "10.0.0.4")
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	for _, want := range []string{"10.0.0.3", "10.0.0.5", "10.0.0.6"} {
		if a := must[netip.Addr](t)(h.start(id, "", "")); a != addr(want) {
			t.Errorf("got %s, want %s", a, want)
		}
	}
	if want := []netip.Addr{addr("10.0.0.2"), addr("10.0.0.3"), addr("10.0.0.4"), addr("10.0.0.5"), addr("10.0.0.6")}; !slices.Equal(s.probed, want) {
		t.Errorf("probed %v, want each once", s.probed)
	}
	if got := conflicts(h); got != "10.0.0.2 02:00:00:00:00:63, 10.0.0.4 02:00:00:00:00:63" {
		t.Errorf("status: %s", got)
	}
	if used := h.Used(keyOf(id)); len(used) != 3 {
		t.Errorf("used %v", used)
	}
	s.found = map[netip.Addr]bool{addr("10.0.0.4"): true} // 10.0.0.2 is gone
	delete(s.alien, addr("10.0.0.2"))
	h.yield()
	if got := conflicts(h); got != "10.0.0.4 02:00:00:00:00:63" {
		t.Errorf("status: %s", got)
	}
	h.lab.pass(keepTime)
	seen := map[netip.Addr]bool{}
	for range 10 {
		seen[must[netip.Addr](t)(h.start(id, "", ""))] = true
	}
	if !seen[addr("10.0.0.2")] || seen[addr("10.0.0.4")] {
		t.Errorf("handed out %v", seen)
	}
}

// Another host that asks for addresses gets none that a stranger has.
func TestStrangersAreNotPassedOn(t *testing.T) {
	_, h := newStreet(t, "10.0.0.2", "10.0.0.3")
	other := h.lab.hosts[1]
	id := must[string](t)(h.network("10.0.0.0/29", "", "")) // 2 to 6 for containers
	h.stop(id, must[netip.Addr](t)(h.start(id, "", "")))
	far := must[string](t)(other.network("10.0.0.0/29", "", ""))
	for range 3 {
		if a := must[netip.Addr](t)(other.start(far, "", "")); a.Less(addr("10.0.0.4")) {
			t.Errorf("got %s", a)
		}
	}
}

func TestExactAddressOfStranger(t *testing.T) {
	s, h := newStreet(t, "10.0.0.2")
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	for range 2 {
		_, err := h.start(id, "10.0.0.2", "web")
		wantErr(t, err, "address 10.0.0.2 of subnet 10.0.0.0/24 is in use on the LAN by 02:00:00:00:00:63; choose another one, or free it there")
	}
	if used := h.Used(keyOf(id)); len(used) > 0 {
		t.Errorf("used %v", used)
	}
	delete(s.alien, addr("10.0.0.2")) // asked again, it is looked for again
	if a := must[netip.Addr](t)(h.start(id, "10.0.0.2", "web")); a != addr("10.0.0.2") || conflicts(h) != "" {
		t.Errorf("got %s, conflicts %s", a, conflicts(h))
	}
}

// The gateway and auxiliary addresses are others' by their nature.
func TestGatewayIsNotProbed(t *testing.T) {
	s, h := newStreet(t, "10.0.0.1", "10.0.0.9")
	must[string](t)(h.network("10.0.0.0/24", "", "10.0.0.1", "10.0.0.9"))
	if len(s.probed) > 0 {
		t.Errorf("probed %v", s.probed)
	}
}

func TestProxyARP(t *testing.T) {
	s, h := newStreet(t)
	s.all = "02:00:00:00:00:01"
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	_, err := h.start(id, "", "")
	wantErr(t, err, "8 addresses of subnet 10.0.0.0/24 in a row are in use on the LAN, the last one, 10.0.0.17, by 02:00:00:00:00:01: "+
		"keep the cluster to what others leave free, with --ip-range or --aux-address; if one machine answers for all addresses, switch off its proxy ARP")
	if used := h.Used(keyOf(id)); len(used) > 0 {
		t.Errorf("used %v", used)
	}
	// The network can be removed, and its addresses go back after a day.
	h.remove(id)
	s.found = nil
	h.yield()
	h.lab.pass(keepTime)
	h.work()
	if st := h.Status(); len(st) > 0 {
		t.Errorf("status %+v", st)
	}
}
