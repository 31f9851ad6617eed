package kernel_test

import (
	"context"
	"flag"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

var update = flag.Bool("update", false, "write testdata again")

// typical is a host with a translated network, an internal one, a routed endpoint
// of a third one, one of another address space in the same subnet, and two segments
// that it only bridges.
func typical() kernel.State {
	pool := func(p string, network uint32, nat, internal bool) kernel.Pool {
		return kernel.Pool{Prefix: netip.MustParsePrefix(p), Network: network, NAT: nat, Internal: internal}
	}
	port := func(proto, host, to string) kernel.Publish {
		return kernel.Publish{Proto: proto, Host: netip.MustParseAddrPort(host), To: netip.MustParseAddrPort(to)}
	}
	return stateOf(
		kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.MustParseAddrPort("192.0.2.1:8475")},
		kernel.Guard{Rule: kernel.NoTrack, Kind: kernel.GRE, Tunnel: netip.MustParseAddrPort("192.0.2.1:0")},
		kernel.Guard{Rule: kernel.NoTrack, Kind: kernel.IPIP, Tunnel: netip.MustParseAddrPort("[2001:db8::1]:0")},
		kernel.Guard{Rule: kernel.Admit, Peer: netip.MustParseAddr("2001:db8::9")},
		kernel.Guard{Rule: kernel.DropStrangers, Tunnel: netip.MustParseAddrPort("192.0.2.1:8475")},
		kernel.Guard{Rule: kernel.Admit, Peer: netip.MustParseAddr("192.0.2.9")},
		kernel.Guard{Rule: kernel.DropInput, Dev: "is-v9"}, kernel.Guard{Rule: kernel.DropBridgeInput, Dev: "is-b9"},
		kernel.Gateway{Dev: "is-b1", IPv6: true}, kernel.Gateway{Dev: "is-b2"}, kernel.Gateway{Dev: "is-p0123456789a"},
		kernel.Uplink{Dev: "eth0", IPv6: true}, kernel.Uplink{Dev: "eth1", Forward: true},
		pool("10.1.0.0/16", 1, true, false), pool("fd01::/64", 1, true, false), pool("10.2.0.0/16", 2, false, true),
		pool("10.3.0.0/16", 3, false, false), pool("10.1.128.0/24", 4, true, false), pool("255.255.0.0/16", 5, false, false),
		kernel.Passage{A: 1, B: 3},
		kernel.Source{Dev: "is-p0123456789a", IP: netip.MustParseAddr("10.3.0.7")},
		port("tcp", "0.0.0.0:8080", "10.1.0.2:80"), port("tcp", "[::]:8080", "[fd01::2]:80"),
		port("udp", "192.0.2.1:53", "10.1.0.3:53"), port("sctp", "127.0.0.1:3868", "10.1.0.4:3868"),
	)
}

// The whole of what a typical host has is in testdata, to be read.
func TestRender(t *testing.T) {
	const file = "testdata/tables.nft"
	got := kernel.Render(typical())
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); look at it, and run the test with -update:\n%s", file, diff)
	}
	if got := kernel.Render(stateOf()); got != "" {
		t.Errorf("for nothing:\n%s", got)
	}
}

