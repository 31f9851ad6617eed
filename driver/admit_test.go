package driver

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

func registered(n byte, session uint64, tombstone bool) cluster.Host {
	name := "host" + string('0'+n)
	return cluster.Host{ID: cluster.HostID(name), Name: name, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, n}), Session: session, Tombstone: tombstone}
}

// TestForgottenHost: what leads to it and what admits it goes at once, also
// before the news have settled, and comes back with it.
func TestForgottenHost(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ledger.register(registered(2, 5, false))
	h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.heard.say("host3", cluster.Record{Network: 1}, remote(1, "new", "10.1.0.4", "02:00:00:00:03:04"))
	h.awaitHas("neigh 10.1.0.3")
	h.awaitHas("neigh 10.1.0.4")
	h.contains("guard admit peer 192.0.2.2")
	h.contains("guard admit peer 192.0.2.3")
	h.contains("guard drop-strangers tunnel 192.0.2.1:8475")

	// Nothing is heard any more, and the plugin begins anew.
	h.stop()
	h.heard.change(func() { h.heard.settled, h.heard.streams = false, map[cluster.HostID]cluster.Stream{} })
	h.kernel.Put(kernel.Guard{Rule: kernel.Admit, Peer: netip.MustParseAddr("192.0.2.77")})
	h.start(hasty)
	h.ok(h.Sync(context.Background(), 0))
	h.contains("neigh 10.1.0.3")
	h.contains("guard admit peer 192.0.2.77")
	for _, gone := range []cluster.Host{registered(2, 5, true), registered(2, 0, false)} {
		h.ledger.register(gone)
		h.awaitNot("192.0.2.2\n")
		h.lacks("neigh 10.1.0.3")
		h.lacks("neigh fe80::ff:fe00:203")
		h.contains("neigh 10.1.0.4")
		h.contains("guard admit peer 192.0.2.3")
		h.contains("guard admit peer 192.0.2.77")
		h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
		h.ok(h.Sync(context.Background(), 0))
		h.lacks("192.0.2.2\n")
		h.ledger.register(registered(2, 9, false))
		h.awaitHas("neigh 10.1.0.3")
		h.contains("guard admit peer 192.0.2.2")
	}
	h.heard.change(func() { h.heard.settled = true })
	h.awaitNot("192.0.2.77")
	h.ok(h.delete("app"))
	if left := h.kernel.String(); left != "" {
		t.Fatalf("left in the kernel:\n%s", left)
	}
}

// TestDuplicateIsLoud: two hosts with another IPAM driver chose one address.
// Each says so once, with the same words, and it is a problem while it lasts.
func TestDuplicateIsLoud(t *testing.T) {
	h := startHost(t)
	h.ok(h.create("app", []string{"other|10.1.0.0/16"}, "ipam=foreign"))
	hook := logtest.NewLocal(h.log.(*logrus.Logger))
	h.run("0123456789abcdef0123456789abcdef", "app", "10.1.0.2/16")
	h.heard.say("host2", remote(1, "fedcba9876543210fedcba9876543210", "10.1.0.2", "02:00:00:00:02:02"))
	const want = "network 10.1.0.0/16: 10.1.0.2 is held twice: by host1 with endpoint 0123456789ab and by host2 with endpoint fedcba987654: remove one of the two"
	is := func() bool {
		for _, p := range h.Status().Problems {
			if p.String() == want {
				return true
			}
		}
		return false
	}
	h.await("it is a problem", is)
	for range 5 {
		h.ok(h.Sync(context.Background(), 0))
	}
	if n := h.networkProblems(); n != 1 {
		t.Errorf("%d problems of the network", n)
	}
	said := func() (n int) {
		for _, e := range hook.AllEntries() {
			if e.Message == want && e.Level == logrus.WarnLevel {
				n++
			}
		}
		return n
	}
	if said() != 1 {
		t.Errorf("said %d times", said())
	}
	h.lacks("neigh 10.1.0.2")
	// The other host's plan, of the same two records.
	in, v := h.store.intent(), h.view()
	mine := Plan(in, v).Records
	v.Host, v.VTEP = "host2", netip.MustParseAddr("192.0.2.2")
	v.Streams = []cluster.Stream{{Owner: "host1", Info: cluster.HostInfo{VTEP: netip.MustParseAddr("192.0.2.1")}, Records: map[cluster.RecordKey]cluster.Record{}}}
	for _, r := range mine {
		v.Streams[0].Records[r.Key()] = r
	}
	theirs := &Intent{Networks: in.Networks, Endpoints: map[string]Endpoint{"e": {
		ID: "fedcba9876543210fedcba9876543210", Network: "app", MAC: cluster.MAC{2, 0, 0, 0, 2, 2}, IPv4: netip.MustParsePrefix("10.1.0.2/16"), Sandbox: "/s/e",
	}}}
	if p := Plan(theirs, v).Problems; len(p) != 1 || p[0].String() != want {
		t.Errorf("the other host says %v", p)
	}
	h.heard.say("host2")
	h.await("it is none any more", func() bool { return !is() })
	h.ok(h.Sync(context.Background(), 0))
	h.heard.say("host2", remote(1, "fedcba9876543210fedcba9876543210", "10.1.0.2", "02:00:00:00:02:02"))
	h.await("it is said again", func() bool { return said() == 2 })
}

func (h *host) networkProblems() (n int) {
	for _, s := range h.Networks() {
		n += len(s.Problems)
	}
	return n
}

// TestUnleasedRecord: an address goes to who leases it, as soon as the registry
// says so.
func TestUnleasedRecord(t *testing.T) {
	h := startHost(t)
	h.app()
	pool := pools("10.1.0.0/16")[0]
	r := remote(1, "db", "10.1.0.3", "02:00:00:00:02:03")
	r.Lease4 = 50
	h.heard.say("host2", cluster.Record{Network: 1}, r)
	h.awaitHas("neigh 10.1.0.3") // newer than what is known
	lease := cluster.Lease{ID: 50, Pool: pool, Block: netip.MustParsePrefix("10.1.0.0/29"), Holder: "host2"}
	h.ledger.lease(60, lease)
	h.ok(h.Sync(context.Background(), 0))
	h.contains("neigh 10.1.0.3")
	lease.ID, lease.Holder = 70, "host3"
	h.ledger.lease(70, lease)
	h.awaitNot("02:00:00:00:02:03")
	h.await("it is a problem", func() bool {
		for _, p := range h.Status().Problems {
			if strings.Contains(p.String(), "10.1.0.3 is used by host2 with endpoint 646200000000, but leased to host3: others do not send to it there") {
				return true
			}
		}
		return false
	})
}
