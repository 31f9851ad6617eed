//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Every mode is made, read back, and changed into others.
func TestLinuxModes(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.IPvlan} {
		t.Run(string(kind), func(t *testing.T) {
			s := newSpace(t)
			s.parent()
			k := s.open()
			if !makes(t, k, kind) {
				return
			}
			all := stations(kind)
			for i, from := range all {
				next := []station{all[(i+1)%len(all)], all[(i+len(all)-2)%len(all)]}
				for _, to := range spared(next, next[:1]) {
					apply(t, k, stateOf(from.link))
					contains(t, s.sh("ip -d link show is-p1"), append(from.shows, "addrgenmode none", ",UP")...)
					index := device(t, k, "is-p1").Index
					ops := apply(t, k, stateOf(to.link))
					contains(t, s.sh("ip -d link show is-p1"), to.shows...)
					inPlace := device(t, k, "is-p1").Index == index
					if fixed := (from.link.Mode == "passthru") != (to.link.Mode == "passthru"); inPlace == fixed {
						t.Errorf("from %s to %s in place: %t, by\n%s", from.link, to.link, inPlace, text(ops))
					}
				}
			}
			if got := s.sh("cat /proc/sys/net/ipv6/conf/is-p1/accept_ra"); got != "0\n" {
				t.Errorf("takes router advertisements: %s", got)
			}
			apply(t, k, stateOf())
		})
	}
}

// A VLAN on a VLAN, with links of the host's own and of a container on it.
func TestLinuxVLAN(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, box := newSpace(t), newSpace(t)
	s.parent()
	k := s.open()
	if !makes(t, k, kernel.VLAN) {
		return
	}
	want := stateOf(with(vlan50, func(l *kernel.Link) { l.Proto = "802.1ad" }), vlan50_7, shim, shimAddr, shimFIB, block)
	apply(t, k, want)
	contains(t, s.sh("ip -d link show eth0.50"), "vlan protocol 802.1ad id 50", "group 26995", "alias isthmus", "addrgenmode none", ",UP")
	contains(t, s.sh("ip -d link show eth0.50.7"), "eth0.50.7@eth0.50", "vlan protocol 802.1Q id 7", ",UP")
	h := kernel.Handover{Link: guest, Sandbox: box.path(), Name: "eth0", Addrs: []netip.Prefix{prefix("10.9.0.7/24")}}
	if err := k.Hand(ctx, h); err != nil {
		t.Fatal(err)
	}
	take(s, box, guest.Name, "eth0", "10.9.0.7/24")
	apply(t, k, want)
	s.sh("ping -c1 -W5 10.9.0.7")
	contains(t, s.sh("ip route get 10.9.0.7"), "dev is-h9", "src 10.9.0.1")

	// Deleted by hand: all is made again, that in the sandbox by Mend.
	s.sh("ip link del eth0.50")
	apply(t, k, want)
	if made, err := k.Mend(ctx, h); !made || err != nil {
		t.Fatalf("mended: %t, %v", made, err)
	}
	await(t, "the container", func() error { _, err := s.try("ping -c1 -W1 10.9.0.7"); return err })

	// Down and up with its parent, not of itself.
	s.sh("ip link set eth0 down")
	err := k.Do(ctx, kernel.Diff(mustDump(t, k), want, kernel.Options{}))
	if err == nil {
		t.Fatal("a VLAN is up whose parent is down")
	}
	contains(t, err.Error(), "set link eth0.50: set up: its parent eth0 is down: set that up (ip link set eth0 up)")
	s.sh("ip link set eth0 up; ip addr replace 192.0.2.1/24 dev eth0")
	apply(t, k, want)

	// Its parent renamed: it is ours all the same, and so is the next of its name.
	s.sh("ip link set eth0 down; ip link set eth0 name lan0; ip link set lan0 up")
	if l, ok := mustDump(t, k)[kernel.Link{Name: "eth0.50"}.Key()].(kernel.Link); !ok || l.Parent != "lan0" {
		t.Errorf("have %s", l)
	}
	box.sh("ip link show eth0")
	s.sh("ip link set lan0 down; ip link set lan0 name eth0; ip link set eth0 up; ip addr replace 192.0.2.1/24 dev eth0; ip link set eth0.50 alias ''")
	apply(t, k, want)

	// One VLAN has one device, and one of somebody else stays his.
	s.sh("ip link add link eth0 name eth0.60 type vlan id 60; ip link add link eth0 name eth0.61 group %d type vlan id 62", kernel.Group)
	for name, text := range map[string]string{
		"eth0.60": "add link eth0.60: a link of this name stands in the way that isthmus did not make",
		"is-60":   "add link is-60: VLAN 60 of eth0 is in use by another device of this host: name that one as the parent",
	} {
		err := k.Do(ctx, []kernel.Op{{Action: kernel.Add, Object: kernel.Link{Name: name, Kind: kernel.VLAN, Parent: "eth0", VID: 60}}})
		if err == nil {
			t.Errorf("made %s", name)
			continue
		}
		contains(t, err.Error(), text)
	}
	apply(t, k, stateOf())
	if err := k.Do(ctx, []kernel.Op{{Action: kernel.Remove, Object: kernel.Link{Name: "eth0.60"}}}); err != nil {
		t.Error(err)
	}
	if out := s.sh("ip -br link"); strings.Contains(out, "eth0.50") || !strings.Contains(out, "eth0.60") || !strings.Contains(out, "eth0.61") {
		t.Errorf("left: %s", out)
	}
}

