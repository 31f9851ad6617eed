package lease

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
)

const me, other = cluster.HostID("me"), cluster.HostID("other")

var (
	pool = cluster.PoolKey{Prefix: prefix("10.0.0.0/24")}
	all  = Scope{Pool: pool.Prefix, Within: pool.Prefix, Gateway: addr("10.0.0.1")}
	noon = time.Unix(1.7e9, 0)
)

func leaseOf(id uint64, block string, holder cluster.HostID, without ...string) cluster.Lease {
	l := cluster.Lease{ID: id, Pool: pool, Block: prefix(block), Holder: holder}
	for _, a := range without {
		l.Without = append(l.Without, addr(a))
	}
	return l
}

func registry(index uint64, leases ...cluster.Lease) *cluster.Registry {
	r := &cluster.Registry{Index: index, Leases: map[uint64]cluster.Lease{}}
	for _, l := range leases {
		r.Leases[l.ID] = l
	}
	return r
}

// trusted returns a machine that holds these leases, and its disk.
func trusted(t testing.TB, leases ...cluster.Lease) *Machine {
	t.Helper()
	m := New(me)
	m.Boot(cluster.Boot{Settled: true})
	for _, l := range leases {
		done(t, m)(m.Answered(m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}).Request, cluster.Result{Lease: l}, nil))
	}
	return m
}

// done is for steps that have to succeed.
func done(t testing.TB, m *Machine) func(Step, error) Step {
	return func(s Step, err error) Step {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		m.Done(s, nil)
		return s
	}
}

func allocate(t testing.TB, m *Machine) netip.Addr {
	t.Helper()
	s, a, err := m.Allocate(pool, all, "", false, noon)
	done(t, m)(s, err)
	return a
}

func TestOnlyTheOutstandingAnswerCounts(t *testing.T) {
	m := trusted(t)
	grant := cluster.Command{Grant: &cluster.Grant{Pool: pool}}
	late := m.Ask(grant)
	m.Abandon(late.Request)
	asked := m.Ask(grant)
	for _, request := range []uint64{late.Request, asked.Request + 1, 0} {
		if _, err := m.Answered(request, cluster.Result{Lease: leaseOf(7, "10.0.0.0/29", me)}, nil); !errors.Is(err, ErrStale) {
			t.Errorf("answer to request %d: %v", request, err)
		}
	}
	done(t, m)(m.Answered(asked.Request, cluster.Result{Lease: leaseOf(7, "10.0.0.0/29", me)}, nil))
	if _, err := m.Answered(asked.Request, cluster.Result{Lease: leaseOf(8, "10.0.0.8/29", me)}, nil); !errors.Is(err, ErrStale) {
		t.Errorf("second answer: %v", err)
	}
	if len(m.Claims()) != 1 {
		t.Errorf("claims %v", m.Claims())
	}
}

func TestALeaseThatWasGivenBackIsNotRevived(t *testing.T) {
	l := leaseOf(7, "10.0.0.0/29", me)
	m := trusted(t, l)
	open := m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}) // its answer, lease 7, is on its way
	s := done(t, m)(m.Drain(pool, 7))
	if !reflect.DeepEqual(s.Send, []cluster.Command{{Release: &cluster.Release{Lease: 7}}}) {
		t.Errorf("sends %+v", s.Send)
	}
	done(t, m)(m.Answered(m.Ask(s.Send[0]).Request, cluster.Result{Index: 9}, nil))
	if _, err := m.Answered(open.Request, cluster.Result{Lease: l}, nil); err == nil {
		t.Error("a late answer revived it")
	}
	s, errs := m.Reconcile(registry(8, l), nil)
	if len(s.Writes)+len(errs) > 0 {
		t.Errorf("an old copy revived it: %+v %v", s, errs)
	}
}

