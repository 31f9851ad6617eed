package ipam

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

func signalled(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// TestSuspectHandsOutNothing: while there is doubt about the disk, calls wait a
// moment for the cluster, and then say why; once it confirms, all works again.
func TestSuspectHandsOutNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, "h1", "h2")
		h := l.hosts[0]
		id := must[string](t)(h.network("10.0.0.0/24", "", ""))
		a := must[netip.Addr](t)(h.start(id, "", "web"))
		h.Reach(false)
		h.boot = func() cluster.Boot { return cluster.Boot{Settled: true, Suspect: "STRICT_BOOT is on"} }
		h.reboot()
		changed := h.IPAM.Subscribe()
		if why := h.Suspect(); why != "STRICT_BOOT is on" {
			t.Errorf("suspect: %q", why)
		}
		const want = "the address blocks stored on this host are not trusted: STRICT_BOOT is on; they are used again as soon as the cluster confirms them: see isthmus status, and bring this host in reach of the others"
		for _, asked := range []string{"", "10.0.0.4"} {
			begin := time.Now()
			_, err := h.start(id, asked, "db")
			wantErr(t, err, want)
			if took := time.Since(begin); !raceEnabled && took != trustTime {
				t.Errorf("refused after %s", took)
			}
		}
		err := h.Recalled(t.Context(), keyOf(id), netip.Addr{})
		wantErr(t, err, want)
		if _, ok := refused(err, cluster.Held); !ok {
			t.Errorf("not a refusal: %v", err)
		}
		h.work()
		if signalled(changed) {
			t.Error("signalled, and nothing changed")
		}
		h.free(id, a) // what is free is free
		h.Reach(true)
		if err := h.Hello(); err != nil {
			t.Fatal(err)
		}
		must[netip.Addr](t)(h.start(id, "", "web")) // Run may not have come to it yet
		if why := h.Suspect(); why != "" || !signalled(changed) {
			t.Errorf("after Hello: %q", why)
		}
	})
}

// TestCallsWaitForTheOthersToBeAsked: a start right after the boot waits, but
// not once the others have answered, and not for a cluster that is away.
func TestCallsWaitForTheOthersToBeAsked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := newLab(t, "h1")
		h := l.hosts[0]
		id := must[string](t)(h.network("10.0.0.0/24", "", ""))
		h.Reach(false)
		begin := time.Now()
		h.boot = func() cluster.Boot { return cluster.Boot{Settled: time.Since(begin) >= time.Second} }
		h.reboot()
		must[netip.Addr](t)(h.start(id, "", ""))
		if took := time.Since(begin); !raceEnabled && (took < time.Second || took > 1200*time.Millisecond) {
			t.Errorf("started after %s", took)
		}
		h.boot = func() cluster.Boot { return cluster.Boot{} }
		h.reboot()
		_, err := h.start(id, "", "")
		if !errors.As(err, new(*lease.Untrusted)) || !strings.Contains(err.Error(), "have not been asked yet") {
			t.Errorf("before anybody was asked: %v", err)
		}
	})
}

// TestDiskSetBack: a host comes up with a disk from before it gave a block back,
// which another host has now.
func TestDiskSetBack(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/29", "", ""))
	must[string](t)(h2.network("10.0.0.0/29", "", ""))
	own := must[netip.Addr](t)(h1.start(id, "10.0.0.2", "web"))
	h1.snapshot()
	must[netip.Addr](t)(h2.start(id, "10.0.0.3", "db"))
	h1.Reach(false)
	h1.setBack()
	h1.boot = func() cluster.Boot { return cluster.Boot{Settled: true, Witness: l.witness(h1)} }
	h1.reboot()
	if why := h1.Suspect(); !strings.Contains(why, "10.0.0.3") {
		t.Fatalf("suspect: %q", why)
	}
	if a, err := h1.start(id, "10.0.0.3", "thief"); err == nil {
		t.Fatalf("%s handed out twice", a)
	}
	h1.Reach(true)
	if err := h1.Hello(); err != nil {
		t.Fatal(err)
	}
	_, err := h1.start(id, "10.0.0.3", "thief")
	wantErr(t, err, "address 10.0.0.3 of subnet 10.0.0.0/29 is in use by db on h2; choose another one, or free it there")
	if used := h1.Used(keyOf(id)); len(used) != 1 || used[0].Addr != own || used[0].Lease == 0 {
		t.Errorf("used %+v", used)
	}
}

