package driver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

func TestParentGoesAndReturns(t *testing.T) {
	for _, options := range [][]string{{"mode=macvlan"}, {"mode=ipvlan"}, {"mode=macvlan", "parent=eth1.50.7"}, {"mode=macvlan", "macvlan_mode=passthru"}, {"mode=macvlan", "host_access=on"}} {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			h.lan(options...)
			h.run("web", "lan", "10.1.0.2/16")
			h.await("all is well", func() bool { return len(h.Status().Problems) == 0 })
			before := h.kernel.String()
			h.kernel.RemoveDevice("eth1")
			h.await("it is a problem", h.problem("does not exist on this host"))
			if _, ok := h.kernel.Interface("/s/web", "eth0"); ok {
				t.Fatal("the interface outlived its parent")
			}
			if !strings.Contains(at(options), "passthru") {
				h.ok(h.endpoint("late", "lan", "10.1.0.3/16"))
				_, err := h.joins("late")
				h.check(err != nil && strings.HasPrefix(err.Error(), "join: parent eth1") && strings.Contains(err.Error(), "does not exist on this host"), fmt.Sprint(err))
				h.ok(h.DeleteEndpoint(anyContext, &network.DeleteEndpointRequest{EndpointID: "late"}))
			}
			h.check(h.Status().Error == "", "the pass fails: "+h.Status().Error)
			h.restart(hasty)
			h.await("it still is a problem", h.problem("does not exist on this host"))
			h.kernel.SetDevice(nic("eth1"))
			h.await("all is as before", func() bool { return h.kernel.String() == before && len(h.Status().Problems) == 0 })
			in, _ := h.kernel.Interface("/s/web", "eth0")
			if !strings.Contains(fmt.Sprint(in.Routes), "10.1.0.1") {
				t.Fatalf("routes %v", in.Routes)
			}
			h.ends("web")
			h.ok(h.delete("lan"))
			h.clean()
		})
	}
}

func TestParentIsMadeAnew(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan")
	h.run("web", "lan", "10.1.0.2/16")
	h.ok(h.loop.lock(anyContext))
	h.kernel.RemoveDevice("eth1")
	h.kernel.SetDevice(nic("eth1"))
	h.loop.unlock()
	h.await("it is there again", func() bool { _, ok := h.kernel.Interface("/s/web", "eth0"); return ok })
}

func TestParentGoesDown(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "parent=eth1.50", "host_access=on")
	h.run("web", "lan", "10.1.0.2/16")
	before := h.kernel.String()
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.Up, d.Carrier = false, false }))
	h.await("it is a problem", h.problem("parent eth1 is down: its containers are cut off: ip link set eth1 up"))
	h.ok(h.Sync(anyContext, 0))
	h.contains("eth1.50 type vlan link eth1 protocol 802.1Q id 50 mtu 1500 down")
	h.kernel.SetDevice(nic("eth1"))
	h.await("all is as before", func() bool { return h.kernel.String() == before && len(h.Status().Problems) == 0 })
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.Carrier = false }))
	h.await("no carrier is a problem", h.problem("parent eth1 has no carrier"))
}

func TestVLANs(t *testing.T) {
	h := startHost(t)
	h.kernel.SetDevice(nic("eth1"))
	h.kernel.SetDevice(nic("eth1.60", func(d *kernel.Device) { d.Kind, d.Parent, d.VID, d.Proto = kernel.VLAN, "eth1", 60, "802.1q" }))
	h.ok(h.create("a", []string{"10.1.0.0/16"}, "mode=macvlan", "parent=eth1.50"))
	h.ok(h.create("b", []string{"10.2.0.0/16"}, "mode=ipvlan", "parent=eth1.50.7"))
	h.ok(h.create("c", []string{"10.3.0.0/16"}, "mode=macvlan", "parent=eth1.60"))
	h.ok(h.create("d", []string{"10.4.0.0/16"}, "mode=macvlan", "parent=eth1.50"))
	h.contains("link eth1.50 type vlan link eth1 protocol 802.1Q id 50 mtu 1500")
	h.contains("link eth1.50.7 type vlan link eth1.50 protocol 802.1Q id 7 mtu 1500")
	h.lacks("eth1.60")
	if n := h.Networks(); n[0].VLAN != "50" || n[1].VLAN != "50.7" || n[2].VLAN != "60" || n[1].Parent != "eth1.50.7" || n[1].Attach != "l2" {
		t.Fatalf("networks %+v", n)
	}
	h.run("web", "a", "10.1.0.2/16")
	h.run("mail", "c", "10.3.0.2/16")
	h.run("db", "b", "10.2.0.2/16")
	before := h.kernel.String()
	h.kernel.Delete(kernel.Link{Name: "eth1.50"}.Key()) // and the inner one with it
	h.await("all is as before", func() bool { return h.kernel.String() == before })
	// Somebody lowers and raises the MTU; containers follow.
	for _, mtu := range []int{1400, 9000, 1500} {
		h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.MTU = mtu }))
		h.await("the MTU follows", func() bool {
			web, _ := h.kernel.Interface("/s/web", "eth0")
			db, _ := h.kernel.Interface("/s/db", "eth0")
			return web.Link.MTU == mtu && db.Link.MTU == mtu && h.has(fmt.Sprint("id 7 mtu ", mtu)) && h.has(fmt.Sprint("id 50 mtu ", mtu))
		})
	}
	h.ends("db")
	h.ok(h.delete("b"))
	h.lacks("eth1.50.7")
	h.ends("web")
	h.ok(h.delete("a"))
	h.contains("link eth1.50 ") // d has it still
	h.ok(h.delete("d"))
	h.ends("mail")
	h.ok(h.delete("c"))
	h.clean()
	links, err := h.kernel.Links(anyContext)
	h.ok(err)
	h.check(slices.ContainsFunc(links, func(d kernel.Device) bool { return d.Name == "eth1.60" }), "the user's VLAN device is gone")
}

