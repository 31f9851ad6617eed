package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// narrow is a wire on which each peer's path carries packets of a given size;
// 0: none at all.
type narrow struct {
	mu     sync.Mutex
	fits   map[netip.AddrPort]int
	lost   int // of the next full-sized probes
	probes []string
}

func (n *narrow) ProbeMTU(_ context.Context, to netip.AddrPort, size int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.probes = append(n.probes, fmt.Sprintf("%s %d", to.Addr(), size))
	if n.lost > 0 {
		n.lost--
		return errors.New("no answer")
	}
	if size > n.fits[to] {
		return errors.New("no answer")
	}
	return nil
}

func (n *narrow) FitMTU(_ context.Context, to netip.AddrPort, low, high int) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fits[to] < low {
		return 0, errors.New("no answer")
	}
	return min(high, n.fits[to]), nil
}

func TestProber(t *testing.T) {
	peer := func(name string, mtu int, state cluster.MemberState) cluster.Member {
		return cluster.Member{
			ID: cluster.HostID(name), State: state, Info: cluster.HostInfo{Name: name, MTU: mtu},
			Address: netip.AddrPortFrom(netip.MustParseAddr("10.0.0."+name), 7950),
		}
	}
	members := []cluster.Member{
		peer("1", 1500, cluster.Alive), // self
		peer("2", 1500, cluster.Alive),
		peer("3", 1400, cluster.Alive), // its own link is smaller
		peer("4", 1500, cluster.Alive), // narrow path
		peer("5", 1500, cluster.Alive), // answers nothing
		peer("6", 1500, cluster.Failed),
	}
	wire := &narrow{fits: map[netip.AddrPort]int{}}
	for i, fits := range []int{9000, 9000, 1450, 0, 9000} {
		wire.fits[members[i+1].Address] = fits
	}
	mtu := 1500
	var mu sync.Mutex
	reported := map[cluster.HostID]int{}
	p := &prober{
		wire: wire, self: "1", members: func() []cluster.Member { return members }, mtu: func() int { return mtu },
		report: func(h cluster.HostID, fits int) { mu.Lock(); defer mu.Unlock(); reported[h] = fits },
		log:    quiet(), peers: map[cluster.HostID]probed{},
	}
	// round runs one round and says what was probed and reported in it.
	round := func(now time.Time) string {
		wire.probes = nil
		clear(reported)
		p.round(context.Background(), now)
		slices.Sort(wire.probes)
		return strings.Join(wire.probes, ", ") + " -> " + fmt.Sprint(reported)
	}
	expect := func(when, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", when, got, want)
		}
	}
	now := time.Now()
	expect("first round", round(now), "10.0.0.2 1500, 10.0.0.3 1400, 10.0.0.4 1500, 10.0.0.5 1500 -> map[2:1500 3:1400 4:1450]")
	expect("at once again", round(now), " -> map[]")
	expect("the silent peer again", round(now.Add(probeLost+time.Second)), "10.0.0.5 1500 -> map[]")
	expect("the narrow path, too", round(now.Add(probeNarrow+time.Second)), "10.0.0.4 1500, 10.0.0.5 1500 -> map[4:1450]")
	mtu = 1300
	expect("own MTU changed", round(now), "10.0.0.2 1300, 10.0.0.3 1300, 10.0.0.4 1300, 10.0.0.5 1300 -> map[2:1300 3:1300 4:1300]")
	members[5].State = cluster.Alive
	wire.lost = 1
	expect("a peer came back, its probe is lost by chance", round(now), "10.0.0.6 1300 -> map[6:1300]")
	members[1].State = cluster.Failed
	round(now)
	members[1].State = cluster.Alive
	expect("a peer failed and returned", round(now), "10.0.0.2 1300 -> map[2:1300]")
}