// TestGrantAgainstAClaim: the log forgot what it had granted to h1, and grants
// it to h2, which holds that against what h1 claims.
func TestGrantAgainstAClaim(t *testing.T) {
	for _, c := range []struct {
		name   string
		mutate func(l *lab, h1, h2 *host)
		used   bool // h2 may use the block
	}{
		{"the holder still claims it", func(*lab, *host, *host) {}, false},
		{"the holder does not answer", func(_ *lab, h1, _ *host) { h1.silent = true }, false},
		{"the holder is not to be asked", func(_ *lab, _, h2 *host) { h2.cfg.StillClaims = nil }, false},
		{"the claim is out of date", func(l *lab, h1, _ *host) {
			h1.remove(h1.id)
			if err := h1.Recalled(l.t.Context(), keyOf(h1.id), netip.Addr{}); err != nil {
				l.t.Fatal(err)
			}
		}, true},
		{"nothing was heard", func(_ *lab, _, h2 *host) { h2.claims = nil }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, "h1", "h2")
			h1, h2 := l.hosts[0], l.hosts[1]
			for _, h := range l.hosts {
				h.id = must[string](t)(h.network("10.0.0.0/28", "", ""))
			}
			h2.remove(h2.id)
			if err := h2.Recalled(t.Context(), keyOf(h2.id), netip.Addr{}); err != nil {
				t.Fatal(err)
			}
			base := *l.log.Registry()
			base.Leases = nil
			kept := h1.Claims()
			h2.claims = map[netip.Prefix]foreign{kept[0].Block: {h1.ID(), kept[0]}}
			c.mutate(l, h1, h2)
			l.log.Rebuild(&base)
			if err := h2.Hello(); err != nil {
				t.Fatal(err)
			}
			must[string](t)(h2.network("10.0.0.0/28", "", ""))
			got := map[netip.Addr]bool{}
			for range 16 {
				a, err := h2.start(h2.id, "", "")
				if err != nil {
					break
				}
				got[a] = kept[0].Covers(a)
			}
			_, exact := h2.start(h2.id, kept[0].Block.Addr().Next().Next().String(), "exact")
			taken := slices.Contains(slices.Collect(maps.Values(got)), true)
			alarms := strings.Join(h2.Status()[0].Alarms, "\n")
			if c.used {
				if !taken || alarms != "" {
					t.Errorf("addresses %v, alarms %q", got, alarms)
				}
				return
			}
			if taken || len(got) == 0 {
				t.Errorf("addresses %v: h1 keeps %s", got, kept[0].Block)
			}
			wantErr(t, exact, "address 10.0.0.2: host h1 keeps block 10.0.0.0/29 of subnet 10.0.0.0/28, although the cluster granted it to this host: it is not used; see the alarm in isthmus status")
			if !strings.Contains(alarms, "but host h1 says that it keeps 10.0.0.0/29") {
				t.Errorf("alarms %q", alarms)
			}
			h2.rivals(t.Context())
			if n := len(h2.Status()[0].Alarms); n != len(strings.Split(alarms, "\n")) {
				t.Errorf("%d alarms, before %s", n, alarms)
			}
			h1.claims = map[netip.Prefix]foreign{kept[0].Block: {h2.ID(), cluster.Claim{Lease: 999, Pool: keyOf(h1.id), Block: kept[0].Block}}}
			h1.rivals(t.Context()) // h2 says that it keeps nothing of it
			h2.silent = true
			for range 2 {
				h1.rivals(t.Context())
			}
			h2.silent, h1.claims = false, nil
			if got := strings.Join(h1.Status()[0].Alarms, "\n"); !strings.Contains(got, "is kept by host h2 too (block 10.0.0.0/29, lease 999): an address may be in use twice") {
				t.Errorf("alarms of h1: %q", got)
			}
			l.pass(alarmTime)
			if got := h1.Status()[0].Alarms; len(got) > 0 {
				t.Errorf("alarms after an hour: %q", got)
			}
			// The holder comes back, and gets its block again.
			if err := h1.Hello(); err != nil {
				t.Fatal(err)
			}
			h2.work()
			h1.work()
			if !slices.Contains(h1.Claims(), kept[0]) {
				t.Errorf("h1 claims %v", h1.Claims())
			}
			must[netip.Addr](t)(h1.start(h1.id, "", ""))
		})
	}
}