func TestDrainingIsNeverUsed(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me), leaseOf(8, "10.0.0.8/29", me))
	a := allocate(t, m)
	if _, err := m.Drain(pool, 8, 7); !errors.Is(err, ErrInUse) {
		t.Fatalf("drained a block in use: %v", err)
	}
	if b := m.Pool(pool).Blocks[8]; b.Draining || !m.Pool(pool).Usable(b) {
		t.Fatal("a refused drain changed something")
	}
	s, ok := m.Free(pool, a, noon)
	if !ok {
		t.Fatal("not in use")
	}
	m.Done(s, nil)
	s, err := m.Drain(pool, 7)
	if err != nil {
		t.Fatal(err)
	}
	used := func(when string, want error) {
		t.Helper()
		for range 10 {
			if got := allocate(t, m); prefix("10.0.0.0/29").Contains(got) {
				t.Fatalf("%s: handed out %s", when, got)
			}
			if s, a, _ := m.Allocate(pool, all, "", false, noon); a.IsValid() {
				m.Done(s, errors.New("disk full"))
			} else {
				break
			}
		}
		if _, err := m.Take(pool, addr("10.0.0.3"), "", noon); !errors.Is(err, want) {
			t.Fatalf("%s: take: %v", when, err)
		}
		for a := range m.Pool(pool).Used {
			s, _ := m.Free(pool, a, noon)
			m.Done(s, nil)
		}
	}
	used("before it is stored", ErrBusy)
	if _, err := m.Drain(pool, 7); !errors.Is(err, ErrBusy) {
		t.Errorf("drained twice at once: %v", err)
	}
	m.Done(s, nil)
	used("stored", ErrUncovered)
	m = Load(me, m.Disk())
	m.Boot(cluster.Boot{Settled: true})
	used("after a crash", ErrUncovered)
	done(t, m)(first(m.Reconcile(registry(20, leaseOf(7, "10.0.0.0/29", me), leaseOf(8, "10.0.0.8/29", me)), nil)))
	used("after a registry that lists it", ErrUncovered)
	if due := m.Releases(pool); len(due) != 1 || due[0].Release.Lease != 7 {
		t.Errorf("to be sent: %+v", due)
	}
}

func first(s Step, errs []error) (Step, error) { return s, errors.Join(errs...) }

func TestAFullDiskChangesNothing(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me), leaseOf(8, "10.0.0.8/29", me))
	a := allocate(t, m)
	before := m.Disk()
	full := errors.New("no space left on device")
	fail := func(s Step, err error) {
		t.Helper()
		if err != nil || len(s.Writes) == 0 {
			t.Errorf("step %+v, %v", s, err)
		}
		m.Done(s, full)
		if got := m.Disk(); !reflect.DeepEqual(got, before) {
			t.Errorf("after a failed write: %+v, before %+v", got, before)
		}
	}
	s, _, err := m.Allocate(pool, all, "web", false, noon)
	fail(s, err)
	fail(m.Take(pool, addr("10.0.0.5"), "", noon))
	fail(m.Renew(pool, a, m.Pool(pool).Used[a].Turn, "web", noon))
	s, _ = m.Free(pool, a, noon)
	fail(s, nil)
	fail(m.Drain(pool, 8))
	fail(m.Carve(pool, all, addr("10.0.0.6")))
	fail(first(m.Reconcile(registry(20, leaseOf(9, "10.0.0.16/29", me)), nil)))
	if m.Confirmed {
		t.Error("trusted by what is not on disk")
	}
}

func TestHoles(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me))
	a := allocate(t, m)
	if _, err := m.Carve(pool, all, a); !errors.Is(err, ErrInUse) {
		t.Errorf("carved %s, in use: %v", a, err)
	}
	s := done(t, m)(m.Carve(pool, all, addr("10.0.0.5")))
	if !reflect.DeepEqual(s.Send, []cluster.Command{{Release: &cluster.Release{Lease: 7, Addr: addr("10.0.0.5")}}}) {
		t.Errorf("sends %+v", s.Send)
	}
	if got := m.Claims(); len(got) != 1 || got[0].Without != 1<<5 {
		t.Errorf("claims %+v", got)
	}
	if s, err := m.Carve(pool, all, addr("10.0.0.5")); err != nil || len(s.Writes) > 0 {
		t.Errorf("carved again: %+v %v", s, err)
	}
	m = Load(me, m.Disk())
	m.Boot(cluster.Boot{Settled: true})
	if due := m.Releases(pool); !reflect.DeepEqual(due, s.Send) {
		t.Errorf("after a crash %+v is sent, want %+v", due, s.Send)
	}
	done(t, m)(first(m.Reconcile(registry(20, leaseOf(7, "10.0.0.0/29", me, "10.0.0.5")), nil)))
	if due := m.Releases(pool); len(due) > 0 {
		t.Errorf("sent again although the cluster has it: %+v", due)
	}
	if _, err := m.Take(pool, addr("10.0.0.5"), "", noon); !errors.Is(err, ErrUncovered) {
		t.Errorf("take a hole: %v", err)
	}
	// The very address comes back as a lease of its own.
	done(t, m)(m.Answered(m.Ask(cluster.Command{GrantExact: &cluster.GrantExact{Pool: pool, Addr: addr("10.0.0.5")}}).Request,
		cluster.Result{Lease: leaseOf(21, "10.0.0.5/32", me)}, nil))
	done(t, m)(m.Take(pool, addr("10.0.0.5"), "", noon))
	// The last usable address goes with the block.
	s, ok := m.Free(pool, a, noon)
	if !ok {
		t.Fatal("not in use")
	}
	m.Done(s, nil)
	for _, x := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6"} {
		done(t, m)(m.Carve(pool, all, addr(x)))
	}
	if s := done(t, m)(m.Carve(pool, all, addr("10.0.0.7"))); s.Send[0].Release.Addr.IsValid() || !m.Pool(pool).Blocks[7].Draining {
		t.Errorf("the last one: %+v", s.Send)
	}
}

