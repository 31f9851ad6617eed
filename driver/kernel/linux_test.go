//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// networks is a macvlan network and a bridge network over one family.
func networks(local, far string) kernel.State {
	v1 := kernel.Link{Name: "is-v1", Kind: kernel.VXLAN, MAC: mac(1), MTU: 1430, VNI: 7, Local: addr(local), Port: 8475, Proxy: true}
	v2 := kernel.Link{Name: "is-v2", Kind: kernel.VXLAN, MAC: mac(2), MTU: 1420, VNI: 8, Local: addr(local), Port: 8475, Master: "is-b2"}
	return stateOf(v1, v2,
		kernel.Link{Name: "is-a1", Kind: kernel.Macvlan, MAC: mac(3), MTU: 1430, Parent: "is-v1"},
		kernel.Link{Name: "is-b2", Kind: kernel.Bridge, MAC: mac(4), MTU: 1420},
		kernel.Guard{Dev: "is-v1", Rule: kernel.DropInput},
		kernel.Guard{Dev: "is-a1", Rule: kernel.DropInput},
		kernel.Guard{Dev: "is-b2", Rule: kernel.DropBridgeInput},
		kernel.Guard{Dev: "is-b2", Rule: kernel.AcceptForward},
		kernel.Guard{Rule: kernel.NoTrack, Tunnel: netip.AddrPortFrom(addr(local), 8475)},
		kernel.Guard{Rule: kernel.DropStrangers, Tunnel: netip.AddrPortFrom(addr(local), 8475)},
		kernel.Guard{Rule: kernel.Admit, Peer: addr(far)},
		kernel.Guard{Rule: kernel.Admit, Peer: addr(far).Next()},
		kernel.FDB{Dev: "is-v1", Dst: addr(far)},
		kernel.FDB{Dev: "is-v1", Dst: addr(far).Next()},
		kernel.FDB{Dev: "is-v1", MAC: mac(9), Dst: addr(far)},
		kernel.FDB{Dev: "is-v2", MAC: mac(9), Dst: addr(far)},
		kernel.Neigh{Dev: "is-v1", IP: addr("10.0.0.9"), MAC: mac(9)},
		kernel.Neigh{Dev: "is-v1", IP: addr("fd02::9"), MAC: mac(9)},
		kernel.Neigh{Dev: "is-v1", IP: addr("fe80::9"), MAC: mac(9)},
		kernel.Neigh{Dev: "is-v2", IP: addr("10.0.0.9"), MAC: mac(9)},
	)
}

func render(s kernel.State) string {
	var b strings.Builder
	for _, op := range kernel.Diff(nil, s, kernel.Options{}) {
		fmt.Fprintln(&b, op.Object)
	}
	return b.String()
}

func TestLinuxRoundTrip(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ local, far string }{{"192.0.2.1", "192.0.2.9"}, {"fd00::1", "fd00::9"}} {
		t.Run(c.local, func(t *testing.T) {
			s := newSpace(t)
			s.sh("nft add table inet other; ip link add foreign type bridge")
			tables, links := s.sh("nft list ruleset"), s.sh("ip -br link")
			k := s.open()
			want := networks(c.local, c.far)
			apply(t, k, want)
			if got := render(mustDump(t, k)); got != render(want) {
				t.Errorf("dump\n%swant\n%s", got, render(want))
			}
			for _, dev := range []string{"is-v1", "is-v2"} {
				out := s.sh("ip -d link show %s", dev)
				contains(t, out, "nolearning", "local "+c.local, "dstport 8475", "addrgenmode none", "UP")
				// Newer versions of ip do not print what is usual, which outer checksums are.
				for _, bad := range []string{"l2miss", "l3miss", " dev u0", "noudpcsum", " udp6zerocsumtx"} {
					if strings.Contains(out, bad) {
						t.Errorf("%s has %q: %s", dev, bad, out)
					}
				}
			}
			contains(t, s.sh("ip -d link show is-b2"), "addrgenmode none", "mcast_snooping 0", "UP")
			contains(t, s.sh("ip -d link show is-a1"), "addrgenmode none", "macvlan mode bridge", "UP")
			if out := s.sh("ip -6 addr show scope link"); out != "" {
				t.Errorf("link-local addresses: %s", out)
			}
			if out, err := s.try("nft list ruleset > /dev/stdout | nft -c -f -"); err != nil {
				t.Errorf("nft does not read back what it lists: %v\n%s", err, out)
			}
			// The same again does nothing, and a repeated creation succeeds.
			if err := k.Do(context.Background(), kernel.Diff(nil, want, kernel.Options{})); err != nil {
				t.Error(err)
			}
			apply(t, k, want)

			apply(t, k, stateOf())
			if err := k.Do(context.Background(), kernel.Diff(want, nil, kernel.Options{})); err != nil {
				t.Errorf("delete what is absent: %v", err)
			}
			if got := s.sh("nft list ruleset"); got != tables {
				t.Errorf("tables left: %s", got)
			}
			if got := s.sh("ip -br link"); got != links {
				t.Errorf("links left: %s", got)
			}
		})
	}
}

