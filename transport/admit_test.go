package transport

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
)

// A host that is turned away gets RPC alone, whoever dials, and both ends say
// why.
func TestTurnedAwayHostHasOnlyRPC(t *testing.T) {
	t.Parallel()
	gone := start(t, keyA, "c1")
	member := open(t, "127.0.0.1:0", keyA, "c1")
	member.admits = func(id cluster.HostID) error {
		if id == gone.Host() {
			return errors.New("host höst3 was removed from the cluster: run `isthmus reset` on it")
		}
		return nil
	}
	run(t, member)
	Handle(member.Transport, "hello", func(context.Context, cluster.HostID, struct{}) (string, error) { return "hi", nil })
	for _, p := range []Protocol{Gossip, Sync, Raft} {
		for _, d := range []struct {
			from, to node
			says     string
		}{
			{gone, member, "the peer refused: host h?st3 was removed"},
			{member, gone, "host höst3 was removed"},
		} {
			d.to.Listener(p)
			c, err := d.from.Dial(t.Context(), d.to.Addr(), p)
			var failed *DialError
			if !errors.As(err, &failed) || failed.Cause != NotAdmitted {
				t.Fatalf("%s: %v, %v", p, c, err)
			}
			wantText(t, "error", err.Error(), d.says, "isthmus reset")
		}
	}
	eventually(t, "the refusals are listed", func() bool {
		for _, r := range member.Refusals() {
			if !r.Outgoing && r.Cause == NotAdmitted && strings.Contains(r.Reason, "höst3") {
				return true
			}
		}
		return false
	})
	if got, err := Call[struct{}, string](t.Context(), gone.Transport, member.Addr(), "hello", struct{}{}); got != "hi" || err != nil {
		t.Errorf("RPC: %q, %v", got, err)
	}
	if c, err := member.Dial(t.Context(), member.Addr(), Gossip); err != nil {
		t.Errorf("another host: %v", err)
	} else {
		c.Close()
	}
}

// Who names no cluster is answered by a host of any, but only over RPC.
func TestAnonymousCallCrossesClusters(t *testing.T) {
	t.Parallel()
	a, b := start(t, keyA, "c1"), start(t, keyA, "c2")
	Handle(b.Transport, "hello", func(context.Context, cluster.HostID, struct{}) (string, error) { return "hi", nil })
	var failed *DialError
	if _, err := Call[struct{}, string](t.Context(), a.Transport, b.Addr(), "hello", struct{}{}); !errors.As(err, &failed) || failed.Cause != OtherCluster {
		t.Errorf("by name: %v", err)
	}
	if got, err := Call[struct{}, string](Anonymous(t.Context()), a.Transport, b.Addr(), "hello", struct{}{}); got != "hi" || err != nil {
		t.Errorf("anonymously: %q, %v", got, err)
	}
	b.Listener(Gossip)
	if _, err := a.Dial(Anonymous(t.Context()), b.Addr(), Gossip); !errors.As(err, &failed) || failed.Cause != NoCluster {
		t.Errorf("gossip: %v", err)
	}
}
