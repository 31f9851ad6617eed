package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
	"github.com/isthmus-net/isthmus/transport"
)

func TestFounderAlone(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start()
	n.await("it looks for a cluster", func() bool { return n.Status().Founding != "" })
	if s := n.Status(); s.Role != Joining || s.Error != "" || s.Founding != "no cluster yet: it is founded with the first network" || n.ID() != "" || hasLog(n.cfg.Dir) {
		t.Errorf("status %+v of a host that nobody asked for anything", s)
	}
	id, err := n.fresh().Cluster(t.Context())
	if err != nil || len(id) != 16 || id != n.ID() {
		t.Fatalf("cluster %q: %v", id, err)
	}
	res := n.must(attach("10.1.0.0/16"))
	if _, ok := n.Registry().Pools[res.Pool.Key]; !ok {
		t.Error("the pool is not in the copy")
	}
	s := n.Status()
	if s.Role != Voter || s.Error != "" || !s.Reachable || !s.Fresh || s.Index != n.Registry().Index || len(s.Voters) != 1 || s.Voters[0].Name != "host1" {
		t.Errorf("status %+v", s)
	}
}

func TestClientsPropose(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	nodes[0].start().fresh()
	for _, n := range nodes[1:] {
		n.start(join[0]).fresh()
	}
	for _, n := range nodes {
		if n.ID() != nodes[0].ID() {
			t.Fatalf("%s is in cluster %s", n.name, n.ID())
		}
		n.must(attach("10.1.0.0/16"))
	}
	var wg sync.WaitGroup
	for _, n := range nodes {
		for range 10 {
			wg.Go(func() {
				if _, err := n.Propose(context.Background(), grant("10.1.0.0/16")); err != nil {
					t.Errorf("%s: %v", n.name, err)
				}
			})
		}
	}
	wg.Wait()
	last := nodes[0].must(attach("10.2.0.0/16"))
	want, _ := json.Marshal(nodes[0].Registry())
	for _, n := range nodes {
		n.await("it has all", func() bool { return n.Registry().Index >= last.Index })
		got, _ := json.Marshal(n.Registry())
		if string(got) != string(want) {
			t.Errorf("%s has another registry", n.name)
		}
		if held := len(n.Registry().LeasesOf(cluster.PoolKey{Prefix: netip.MustParsePrefix("10.1.0.0/16")}, n.id())); held != 10 {
			t.Errorf("%s holds %d blocks", n.name, held)
		}
		if err := rules.Check(n.Registry()); err != nil {
			t.Error(err)
		}
	}
	why := (*cluster.Refusal)(nil)
	if _, err := nodes[1].Propose(t.Context(), attach("10.1.5.0/24")); !errors.As(err, &why) || why.Code != cluster.Overlap || !strings.Contains(why.Text, "host1") {
		t.Errorf("overlap: %v", err)
	}
	if _, err := nodes[1].Propose(t.Context(), cluster.Command{Grant: &cluster.Grant{}}); !errors.As(err, &why) || why.Code != cluster.Invalid {
		t.Errorf("nonsense: %v", err)
	}
	if s := nodes[2].Status(); s.Role != Client || !s.Reachable || s.Error != "" || s.Voters[0].Host != nodes[0].id() {
		t.Errorf("status %+v", s)
	}
}

func TestFounderRestarts(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start(join[0]).fresh(), nodes[1].start(join[0]).fresh()
	client.must(attach("10.1.0.0/16"))
	lease := client.must(grant("10.1.0.0/16")).Lease
	id := founder.ID()
	founder.kill()
	client.await("it notices", func() bool { return !client.Status().Reachable })

	began := time.Now()
	_, err := client.Propose(t.Context(), grant("10.1.0.0/16"))
	var away *Unreachable
	if !errors.As(err, &away) || len(away.Voters) != 1 || time.Since(began) > 6*time.Second {
		t.Fatalf("propose without the voter: %v after %v", err, time.Since(began))
	}
	for _, words := range []string{"reach the voter host1 (" + founder.addr.String() + ")", "connection refused", "wait until it returns"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q does not say %q", err, words)
		}
	}

	began = time.Now()
	founder.start(join[0]).fresh()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the founder needed %v to be back", d)
	}
	if founder.ID() != id || !founder.Registry().Leases[lease.ID].Equal(lease) {
		t.Errorf("the founder forgot: cluster %s, %+v", founder.ID(), founder.Registry().Leases)
	}
	client.must(grant("10.1.0.0/16"))
	client.await("it is well", func() bool { return client.Status().Error == "" })
}