func TestLinuxMakes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	for _, kind := range []kernel.Kind{kernel.VXLAN, kernel.Bridge, kernel.Veth, kernel.Macvlan} {
		if able, err := s.open().Makes(t.Context(), kind); err != nil || !able {
			t.Errorf("make %s: %t, %v", kind, able, err)
		}
	}
	// Of the rest ip has the same to say.
	s.sh("ip link add eth0 type veth peer name eth1")
	for kind, command := range map[kernel.Kind]string{
		kernel.IPvlan: "ip link add link eth0 name x0 type ipvlan", kernel.VLAN: "ip link add link eth0 name x1 type vlan id 5", kernel.Dummy: "ip link add x2 type dummy",
	} {
		_, err := s.try(command)
		if able, asked := s.open().Makes(t.Context(), kind); asked != nil || able != (err == nil) {
			t.Errorf("make %s: %t, %v; ip: %v", kind, able, asked, err)
		}
	}
	// A tunnel from anywhere to anywhere may be there already, made by the kernel's module.
	for kind, command := range map[kernel.Kind]string{
		kernel.IPIP: "ip link add x3 type ipip local 192.0.2.1 remote 192.0.2.2", kernel.GRE: "ip link add x4 type gre local 192.0.2.1 remote 192.0.2.2",
		kernel.IPIP.Over(addr("fd00::1")): "ip link add x5 type ip6tnl mode any local fd00::1 remote fd00::2", kernel.GRE.Over(addr("fd00::1")): "ip link add x6 type ip6gre local fd00::1 remote fd00::2",
	} {
		_, err := s.try(command)
		if able, asked := s.open().Makes(t.Context(), kind); asked != nil || able != (err == nil) {
			t.Errorf("make %s: %t, %v; ip: %v", kind, able, asked, err)
		}
	}
	if able, err := s.open().Makes(t.Context(), "nonsense"); err != nil || able {
		t.Errorf("a kind that no kernel knows: %t, %v", able, err)
	}
	if left := s.sh("ip -br link show group 26995"); left != "" {
		t.Errorf("asking left a link behind: %s", left)
	}
}

func TestLinuxLocalChangesInPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ local, far string }{{"192.0.2.1", "192.0.2.9"}, {"fd00::1", "fd00::9"}} {
		t.Run(c.local, func(t *testing.T) {
			s := newSpace(t)
			k := s.open()
			want := networks(c.local, c.far)
			apply(t, k, want)
			index := s.sh("cat /proc/net/dev_snmp6/is-v1 | head -1; ip -o link show is-v1 | cut -d: -f1")
			v := want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
			v.Local = v.Local.Next()
			want.Put(v)
			ops := apply(t, k, want)
			if len(ops) != 1 || ops[0].Action != kernel.Set {
				t.Errorf("operations:\n%s", text(ops))
			}
			if got := s.sh("cat /proc/net/dev_snmp6/is-v1 | head -1; ip -o link show is-v1 | cut -d: -f1"); got != index {
				t.Errorf("index was %s, is %s", index, got)
			}
			contains(t, s.sh("ip -d link show is-v1"), "local "+v.Local.String())
		})
	}
}

func TestLinuxReplaces(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	apply(t, k, networks("192.0.2.1", "192.0.2.9"))
	for _, change := range []func(*kernel.Link){
		func(l *kernel.Link) { l.VNI = 9 },
		func(l *kernel.Link) { l.Port = 8476 },
		func(l *kernel.Link) { l.Proxy = false },
		func(l *kernel.Link) { l.MAC = mac(55) },
		func(l *kernel.Link) { l.MTU = 1400 },
	} {
		want := networks("192.0.2.1", "192.0.2.9")
		v := want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
		change(&v)
		want.Put(v)
		if a := want[kernel.Link{Name: "is-a1"}.Key()].(kernel.Link); a.MTU > v.MTU {
			a.MTU = v.MTU
			want.Put(a)
		}
		apply(t, k, want)
	}
	// The other underlay family, and the other attach kind under another name.
	apply(t, k, networks("fd00::1", "fd00::9"))
	want := networks("fd00::1", "fd00::9")
	for _, key := range []kernel.Key{{"link", "is-a1", ""}, {"guard", "is-a1", "drop-input"}, {"guard", "is-v1", "drop-input"}} {
		delete(want, key)
	}
	v := want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
	v.Master = "is-b1"
	want.Put(v, kernel.Link{Name: "is-b1", Kind: kernel.Bridge, MAC: mac(1), MTU: 1430}, kernel.Guard{Dev: "is-b1", Rule: kernel.DropBridgeInput})
	apply(t, k, want)
}