// Each network's chain lets through what a Passage allows, in both directions, and
// drops what is routed from an internal one last.
func TestRenderIsolates(t *testing.T) {
	text := kernel.Render(typical())
	chain := func(name string) string {
		_, rest, ok := strings.Cut(text, "\tchain "+name+" {\n")
		if !ok {
			t.Fatalf("no chain %s in\n%s", name, text)
		}
		body, _, _ := strings.Cut(rest, "\t}\n")
		return body
	}
	for _, c := range []struct {
		chain string
		has   []string
		lacks []string
	}{
		{"from_1", []string{"ip daddr 10.3.0.0/16 return", "ct status dnat return", "ip daddr @pools4 counter drop", "ip6 daddr @pools6 counter drop"}, []string{"10.2.0.0/16"}},
		{"from_3", []string{"ip daddr 10.1.0.0/16 return", "ip6 daddr fd01::/64 return"}, []string{"10.2.0.0/16"}},
		{"from_2", []string{"ip daddr 10.2.0.0/16 return", "\tcounter drop\n"}, []string{"dnat", "10.1.0.0"}},
		{"into_2", []string{"ip saddr 10.2.0.0/16 return", "\tcounter drop\n"}, []string{"dnat", "10.1.0.0"}},
		{"egress", []string{"ip saddr 10.1.0.0/16 ip daddr != @pools4"}, []string{"ip saddr 10.2.0.0/16", "ip saddr 10.3.0.0/16 ip daddr !="}},
	} {
		body := chain(c.chain)
		for _, part := range c.has {
			if !strings.Contains(body, part) {
				t.Errorf("%s lacks %q:\n%s", c.chain, part, body)
			}
		}
		for _, part := range c.lacks {
			if strings.Contains(body, part) {
				t.Errorf("%s has %q:\n%s", c.chain, part, body)
			}
		}
	}
	if strings.Contains(text, "10.1.128.0/24 : jump") {
		t.Error("a pool inside another one has an element of its own, which the kernel refuses")
	}
	if strings.Contains(text, "chain into_1") {
		t.Error("a network that is not internal has a chain for what comes in")
	}
}

// What goes, goes before what it stands on; what comes, comes after it; the fake
// and a second difference agree.
func TestDiffRouting(t *testing.T) {
	want := typical()
	for _, dev := range []string{"is-b1", "is-b2", "is-p0123456789a"} {
		want.Put(kernel.Link{Name: dev, Kind: kernel.Bridge, MTU: 1500})
	}
	f := kerneltest.New()
	f.SetDevice(kernel.Device{Name: "eth1", Up: true})
	ctx := context.Background()
	ops := kernel.Diff(mustState(t, f), want, kernel.Options{})
	at := map[string]int{}
	for i, op := range ops {
		at[op.Object.Key().String()] = i
	}
	if !(at["pool 10.1.0.0/16"] < at["link is-b1"] && at["link is-b1"] < at["gateway is-b1"]) {
		t.Errorf("order:\n%s", text(ops))
	}
	if err := f.Do(ctx, ops); err != nil {
		t.Fatal(err)
	}
	if again := kernel.Diff(mustState(t, f), want, kernel.Options{}); len(again) > 0 {
		t.Errorf("second difference:\n%s", text(again))
	}
	// Before the cluster is heard, the pools of others are not forgotten; those of a
	// network that is wanted are as they are wanted.
	settling := maps.Clone(want)
	for _, p := range []string{"10.3.0.0/16", "255.255.0.0/16", "fd01::/64"} {
		delete(settling, kernel.Pool{Prefix: netip.MustParsePrefix(p)}.Key())
	}
	ops = kernel.Diff(mustState(t, f), settling, kernel.Options{KeepRemote: true})
	if len(ops) != 1 || ops[0].String() != "del pool fd01::/64 network 1 nat" {
		t.Errorf("while settling:\n%s", text(ops))
	}
	stale := func(o kernel.Object) bool { p, ok := o.(kernel.Pool); return ok && p.Network == 5 }
	if ops = kernel.Diff(mustState(t, f), settling, kernel.Options{KeepRemote: true, Stale: stale}); len(ops) != 2 {
		t.Errorf("with a stale one:\n%s", text(ops))
	}
	if ops = kernel.Diff(mustState(t, f), settling, kernel.Options{}); len(ops) != 3 {
		t.Errorf("settled:\n%s", text(ops))
	}
	ops = kernel.Diff(mustState(t, f), stateOf(), kernel.Options{})
	clear(at)
	for i, op := range ops {
		at[op.Object.Key().String()] = i
	}
	if !(at["gateway is-b1"] < at["link is-b1"] && at["link is-b1"] < at["pool 10.1.0.0/16"]) {
		t.Errorf("order of removal:\n%s", text(ops))
	}
	if err := f.Do(ctx, ops); err != nil {
		t.Fatal(err)
	}
	if left := mustState(t, f); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func mustState(t *testing.T, k kernel.Kernel) kernel.State {
	t.Helper()
	s, err := k.Dump(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
