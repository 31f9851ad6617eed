package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestShapesOfSubnets makes networks of all sizes as Docker does, and starts
// containers until the subnet, or the host's patience, ends.
func TestShapesOfSubnets(t *testing.T) {
	const some = 20 // containers that large subnets are tried with
	for _, c := range []struct {
		subnet, ipRange, gateway string
		aux                      []string
		want                     string // gateway, or the refusal
		first                    string // address of the first container
		starts                   int    // how many containers find an address
	}{
		{subnet: "10.0.0.0/8", want: "10.0.0.1", first: "10.0.0.2", starts: some},
		{subnet: "10.0.0.0/16", gateway: "10.0.255.254", want: "10.0.255.254", first: "10.0.0.1", starts: some},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.64/30", want: "10.0.0.1", first: "10.0.0.64", starts: 4},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.64/30", gateway: "10.0.0.65", want: "10.0.0.65", first: "10.0.0.64", starts: 3},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.64/30", aux: []string{"10.0.0.64", "10.0.0.9"}, want: "10.0.0.1", first: "10.0.0.65", starts: 3},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.7/32", want: "10.0.0.1", first: "10.0.0.7", starts: 1},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.1/32", want: "range 10.0.0.1/32 of subnet 10.0.0.0/24 has no address for a container; create a larger network"},
		{subnet: "10.0.0.0/24", ipRange: "10.0.0.0/24", want: "10.0.0.1", first: "10.0.0.2", starts: some},
		{subnet: "10.0.0.0/28", want: "10.0.0.1", first: "10.0.0.2", starts: 13},
		{subnet: "10.0.0.0/29", aux: []string{"10.0.0.3"}, want: "10.0.0.1", first: "10.0.0.2", starts: 4},
		{subnet: "10.0.0.0/30", want: "10.0.0.1", first: "10.0.0.2", starts: 1},
		{subnet: "10.0.0.0/31", want: "10.0.0.0", first: "10.0.0.1", starts: 1},
		{subnet: "10.0.0.0/31", gateway: "10.0.0.1", want: "10.0.0.1", first: "10.0.0.0", starts: 1},
		{subnet: "10.0.0.0/31", aux: []string{"10.0.0.1"}, want: "subnet 10.0.0.0/31 has no address for a container; create a larger network"},
		{subnet: "10.0.0.5/32", want: "subnet 10.0.0.5/32 has no address for a container; create a larger network"},
		{subnet: "fd00:1::/48", want: "fd00:1::1", first: "fd00:1::2", starts: some},
		{subnet: "fd00:1::/64", want: "fd00:1::1", first: "fd00:1::2", starts: some},
		{subnet: "fd00:1::/64", ipRange: "fd00:1::c0de:0/112", want: "fd00:1::1", first: "fd00:1::c0de:0", starts: some},
		{subnet: "fd00:1::/64", gateway: "fd00:1::ffff:ffff:ffff:ffff", want: "fd00:1::ffff:ffff:ffff:ffff", first: "fd00:1::1", starts: some},
		{subnet: "fd00:1::/112", want: "fd00:1::1", first: "fd00:1::2", starts: some},
		{subnet: "fd00:1::/120", aux: []string{"fd00:1::2"}, want: "fd00:1::1", first: "fd00:1::3", starts: some},
		{subnet: "fd00:1::/125", want: "fd00:1::1", first: "fd00:1::2", starts: 6},
		{subnet: "fd00:1::/126", want: "fd00:1::1", first: "fd00:1::2", starts: 2},
		{subnet: "fd00:1::/127", want: "fd00:1::", first: "fd00:1::1", starts: 1},
		{subnet: "fd00:1::7/128", want: "subnet fd00:1::7/128 has no address for a container; create a larger network"},
	} {
		name := strings.Join(append([]string{c.subnet, c.ipRange, c.gateway}, c.aux...), " ")
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			h := newLab(t, "h1").hosts[0]
			id, err := h.network(c.subnet, c.ipRange, c.gateway, c.aux...)
			if c.starts == 0 {
				wantErr(t, err, c.want)
				if h.Holds(cluster.PoolKey{Prefix: prefix(c.subnet)}) {
					t.Error("the refused network is held")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g.String() != c.want {
				t.Errorf("gateway %s, want %s", g, c.want)
			}
			pool := h.Registry().Pools[keyOf(id)]
			seen := map[netip.Addr]bool{}
			for n := range some {
				h.work()
				a, err := h.start(id, "", "")
				if err != nil {
					if n != c.starts {
						t.Errorf("%d containers, want %d: %v", n, c.starts, err)
					}
					break
				}
				if n == 0 && a.String() != c.first {
					t.Errorf("first address %s, want %s", a, c.first)
				}
				if seen[a] || a == pool.Gateway || slices.Contains(pool.Reserved, a) || c.ipRange != "" && !prefix(c.ipRange).Contains(a) {
					t.Errorf("container %d got %s", n, a)
				}
				seen[a] = true
			}
			for a := range seen {
				h.stop(id, a)
			}
			h.remove(id)
			if err := h.Forget(t.Context(), keyOf(id)); err != nil {
				t.Fatal(err)
			}
			h.work()
			if r := h.Registry(); len(r.Pools)+len(r.Leases) > 0 {
				t.Errorf("left behind: %v %v", r.Pools, r.Leases)
			}
		})
	}
}

