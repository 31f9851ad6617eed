package main

import (
	"bytes"
	"context"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ipam"
	"github.com/isthmus-net/isthmus/ledger"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with testdata/NAME.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// runCommand runs a command line as main does, and returns what it prints.
func runCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var c commands
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := k.Parse(args)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	parsed.BindTo(context.Background(), (*context.Context)(nil))
	parsed.Bind(&console{out: &out, json: c.JSON, socket: c.Socket})
	err = parsed.Run()
	return out.String(), err
}

const (
	host1 = cluster.HostID("aaaaaaaa000000000000000000000000")
	host2 = cluster.HostID("bbbbbbbb000000000000000000000000")
)

func pool(s string) cluster.PoolKey { return cluster.PoolKey{Prefix: netip.MustParsePrefix(s)} }

func sampleStatus() Status {
	since := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	problem := driver.Problem{Network: "10.32.0.0/16", Cause: "the path to host2 carries 1450 bytes, the links say 1500", Remedy: "create the network with -o mtu=1400"}
	return Status{
		Version: "1.0", Ready: true, Host: host1, Name: "host1", Cluster: "0123456789abcdef", Encrypted: true,
		Underlay: UnderlayReport{Link: "eth0", MTU: 1500, Addr: netip.MustParseAddr("10.0.0.1")},
		Address:  netip.MustParseAddrPort("10.0.0.1:7950"), VXLANPort: 8475, Docker: true, Endpoints: 2,
		Ledger: ledger.Status{Role: ledger.Client, Cluster: "0123456789abcdef", Index: 42, Reachable: true,
			Voters: []ledger.Server{{Host: host2, Name: "host2", Leader: true, Healthy: true}}, Quorum: ledger.Quorum{Voters: 1, Needed: 1, Reachable: 1}},
		Members: []cluster.Member{
			{ID: host1, State: cluster.Alive, Since: since, Address: netip.MustParseAddrPort("10.0.0.1:7950"), Info: cluster.HostInfo{Name: "host1", MTU: 1500, Version: "1.0"}},
			{ID: host2, State: cluster.Failed, Since: since, Address: netip.MustParseAddrPort("[fd00::2]:7950"), Info: cluster.HostInfo{Name: "host2", MTU: 9000, Version: "1.0"}},
		},
		Networks: []driver.NetworkStatus{{
			ID: 1, Docker: []string{"0123456789abcdef0123456789abcdef"}, Pools: []cluster.PoolKey{pool("10.32.0.0/16"), pool("fd32::/64")},
			Mode: "vxlan", VNI: 4096, Attach: "macvlan", MTU: 1450, Gateway: "docker", Hosts: []string{"host1", "host2"}, Local: 2, Remote: 1,
			Problems: []driver.Problem{problem},
		}},
		Problems: []driver.Problem{problem, {Cause: "host host2 does not answer"}},
	}
}

func TestRender(t *testing.T) {
	ill := sampleStatus()
	well := sampleStatus()
	well.Problems, well.Encrypted, well.Ledger.Role = nil, false, ledger.Voter
	well.Networks[0].Problems = nil
	endpoints := []driver.EndpointStatus{
		{Network: "10.32.0.0/16", ID: "00112233445566778899aabbccddeeff", Host: "host1", VTEP: netip.MustParseAddr("10.0.0.1"), MAC: cluster.MAC{2, 0, 0, 0, 0, 1},
			IPv4: netip.MustParseAddr("10.32.0.2"), IPv6: netip.MustParseAddr("fd32::2"), Name: "web", State: "joined"},
		{Network: "10.32.0.0/16", ID: "ff", Host: "host2", VTEP: netip.MustParseAddr("10.0.0.2"), MAC: cluster.MAC{2, 0, 0, 0, 0, 2},
			IPv4: netip.MustParseAddr("10.32.64.2"), State: "failed"},
	}
	for name, render := range map[string]func(b *bytes.Buffer){
		"status":    func(b *bytes.Buffer) { renderStatus(b, ill) },
		"well":      func(b *bytes.Buffer) { renderStatus(b, well) },
		"networks":  func(b *bytes.Buffer) { renderNetworksWith(b, ill.Networks) },
		"endpoints": func(b *bytes.Buffer) { renderEndpoints(b, endpoints) },
		"ipam":      func(b *bytes.Buffer) { renderPools(b, samplePools()) },
		"lan": func(b *bytes.Buffer) {
			renderNetworksWith(b, sampleLANs())
			pools := samplePools()[:1]
			pools[0].DHCP = sampleLeases()
			pools[0].Conflicts = []ipam.Conflict{{Addr: netip.MustParseAddr("10.32.0.9"), Holder: "02:00:00:00:00:63"}}
			renderPools(b, pools)
			for _, p := range dhcpProblems(sampleLeases()) {
				b.WriteString(p.String() + "\n")
			}
		},
		"forget": func(b *bytes.Buffer) { renderForget(b, ForgetReport{Pools: []cluster.PoolKey{pool("10.32.0.0/16")}}) },
		"reset":  func(b *bytes.Buffer) { renderReset(b, ResetReport{Left: []string{"host2 does not answer"}}) },
		"empty":  func(b *bytes.Buffer) { renderNetworks(b, nil); renderEndpoints(b, nil); renderPools(b, nil) },
		"notjoined": func(b *bytes.Buffer) {
			s := well
			s.Cluster, s.Ledger = "", ledger.Status{Role: ledger.Joining}
			renderStatus(b, s)
		},
		"ledgeraway": func(b *bytes.Buffer) {
			s := ill
			s.Ledger.Reachable, s.Ledger.Quorum.Reachable = false, 0
			s.Ledger.Voters = []ledger.Server{{Host: host2, Name: "host2"}}
			renderStatus(b, s)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			render(&b)
			golden(t, name, b.String())
		})
	}
}