func TestLowMTU(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "mtu=1400")
	h.run("web", "lan", "10.1.0.2/16")
	mtu := func(n int) func() bool {
		return func() bool { in, _ := h.kernel.Interface("/s/web", "eth0"); return in.Link.MTU == n }
	}
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.MTU = 1300 }))
	h.await("it is a problem", h.problem("parent eth1 carries 1300 bytes, so its MTU is not 1400: raise that of eth1, or create the network with -o mtu=1300"))
	h.await("lowered", mtu(1300))
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) { d.MTU = 9000 }))
	h.await("as agreed again", mtu(1400))
}

// TestParentRenamed: what runs goes on, with the VLAN devices below it and the
// host's way to it; new containers wait for the name.
func TestParentRenamed(t *testing.T) {
	for _, options := range [][]string{{"mode=macvlan"}, {"mode=macvlan", "host_access=on"}, {"mode=macvlan", "parent=eth1.50", "host_access=on"}, {"mode=ipvlan", "parent=eth1.50.7"}} {
		t.Run(at(options), func(t *testing.T) {
			h := startHost(t)
			h.lan(options...)
			h.run("web", "lan", "10.1.0.2/16")
			h.ok(h.Sync(anyContext, 0))
			before := h.kernel.String()
			h.kernel.RenameDevice("eth1", "lan0")
			h.await("it is a problem", h.problem("does not exist on this host"))
			h.ok(h.endpoint("db", "lan", "10.1.0.3/16"))
			_, err := h.joins("db")
			h.check(err != nil && strings.HasPrefix(err.Error(), "join: parent eth1") && strings.Contains(err.Error(), "lan0"), fmt.Sprint(err))
			for range 2 {
				h.restart(hasty)
				h.ok(h.Sync(anyContext, 0))
			}
			if now, want := h.kernel.String(), strings.ReplaceAll(before, " eth1 ", " lan0 "); now != want {
				t.Fatalf("changed:\n%s\nfrom:\n%s", now, want)
			}
			h.kernel.RenameDevice("lan0", "eth1")
			h.await("all is well", func() bool { return len(h.Status().Problems) == 0 && h.kernel.String() == before })
			_, err = h.joins("db")
			h.ok(err)
			h.kernel.RenameDevice("eth1", "lan0")
			h.await("it is a problem again", h.problem("does not exist on this host"))
			h.ok(h.DeleteEndpoint(anyContext, &network.DeleteEndpointRequest{EndpointID: "db"}))
			h.ends("web")
			h.ok(h.delete("lan"))
			h.clean()
		})
	}
}

func TestConflictLater(t *testing.T) {
	h := startHost(t)
	h.lan("mode=ipvlan")
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) {
		d.Children = []kernel.Child{{Name: "mv0", Kind: kernel.Macvlan, Mode: "bridge"}}
	}))
	h.await("it is a problem", h.problem("parent eth1 serves macvlan for link mv0 of this host, and cannot serve ipvlan at the same time"))
	h.ok(h.endpoint("web", "lan", "10.1.0.2/16"))
	_, err := h.joins("web")
	h.refused(err, "join: parent eth1 serves macvlan for link mv0 of this host, and cannot serve ipvlan at the same time: use another parent, or a VLAN of it, such as -o parent=eth1.50")
	h.check(h.Status().Error == "", h.Status().Error)
	h.kernel.SetDevice(nic("eth1"))
	h.await("all is well", func() bool { return len(h.Status().Problems) == 0 })
	_, err = h.joins("web")
	h.ok(err)
}

func TestNoParent(t *testing.T) {
	for _, lacks := range []bool{false, true} {
		for _, mode := range []string{"macvlan", "ipvlan"} {
			t.Run(fmt.Sprint(mode, lacks), func(t *testing.T) {
				h := startHost(t)
				if lacks {
					h.kernel.Lack(kernel.Dummy)
				}
				h.ok(h.create("n", []string{"10.1.0.0/16"}, "mode="+mode, "--internal"))
				h.run("web", "n", "10.1.0.2/16")
				name, end := isolatedDevice(pools("10.1.0.0/16"))
				h.contains("type " + mode + " link " + name)
				h.check(h.has("guard drop-input dev "+end) == lacks && h.has("link "+name+" type dummy") == !lacks, h.kernel.String())
				if p := h.Status().Problems; len(p) > 0 {
					t.Fatalf("problems %v", p)
				}
				h.kernel.Delete(kernel.Link{Name: name}.Key())
				h.await("it is made again", func() bool { _, ok := h.kernel.Interface("/s/web", "eth0"); return ok })
				h.ends("web")
				h.ok(h.delete("n"))
				h.clean()
			})
		}
	}
}