// An isolated network has a dummy below it, or a pair of veths.
func TestLinuxIsolated(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.parent()
	k := s.open()
	parents := []kernel.State{stateOf(kernel.Link{Name: "is-d1", Kind: kernel.Veth, Peer: "is-e1", MTU: 1500}, kernel.Link{Name: "is-e1", Kind: kernel.Veth, Peer: "is-d1", MTU: 1500, Standing: kernel.Adopted})}
	if makes(t, k, kernel.Dummy) {
		parents = append(parents, stateOf(kernel.Link{Name: "is-d1", Kind: kernel.Dummy, MTU: 1500}))
	}
	for i, parent := range parents {
		want := maps.Clone(parent)
		want.Put(kernel.Link{Name: "is-h1", Kind: kernel.Macvlan, Parent: "is-d1", MAC: mac(0x41), MTU: 1500}, kernel.Addr{Dev: "is-h1", Prefix: prefix("10.4.0.1/32")})
		if i == 0 {
			s.sh("ip link add is-d1 group %d type veth peer name is-e1", kernel.Group+1) // a plugin was killed half-way
			_ = k.Do(context.Background(), kernel.Diff(mustDump(t, k), want, kernel.Options{}))
			contains(t, s.sh("ip -d link show is-e1"), "group 26995")
		}
		apply(t, k, want)
		contains(t, s.sh("ip link show is-h1"), "is-h1@is-d1", "LOWER_UP")
		apply(t, k, stateOf())
		if out := s.sh("ip -br link"); strings.Contains(out, "is-") {
			t.Errorf("left: %s", out)
		}
	}
}

