package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestErrorsSayWhichItIs: what a user reads when a container does not start or a
// network is not made, by what is wrong. The ledger's part of the text is
// passed on as it is.
func TestErrorsSayWhichItIs(t *testing.T) {
	const (
		noQuorum  = "reach the voters host2 (10.0.0.2:7950), host3 (10.0.0.3:7950): connection refused; new networks and blocks wait until one of them returns"
		notJoined = "join a cluster: host1 (10.0.0.1:7950) does not answer; networks and blocks wait until then"
		forgotten = "host h1 (0a1b2c3d) was removed from the cluster: run `isthmus reset` on it, then start it again as a new host"
		clone     = "host h1 (0a1b2c3d) runs on another machine: this one is a clone of it: run `isthmus reset` here"
	)
	for _, c := range []struct {
		name    string
		err     error
		network string // refusal of a new network
		address string // of a container, with no local address left
		exact   string // of --ip in no block of this host
	}{
		{
			"no quorum", errors.New(noQuorum), noQuorum,
			"no free address of subnet 10.0.0.0/29 is left on this host, and none can be leased: " + noQuorum,
			"address 10.0.0.6 lies in no block of this host, and cannot be leased: " + noQuorum,
		},
		{
			"not joined", errors.New(notJoined), notJoined,
			"no free address of subnet 10.0.0.0/29 is left on this host, and none can be leased: " + notJoined,
			"address 10.0.0.6 lies in no block of this host, and cannot be leased: " + notJoined,
		},
		{
			"forgotten", cluster.Refuse(cluster.Forgotten, forgotten), forgotten,
			"no free address of subnet 10.0.0.0/29 is left on this host, and none can be leased: " + forgotten,
			forgotten,
		},
		{
			"clone", cluster.Refuse(cluster.Clone, clone), clone,
			"no free address of subnet 10.0.0.0/29 is left on this host, and none can be leased: " + clone,
			clone,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newLab(t, "h1").hosts[0]
			id := must[string](t)(h.network("10.0.0.0/29", "", ""))
			h.refuse = func(context.Context) error { return c.err }
			_, err := h.network("10.1.0.0/24", "", "")
			wantErr(t, err, c.network)
			for range 2 {
				must[netip.Addr](t)(h.start(id, "", "")) // local ones are still served
			}
			_, err = h.start(id, "", "")
			wantErr(t, err, c.address)
			_, err = h.start(id, "10.0.0.6", "")
			wantErr(t, err, c.exact)
			var refusal *cluster.Refusal
			if errors.As(err, &refusal) != errors.As(c.err, &refusal) {
				t.Errorf("%v hides the refusal", err)
			}
		})
	}
}

// TestNoCallHangs: a cluster that never answers keeps no call longer than its
// bound, not even when many wait for one another.
func TestNoCallHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		if raceEnabled {
			return // takes its bounds in real time
		}
		l := newLab(t, "h1", "h2")
		h := l.hosts[0]
		id := must[string](t)(h.network("10.0.0.0/28", "", ""))
		must[string](t)(l.hosts[1].network("10.0.0.0/28", "", ""))
		for range 6 {
			must[netip.Addr](t)(h.start(id, "", ""))
		}
		h.refuse = func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("reach the voter host2 (10.0.0.2:7950): no answer; new networks and blocks wait until it returns")
		}
		l.hosts[1].silent = true
		calls := map[string]func() error{
			"address": func() error { _, err := h.start(id, "", ""); return err },
			"--ip":    func() error { _, err := h.start(id, "10.0.0.9", ""); return err },
			"network": func() error { _, err := h.network("10.1.0.0/24", "", ""); return err },
			"picked":  func() error { _, _, err := h.requestPool("", "", nil); return err },
			"gateway": func() error { _, err := h.requestAddress(id, "10.0.0.14", forGateway); return err },
		}
		var wg sync.WaitGroup
		for name, call := range calls {
			for range 4 {
				wg.Go(func() {
					begin := time.Now()
					err := call()
					if took := time.Since(begin); took > callTime {
						t.Errorf("%s answered after %s", name, took)
					}
					if err == nil || name != "gateway" && !strings.Contains(err.Error(), "reach the voter host2") && !strings.Contains(err.Error(), "wait for an earlier request on pool") {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
		}
		wg.Wait()
	})
}