func TestLinuxRepairs(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := networks("192.0.2.1", "192.0.2.9")
	for _, command := range []string{
		"ip link set is-v1 down",
		"ip link set is-a1 down",
		"ip link set is-v1 mtu 1300",
		"ip link set is-b2 mtu 1300",
		"ip link set is-v1 address 02:00:00:00:00:99",
		"ip link set is-v2 nomaster",
		"ip link del is-v1",
		"ip link del is-a1",
		"ip link del is-b2",
		"bridge fdb del 02:00:00:00:00:09 dev is-v1 dst 192.0.2.9 self",
		"bridge fdb replace 02:00:00:00:00:09 dev is-v1 dst 192.0.2.77 self permanent",
		"bridge fdb del 00:00:00:00:00:00 dev is-v1 dst 192.0.2.10 self",
		"bridge fdb append 00:00:00:00:00:00 dev is-v1 dst 192.0.2.78 self permanent",
		"ip neigh del 10.0.0.9 dev is-v1",
		"ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:77 dev is-v1 nud permanent",
		"ip -6 neigh replace fd02::9 lladdr 02:00:00:00:00:77 dev is-v1 nud permanent",
		"ip neigh replace 10.0.0.77 lladdr 02:00:00:00:00:77 dev is-v1 nud permanent",
		"nft flush ruleset",
		"nft flush chain inet isthmus prerouting",
		"nft flush chain inet isthmus forward",
		"nft flush set inet isthmus drop_links",
		"nft delete element arp isthmus drop_links '{ is-v1 }'",
		"nft add element arp isthmus drop_bridges '{ stray }'",
		"nft insert rule inet isthmus prerouting accept",
		"nft flush chain inet isthmus output",
		"nft add rule inet isthmus output notrack",
		"nft add rule inet isthmus output udp dport 9 notrack comment '\"isthmus layout 5 notrack 192.0.2.1:9\"'",
		"nft delete element inet isthmus admitted4 '{ 192.0.2.9 }'",
		"nft add element inet isthmus admitted4 '{ 192.0.2.99 }'",
		"nft flush set inet isthmus admitted4",
		"nft add set inet isthmus admitted6 '{ type ipv6_addr; elements = { fd00::99 }; }'",
		"nft flush chain inet isthmus input",
		"nft delete table arp isthmus",
		"nft delete table inet isthmus",
		"nft flush chain inet isthmus input; nft delete chain inet isthmus input",
	} {
		t.Run(command, func(t *testing.T) {
			s.t = t
			apply(t, k, want)
			s.sh("%s", command)
			if ops := kernel.Diff(mustDump(t, k), want, kernel.Options{}); len(ops) == 0 {
				t.Error("not noticed")
			}
			apply(t, k, want)
			if got := render(mustDump(t, k)); got != render(want) {
				t.Errorf("dump\n%swant\n%s", got, render(want))
			}
		})
	}
	s.t = t
	s.sh("nft flush set inet isthmus drop_links; nft flush set arp isthmus drop_links; nft flush set inet isthmus drop_bridges; nft flush set arp isthmus drop_bridges; nft flush chain inet isthmus output")
	apply(t, k, stateOf())
	if out := s.sh("nft list ruleset"); out != "" {
		t.Errorf("empty tables stay: %s", out)
	}
}

func TestLinuxLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	s.sh(`ip link add is-v1 type bridge
		ip link add is-mine type vxlan id 70 dstport 8475 local 192.0.2.1
		ip link add vx type vxlan id 7 dstport 8475 local 192.0.2.1
		bridge fdb add 02:00:00:00:00:01 dev vx dst 192.0.2.2 self permanent
		ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev vx nud permanent`)
	before := s.sh("ip -d link; bridge fdb; ip neigh")
	if have := mustDump(t, k); len(have) > 0 {
		t.Fatalf("claims\n%s", render(have))
	}
	err := k.Do(context.Background(), kernel.Diff(nil, networks("192.0.2.1", "192.0.2.9"), kernel.Options{}))
	if err == nil {
		t.Fatal("took a link that is not ours")
	}
	contains(t, err.Error(), "add link is-v1: a link of this name stands in the way that isthmus did not make: delete it (ip link delete is-v1)", "is-v1: skipped 7 operations")
	apply(t, k, stateOf())
	if after := s.sh("ip -d link; bridge fdb; ip neigh"); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	s.sh("ip link del is-v1")
	err = k.Do(context.Background(), []kernel.Op{{Action: kernel.Add, Object: tunnel}})
	if err == nil {
		t.Fatal("made a VNI twice")
	}
	contains(t, err.Error(), "VNI 7 on UDP port 8475 is in use by another VXLAN device of this host")
	if err := k.Do(context.Background(), []kernel.Op{{Action: kernel.Remove, Object: kernel.Link{Name: "is-mine"}}}); err != nil {
		t.Fatal(err)
	}
	s.sh("ip link show is-mine")
}

