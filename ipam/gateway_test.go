package ipam

import (
	"net/netip"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestGatewayIsTheSameOnAllHosts(t *testing.T) {
	l := newLab(t, "h1", "h2", "h3")
	for n, h := range l.hosts {
		id := must[string](t)(h.network("10.0.0.0/24", "10.0.0.128/25", ""))
		if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g != addr("10.0.0.1") {
			t.Errorf("gateway on host %d is %s", n, g)
		}
		if g := must[netip.Addr](t)(h.requestAddress(id, "10.0.0.1", forGateway)); g != addr("10.0.0.1") {
			t.Errorf("asked gateway on host %d is %s", n, g)
		}
		_, err := h.requestAddress(id, "10.0.0.254", forGateway)
		wantErr(t, err, "--gateway 10.0.0.254: subnet 10.0.0.0/24 has the gateway 10.0.0.1 on all hosts; use that one, or leave --gateway out (a network of this host is on it)")
	}
}

func TestGatewayAnswersLocally(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", "10.0.0.254"))
	h.Reach(false)
	h.reboot()
	for _, asked := range []string{"", "10.0.0.254"} {
		if g := must[netip.Addr](t)(h.requestAddress(id, asked, forGateway)); g != addr("10.0.0.254") {
			t.Errorf("gateway %q is %s", asked, g)
		}
	}
}

func TestGatewayStaysWhenANetworkGoes(t *testing.T) {
	l := newLab(t, "h1", "h2")
	for _, h := range l.hosts {
		must[string](t)(h.network("10.0.0.0/29", "", ""))
	}
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/29", "", ""))
	h.free(id, addr("10.0.0.1"))
	seen := map[netip.Addr]bool{}
	for {
		a, err := h.start(id, "", "")
		if err != nil {
			break
		}
		seen[a] = true
	}
	if seen[addr("10.0.0.1")] || len(seen) == 0 {
		t.Errorf("endpoints got %v", seen)
	}
}

func TestGatewayRefusals(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id, _, err := h.requestPool("10.0.0.0/24", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
		t.Fatal(err)
	}
	a := must[netip.Addr](t)(h.start(id, "", "web"))
	for asked, want := range map[string]string{
		"10.0.1.1":   "address 10.0.1.1: is not part of subnet 10.0.0.0/24",
		"10.0.0.0":   "--gateway 10.0.0.0: is the network or broadcast address of subnet 10.0.0.0/24; choose another one",
		"10.0.0.255": "--gateway 10.0.0.255: is the network or broadcast address of subnet 10.0.0.0/24; choose another one",
		a.String():   "--gateway " + a.String() + ": is in use by web on this host; choose another one, or free it first",
		"gw":         `address "gw": not an IP address`,
	} {
		_, err := h.requestAddress(id, asked, forGateway)
		wantErr(t, err, want)
	}
	// The cluster's first address is in use here: the next one it is.
	if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g != a.Next() {
		t.Errorf("gateway %s, endpoint %s", g, a)
	}
}

func TestGatewayOfAPoolLeasedByOthers(t *testing.T) {
	l := newLab(t, "h1", "h2")
	id := ""
	for _, h := range l.hosts {
		var err error
		if id, _, err = h.requestPool("10.0.0.0/24", "", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.hosts[0].Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
		t.Fatal(err)
	}
	if g := must[netip.Addr](t)(l.hosts[1].requestAddress(id, "", forGateway)); g != addr("10.0.0.8") {
		t.Errorf("gateway %s", g)
	}
	_, err := l.hosts[1].requestAddress(id, "10.0.0.1", forGateway)
	if err == nil {
		t.Error("a second gateway was accepted")
	}
}

func TestParkedPoolTakesANewGateway(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	for _, h := range l.hosts {
		h.remove(must[string](t)(h.network("10.0.0.0/24", "", "10.0.0.1")))
	}
	id := must[string](t)(h1.network("10.0.0.0/24", "", "10.0.0.254"))
	if g := must[netip.Addr](t)(h1.requestAddress(id, "", forGateway)); g != addr("10.0.0.254") {
		t.Errorf("gateway %s", g)
	}
	h1.reboot()
	if !h1.Holds(keyOf(id)) {
		t.Error("pool is not held after the change")
	}
	must[netip.Addr](t)(h1.start(id, "", ""))
	must[string](t)(h2.network("10.0.0.0/24", "", "10.0.0.254"))
	_, err := h2.network("10.0.0.0/24", "", "10.0.0.7")
	wantErr(t, err, "--gateway 10.0.0.7: subnet 10.0.0.0/24 has the gateway 10.0.0.254 on all hosts; use that one, or leave --gateway out (give up pool 10.0.0.0/24: a network of this host is on it: in use)")
}

func TestAuxiliaryAddresses(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	// Inside and outside of the --ip-range, and one that no endpoint can have.
	id := must[string](t)(h1.network("10.0.0.0/27", "10.0.0.0/28", "", "10.0.0.5", "10.0.0.20", "10.0.0.31"))
	got := map[netip.Addr]bool{}
	for range 12 { // 16 in the range, less network, gateway, and one reserved
		got[must[netip.Addr](t)(h1.start(id, "", ""))] = true
	}
	if got[addr("10.0.0.5")] || got[addr("10.0.0.20")] {
		t.Errorf("endpoints got %v", got)
	}
	h1.Reach(false)
	must[string](t)(h1.network("10.0.0.0/27", "10.0.0.0/28", "", "10.0.0.5", "10.0.0.20"))
	h1.free(id, addr("10.0.0.5"))
	_, err := h1.start(id, "10.0.0.5", "")
	wantErr(t, err, "address 10.0.0.5: is reserved by --aux-address of subnet 10.0.0.0/27; choose another one")

	_, err = h2.network("10.0.0.0/27", "", "", "10.0.0.1")
	wantErr(t, err, "--aux-address 10.0.0.1: is the gateway of subnet 10.0.0.0/27; choose another one")
	_, err = h2.network("10.0.0.0/27", "", "", "10.0.0.6")
	wantErr(t, err, "address 10.0.0.6 of pool 10.0.0.0/27 is in the block 10.0.0.0/29 of host h1, which may be using it: choose another address, or free it there")
	id2 := must[string](t)(h2.network("10.0.0.0/27", "", "", "10.0.0.5"))
	a := must[netip.Addr](t)(h2.start(id2, "", "db"))
	_, err = h2.network("10.0.0.0/27", "", "", a.String())
	wantErr(t, err, "--aux-address "+a.String()+": is in use by db on this host; choose another one, or free it first")
}
