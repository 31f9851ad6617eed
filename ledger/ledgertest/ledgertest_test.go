package ledgertest_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/ledgertest"
)

func TestHostsShareOneLog(t *testing.T) {
	c := ledgertest.New(t)
	a, b := c.Host("host1"), c.Host("host2")
	pool := netip.MustParsePrefix("10.32.0.0/16")
	key := cluster.PoolKey{Prefix: pool}
	changed := b.Subscribe()

	for _, h := range []*ledgertest.Host{a, b} {
		if _, err := h.Propose(t.Context(), cluster.Command{AttachPool: &cluster.AttachPool{Prefix: pool}}); err != nil {
			t.Fatal(err)
		}
	}
	<-changed
	b.Reach(false)
	first, err := a.Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{Pool: key, Want: 8}})
	if err != nil || first.Lease.Block.String() != "10.32.0.0/29" {
		t.Fatalf("grant: %v %v", first.Lease, err)
	}
	if len(b.Registry().Leases) != 0 {
		t.Error("a host that is cut off saw a change")
	}
	if _, err := b.Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{Pool: key, Want: 8}}); !errors.Is(err, ledgertest.ErrUnreachable) {
		t.Errorf("propose while cut off: %v", err)
	}
	b.Reach(true)
	var why *cluster.Refusal
	_, err = b.Propose(t.Context(), cluster.Command{Release: &cluster.Release{Lease: first.Lease.ID}})
	if !errors.As(err, &why) || why.Code != cluster.NotHeld {
		t.Errorf("release of another's lease: %v", err)
	}
	a.LoseAnswers(1)
	if _, err := a.Propose(t.Context(), cluster.Command{Release: &cluster.Release{Lease: first.Lease.ID}}); !errors.Is(err, ledgertest.ErrLost) {
		t.Errorf("lost answer: %v", err)
	}
	if len(a.Registry().Leases) != 0 {
		t.Error("the release whose answer was lost was not done")
	}
	a.Restart()
	if a.Fresh() {
		t.Error("fresh without a hello")
	}
	if err := a.Hello(); err != nil || !a.Fresh() {
		t.Errorf("hello: %v, fresh %v", err, a.Fresh())
	}
}

func TestARebuiltRegistryFencesUntilHello(t *testing.T) {
	c := ledgertest.New(t)
	a, b := c.Host("host1"), c.Host("host2")
	pool := netip.MustParsePrefix("10.32.0.0/16")
	key := cluster.PoolKey{Prefix: pool}
	for _, h := range []*ledgertest.Host{a, b} {
		if _, err := h.Propose(t.Context(), cluster.Command{AttachPool: &cluster.AttachPool{Prefix: pool}}); err != nil {
			t.Fatal(err)
		}
	}
	base := c.Registry()
	var lost [2]cluster.Lease
	for i, h := range []*ledgertest.Host{a, b} {
		res, err := h.Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{Pool: key, Want: 8}})
		if err != nil {
			t.Fatal(err)
		}
		lost[i] = res.Lease
		h.SetClaims(func() []cluster.Claim { return []cluster.Claim{res.Lease.Claim()} })
	}
	if no := c.Rebuild(base, a.Testimony()); len(no) != 0 {
		t.Errorf("claims that nobody got: %v", no)
	}
	if a.Fresh() || b.Fresh() {
		t.Error("a session outlived its registry")
	}
	var why *cluster.Refusal
	if _, err := a.Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{Pool: key, Want: 8}}); !errors.As(err, &why) || why.Code != cluster.StaleSession {
		t.Errorf("propose in a session of the lost registry: %v", err)
	}
	for i, h := range []*ledgertest.Host{a, b} {
		if err := h.Hello(); err != nil || !h.Fresh() {
			t.Fatalf("hello: %v", err)
		}
		if got := c.Registry().Leases[lost[i].ID]; !got.Equal(lost[i]) {
			t.Errorf("lease %+v, want %+v", got, lost[i])
		}
	}
	next, err := b.Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{Pool: key, Want: 8}})
	if err != nil || next.Lease.ID <= max(lost[0].ID, lost[1].ID) || c.Registry().Index < next.Lease.ID {
		t.Errorf("grant after the rebuild: %+v %v", next.Lease, err)
	}
}

func TestACloneIsRefused(t *testing.T) {
	c := ledgertest.New(t)
	a := c.Host("host1")
	var why *cluster.Refusal
	if err := a.Clone().Hello(); !errors.As(err, &why) || why.Code != cluster.Clone || !a.Fresh() {
		t.Errorf("hello of a clone: %v, the original fresh: %v", err, a.Fresh())
	}
}

func TestBootIsBelievedUntilDoubted(t *testing.T) {
	a := ledgertest.New(t).Host("host1")
	if b := a.Boot(); !b.Settled || b.Suspect != "" {
		t.Errorf("boot %+v", b)
	}
	changed := a.Subscribe()
	a.SetBoot(cluster.Boot{Settled: true, Suspect: "set back"})
	<-changed
	if a.Boot().Suspect != "set back" {
		t.Errorf("boot %+v", a.Boot())
	}
}