// TestRepeatedCalls: each call may come again, because its answer was lost, the
// plugin was restarted in between, or the engine replays what it stored.
func TestRepeatedCalls(t *testing.T) {
	for _, restart := range []bool{false, true} {
		l := newLab(t, "h1")
		h := l.hosts[0]
		again := func() {
			if restart {
				h.reboot()
			}
		}
		id, _, err := h.requestPool("10.0.0.0/24", "10.0.0.0/25", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g != addr("10.0.0.1") {
				t.Errorf("gateway %s", g)
			}
			must[netip.Addr](t)(h.requestAddress(id, "10.0.0.9", nil))
		}
		for range 2 {
			if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
				t.Fatal(err)
			}
		}
		h.setNetworked(keyOf(id), true)
		a := must[netip.Addr](t)(h.requestAddress(id, "", options{endpointName: "web"}))
		again()
		// The engine's replay: pool, gateway, auxiliary and endpoint addresses.
		id2, _, err := h.requestPool("10.0.0.0/24", "10.0.0.0/25", nil)
		if err != nil || id2 != id {
			t.Fatalf("pool again: %s, %v", id2, err)
		}
		for _, c := range []struct {
			address string
			o       options
			want    string
		}{
			{"10.0.0.1", forGateway, "10.0.0.1"},
			{"", forGateway, "10.0.0.1"},
			{"10.0.0.9", nil, "10.0.0.9"},
			{a.String(), options{endpointName: "web"}, a.String()},
			{a.String(), options{endpointName: "web"}, a.String()},
		} {
			if got, err := h.requestAddress(id, c.address, c.o); err != nil || got.String() != c.want {
				t.Errorf("restart %v: %q again: %v, %v", restart, c.address, got, err)
			}
		}
		h.setLive(id, a, true)
		if _, err := h.requestAddress(id, a.String(), options{endpointName: "web"}); err == nil {
			t.Error("the address of a live endpoint was handed out again")
		}
		for range 2 {
			h.stop(id, a)
			h.free(id, addr("10.0.0.1"))
			h.free(id, addr("10.0.0.9"))
		}
		again()
		for range 4 { // once more than it was requested
			if err := h.release(id); err != nil {
				t.Fatal(err)
			}
		}
		if h.Holds(keyOf(id)) {
			t.Error("held after the last release")
		}
		if used := h.Used(keyOf(id)); len(used) > 0 {
			t.Errorf("used %v", used)
		}
	}
}

// TestUncleanShutdown: Docker and the plugin died together; Docker asks for what
// its containers had, and the addresses of those that are gone come back.
func TestUncleanShutdown(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	static := must[netip.Addr](t)(h.start(id, "10.0.0.77", ""))
	named := must[netip.Addr](t)(h.start(id, "", "web"))
	lost := must[netip.Addr](t)(h.start(id, "", ""))
	for _, a := range []netip.Addr{static, named, lost} {
		h.setLive(id, a, false)
	}
	h.Reach(false) // and no quorum yet
	h.reboot()
	if a := must[netip.Addr](t)(h.start(id, "10.0.0.77", "")); a != static {
		t.Errorf("static address %s", a)
	}
	if a := must[netip.Addr](t)(h.start(id, "", "web")); a != named {
		t.Errorf("web got %s, had %s", a, named)
	}
	if a := must[netip.Addr](t)(h.start(id, "", "")); a == lost {
		t.Errorf("%s given away at once", a)
	}
	h.sweep()
	l.pass(forgottenTime)
	h.sweep()
	if used := h.Used(keyOf(id)); len(used) != 3 {
		t.Errorf("used %v", used)
	}
}

func TestSpacesAreApart(t *testing.T) {
	l := newLab(t, "h1", "h2")
	var got []netip.Addr
	for _, h := range l.hosts {
		for _, space := range []string{"", "blue"} {
			id, _, err := h.requestPool("10.0.0.0/24", "", options{"space": space})
			if err != nil {
				t.Fatal(err)
			}
			if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g != addr("10.0.0.1") {
				t.Errorf("gateway %s", g)
			}
			if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
				t.Fatal(err)
			}
			got = append(got, must[netip.Addr](t)(h.start(id, "", "web")))
		}
	}
	if got[0] != got[1] || got[2] != got[3] || got[0] == got[2] {
		t.Errorf("addresses of h1 in the default space, in blue, of h2 likewise: %v", got)
	}
	h := l.hosts[0]
	blue := "blue|10.0.0.0/24"
	h.stop(blue, got[1])
	if used := h.Used(keyOf("|10.0.0.0/24")); len(used) != 1 {
		t.Errorf("a release in blue freed an address of the default space: %v", used)
	}
}