// sampleLANs are networks of each way to stand in a LAN, or beside it.
func sampleLANs() []driver.NetworkStatus {
	of := func(mode, attach, parent, vlan, gateway, subnet string) driver.NetworkStatus {
		return driver.NetworkStatus{
			Docker: []string{"0123456789abcdef"}, Pools: []cluster.PoolKey{pool(subnet)}, Mode: mode, Attach: attach, Parent: parent, VLAN: vlan,
			MTU: 1500, Gateway: gateway, Hosts: []string{"host1"},
		}
	}
	access := of("macvlan", "bridge", "eth0.50", "50", "10.1.0.1", "10.1.0.0/24")
	access.Host = []netip.Addr{netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd01::9")}
	return []driver.NetworkStatus{
		access, of("macvlan", "vepa", "office", "50", "dhcp", "10.2.0.0/24"), of("ipvlan", "l3", "bond0", "", "host", "10.3.0.0/24"),
		of("ipvlan", "l2,private", "eth1.50.7", "50.7", "10.4.0.1", "10.4.0.0/24"), of("macvlan", "bridge", "", "", "none", "10.5.0.0/24"),
	}
}

// sampleLeases are one that is well, and the ways in which others are not.
func sampleLeases() []LeaseReport {
	addr, end := netip.MustParseAddr, time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	return []LeaseReport{
		{Pool: "10.32.0.0/16", Addr: addr("10.32.0.70"), Name: "web", Server: addr("10.32.0.1"), Router: addr("10.32.0.254"), Expires: end},
		{Pool: "10.32.0.0/16", Addr: addr("10.32.0.71"), Name: ipam.HostName, Server: addr("10.32.0.1")},
		{Pool: "10.32.0.0/16", Addr: addr("10.32.0.72"), Name: "db", Server: addr("10.32.0.1"), Expires: end, Lost: true, Problem: "no DHCP server answers"},
		{Pool: "10.32.0.0/16", Addr: addr("10.32.0.73"), Server: addr("10.32.0.1"), Expires: end, Problem: "no DHCP server answers"},
		{Pool: "10.32.0.0/16", Addr: addr("10.32.0.74"), Name: ipam.HostName, Server: addr("10.32.0.1"), Expires: end, Lost: true},
	}
}

// samplePools joins a registry with what host1 uses of it.
func samplePools() []PoolReport {
	a, b := pool("10.32.0.0/16"), cluster.PoolKey{Space: "lab", Prefix: netip.MustParsePrefix("10.40.0.0/24")}
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	r := &cluster.Registry{
		Hosts: map[cluster.HostID]cluster.Host{host1: {ID: host1, Name: "host1"}, host2: {ID: host2, Name: "host2"}},
		Pools: map[cluster.PoolKey]cluster.Pool{
			a: {Key: a, Gateway: addr("10.32.0.1"), Holders: []cluster.HostID{host1, host2}},
			b: {Key: b, Name: "lab", Holders: []cluster.HostID{host2}},
		},
		Leases: map[uint64]cluster.Lease{
			7: {ID: 7, Pool: a, Block: prefix("10.32.0.0/24"), Holder: host1},
			9: {ID: 9, Pool: a, Block: prefix("10.32.1.0/24"), Holder: host2},
		},
	}
	here := []ipam.PoolStatus{{
		Pool: a, Used: []ipam.Use{{Addr: addr("10.32.0.2")}}, Problem: "lost block 10.32.9.0/24",
		Blocks: []ipam.BlockStatus{{Lease: 7, Block: prefix("10.32.0.0/24"), Used: 1, Free: 253, Draining: true}},
	}}
	return joinPools(r, here, host1)
}

func TestJoinPools(t *testing.T) {
	got := samplePools()
	if len(got) != 2 || got[0].Pool != pool("10.32.0.0/16") || len(got[0].Blocks) != 2 || got[1].Name != "lab" {
		t.Fatalf("got %+v", got)
	}
	if b := got[0].Blocks[0]; !b.Here || b.Used != 1 || b.Free != 253 || !b.Draining {
		t.Errorf("own block: %+v", b)
	}
	if b := got[0].Blocks[1]; b.Here || b.Host != "host2" || b.Used != 0 {
		t.Errorf("other's block: %+v", b)
	}
}

// TestHoldings: a reset gives back networks before leases before pools, for
// the cluster drops each only when nothing stands on it.
func TestHoldings(t *testing.T) {
	a := pool("10.32.0.0/16")
	r := &cluster.Registry{
		Networks: map[uint32]cluster.Network{1: {ID: 1, Holders: []cluster.HostID{host1, host2}}, 2: {ID: 2, Holders: []cluster.HostID{host2}}},
		Leases:   map[uint64]cluster.Lease{7: {ID: 7, Holder: host1, Pool: a}, 9: {ID: 9, Holder: host2, Pool: a}},
		Pools:    map[cluster.PoolKey]cluster.Pool{a: {Key: a, Holders: []cluster.HostID{host1}}},
	}
	want := []cluster.Command{
		{DetachNetwork: &cluster.DetachNetwork{Network: 1}},
		{Release: &cluster.Release{Lease: 7}},
		{DetachPool: &cluster.DetachPool{Pool: a}},
	}
	if diff := cmp.Diff(want, holdings(r, host1), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