func TestHolesThatTheDiskForgot(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me))
	done(t, m)(m.Take(pool, addr("10.0.0.5"), "web", noon))
	s := done(t, m)(first(m.Reconcile(registry(20, leaseOf(7, "10.0.0.0/29", me, "10.0.0.5", "10.0.0.6")), nil)))
	if !slices.Equal(s.Lost, []Address{{pool, addr("10.0.0.5")}}) {
		t.Errorf("lost %v", s.Lost)
	}
	if got := m.Pool(pool).Uncovered(); !slices.Equal(got, []netip.Addr{addr("10.0.0.5")}) {
		t.Errorf("uncovered %v", got)
	}
	if due := m.Releases(pool); len(due) > 0 {
		t.Errorf("sends %+v", due)
	}
}

func TestAClaimedBlockIsNotUsed(t *testing.T) {
	contest := Contest{other, leaseOf(5, "10.0.0.0/28", other).Claim()}
	l := leaseOf(7, "10.0.0.0/29", me)
	t.Run("granted", func(t *testing.T) {
		m := trusted(t)
		s, err := m.Answered(m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}).Request, cluster.Result{Lease: l}, &contest)
		if got := (*Contest)(nil); !errors.As(err, &got) || *got != contest {
			t.Errorf("error %v", err)
		}
		m.Done(s, nil)
		if len(m.Claims()) > 0 || len(s.Send) != 1 || s.Send[0].Release.Lease != 7 {
			t.Errorf("claims %v, sends %+v", m.Claims(), s.Send)
		}
		if _, _, err := m.Allocate(pool, all, "", true, noon); !errors.Is(err, ErrNone) {
			t.Errorf("allocate: %v", err)
		}
	})
	t.Run("found in the registry", func(t *testing.T) {
		m := trusted(t)
		s, errs := m.Reconcile(registry(9, l), map[uint64]Contest{7: contest})
		m.Done(s, nil)
		if len(errs) != 1 || len(m.Claims()) > 0 || len(m.Releases(pool)) != 1 {
			t.Errorf("errors %v, claims %v, sends %+v", errs, m.Claims(), s.Send)
		}
	})
	t.Run("the other side", func(t *testing.T) {
		m := trusted(t, leaseOf(5, "10.0.0.0/28", me, "10.0.0.5"))
		for block, want := range map[string]bool{"10.0.0.0/29": true, "10.0.0.16/29": false, "10.0.0.5/32": false, "10.0.0.4/31": true} {
			if got := m.Keeps(leaseOf(9, block, other).Claim()); got != want {
				t.Errorf("keeps %s: %v", block, got)
			}
		}
		done(t, m)(m.Drain(pool, 5))
		if m.Keeps(leaseOf(9, "10.0.0.0/29", other).Claim()) {
			t.Error("keeps what it gives back")
		}
	})
}

