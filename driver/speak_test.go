package driver

import (
	"context"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// A LAN is told of this host's own containers, and of nobody else's: others may
// remember who had the address before.
func TestAnnouncementsToALAN(t *testing.T) {
	for _, c := range []struct {
		options   []string
		announced bool
		named     bool // it has a MAC of its own
	}{
		{[]string{"mode=macvlan"}, true, true},
		{[]string{"mode=ipvlan"}, true, false},
		{[]string{"mode=ipvlan", "ipvlan_mode=l3"}, false, false}, // sends no frames of its own
	} {
		t.Run(at(c.options), func(t *testing.T) {
			h := startHost(t)
			h.lan(c.options...)
			h.heard.say("host2", remote(1, "db", "10.1.0.9", "02:00:00:00:02:09"))
			h.run("web", "lan", "10.1.0.2/16 fd01::2/64")
			h.heard.say("host2", remote(1, "db", "10.1.0.9", "02:00:00:00:02:10"))
			var mac cluster.MAC
			if c.named {
				mac = h.store.intent().Endpoints["web"].MAC
			}
			want := map[kernel.Announcement]int{}
			if c.announced {
				for _, a := range h.store.intent().Endpoints["web"].Addrs() {
					want[kernel.Announcement{Dev: "eth1", IP: a.Addr(), MAC: mac}] = len(hasty.announce)
				}
			}
			said := func() bool {
				got := map[kernel.Announcement]int{}
				for _, a := range h.kernel.Announced() {
					got[a]++
				}
				for a, n := range want {
					if got[a] != n {
						return false
					}
				}
				return len(got) == len(want)
			}
			h.await("the LAN is told of web", said)
			h.ok(h.Sync(context.Background(), 0))
			if !said() {
				t.Errorf("announced %v, want %v", h.kernel.Announced(), want)
			}
		})
	}
}
