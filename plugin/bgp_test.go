package main

import (
	"context"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/bgp"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// router is a speaker on a loopback address that keeps what it hears.
type router struct {
	*bgp.Speaker
	mu    sync.Mutex
	heard []bgp.Route
}

func startRouter(t *testing.T, at, host netip.AddrPort) *router {
	t.Helper()
	r := &router{}
	log := logrus.New()
	log.SetOutput(io.Discard)
	var err error
	r.Speaker, err = bgp.New(bgp.Config{
		AS: 65000, RouterID: netip.MustParseAddr("192.0.2.254"), Listen: at, Hold: 9 * time.Second, Restart: time.Minute, ImportMax: 100, ReceiveMax: 1000,
		Import: []bgp.Match{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Within: true}},
		Peers:  []bgp.Peer{{Addr: host.Addr(), AS: 65001, Port: host.Port(), Source: at.Addr(), Password: "correct-horse"}},
		Imported: func(routes []bgp.Route) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.heard = routes
		},
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run router: %v", err)
		}
	})
	return r
}

// TestRoutersHearOfBlocks: a router hears of the blocks of a bgp=on network, is let in
// with what the settings say and no more, is in the status, and forgets at the farewell.
func TestRoutersHearOfBlocks(t *testing.T) {
	if raceEnabled {
		t.Skip("two speakers of one process share variables of the library")
	}
	h := newHosts(t, 1, "")[0]
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.1.254"), freePort(t))
	host := netip.AddrPortFrom(netip.MustParseAddr("127.0.1.1"), freePort(t))
	h.kernel.SetDevice(kernel.Device{Name: "eth0", Kind: "device", MTU: 1500, MAC: cluster.MAC{2, 0, 0, 0, 0, 1}, Up: true, Carrier: true, Addrs: []netip.Prefix{netip.PrefixFrom(host.Addr(), 24)}})
	h.cfg.BGP = bgp.Config{
		AS: 65001, RouterID: netip.MustParseAddr("192.0.2.1"), Listen: host, Hold: 9 * time.Second, Restart: time.Minute, ImportMax: 1, ReceiveMax: 1000,
		Import: []bgp.Match{{Prefix: netip.MustParsePrefix("203.0.113.0/24")}},
		Peers:  []bgp.Peer{{Addr: at.Addr(), AS: 65000, Port: at.Port(), Source: host.Addr(), Password: "correct-horse"}},
	}
	r := startRouter(t, at, host)
	if err := r.Announce([]bgp.Route{{Prefix: netip.MustParsePrefix("203.0.113.0/24"), NextHop: at.Addr()}, {Prefix: netip.MustParsePrefix("198.51.100.0/24"), NextHop: at.Addr()}}); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.awaitUp()
	network := id64("01")
	pool, err := h.create(network, "10.66.0.0/16", nil, map[string]string{"mode": "routed", "bgp": "on"})
	if err != nil {
		t.Fatal(err)
	}
	h.startContainer(network, pool, id64("e1"))
	hears := func() []bgp.Route {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(r.heard)
	}
	h.await("the router knows the block", func() bool {
		heard := hears()
		return len(heard) == 1 && heard[0].NextHop == host.Addr() && netip.MustParsePrefix("10.66.0.0/16").Overlaps(heard[0].Prefix)
	})
	h.await("what the settings let in is led there", func() bool { return strings.Contains(h.kernel.String(), "fib 203.0.113.0/24 via 127.0.1.254") })
	if strings.Contains(h.kernel.String(), "198.51.100.0") {
		t.Error("a route was let in that no setting names")
	}
	h.await("the status has the session", func() bool {
		s := h.status()
		return s.BGP != nil && len(s.BGP.Sessions) == 1 && s.BGP.Sessions[0].State == bgp.Established
	})
	if out, err := runCommand(t, "--socket", h.cfg.Socket, "reset", "--force"); err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	h.await("the router heard the farewell", func() bool { return len(hears()) == 0 })
}