// TestAdopt: what runs counts, whatever the disk remembers.
func TestAdopt(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	id := must[string](t)(h1.network("10.0.0.0/24", "", ""))
	must[string](t)(h2.network("10.0.0.0/24", "", ""))
	key := keyOf(id)
	adopt := func(a string) {
		t.Helper()
		for range 2 {
			if err := h1.Adopt(key, addr(a), "found in a running container"); err != nil {
				t.Fatal(err)
			}
		}
		h1.setLive(id, addr(a), true)
	}
	other := must[netip.Addr](t)(h2.start(id, "", "db"))
	h1.boot = func() cluster.Boot { return cluster.Boot{Settled: true, Suspect: "its disk was set back"} }
	h1.Reach(false)
	h1.reboot()
	adopt("10.0.0.3")
	adopt("10.0.0.99")
	adopt(other.String())
	if err := h1.Adopt(key, addr("10.1.0.1"), ""); err == nil {
		t.Error("adopted an address of another subnet")
	}
	h1.Reach(true)
	if err := h1.Hello(); err != nil {
		t.Fatal(err)
	}
	h1.reconcile(t.Context(), h1.Registry())
	for range 5 {
		if a := must[netip.Addr](t)(h1.start(id, "", "")); a == addr("10.0.0.3") {
			t.Errorf("%s given to another container", a)
		}
	}
	if h1.LeaseOf(key, addr("10.0.0.99")) != 0 {
		t.Error("leased before anybody could ask")
	}
	h1.work()
	if h1.LeaseOf(key, addr("10.0.0.99")) == 0 {
		t.Error("not leased")
	}
	if _, err := h2.start(id, "10.0.0.99", ""); err == nil {
		t.Error("given to another host")
	}
	if h1.LeaseOf(key, other) != 0 {
		t.Error("leased although h2 has it")
	}
	alarms := strings.Join(h1.Status()[0].Alarms, "\n")
	for _, want := range []string{
		"address 10.0.0.3 was found in a running container, and not in what this host remembers: taken as used",
		"address " + other.String() + " is in use here without a lease: address " + other.String() + " of pool 10.0.0.0/24 is in the block",
	} {
		if !strings.Contains(alarms, want) {
			t.Errorf("alarms\n%s\nlack\n%s", alarms, want)
		}
	}
}

func TestLeave(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h := l.hosts[0]
	four, six := must[string](t)(h.network("10.0.0.0/24", "", "")), must[string](t)(h.network("fd00:1::/64", "", ""))
	a := must[netip.Addr](t)(h.start(four, "", "web"))
	wantErr(t, h.Leave(t.Context()), "give back the addresses of this host: subnet 10.0.0.0/24 belongs to a Docker network of this host; subnet fd00:1::/64 belongs to a Docker network of this host: remove its containers and networks first: in use")
	h.remove(six)
	if err := h.release(four); err != nil {
		t.Fatal(err)
	}
	wantErr(t, h.Leave(t.Context()), "give back the addresses of this host: subnet 10.0.0.0/24 has 10.0.0.2 (web) in use: remove its containers and networks first: in use")
	if n := len(h.Claims()); n != 2 {
		t.Errorf("%d blocks after a refusal", n)
	}
	h.stop(four, a)
	h.Reach(false)
	if err := h.Leave(t.Context()); err == nil {
		t.Error("left without a cluster in reach")
	}
	h.Reach(true)
	for range 2 {
		if err := h.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if r := l.log.Registry(); len(r.Leases)+len(r.Pools) > 0 {
		t.Errorf("left behind: %v %v", r.Leases, r.Pools)
	}
	if st := h.Status(); len(st) > 0 {
		t.Errorf("status %+v", st)
	}
	must[cluster.Result](t)(h.Propose(t.Context(), cluster.Command{Leave: &cluster.Leave{}}))
}

func TestShares(t *testing.T) {
	l := newLab(t, "h1", "h2")
	for _, h := range l.hosts {
		h.id = must[string](t)(h.network("10.0.0.0/24", "", ""))
	}
	must[netip.Addr](t)(l.hosts[1].start(l.hosts[1].id, "10.0.0.5", ""))
	st := l.hosts[0].Status()[0]
	want := []Share{{Host: l.hosts[0].ID(), Name: "h1", Blocks: 1, Addresses: 5}, {Host: l.hosts[1].ID(), Name: "h2", Blocks: 2, Addresses: 9}}
	if !slices.Equal(st.Shares, want) || st.Size != 253 || st.Free != 5 {
		t.Errorf("status %+v", st)
	}
}