// TestSeveralSubnets: a network with two subnets of one family serves both,
// although Docker asks only the first one.
func TestSeveralSubnets(t *testing.T) {
	l := newLab(t, "h1", "h2")
	first, second, six := "", "", ""
	for _, h := range l.hosts {
		first = must[string](t)(h.network("10.0.0.0/29", "", ""))
		second = must[string](t)(h.network("10.9.0.0/29", "10.9.0.0/30", ""))
		six = must[string](t)(h.network("fd00:1::/126", "", ""))
		must[cluster.Result](t)(h.Propose(t.Context(), cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{keyOf(first), keyOf(second), keyOf(six)}}}))
	}
	h := l.hosts[0]
	got := map[string]int{}
	var last netip.Prefix
	for n := range 7 {
		res, err := h.RequestAddress(t.Context(), &docker.RequestAddressRequest{PoolID: first})
		if err != nil {
			t.Fatalf("container %d: %v", n, err)
		}
		last = prefix(res.Address)
		got[last.Masked().String()]++
		h.setLive(first, last.Addr(), true)
		h.setLive(second, last.Addr(), true)
	}
	if got["10.0.0.0/29"] != 5 || got["10.9.0.0/29"] != 2 {
		t.Errorf("addresses by subnet: %v", got)
	}
	_, err := h.requestAddress(first, "", nil)
	wantErr(t, err, "subnet 10.0.0.0/29 is full: 5 addresses, all in use by: h1 5; free one or create a larger network; range 10.9.0.0/30 of subnet 10.9.0.0/29 is full: 2 addresses, all in use by: h1 2; free one or create a larger network")
	// Docker knows it under the first pool, over a restart too.
	h.setLive(second, last.Addr(), false)
	h.reboot()
	l.pass(startTime)
	res, err := h.RequestAddress(t.Context(), &docker.RequestAddressRequest{PoolID: first, Address: last.Addr().String()})
	if err != nil || res.Address != last.String() {
		t.Errorf("again: %v, %v", res, err)
	}
	if err := h.ReleaseAddress(t.Context(), &docker.ReleaseAddressRequest{PoolID: first, Address: last.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	if used := h.Used(keyOf(second)); len(used) != 1 {
		t.Errorf("used %v", used)
	}
	if _, err := h.requestAddress(first, "192.0.2.1", nil); err == nil {
		t.Error("an address of no subnet was handed out")
	}
}

// TestPickedSubnets: without --subnet, and with the engine's "any of this size".
func TestPickedSubnets(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	h.routes = []netip.Prefix{prefix("10.64.0.0/16"), prefix("192.168.0.0/24")}
	seen := []netip.Prefix{prefix("10.64.0.0/16")}
	for _, c := range []struct {
		pool string
		v6   bool
		bits int
	}{
		{"", false, 24}, {"", false, 24}, {"0.0.0.0/24", false, 24}, {"0.0.0.0/16", false, 16}, {"0.0.0.0/30", false, 30},
		{"", true, 64}, {"::/64", true, 64}, {"::/80", true, 80}, {"::/120", true, 120},
	} {
		o := options{}
		if c.v6 {
			o["v6"] = "yes"
		}
		id, got, err := h.requestPool(c.pool, "", o)
		if err != nil || got.Bits() != c.bits || got.Addr().Is6() != c.v6 || slices.ContainsFunc(seen, got.Overlaps) {
			t.Errorf("--subnet %q: %v, %v; before %v", c.pool, got, err, seen)
			continue
		}
		seen = append(seen, got)
		must[netip.Addr](t)(h.requestAddress(id, "", forGateway))
		if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
			t.Error(err)
		}
		must[netip.Addr](t)(h.start(id, "", ""))
	}
	for _, c := range []struct{ pool, want string }{
		{"0.0.0.0/8", "--subnet of length /8: isthmus picks subnets out of 10.64.0.0/10; ask for /10 or a longer one, or name the subnet"},
		{"::/40", "--subnet of length /40: isthmus picks subnets out of " + default6(h.Registry().Cluster).String() + "; ask for /48 or a longer one, or name the subnet"},
		{"0.0.0.0/10", "no free subnet of length /10 is left to choose from (9 pools exist): name one with --subnet, or remove a network"},
		{"::/0", "--subnet ::/0: isthmus hands out addresses of a real subnet; name one, or leave --subnet out"},
		{"0.0.0.0/31", ""},
	} {
		_, _, err := h.requestPool(c.pool, "", options{})
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.pool, err)
			}
			continue
		}
		wantErr(t, err, c.want)
	}
}
