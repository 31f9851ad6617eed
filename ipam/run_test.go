package ipam

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// blocks lists the prefixes of the blocks that a host holds.
func blocksOf(h *host, id string) (out []netip.Prefix) {
	for _, s := range h.Status() {
		if s.Pool == keyOf(id) {
			for _, b := range s.Blocks {
				out = append(out, b.Block)
			}
		}
	}
	return out
}

func TestLeasesAheadOfNeedAndGivesBack(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/16", "", ""))
	var got []netip.Addr
	for n := range 200 {
		h.work()
		l.log.Registry()
		h.Reach(false) // no start needs the cluster when Run keeps up
		a, err := h.start(id, "", "")
		if err != nil {
			t.Fatalf("start %d: %v", n, err)
		}
		got = append(got, a)
		h.Reach(true)
	}
	if n := len(blocksOf(h, id)); n > 8 {
		t.Errorf("%d blocks for 200 addresses", n)
	}
	for _, a := range got {
		h.stop(id, a)
	}
	h.work()
	if n := len(blocksOf(h, id)); n < 4 {
		t.Errorf("%d blocks left before the addresses cooled", n)
	}
	for range 3 {
		l.pass(30 * time.Minute)
		h.work()
	}
	if n := len(blocksOf(h, id)); n != 1 {
		t.Errorf("%d blocks left without any use", n)
	}
	if n := len(l.log.Registry().Leases); n != 1 {
		t.Errorf("%d leases left without any use", n)
	}
	must[netip.Addr](t)(h.start(id, "", ""))
}

func TestStaticBlockIsKeptForADay(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/16", "", ""))
	a := must[netip.Addr](t)(h.start(id, "10.0.9.9", ""))
	h.stop(id, a)
	l.pass(keepTime - time.Minute)
	h.work()
	if h.LeaseOf(keyOf(id), a) == 0 {
		t.Error("given back too early")
	}
	l.pass(time.Minute)
	h.work()
	if h.LeaseOf(keyOf(id), a) != 0 {
		t.Error("not given back")
	}
}