func TestClientBootsAlone(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	pool := client.must(attach("10.1.0.0/16")).Pool
	founder.kill()
	client.kill()

	client.start(join[0])
	if client.ID() == "" || client.Registry().Pools[pool.Key].Key != pool.Key || client.Fresh() {
		t.Errorf("alone: cluster %q, pools %v, fresh %v", client.ID(), client.Registry().Pools, client.Fresh())
	}
	client.await("it says why", func() bool { return strings.Contains(client.Status().Error, "connection refused") })
	if s := client.Status(); s.Role != Client || s.Reachable || s.Voters[0].Host != founder.id() {
		t.Errorf("status %+v", s)
	}
	founder.start()
	client.fresh().must(grant("10.1.0.0/16"))
}

// Another run of the same host opened a session: the first run notices, and
// opens the next one.
func TestStaleSession(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	client := nodes[1].start(join[0]).fresh()
	client.must(attach("10.1.0.0/16"))
	client.mu.Lock()
	session := client.session
	client.mu.Unlock()
	hello := client.cfg.Self
	hello.Nonce = 1
	call := func(c cluster.Command) cluster.Result {
		c.Host = client.id()
		reply, err := transport.Call[proposeRequest, proposeReply](t.Context(), client.cfg.Transport, nodes[0].addr, proposeMethod, proposeRequest{client.ID(), c})
		if err != nil || reply.Result == nil {
			t.Fatal(err)
		}
		return *reply.Result
	}
	// The leader would ask the run that lives, and refuse.
	if res, err := nodes[0].local().Propose(t.Context(), cluster.Command{Host: client.id(), Hello: &hello}); err != nil || res.Refused != nil {
		t.Fatal(res.Refused, err)
	}
	late := grant("10.1.0.0/16")
	late.Session, late.Request = session, 1000
	if res := call(late); res.Refused == nil || res.Refused.Code != cluster.StaleSession {
		t.Errorf("a command of the old session: %+v", res)
	}
	client.must(grant("10.1.0.0/16"))
	client.fresh()
	if got := client.Registry().Hosts[client.id()]; got.Nonce == 1 || got.Session <= session {
		t.Errorf("session %d, nonce %d", got.Session, got.Nonce)
	}
}

func TestNobodySpeaksForAnother(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	nodes[0].start().fresh()
	client := nodes[1].start(join[0]).fresh()
	session := client.Registry().Hosts[nodes[0].id()].Session
	for _, c := range []cluster.Command{
		{Host: nodes[0].id(), Session: session, Request: 1000, AttachPool: &cluster.AttachPool{Prefix: netip.MustParsePrefix("10.1.0.0/16")}},
		{Host: client.id(), Found: &cluster.Found{Cluster: "x"}},
	} {
		_, err := transport.Call[proposeRequest, proposeReply](t.Context(), client.cfg.Transport, nodes[0].addr, proposeMethod, proposeRequest{client.ID(), c})
		if why := (*cluster.Refusal)(nil); !errors.As(err, &why) || why.Code != cluster.Invalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	// Nor does a host that is no voter speak raft.
	conn, err := client.cfg.Transport.Dial(t.Context(), nodes[0].addr, transport.Raft)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the voter keeps the stream of a stranger open: %v", err)
	}
}

// The answer to a grant is lost: the same request again gives the same block.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder := nodes[0].start().fresh()
	client := nodes[1].start(join[0]).fresh()
	client.must(attach("10.1.0.0/16"))
	c := grant("10.1.0.0/16")
	c.Host, c.Session, c.Request = client.id(), client.session, 1000
	r := founder.local()
	first, err := r.Propose(t.Context(), c) // as if the answer had not reached the client
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.submit(t.Context(), client.ID(), c)
	if err != nil || !again.Lease.Equal(first.Lease) || again.Index != first.Index {
		t.Errorf("again %+v (%v), first %+v", again, err, first)
	}
	if n := len(founder.Registry().Leases); n != 1 {
		t.Errorf("%d leases", n)
	}
}

// The voter moved to another port. Gossip hears of it there.
func TestVoterMoves(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 2)
	founder, client := nodes[0].start().fresh(), nodes[1].start(join[0]).fresh()
	founder.kill()
	moved := nextAddr()
	founder.addr = moved
	founder.start().fresh()
	client.UpdateAddresses(map[cluster.HostID]netip.AddrPort{founder.id(): moved})
	client.await("it follows", func() bool { return client.Status().Reachable })
	if v := client.Status().Voters; v[0].Address != moved {
		t.Errorf("voters %v", v)
	}
	client.must(attach("10.1.0.0/16"))
}