// openAt opens the door with one sandbox in its usual directory.
func (s *space) openAt(box *space) *kernel.Linux {
	s.t.Helper()
	dir := s.t.TempDir()
	if err := os.Symlink(box.path(), filepath.Join(dir, "box")); err != nil {
		s.t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(s.t.Output())
	var k *kernel.Linux
	if err := s.in(func() (err error) { k, err = kernel.Open(kernel.Config{Log: log, Sandboxes: dir}); return err }); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(k.Close)
	return k
}

// device is one link, with what stands on it there and in sandboxes.
func device(t *testing.T, k *kernel.Linux, name string) kernel.Device {
	t.Helper()
	all, err := k.Links(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	inside, err := k.Lodgers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(d kernel.Device) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("no link %s in %+v", name, all)
	}
	d := all[i]
	d.Children = append(d.Children, inside[d.Index]...)
	return d
}

func TestLinuxLinks(t *testing.T) {
	t.Parallel()
	s, box := newSpace(t), newSpace(t)
	s.parent()
	k := s.openAt(box)
	s.sh(`ip link add br0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master br0 up; ip link set br0 up
		ip addr add fd00::5/64 dev eth0 nodad; ip link set sw promisc on mtu 1400
		ip link add link sw name mv0 type macvlan mode private; ip link add link sw name mv1 netns %s type macvlan mode vepa`, box.path())
	apply(t, k, stateOf(kernel.Link{Name: "is-h1", Kind: kernel.Macvlan, Parent: "sw", MTU: 1400, MAC: mac(0x41)}))

	eth0 := device(t, k, "eth0")
	eth0.Driver, eth0.Addrs = strings.TrimSpace(eth0.Driver), slices.DeleteFunc(eth0.Addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	if got, want := fmt.Sprintf("%+v", eth0), fmt.Sprintf("%+v", kernel.Device{
		Name: "eth0", Index: eth0.Index, Kind: kernel.Veth, MTU: 1500, MAC: mac(1), Up: true, Carrier: true, Parent: "sw", Driver: "veth",
		Addrs: []netip.Prefix{prefix("192.0.2.1/24"), prefix("fd00::5/64")},
	}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if d := device(t, k, "sw"); !d.Promisc || d.MTU != 1400 || len(d.Children) != 3 ||
		d.Children[0] != (kernel.Child{Name: "is-h1", Kind: kernel.Macvlan, Mode: "bridge", Ours: true}) ||
		d.Children[1] != (kernel.Child{Name: "mv0", Kind: kernel.Macvlan, Mode: "private"}) ||
		d.Children[2].Name != "mv1" || d.Children[2].Mode != "vepa" || d.Children[2].Ours || filepath.Base(d.Children[2].Sandbox) != "box" {
		t.Errorf("%+v", d)
	}
	if d := device(t, k, "p0"); d.Master != "br0" || d.MasterKind != kernel.Bridge || d.Carrier || !d.Up || d.Wireless {
		t.Errorf("%+v", d)
	}
	if d := device(t, k, "lo"); !d.Loopback || !d.MAC.IsZero() || d.Kind != "device" {
		t.Errorf("%+v", d)
	}
	if d := device(t, k, "is-h1"); !d.Ours || d.Parent != "sw" || d.Kind != kernel.Macvlan {
		t.Errorf("%+v", d)
	}
	if makes(t, k, kernel.VLAN) {
		apply(t, k, stateOf(vlan50, with(vlan50_7, func(l *kernel.Link) { l.Proto = "802.1ad" })))
		if d := device(t, k, "eth0.50.7"); d.VID != 7 || d.Proto != "802.1ad" || !d.Ours || d.Parent != "eth0.50" {
			t.Errorf("%+v", d)
		}
	}
	if makes(t, k, kernel.IPvlan) {
		s.sh("ip link add link eth0 name iv0 netns %s type ipvlan mode l3s private", box.path())
		if d := device(t, k, "eth0"); len(d.Children) != 1 || d.Children[0].Mode != "l3s" || d.Children[0].Flag != "private" || d.Children[0].Ours {
			t.Errorf("%+v", d)
		}
	}
}

// What the kernel refuses is said in words.
func TestLinuxParentRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSpace(t)
	s.parent()
	k := s.open()
	s.sh("ip link add br0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master br0; ip link add link sw name mv0 type macvlan mode bridge")
	refused := func(l kernel.Link, parts ...string) {
		t.Helper()
		for what, err := range map[string]error{
			"add": k.Do(ctx, []kernel.Op{{Action: kernel.Add, Object: l}}), "hand": k.Hand(ctx, kernel.Handover{Link: l}),
		} {
			if err == nil {
				t.Errorf("%s %s", what, l)
				continue
			}
			contains(t, err.Error(), parts...)
		}
	}
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "p0"}, "p0 is busy: it is a port of a bridge or bond")
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "lo"}, "lo takes no such link: it is no Ethernet")
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "sw", Mode: "passthru"}, "sw takes no such link", "passthru")
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "gone"}, "find parent gone")
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "sw", Mode: "odd"}, `no such macvlan mode: "odd"`)
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "eth0", Mode: "source", Sources: "02:00:00:00:00:01,odd"}, `parse source "odd"`)
	refused(kernel.Link{Name: "is-1", Kind: kernel.Macvlan, Parent: "eth0", Mode: "passthru", MAC: mac(1)}, "has the MAC of its parent")
	if makes(t, k, kernel.IPvlan) {
		refused(kernel.Link{Name: "is-1", Kind: kernel.IPvlan, Parent: "sw"}, "sw is busy")
		refused(kernel.Link{Name: "is-1", Kind: kernel.IPvlan, Parent: "eth0", MAC: mac(1)}, "has the MAC of its parent and none of its own")
		refused(kernel.Link{Name: "is-1", Kind: kernel.IPvlan, Parent: "eth0", Mode: "bridge"}, `no such ipvlan mode: "bridge"`)
	}
	if out := s.sh("ip -br link"); strings.Contains(out, "is-1") {
		t.Errorf("left: %s", out)
	}
}