func TestLostAnswersLeakNothing(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id, _, err := h.requestPool("10.0.0.0/24", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	h.LoseAnswers(1)
	if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err == nil {
		t.Fatal("the answer was not lost")
	}
	h.work()
	if n := len(blocksOf(h, id)); n != 1 {
		t.Errorf("%d blocks after a lost answer", n)
	}
	h.LoseAnswers(1)
	if _, _, err := h.requestPool("10.1.0.0/24", "", nil); err == nil {
		t.Fatal("the answer was not lost")
	}
	h.work()
	if st := h.Status(); len(st) != 1 {
		t.Errorf("taken up at once, while it may be in the making: %+v", st)
	}
	l.pass(orphanTime)
	h.work()
	if st := h.Status(); len(st) != 2 || st[1].Uses != 0 {
		t.Errorf("status %+v", st)
	}
	l.pass(keepTime)
	h.work()
	if n := len(l.log.Registry().Pools); n != 1 {
		t.Errorf("%d pools after a day", n)
	}
}

func TestPoolOfAnotherIPAMIsLeftAlone(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	key := cluster.PoolKey{Prefix: prefix("10.5.0.0/24")}
	must[cluster.Result](t)(h.Host.Propose(t.Context(), cluster.Command{AttachPool: &cluster.AttachPool{Prefix: key.Prefix}}))
	h.work()
	h.setNetworked(key, true) // the network driver attached it
	for range 3 {
		l.pass(keepTime)
		h.work()
	}
	if err := h.Recalled(t.Context(), key, netip.Addr{}); err != nil {
		t.Error(err)
	}
	if st := h.Status(); len(st) != 0 {
		t.Errorf("status %+v", st)
	}
	if p := l.log.Registry().Pools[key]; len(p.Holders) != 1 {
		t.Errorf("pool %+v", p)
	}
}

func TestDrainingBlocksAreNeverUsedAgain(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	h.LoseAnswers(1)
	if err := h.Recalled(t.Context(), keyOf(id), netip.Addr{}); err == nil {
		t.Fatal("the answer was not lost")
	}
	h.Reach(false)
	h.reboot()
	if st := h.Status(); !st[0].Blocks[0].Draining {
		t.Fatalf("status %+v", st)
	}
	if a, err := h.start(id, "", ""); err == nil {
		t.Errorf("%s handed out of a draining block", a)
	}
	if a, err := h.start(id, "10.0.0.3", ""); err == nil {
		t.Errorf("%s handed out of a draining block", a)
	}
	h.Reach(true)
	if err := h.Hello(); err != nil {
		t.Fatal(err)
	}
	must[netip.Addr](t)(h.start(id, "10.0.0.3", ""))
	h.work()
	for _, s := range h.Status() {
		for _, b := range s.Blocks {
			if b.Draining {
				t.Errorf("still draining: %+v", b)
			}
		}
	}
}

func TestRecalledKeepsWhatIsInUse(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	a := must[netip.Addr](t)(h.start(id, "", "web"))
	must[netip.Addr](t)(h.start(id, "10.0.0.77", ""))
	h.stop(id, addr("10.0.0.77"))
	if err := h.Recalled(t.Context(), keyOf(id), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if got := blocksOf(h, id); len(got) != 1 || !got[0].Contains(a) {
		t.Errorf("blocks left: %v", got)
	}
	for range 5 { // of its 6 addresses all but one
		if err := h.Recalled(t.Context(), keyOf(id), netip.Addr{}); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, h.Recalled(t.Context(), keyOf(id), netip.Addr{}), "give up pool 10.0.0.0/24: a network of this host is on it: in use")
	if err := h.Recalled(t.Context(), cluster.PoolKey{Prefix: prefix("10.9.0.0/24")}, netip.Addr{}); err != nil {
		t.Errorf("of an unknown pool: %v", err)
	}
	if err := h.release(id); err != nil {
		t.Fatal(err)
	}
	wantErr(t, h.Recalled(t.Context(), keyOf(id), netip.Addr{}), "give up pool 10.0.0.0/24: 10.0.0.2 (web) in use: in use")
}

func TestClusterTookABlock(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	a := must[netip.Addr](t)(h.start(id, "", ""))
	// A registry that was rebuilt without this host's leases.
	if _, err := h.Host.Propose(t.Context(), cluster.Command{Release: &cluster.Release{Lease: h.LeaseOf(keyOf(id), a)}}); err != nil {
		t.Fatal(err)
	}
	h.reconcile(t.Context(), h.Registry())
	st := h.Status()[0]
	if st.Problem != "the cluster took block 10.0.0.0/29 from this host" || len(st.Used) != 1 || st.Used[0].Lease != 0 || len(st.Blocks) != 0 {
		t.Errorf("status %+v", st)
	}
	h.stop(id, a)
	h.work()
	must[netip.Addr](t)(h.start(id, "", ""))
}

func TestClusterLostThePool(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	for _, b := range h.Status()[0].Blocks {
		must[cluster.Result](t)(h.Host.Propose(t.Context(), cluster.Command{Release: &cluster.Release{Lease: b.Lease}}))
	}
	must[cluster.Result](t)(h.Host.Propose(t.Context(), cluster.Command{DetachPool: &cluster.DetachPool{Pool: keyOf(id)}}))
	h.work()
	if p, ok := l.log.Registry().Pools[keyOf(id)]; !ok || len(p.Holders) != 1 {
		t.Errorf("pool %+v, %v", p, ok)
	}
	must[netip.Addr](t)(h.start(id, "", ""))
}

func TestOldCopyDoesNotReviveAPool(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	old := h.Registry()
	h.remove(id)
	if err := h.Recalled(t.Context(), keyOf(id), netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	h.reconcile(t.Context(), old)
	if st := h.Status(); len(st) != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestBlockWaitsForTheCopy: what this host uses is in the copy from which it
// testifies; what it has already waits for nothing.
func TestBlockWaitsForTheCopy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, "h1", "h2")
		h1, h2 := l.hosts[0], l.hosts[1]
		id := must[string](t)(h1.network("10.0.0.0/24", "", ""))
		other, _, err := h1.requestPool("10.1.0.0/24", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		h1.lag = func() bool { return true }
		h1.cfg.Ledger.Registry() // from here on the copy stays
		if _, _, err := h2.requestPool("10.1.0.0/24", "", nil); err != nil {
			t.Fatal(err)
		}
		must[netip.Addr](t)(h2.requestAddress(other, "10.1.0.2", forGateway))
		must[netip.Addr](t)(h2.requestAddress(other, "10.1.0.3", nil))
		begin := time.Now()
		err = h1.Prepare(t.Context(), []cluster.PoolKey{keyOf(other)})
		wantErr(t, err, "use block 10.1.0.0/29 of subnet 10.1.0.0/24, which was just leased: this host's copy of the registry lags behind; try again: context deadline exceeded")
		if took := time.Since(begin); !raceEnabled && took != copyTime {
			t.Errorf("refused after %s", took)
		}
		if got := h1.Claims(); len(got) != 1 {
			t.Errorf("claims %v", got)
		}
		begin = time.Now()
		must[netip.Addr](t)(h1.start(id, "", ""))
		if took := time.Since(begin); !raceEnabled && took > 0 {
			t.Errorf("an address at hand took %s", took)
		}
		h1.lag = nil
		h1.work()
		if got := h1.Claims(); len(got) != 2 {
			t.Errorf("claims %v after the copy came", got)
		}
		for _, want := range []string{"10.1.0.1", "10.1.0.4"} {
			if a := must[netip.Addr](t)(h1.start(other, "", "")); a != addr(want) {
				t.Errorf("got %s, want %s", a, want)
			}
		}
	})
}

func TestSweep(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", "", "10.0.0.9"))
	live := must[netip.Addr](t)(h.start(id, "", "live"))
	lost := must[netip.Addr](t)(h.requestAddress(id, "", nil))
	foreign, _, err := h.requestPool("10.1.0.0/24", "", nil) // of another network driver
	if err != nil {
		t.Fatal(err)
	}
	kept := must[netip.Addr](t)(h.requestAddress(foreign, "", nil))
	h.sweep()
	l.pass(59 * time.Second)
	h.sweep()
	if n := len(h.Used(keyOf(id))); n != 2 {
		t.Fatalf("%d used after 59 s", n)
	}
	l.pass(time.Second)
	h.sweep()
	if used := h.Used(keyOf(id)); len(used) != 1 || used[0].Addr != live {
		t.Errorf("used %+v, lost %s", used, lost)
	}
	if used := h.Used(keyOf(foreign)); len(used) != 1 || used[0].Addr != kept {
		t.Errorf("of another driver: %+v", used)
	}
	// An endpoint that appears in time counts anew.
	a := must[netip.Addr](t)(h.requestAddress(id, "", nil))
	h.sweep()
	l.pass(50 * time.Second)
	h.setLive(id, a, true)
	h.sweep()
	h.setLive(id, a, false)
	l.pass(50 * time.Second)
	h.sweep()
	if n := len(h.Used(keyOf(id))); n != 2 {
		t.Errorf("%d used; the minute must be without a break", n)
	}
	if g := must[netip.Addr](t)(h.requestAddress(id, "", forGateway)); g != addr("10.0.0.1") {
		t.Errorf("gateway %s", g)
	}
}

func TestRun(t *testing.T) {
	if raceEnabled {
		t.Skip("testing/synctest crashes under the race detector before Go 1.27; TestRunConcurrently covers that")
	}
	synctest.Test(t, func(t *testing.T) {
		h := newLab(t, "h1").hosts[0]
		h.cfg.Now = time.Now
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		synctest.Wait()
		id := must[string](t)(h.network("10.0.0.0/16", "", ""))
		for range 3 {
			must[netip.Addr](t)(h.start(id, "", ""))
			synctest.Wait()
		}
		if n := len(blocksOf(h, id)); n != 2 {
			t.Errorf("%d blocks after 3 of 6 addresses went", n)
		}
		h.Reach(false)
		for range 16 {
			must[netip.Addr](t)(h.start(id, "", ""))
		}
		synctest.Wait()
		h.Reach(true)
		time.Sleep(time.Minute) // virtual: the back-off ends
		synctest.Wait()
		if n := len(blocksOf(h, id)); n != 3 {
			t.Errorf("%d blocks after the cluster came back", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestRunConcurrently(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	id := must[string](t)(h.network("10.0.0.0/16", "", ""))
	for range 100 {
		h.stop(id, must[netip.Addr](t)(h.start(id, "", "")))
		h.Status()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
