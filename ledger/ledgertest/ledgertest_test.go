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