// A third host knows where the voter is now.
func TestAnyHostTellsWhereTheVoterIs(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	founder := nodes[0].start().fresh()
	nodes[1].start(join[0]).fresh()
	nodes[2].start(join[1]).fresh()
	nodes[2].kill()
	founder.kill()
	founder.addr = nextAddr()
	founder.start().fresh()
	nodes[1].UpdateAddresses(map[cluster.HostID]netip.AddrPort{founder.id(): founder.addr})
	nodes[2].start(join[1]).fresh()
}

func TestSnapshotsAreRestored(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach("10.1.0.0/16"))
	lease := n.must(grant("10.1.0.0/16")).Lease
	if err := n.local().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	after := n.must(grant("10.1.0.0/16")).Lease
	n.kill()
	// Without the copy, all comes from the log and its snapshot.
	if err := os.Remove(filepath.Join(n.dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	n.start().fresh()
	if r := n.Registry(); !r.Leases[lease.ID].Equal(lease) || !r.Leases[after.ID].Equal(after) {
		t.Errorf("leases %v", r.Leases)
	}
}

// The machine loses power: what was answered is on disk.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach("10.1.0.0/16"))
	lease := n.must(grant("10.1.0.0/16")).Lease
	image := t.TempDir()
	if err := os.CopyFS(image, os.DirFS(n.dir)); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.dir = image
	n.start().fresh()
	if !n.Registry().Leases[lease.ID].Equal(lease) {
		t.Errorf("leases %v", n.Registry().Leases)
	}
}

// Clients go on asking while the voter comes and goes. What was granted stays
// granted, to one host only.
func TestVoterComesAndGoes(t *testing.T) {
	t.Parallel()
	nodes, join := hosts(t, 3)
	for _, n := range nodes {
		n.start(join...)
	}
	for _, n := range nodes {
		n.fresh().must(attach("10.1.0.0/16"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	granted := map[uint64]cluster.Lease{}
	for _, n := range nodes[1:] {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				res, err := n.Propose(ctx, grant("10.1.0.0/16"))
				if err != nil {
					continue
				}
				if i%3 > 0 {
					if _, err := n.Propose(ctx, cluster.Command{Release: &cluster.Release{Lease: res.Lease.ID}}); err != nil {
						continue
					}
					mu.Lock()
					granted[res.Lease.ID] = cluster.Lease{}
					mu.Unlock()
					continue
				}
				mu.Lock()
				granted[res.Lease.ID] = res.Lease
				mu.Unlock()
			}
		})
	}
	for range 3 {
		at := nodes[0].Registry().Index + 20
		nodes[0].await("some grants were made", func() bool { return nodes[0].Registry().Index >= at })
		nodes[0].kill()
		nodes[0].start(join...).fresh()
	}
	cancel()
	wg.Wait()
	last := nodes[0].must(attach("10.2.0.0/16"))
	for _, n := range nodes {
		n.await("it has all", func() bool { return n.Registry().Index >= last.Index })
		if err := rules.Check(n.Registry()); err != nil {
			t.Error(err)
		}
		for id, l := range granted {
			if !n.Registry().Leases[id].Equal(l) {
				t.Errorf("%s: lease %d is %v, answered was %v", n.name, id, n.Registry().Leases[id], l)
			}
		}
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, "host1").start().fresh()
	n.must(attach("10.1.0.0/16"))
	full := errors.New("no space left on device")
	var mu sync.Mutex
	failing := true
	store := n.local().store
	write := *store.update.Load()
	limited := func(fn func(*bolt.Tx) error) error {
		mu.Lock()
		defer mu.Unlock()
		if failing {
			return full
		}
		return write(fn)
	}
	store.update.Store(&limited)
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := n.Propose(short, grant("10.1.0.0/16"))
	if away := (*Unreachable)(nil); !errors.As(err, &away) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("propose on a full disk: %v", err)
	}
	if s := n.Status(); s.Reachable || !strings.Contains(s.Error, "no space left") {
		t.Errorf("status %+v", s)
	}
	mu.Lock()
	failing = false
	mu.Unlock()
	n.await("it writes again", func() bool { return n.Status().Reachable })
	n.must(grant("10.1.0.0/16"))
}
