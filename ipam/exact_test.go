package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestAddressOfAnothersBlock: --ip may name what lies in the block of another
// host; that one gives the address back, and nothing else.
func TestAddressOfAnothersBlock(t *testing.T) {
	l := newLab(t, "h1", "h2", "h3")
	h1, h2, h3 := l.hosts[0], l.hosts[1], l.hosts[2]
	var id string
	for _, h := range l.hosts {
		id = must[string](t)(h.network("10.0.0.0/24", "", ""))
	}
	web := must[netip.Addr](t)(h1.start(id, "", "web"))
	block := blocksOf(h1, id)[0]
	db := last(block)
	must[netip.Addr](t)(h2.start(id, db.String(), "db"))
	if !blocksOf(h1, id)[0].Contains(web) || !slices.Equal(h1.Status()[0].Blocks[0].Holes, []netip.Addr{db}) {
		t.Fatalf("h1 has %+v", h1.Status()[0].Blocks)
	}
	if h1.LeaseOf(keyOf(id), db) != 0 || h2.LeaseOf(keyOf(id), db) == 0 {
		t.Error("the lease did not move")
	}
	// h1 never hands it out again, not even when it asked for it back.
	for range 8 {
		if a := must[netip.Addr](t)(h1.start(id, "", "")); a == db {
			t.Fatalf("%s given to h1", a)
		}
	}
	_, err := h1.start(id, db.String(), "thief")
	wantErr(t, err, "address "+db.String()+" of subnet 10.0.0.0/24 is in use by db on h2; choose another one, or free it there")
	h2.stop(id, db)
	must[netip.Addr](t)(h3.start(id, db.String(), "db"))
	h3.stop(id, db)
	must[netip.Addr](t)(h1.start(id, db.String(), "db"))
	h1.reboot()
	if h1.LeaseOf(keyOf(id), db) == 0 {
		t.Error("the address that came back is not leased after a restart")
	}
}

func last(p netip.Prefix) netip.Addr { return offset(p, 1<<(p.Addr().BitLen()-p.Bits())-1) }

// TestHoleIsStoredBeforeItIsGiven: the holder crashes around the Release; in no
// case do both hosts hand the address out.
func TestHoleIsStoredBeforeItIsGiven(t *testing.T) {
	for _, at := range []string{"before", "after"} {
		t.Run(at, func(t *testing.T) {
			l := newLab(t, "h1", "h2")
			h1, h2 := l.hosts[0], l.hosts[1]
			id := must[string](t)(h1.network("10.0.0.0/24", "", ""))
			must[string](t)(h2.network("10.0.0.0/24", "", ""))
			must[netip.Addr](t)(h1.start(id, "", "web"))
			h1.cut = func(c cluster.Command) (bool, bool) {
				mine := c.Release != nil
				return mine && at == "before", mine && at == "after"
			}
			if _, err := h2.start(id, "10.0.0.5", "db"); err == nil {
				t.Fatal("the holder crashed, and the address was handed out")
			}
			h1.cut = nil
			h1.open()
			if err := h1.Hello(); err != nil {
				t.Fatal(err)
			}
			if _, err := h1.requestAddress(id, "10.0.0.5", options{endpointName: "other"}); err != nil {
				t.Fatal(err) // a new lease, of the very address
			}
			for _, b := range h1.Status()[0].Blocks {
				if b.Block.Bits() < 32 && !slices.Contains(b.Holes, addr("10.0.0.5")) {
					t.Errorf("the hole is gone: %+v", b)
				}
			}
			h1.free(id, addr("10.0.0.5"))
			must[netip.Addr](t)(h2.start(id, "10.0.0.5", "db"))
			h1.work()
			if due := h1.m.Releases(keyOf(id)); len(due) > 0 {
				t.Errorf("still to be told: %+v", due)
			}
		})
	}
}

func TestHolderThatIsDown(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/24", "", ""))
	must[string](t)(h2.network("10.0.0.0/24", "", ""))
	h1.crash()
	_, err := h2.start(id, "10.0.0.5", "db")
	wantErr(t, err, "address 10.0.0.5 of subnet 10.0.0.0/24 lies in a block of host h1, which does not answer: choose another address, or bring h1 back; `isthmus node rm h1` frees its addresses if it is gone for good (connection refused)")
}

// TestSilentHoldersCostLittle: hosts that never answer do not keep a start from
// the one that does, nor longer than the bound of a call.
func TestSilentHoldersCostLittle(t *testing.T) {
	if raceEnabled {
		t.Skip("measures virtual time, which crashes under the race detector before Go 1.27; the others cover the code")
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, "h0", "h1", "h2", "h3")
		var id string
		for _, h := range l.hosts {
			id = must[string](t)(h.network("10.0.0.0/28", "", ""))
			must[netip.Addr](t)(h.start(id, "", h.name))
		}
		h0, h1 := l.hosts[0], l.hosts[1]
		for range 9 {
			must[netip.Addr](t)(h0.start(id, "", ""))
		}
		l.hosts[2].silent, l.hosts[3].silent = true, true
		begin := time.Now()
		_, err := h0.start(id, "", "")
		wantErr(t, err, "subnet 10.0.0.0/28 is full: 13 addresses, all in use by: h0 10, h1 1, h2 1, h3 1; free one or create a larger network (h2, h3 do not answer: what they do not use cannot be given back now; `isthmus node rm` frees the addresses of a host that is gone for good)")
		if took := time.Since(begin); took > recallTime {
			t.Errorf("refused after %s", took)
		}
		h1.stop(id, h1.Used(keyOf(id))[0].Addr)
		begin = time.Now()
		must[netip.Addr](t)(h0.start(id, "", ""))
		if took := time.Since(begin); took > recallTime {
			t.Errorf("started after %s", took)
		}
		begin = time.Now()
		_, err = h0.start(id, l.hosts[2].Used(keyOf(id))[0].Addr.String(), "")
		if err == nil || !strings.Contains(err.Error(), "lies in a block of host h2, which does not answer") {
			t.Errorf("--ip of a silent host: %v", err)
		}
		if took := time.Since(begin); took > recallTime {
			t.Errorf("refused after %s", took)
		}
	})
}