func TestStrangerInALAN(t *testing.T) {
	for _, options := range [][]string{{"mode=macvlan", "parent=eth1.50"}, {"mode=ipvlan", "parent=eth1.50"}} {
		for name, forget := range map[string]func(h *host){"endpoint": forgetEndpoint, "all": forgetAll} {
			t.Run(at(options)+" "+name, func(t *testing.T) {
				h := startHost(t)
				h.lan(options...)
				h.run("web", "lan", "10.1.0.3/16")
				h.stop()
				forget(h)
				before := h.kernel.String()
				h.start(hasty)
				h.await("it is published", func() bool { return h.heard.told() == "net 1, 10.1.0.3" })
				h.await("it is a problem", h.problem("of the container in sandbox /s/web is not known to this plugin"))
				h.ok(h.Sync(anyContext, 0))
				if now := h.kernel.String(); now != before {
					t.Fatalf("changed:\n%s\nfrom:\n%s", now, before)
				}
				h.check(h.Live(pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.3")), "its address is free")
				h.check(h.ledger.holds(), "the network was given back")
				h.kernel.RemoveSandbox("/s/web")
				h.await("it is gone", func() bool { return !strings.Contains(h.heard.told(), "10.1.0.3") })
				if name == "endpoint" {
					h.ok(h.delete("lan"))
				}
				h.await("all is gone", func() bool { return h.kernel.String() == "" && !h.ledger.holds() })
			})
		}
	}
}

func TestStrangerNobodyKnows(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "parent=eth1.50")
	h.run("web", "lan", "10.1.0.3/16")
	h.stop()
	forgetAll(h)
	h.ledger.agree(func(reg *cluster.Registry) { reg.Networks = map[uint32]cluster.Network{} })
	before := h.kernel.String()
	h.start(hasty)
	h.await("it is a problem", h.problem("is not known to this plugin"))
	for range 2 {
		h.ok(h.Sync(anyContext, 0))
	}
	if now := h.kernel.String(); now != before {
		t.Fatalf("changed:\n%s\nfrom:\n%s", now, before)
	}
	h.kernel.RemoveSandbox("/s/web")
	h.await("all is gone", func() bool { return h.kernel.String() == "" })
}

func TestLANOf(t *testing.T) {
	h := startHost(t)
	h.lan("mode=macvlan", "parent=eth1.50")
	h.ok(h.create("l3", []string{"10.2.0.0/16"}, "mode=ipvlan", "ipvlan_mode=l3", "parent=eth0"))
	h.ok(h.create("alone", []string{"10.3.0.0/16"}, "mode=macvlan", "--internal"))
	h.ok(h.create("tunnel", []string{"10.4.0.0/16"}))
	h.await("the VLAN is seen", func() bool { _, ok := h.LAN(pools("10.1.0.0/16")[0]); return ok })
	for pool, want := range map[string]string{"10.1.0.0/16": "eth1.50", "fd01::/64": "eth1.50", "10.2.0.0/16": "", "10.3.0.0/16": "", "10.4.0.0/16": "", "10.5.0.0/16": ""} {
		if got, ok := h.LAN(pools(pool)[0]); got.Link != want || ok != (want != "") {
			t.Errorf("LAN of %s is %+v, want %q", pool, got, want)
		}
	}
	h.kernel.RemoveDevice("eth1")
	h.await("it is away", func() bool { _, ok := h.LAN(pools("10.1.0.0/16")[0]); return !ok })
}

// TestBlocksOfARenamedParent: the routes to other hosts' containers go on, too.
func TestBlocksOfARenamedParent(t *testing.T) {
	h := startHost(t)
	h.heard.say("host2", cluster.Record{Network: 1})
	h.ok(h.create("n", []string{"10.9.0.0/16"}, "mode=ipvlan", "ipvlan_mode=l3", "parent=eth0"))
	h.ledger.lease(50, cluster.Lease{ID: 9, Pool: pools("10.9.0.0/16")[0], Block: netip.MustParsePrefix("10.9.0.64/26"), Holder: "host2"})
	h.awaitHas("fib 10.9.0.64/26 via 192.0.2.2 dev eth0")
	h.kernel.ResetLog()
	h.kernel.RenameDevice("eth0", "lan0")
	h.await("it is a problem", h.problem("parent eth0 does not exist on this host"))
	h.ok(h.Sync(anyContext, 0))
	h.contains("fib 10.9.0.64/26 via 192.0.2.2 dev lan0")
	h.check(len(h.kernel.Log()) == 0, strings.Join(h.kernel.Log(), "\n"))
	h.kernel.SetDevice(nic("lan0", func(d *kernel.Device) { d.Up = false }))
	h.ok(h.Sync(anyContext, 0))
	h.check(h.Status().Error == "", h.Status().Error)
}