// Another program may own a table of our name, and nobody else can write it.
func TestLinuxStaysDownUnguarded(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	var owner *exec.Cmd
	var stdin io.WriteCloser
	err := s.in(func() (err error) {
		owner = exec.Command("nft", "-i")
		if stdin, err = owner.StdinPipe(); err != nil {
			return err
		}
		return owner.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		_ = owner.Wait()
	}()
	fmt.Fprintln(stdin, "add table inet isthmus { flags owner; }")
	await(t, "own the table", func() error {
		_, err := s.try("nft list tables | grep -q isthmus")
		return err
	})
	want := networks("192.0.2.1", "192.0.2.9")
	err = k.Do(context.Background(), kernel.Diff(mustDump(t, k), want, kernel.Options{}))
	if err == nil {
		t.Fatal("guards were set")
	}
	contains(t, err.Error(), "write nftables tables isthmus", "add guard is-v1 drop-input", "operation not permitted", "is-v1: skipped")
	if out := s.sh("ip -br link"); strings.Contains(out, "is-v1") || strings.Contains(out, "is-b2") {
		t.Errorf("made without guards: %s", out)
	}
	stdin.Close()
	_ = owner.Wait()
	apply(t, k, want)
}

// Many servers have IPv6 off by sysctl; containers have it even so.
func TestLinuxWithIPv6Off(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	k := s.open()
	want := networks("192.0.2.1", "192.0.2.9")
	apply(t, k, want)
	s.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6") // somebody runs sysctl --system
	if ops := apply(t, k, want); len(ops) == 0 {
		t.Error("IPv6 neighbours survived: the test shows nothing")
	}
	if got := s.sh("cat /proc/sys/net/ipv6/conf/lo/disable_ipv6"); got != "1\n" {
		t.Errorf("changed the host's own setting to %s", got)
	}

	// No IPv6 below its smallest MTU: one error for all, and IPv4 works.
	v := want[kernel.Link{Name: "is-v1"}.Key()].(kernel.Link)
	v.MTU = 1200
	want.Put(v)
	delete(want, kernel.Link{Name: "is-a1"}.Key())
	_ = k.Do(context.Background(), kernel.Diff(mustDump(t, k), want, kernel.Options{}))
	err := k.Do(context.Background(), kernel.Diff(mustDump(t, k), want, kernel.Options{}))
	if err == nil {
		t.Fatal("IPv6 neighbours below 1280")
	}
	contains(t, err.Error(), "the MTU of is-v1 is 1200, and IPv6 needs 1280", "is-v1 (IPv6): skipped 1 operations")
	if left := kernel.Diff(mustDump(t, k), want, kernel.Options{}); len(left) != 2 {
		t.Errorf("left:\n%s", text(left))
	}
}

func TestLinuxScale(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	k := s.open()
	want := stateOf()
	many := spared(100, 30)
	for d := range many {
		v := kernel.Link{Name: fmt.Sprint("is-v", d), Kind: kernel.VXLAN, MAC: cluster.MAC{2, 1, 0, 0, 0, byte(d)}, MTU: 1450, VNI: uint32(d + 1), Local: addr("192.0.2.1"), Port: 8475, Proxy: true}
		want.Put(v, kernel.Guard{Dev: v.Name, Rule: kernel.DropInput})
		for i := range many {
			m := cluster.MAC{2, 2, 0, 0, byte(d), byte(i)}
			want.Put(kernel.FDB{Dev: v.Name, MAC: m, Dst: netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i%200)})},
				kernel.Neigh{Dev: v.Name, IP: netip.AddrFrom4([4]byte{10, 0, byte(d), byte(i)}), MAC: m},
				kernel.Neigh{Dev: v.Name, IP: netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(d), 15: byte(i)}), MAC: m})
		}
	}
	start := time.Now()
	apply(t, k, want)
	t.Logf("%d devices with %d entries made and dumped twice in %v", many, 3*many*many, time.Since(start))
	start = time.Now()
	have := mustDump(t, k)
	took := time.Since(start)
	if len(have) != len(want) {
		t.Errorf("%d objects, want %d", len(have), len(want))
	}
	if t.Logf("dumped in %v", took); took > 5*time.Second {
		t.Errorf("dump took %v", took)
	}
	apply(t, k, stateOf())
}