// Addresses and routes of the host come back whatever somebody does to them, and
// those of others stay.
func TestLinuxHostAccess(t *testing.T) {
	t.Parallel()
	kinds := []kernel.Kind{kernel.Macvlan, kernel.IPvlan}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			s := newSpace(t)
			s.parent()
			s.sh("ip addr add 192.0.2.50/24 dev sw; ip route add 10.50.0.0/24 dev eth0; ip route add 10.51.0.0/24 dev eth0 proto %d", kernel.Protocol)
			before := s.sh("{ ip -4 route; ip -6 route; ip -br addr show dev eth0; } | sort")
			k := s.open()
			if !makes(t, k, kind) {
				return
			}
			own := kernel.Link{Name: "is-h1", Kind: kind, Parent: "eth0", MTU: 1500}
			want := stateOf(own,
				kernel.Addr{Dev: "is-h1", Prefix: prefix("10.9.0.1/32")}, kernel.Addr{Dev: "is-h1", Prefix: prefix("fd09::1/128")}, kernel.Addr{Dev: "is-h1", Prefix: prefix("10.9.1.1/24")},
				kernel.FIB{Dst: prefix("10.9.0.7/32"), Dev: "is-h1", Src: addr("10.9.0.1")}, kernel.FIB{Dst: prefix("fd09::7/128"), Dev: "is-h1", Src: addr("fd09::1")},
				kernel.FIB{Dst: prefix("10.9.0.8/32"), Dev: "is-h1"}, block)
			apply(t, k, want)
			out := s.sh("ip route show proto %[1]d; ip -6 route show proto %[1]d; ip addr show is-h1", kernel.Protocol)
			contains(t, out, "10.9.0.7 dev is-h1 scope link src 10.9.0.1 metric 26995", "10.8.0.0/28 via 192.0.2.9 dev eth0 metric 26995", "fd09::7 dev is-h1", "inet6 fd09::1/128 scope global", "noprefixroute")
			if strings.Contains(s.sh("ip route"), "10.9.1.0/24") {
				t.Error("an address brought a route along")
			}
			if err := k.Do(context.Background(), kernel.Diff(nil, want, kernel.Options{})); err != nil {
				t.Errorf("the same again: %v", err)
			}
			for _, command := range []string{
				"ip addr del 10.9.0.1/32 dev is-h1",
				"ip addr del fd09::1/128 dev is-h1",
				"ip addr add 10.9.0.99/32 dev is-h1",
				"ip route del 10.9.0.7/32 metric 26995",
				"ip -6 route del fd09::7/128",
				"ip route flush proto 105",
				"ip route replace 10.8.0.0/28 via 192.0.2.77 dev eth0 proto 105 metric 26995",
				"ip route add 10.9.0.66/32 dev is-h1 proto 105 metric 26995",
				"ip link set is-h1 down",
				"ip link del is-h1",
				"ip link set eth0 down; ip link set eth0 up",
				"echo 1 > /proc/sys/net/ipv6/conf/is-h1/disable_ipv6",
			} {
				s.sh("%s", command)
				if ops := kernel.Diff(mustDump(t, k), want, kernel.Options{}); len(ops) == 0 {
					t.Errorf("not noticed: %s", command)
				}
				if ops := apply(t, k, want); len(ops) == 0 {
					t.Errorf("not repaired: %s", command)
				}
			}
			apply(t, k, stateOf())
			s.sh("ip route replace 10.50.0.0/24 dev eth0; ip route replace 10.51.0.0/24 dev eth0 proto %d", kernel.Protocol) // lost with the link that went down
			if after := s.sh("{ ip -4 route; ip -6 route; ip -br addr show dev eth0; } | sort"); after != before {
				t.Errorf("was\n%s\nis\n%s", before, after)
			}
		})
	}
}

// Watch signals what happens to parents that it was told of, and to no others.
func TestLinuxHeed(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.parent()
	s.sh("ip link add br9 type bridge; ip link add other type veth peer name other1; ip link add eth8 type veth peer name eth9")
	k := s.open()
	w := watch(t, s, k)
	k.Heed("eth0", "lan0", "eth0.50")
	w.wakes("ip link set eth0 down")
	w.wakes("ip link set eth0 up")
	w.wakes("ip link set sw down") // the carrier
	w.wakes("ip link set sw up")
	w.wakes("ip link set eth0 mtu 1400")
	w.wakes("ip link set eth0 address 02:00:00:00:00:99")
	w.wakes("ip link set eth0 master br9")
	w.wakes("ip link set eth0 nomaster")
	w.wakes("ip link set eth0 down; ip link set eth0 name away0")
	w.ignores("ip link set away0 alias x")
	w.wakes("ip link set away0 name lan0")
	w.wakes("ip link add eth0 type bridge")
	w.wakes("ip link del eth0")
	w.ignores("ip link set other up; ip link set other1 up; ip link set other down")
	w.ignores("ip link set other master br9; ip link set other nomaster; ip link set other name other2; ip link set other2 name other")
	w.ignores("ip link add x0 type veth peer name x1; ip link del x0")
	w.wakes("ip link del lan0")
	w.wakes("ip link set eth8 up; ip addr add 192.0.2.3/24 dev eth8; ip link set eth9 up; ip route add 10.8.0.0/28 dev eth8 proto 105 metric 26995")
	w.wakes("ip route del 10.8.0.0/28 proto 105")
	k.Heed()
	w.ignores("ip link add lan0 type bridge; ip link del lan0")
}
