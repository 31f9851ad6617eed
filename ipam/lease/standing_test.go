package lease

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

func ofGeneration(gen uint64, r *cluster.Registry) *cluster.Registry {
	r.Gen = gen
	return r
}

func TestARebuiltRegistryIsTrustedAfterItConfirmed(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me), leaseOf(30, "10.0.0.8/29", me))
	done(t, m)(first(m.Reconcile(ofGeneration(1, registry(20, leaseOf(7, "10.0.0.0/29", me))), nil)))
	late := m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}})
	doubted := func(when string) {
		t.Helper()
		if _, _, err := m.Allocate(pool, all, "", false, noon); !errors.As(err, new(*Untrusted)) || !strings.Contains(err.Error(), "rebuilt (generation 2)") {
			t.Errorf("%s: %v", when, err)
		}
	}
	s := m.Rebuilt("", 2)
	m.Done(s, errors.New("no space left on device"))
	if err := m.Gate(); err != nil {
		t.Errorf("after a failed write: %v", err)
	}
	done(t, m)(m.Rebuilt("", 2), nil)
	doubted("told of it")
	if s := m.Rebuilt("", 2); len(s.Writes) > 0 {
		t.Errorf("told again: %+v", s)
	}
	if _, err := m.Answered(late.Request, cluster.Result{Lease: leaseOf(31, "10.0.0.16/29", me)}, nil); !errors.Is(err, ErrStale) {
		t.Errorf("the lost log's answer: %v", err)
	}
	m = Load(me, m.Disk())
	m.Boot(cluster.Boot{Settled: true})
	doubted("after a crash")
	done(t, m)(first(m.Reconcile(ofGeneration(1, registry(40, leaseOf(7, "10.0.0.0/29", me), leaseOf(30, "10.0.0.8/29", me))), nil)))
	doubted("held against the lost registry")

	// Its numbers go on before what the lost log had granted last.
	s, errs := m.Reconcile(ofGeneration(2, registry(25, leaseOf(7, "10.0.0.0/29", me))), nil)
	if len(errs) > 0 || len(s.Dropped) != 1 || s.Dropped[0].Lease != 30 {
		t.Fatalf("reconciled: %+v %v", s, errs)
	}
	doubted("not on disk yet")
	before := m.Disk()
	m.Done(s, errors.New("no space left on device"))
	if !reflect.DeepEqual(m.Disk(), before) {
		t.Error("a failed write changed something")
	}
	doubted("the write failed")
	done(t, m)(first(m.Reconcile(ofGeneration(2, registry(25, leaseOf(7, "10.0.0.0/29", me))), nil)))
	allocate(t, m)
	m = Load(me, m.Disk())
	m.Boot(cluster.Boot{Settled: true})
	allocate(t, m)
	for _, old := range []uint64{0, 1, 2} {
		if s := m.Rebuilt("", old); len(s.Writes) > 0 {
			t.Errorf("generation %d is no news: %+v", old, s)
		}
	}
}

// TestRebuiltWhileReconciling: what an older registry confirmed meanwhile
// confirms nothing.
func TestRebuiltWhileReconciling(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me))
	s, _ := m.Reconcile(ofGeneration(2, registry(20, leaseOf(7, "10.0.0.0/29", me))), nil)
	done(t, m)(m.Rebuilt("", 3), nil)
	m.Done(s, nil)
	if m.Gate() == nil || m.Confirmed {
		t.Error("confirmed by a registry that was rebuilt since")
	}
	done(t, m)(first(m.Reconcile(ofGeneration(3, registry(20, leaseOf(7, "10.0.0.0/29", me))), nil)))
	allocate(t, m)
}

// TestKeepsWhatIsBeingTakenUp: two hosts that are granted one address by a log
// that lost its end must not both hear that the other does not keep it.
func TestKeepsWhatIsBeingTakenUp(t *testing.T) {
	m := trusted(t)
	claim := leaseOf(9, "10.0.0.0/30", other).Claim()
	s, err := m.Answered(m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}).Request, cluster.Result{Lease: leaseOf(7, "10.0.0.0/29", me)}, nil)
	if err != nil || !m.Keeps(claim) || len(m.Claims()) != 1 {
		t.Errorf("decided: keeps %v, claims %v, %v", m.Keeps(claim), m.Claims(), err)
	}
	m.Done(s, nil)
	if !m.Keeps(claim) || len(m.Claims()) != 1 {
		t.Error("stored")
	}
	s, err = m.Drain(pool, 7)
	if err != nil || !m.Keeps(claim) {
		t.Errorf("decided to drain: keeps %v, %v", m.Keeps(claim), err)
	}
	m.Done(s, nil)
	if m.Keeps(claim) || len(m.Claims()) > 0 {
		t.Error("drained")
	}
	contest := &Contest{Host: other, Claim: claim}
	if _, err = m.Answered(m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}).Request, cluster.Result{Lease: leaseOf(8, "10.0.0.8/29", me)}, contest); !errors.Is(err, contest) {
		t.Error(err)
	}
	if m.Keeps(leaseOf(9, "10.0.0.8/29", other).Claim()) {
		t.Error("keeps what it gives back unused")
	}
}

// TestLostWhileHandedOut: a block that goes while one of its addresses is being
// handed out takes that address along.
func TestLostWhileHandedOut(t *testing.T) {
	want := []Address{{pool, addr("10.0.0.4")}}
	for name, r := range map[string]*cluster.Registry{
		"block": registry(20),
		"hole":  registry(20, leaseOf(7, "10.0.0.0/29", me, "10.0.0.4")),
	} {
		m := trusted(t, leaseOf(7, "10.0.0.0/29", me))
		handed, err := m.Take(pool, addr("10.0.0.4"), "web", noon)
		if err != nil {
			t.Fatal(err)
		}
		s := done(t, m)(first(m.Reconcile(r, nil)))
		if !reflect.DeepEqual(s.Lost, want) {
			t.Errorf("%s: lost %v", name, s.Lost)
		}
		m.Done(handed, nil)
		if got := m.Pool(pool).Uncovered(); len(got) != 1 || got[0] != want[0].Addr {
			t.Errorf("%s: uncovered %v", name, got)
		}
	}
}

// TestAnotherClusterBeginsAnew: after a cluster dissolved into another, whose
// registry was never rebuilt, the generations of the first one say nothing.
func TestAnotherClusterBeginsAnew(t *testing.T) {
	m := New(me)
	done(t, m)(m.Rebuilt("a", 3), nil)
	r := registry(20, leaseOf(7, "10.0.0.0/29", me))
	r.Cluster = "a"
	if !m.Outdated(r) {
		t.Error("a registry of a generation before the newest is taken")
	}
	r.Cluster = "b"
	if m.Outdated(r) {
		t.Error("a registry of another cluster is held for an old one")
	}
	done(t, m)(first(m.Reconcile(r, nil)))
	allocate(t, m)
	done(t, m)(m.Rebuilt("b", 2), nil)
	if m = Load(me, m.Disk()); m.Barred() == "" {
		t.Error("the registry of the other cluster was rebuilt, and all is trusted")
	}
}