func TestTrust(t *testing.T) {
	disk := func() Disk {
		m := trusted(t, leaseOf(7, "10.0.0.0/29", me), leaseOf(8, "10.0.0.8/29", me))
		done(t, m)(m.Drain(pool, 8))
		return m.Disk()
	}
	witness := func(index uint64, leases ...cluster.Lease) cluster.Witness {
		return cluster.Witness{Cluster: "c", Index: index, Leases: leases}
	}
	held := leaseOf(7, "10.0.0.0/29", me)
	for _, c := range []struct {
		name string
		boot cluster.Boot
		want string
	}{
		{"nobody asked yet", cluster.Boot{}, "the other hosts have not been asked yet whether its disk is the newest"},
		{"nobody knows anything", cluster.Boot{Settled: true}, ""},
		{"strict", cluster.Boot{Settled: true, Suspect: "STRICT_BOOT is on"}, "STRICT_BOOT is on"},
		{"strict, and nobody asked yet", cluster.Boot{Suspect: "STRICT_BOOT is on"}, "STRICT_BOOT is on"},
		{"a witness that agrees", cluster.Boot{Settled: true, Witness: witness(9, held)}, ""},
		{"a witness with a block more", cluster.Boot{Settled: true, Witness: witness(12, held, leaseOf(11, "10.0.0.64/29", me))}, ""},
		{"a witness that is older", cluster.Boot{Settled: true, Witness: witness(6)}, ""},
		{"a witness without the block", cluster.Boot{Settled: true, Witness: witness(9)},
			"its disk holds block 10.0.0.0/29 of subnet 10.0.0.0/24 as its own, which it had given back according to another host: the disk was set back"},
		{"a witness of a hole", cluster.Boot{Settled: true, Witness: witness(9, leaseOf(7, "10.0.0.0/29", me, "10.0.0.4"))},
			"its disk holds address 10.0.0.4 of subnet 10.0.0.0/24 as its own, which it had given back according to another host: the disk was set back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := Load(me, disk())
			m.Boot(c.boot)
			if got := m.Suspect(); got != c.want {
				t.Fatalf("suspect: %q, want %q", got, c.want)
			}
			_, _, alloc := m.Allocate(pool, all, "", false, noon)
			_, take := m.Take(pool, addr("10.0.0.3"), "", noon)
			_, drain := m.Drain(pool, 7)
			_, carve := m.Carve(pool, all, addr("10.0.0.6"))
			for _, err := range []error{alloc, take, drain, carve} {
				if got := errors.As(err, new(*Untrusted)); got != (c.want != "") {
					t.Errorf("error %v", err)
				}
			}
			m = Load(me, disk())
			m.Boot(c.boot)
			m.Boot(cluster.Boot{Settled: true}) // the ledger has less to say: doubt stays
			if got := m.Suspect(); got != c.want && c.boot.Settled {
				t.Errorf("doubt is gone: %q", got)
			}
			done(t, m)(first(m.Reconcile(registry(30, held), nil)))
			m.Boot(cluster.Boot{Settled: true, Suspect: "late"})
			if got := m.Suspect(); got != "" {
				t.Errorf("after the cluster confirmed: %q", got)
			}
			allocate(t, m)
		})
	}
}

func TestWhatAnEarlierRunLeftMustBeInAnyFreshRegistry(t *testing.T) {
	m := trusted(t, leaseOf(700, "10.0.0.0/29", me))
	done(t, m)(m.Take(pool, addr("10.0.0.3"), "", noon))
	if s, _ := m.Reconcile(registry(5), nil); len(s.Dropped) > 0 {
		t.Errorf("a copy of before the grant drops it: %+v", s)
	}
	m = Load(me, m.Disk())
	s := done(t, m)(first(m.Reconcile(registry(5), nil))) // of another cluster
	if len(s.Dropped) != 1 || !slices.Equal(s.Lost, []Address{{pool, addr("10.0.0.3")}}) || len(m.Claims()) > 0 {
		t.Errorf("step %+v, claims %v", s, m.Claims())
	}
}

func TestReconcileTakesWhatReplacesADroppedBlock(t *testing.T) {
	m := trusted(t, leaseOf(7, "10.0.0.0/29", me))
	s := done(t, m)(first(m.Reconcile(registry(20, leaseOf(12, "10.0.0.0/28", me)), nil)))
	if len(s.Dropped) != 1 || len(s.Taken) != 1 || len(m.Claims()) != 1 {
		t.Errorf("step %+v, claims %v", s, m.Claims())
	}
}

