package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestStartsAskNobodyAfterPrepare(t *testing.T) {
	for _, subnet := range []string{"10.0.0.0/24", "fd00:1::/64"} {
		h := newLab(t, "h1").hosts[0]
		id := must[string](t)(h.network(subnet, "", ""))
		h.Reach(false)
		for range 5 {
			a := must[netip.Addr](t)(h.start(id, "", ""))
			h.stop(id, a)
			h.reboot()
		}
	}
}

func TestParallelStartsGetDistinctAddresses(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	var wg sync.WaitGroup
	got := make([]netip.Addr, 50)
	for n := range got {
		wg.Go(func() {
			a, err := h.start(id, "", fmt.Sprint("c", n))
			if err != nil {
				t.Error(err)
			}
			got[n] = a
		})
	}
	wg.Wait()
	slices.SortFunc(got, netip.Addr.Compare)
	if n := len(slices.Compact(slices.Clone(got))); n != 50 {
		t.Fatalf("%d distinct addresses of 50: %v", n, got)
	}
	for _, a := range got {
		wg.Go(func() {
			if err := h.ReleaseAddress(t.Context(), &docker.ReleaseAddressRequest{PoolID: id, Address: a.String()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if used := h.Used(keyOf(id)); len(used) != 0 {
		t.Errorf("still used: %v", used)
	}
}

func TestAddressSurvivesRestartByName(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	a := must[netip.Addr](t)(h.start(id, "", "web"))
	must[netip.Addr](t)(h.start(id, "", "db"))
	h.stop(id, a)
	if b := must[netip.Addr](t)(h.start(id, "", "other")); b == a {
		t.Errorf("%s given to another at once", a)
	}
	h.reboot()
	if b := must[netip.Addr](t)(h.start(id, "", "web")); b != a {
		t.Errorf("web had %s, and got %s", a, b)
	}
	// Unclean shutdown: Docker never released it, and no endpoint is left.
	h.reboot()
	h.setLive(id, a, false)
	if b := must[netip.Addr](t)(h.start(id, "", "web")); b != a {
		t.Errorf("web had %s, and got %s after an unclean shutdown", a, b)
	}
	// A second endpoint of one name, on another Docker network of the pool.
	if b := must[netip.Addr](t)(h.start(id, "", "web")); b == a {
		t.Errorf("%s given twice", a)
	}
	if lease := h.LeaseOf(keyOf(id), a); lease == 0 || lease != h.Used(keyOf(id))[0].Lease {
		t.Errorf("lease of %s is %d", a, lease)
	}
}

func TestFreedAddressesCool(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	h.Reach(false)
	a := must[netip.Addr](t)(h.start(id, "", ""))
	b := must[netip.Addr](t)(h.start(id, "", ""))
	h.stop(id, b)
	l.pass(time.Second)
	h.stop(id, a)
	var order []netip.Addr
	for range 6 {
		order = append(order, must[netip.Addr](t)(h.start(id, "", "")))
	}
	if order[4] != b || order[5] != a {
		t.Errorf("freed %s, then %s; handed out %v", b, a, order)
	}
}

func TestStaticAddresses(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/24", "10.0.0.0/26", ""))
	must[string](t)(h2.network("10.0.0.0/24", "", ""))

	own := must[netip.Addr](t)(h1.start(id, "10.0.0.2", "own"))
	must[netip.Addr](t)(h1.start(id, "10.0.0.200", "far")) // outside of the --ip-range
	for _, c := range []struct {
		name, address, want string
		h                   *host
	}{
		{"network address", "10.0.0.0", "address 10.0.0.0: is the network or broadcast address of subnet 10.0.0.0/24; choose another one", h1},
		{"gateway", "10.0.0.1", "address 10.0.0.1: is the gateway of subnet 10.0.0.0/24; choose another one", h1},
		{"elsewhere", "10.1.0.1", "address 10.1.0.1: is not part of subnet 10.0.0.0/24", h1},
		{"live here", "10.0.0.200", "address 10.0.0.200 of subnet 10.0.0.0/24 is in use by far on this host; choose another one, or free it there", h1},
		{"live here, own block", own.String(), "address 10.0.0.2 of subnet 10.0.0.0/24 is in use by own on this host; choose another one, or free it there", h1},
		{"used there", "10.0.0.200", "address 10.0.0.200 of subnet 10.0.0.0/24 is in use by far on h1; choose another one, or free it there", h2},
	} {
		_, err := c.h.start(id, c.address, "new")
		if c.want == "" {
			t.Fatal(c.name)
		}
		wantErr(t, err, c.want)
	}
	h2.holders[addr("10.0.0.200")] = "far on h1"
	_, err := h2.start(id, "10.0.0.200", "new")
	wantErr(t, err, "address 10.0.0.200 of subnet 10.0.0.0/24 is in use by far on h1; choose another one, or free it there")
	delete(h2.holders, addr("10.0.0.200"))

	// It moves once it is free, and returns.
	for range 2 {
		h1.stop(id, addr("10.0.0.200"))
		must[netip.Addr](t)(h2.start(id, "10.0.0.200", "far"))
		h2.stop(id, addr("10.0.0.200"))
		must[netip.Addr](t)(h1.start(id, "10.0.0.200", "far"))
	}
	// It is not given to others while there is any choice.
	h1.stop(id, addr("10.0.0.200"))
	for range 20 {
		if a := must[netip.Addr](t)(h1.start(id, "", "")); a == addr("10.0.0.200") {
			t.Errorf("%s given to somebody who did not ask for it", a)
		}
	}
	h1.Reach(false)
	must[netip.Addr](t)(h1.start(id, "10.0.0.200", "far"))
}

func TestAskedAgain(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	for range 2 { // the answer may have been lost
		must[netip.Addr](t)(h.requestAddress(id, "10.0.0.5", nil))
		must[netip.Addr](t)(h.requestAddress(id, "10.0.0.99", options{endpointName: "web"}))
	}
	_, err := h.requestAddress(id, "10.0.0.99", options{endpointName: "db"})
	wantErr(t, err, "address 10.0.0.99 of subnet 10.0.0.0/24 is in use by web on this host; choose another one, or free it there")
	l.pass(startTime)
	must[netip.Addr](t)(h.requestAddress(id, "10.0.0.99", options{endpointName: "db"}))
	if used := h.Used(keyOf(id)); len(used) != 2 || used[1].Name != "db" {
		t.Errorf("used %+v", used)
	}
}

func TestUnknownPoolOfAddress(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	_, err := h.requestAddress("|10.0.0.0/24", "", nil)
	wantErr(t, err, "pool 10.0.0.0/24 is not known on this host: remove the Docker network and create it again")
	_, err = h.RequestAddress(t.Context(), &docker.RequestAddressRequest{PoolID: "LocalDefault/10.0.0.0/24"})
	wantErr(t, err, `pool id "LocalDefault/10.0.0.0/24" is not one of isthmus`)
	wantErr(t, h.Prepare(t.Context(), []cluster.PoolKey{{Prefix: prefix("10.0.0.0/24")}}),
		"prepare pool 10.0.0.0/24: Docker has not requested it from isthmus on this host: create the network with --ipam-driver")
	for _, a := range []string{"10.0.0.1", "", "x"} {
		for _, id := range []string{"|10.0.0.0/24", "x"} {
			if err := h.ReleaseAddress(t.Context(), &docker.ReleaseAddressRequest{PoolID: id, Address: a}); err != nil {
				t.Errorf("release of %q in %q: %v", a, id, err)
			}
		}
	}
}

// TestFullPool runs on virtual time: on a machine that stalls for two seconds a
// recall is over before it was answered, and that is no failure of the code.
func TestFullPool(t *testing.T) { bubble(t, testFullPool) }

func testFullPool(t *testing.T) {
	l := newLab(t, "host1", "host2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/29", "", ""))
	must[string](t)(h2.network("10.0.0.0/29", "", ""))
	for range 4 {
		must[netip.Addr](t)(h1.start(id, "", "")) // taken back from host2 where that holds more than it uses
	}
	must[netip.Addr](t)(h2.start(id, "", ""))
	for _, h := range l.hosts {
		_, err := h.start(id, "", "")
		wantErr(t, err, "subnet 10.0.0.0/29 is full: 5 addresses, all in use by: host1 4, host2 1; free one or create a larger network")
	}
	h1.stop(id, h1.Used(keyOf(id))[3].Addr)
	must[netip.Addr](t)(h2.start(id, "", ""))

	small := must[string](t)(h1.network("10.1.0.0/24", "10.1.0.0/30", ""))
	for range 2 {
		must[netip.Addr](t)(h1.start(small, "", ""))
	}
	_, err := h1.start(small, "", "")
	wantErr(t, err, "range 10.1.0.0/30 of subnet 10.1.0.0/24 is full: 2 addresses, all in use by: host1 2; free one or create a larger network")
	_, err = h1.network("10.2.0.0/32", "", "10.2.0.0")
	wantErr(t, err, "subnet 10.2.0.0/32 has no address for a container; create a larger network")
}

func TestDiskFull(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	a := must[netip.Addr](t)(h.start(id, "", ""))
	h.db.Close()
	_, err := h.start(id, "", "")
	wantErr(t, err, "store addresses: database not open")
	if err := h.Free(t.Context(), keyOf(id), a); err == nil {
		t.Error("freed without a disk")
	}
	if used := h.Used(keyOf(id)); len(used) != 1 || used[0].Addr != a {
		t.Errorf("used %v", used)
	}
}

func TestWaitIsBounded(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id, _, err := h.requestPool("10.0.0.0/24", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := h.find(keyOf(id))
	p.hold <- struct{}{} // an earlier request that is never answered
	defer func() { <-p.hold }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = h.RequestAddress(ctx, &docker.RequestAddressRequest{PoolID: id})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}
