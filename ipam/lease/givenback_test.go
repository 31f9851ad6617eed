package lease

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestGivenBack: the answer to a GrantExact that finds the lease this host is
// just giving back does not revive it, and says so, for the caller to ask again.
func TestGivenBack(t *testing.T) {
	pool := cluster.PoolKey{Prefix: netip.MustParsePrefix("10.0.0.0/24")}
	m := New("a")
	m.Boot(cluster.Boot{Settled: true})
	l := cluster.Lease{ID: 7, Pool: pool, Block: netip.MustParsePrefix("10.0.0.9/32"), Holder: "a"}
	ask := func() error {
		msg := m.Ask(cluster.Command{GrantExact: &cluster.GrantExact{Pool: pool, Addr: l.Block.Addr()}})
		s, err := m.Answered(msg.Request, cluster.Result{Index: l.ID, Lease: l}, nil)
		m.Done(s, nil)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	s, err := m.Drain(pool, l.ID)
	if err != nil {
		t.Fatal(err)
	}
	m.Done(s, nil)
	if err := ask(); !errors.Is(err, ErrGivenBack) {
		t.Errorf("taking up what is being given back: %v", err)
	}
	msg := m.Ask(s.Send[0])
	if s, err = m.Answered(msg.Request, cluster.Result{Index: 8, Lease: l}, nil); err != nil {
		t.Fatal(err)
	}
	m.Done(s, nil)
	if err := ask(); !errors.Is(err, ErrGivenBack) {
		t.Errorf("taking up what was given back: %v", err)
	}
}