// TestReconcileNeedsNoOrder plays a history of grants and releases of one host,
// and reconciles at any time with a copy of any age.
func TestReconcileNeedsNoOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(me)
		m.Boot(cluster.Boot{Settled: true})
		now := registry(0)
		copies := []*cluster.Registry{now}
		for index := range uint64(rapid.IntRange(0, 30).Draw(t, "steps")) {
			next := registry(index + 1)
			for id, l := range now.Leases {
				next.Leases[id] = l
			}
			l := cluster.Lease{ID: next.Index, Pool: pool, Block: netip.PrefixFrom(offset(pool.Prefix, int(next.Index)), 32)}
			switch l.Holder = rapid.SampledFrom([]cluster.HostID{me, other}).Draw(t, "holder"); rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				next.Leases[l.ID] = l
				if msg := m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}); l.Holder == me && rapid.Bool().Draw(t, "answered") {
					s, err := m.Answered(msg.Request, cluster.Result{Lease: l}, nil)
					if err != nil {
						t.Fatal(err)
					}
					m.Done(s, nil)
				}
			case 1:
				for _, b := range m.Pool(pool).Sorted() {
					s, err := m.Drain(pool, b.Lease)
					if err != nil {
						t.Fatal(err)
					}
					m.Done(s, nil)
					delete(next.Leases, b.Lease)
					if s, err = m.Answered(m.Ask(s.Send[0]).Request, cluster.Result{Index: next.Index}, nil); err != nil {
						t.Fatal(err)
					}
					m.Done(s, nil)
					break
				}
			}
			now = next
			copies = append(copies, now)
		}
		held := func() map[uint64]bool {
			out := map[uint64]bool{}
			for id := range m.Pool(pool).Blocks {
				out[id] = true
			}
			return out
		}
		before := held()
		old := rapid.SampledFrom(copies).Draw(t, "copy")
		s, errs := m.Reconcile(old, nil)
		m.Done(s, nil)
		for id := range held() {
			if now.Leases[id].Holder != me {
				t.Fatalf("lease %d taken up from the copy at %d, but it is not held", id, old.Index)
			}
		}
		for id := range before {
			if !held()[id] || len(errs) > 0 {
				t.Fatalf("lease %d dropped by the copy at %d (%v), although it is held", id, old.Index, errs)
			}
		}
		s, _ = m.Reconcile(now, nil)
		m.Done(s, nil)
		for id, l := range now.Leases {
			if held()[id] != (l.Holder == me) {
				t.Fatalf("lease %d of %s after the newest copy: held %v", id, l.Holder, held()[id])
			}
		}
		s, _ = m.Reconcile(registry(now.Index+1), nil)
		m.Done(s, nil)
		if n := len(held()); n > 0 {
			t.Fatalf("%d blocks left when all were taken away", n)
		}
	})
}

// TestDiskIsTheFoldOfWrites: what a crash leaves is what Disk says.
func TestDiskIsTheFoldOfWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(me)
		m.Boot(cluster.Boot{Settled: true})
		var disk Disk
		do := func(s Step, err error) {
			if err == nil {
				disk.Apply(s.Writes)
				m.Done(s, nil)
			}
		}
		for n := range uint64(rapid.IntRange(1, 40).Draw(t, "steps")) {
			a := offset(pool.Prefix, rapid.IntRange(0, 31).Draw(t, "address"))
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				l := cluster.Lease{ID: n + 1, Pool: pool, Block: netip.PrefixFrom(a, 29).Masked(), Holder: me}
				do(m.Answered(m.Ask(cluster.Command{Grant: &cluster.Grant{Pool: pool}}).Request, cluster.Result{Lease: l}, nil))
			case 1:
				s, _, err := m.Allocate(pool, all, "", true, noon)
				do(s, err)
			case 2:
				do(m.Take(pool, a, "web", noon))
			case 3:
				if s, ok := m.Free(pool, a, noon); ok {
					do(s, nil)
				}
			case 4:
				do(m.Carve(pool, all, a))
			case 5:
				if b, ok := m.Pool(pool).Covering(a); ok {
					do(m.Drain(pool, b.Lease))
				}
			case 6:
				for _, c := range m.Releases(pool) {
					do(m.Answered(m.Ask(c).Request, cluster.Result{Index: n + 1}, nil))
				}
			}
		}
		disk.Shelf(pool)
		m.Pool(pool)
		if got := m.Disk(); !reflect.DeepEqual(got.Pools[pool], disk.Pools[pool]) {
			t.Fatalf("machine says\n%+v\ndisk has\n%+v", got.Pools[pool], disk.Pools[pool])
		}
	})
}
