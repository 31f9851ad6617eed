package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

func link(name string) kernel.Key { return kernel.Link{Name: name}.Key() }

func TestRemoteEndpointsComeAndGo(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.awaitHas("fdb 02:00:00:00:02:03 dev is-v4097 dst 192.0.2.2")
	h.awaitHas("neigh 10.1.0.3 dev is-v4097 lladdr 02:00:00:00:02:03")
	h.contains("neigh fe80::ff:fe00:203 dev is-v4097 lladdr 02:00:00:00:02:03")
	h.contains("fdb 00:00:00:00:00:00 dev is-v4097 dst 192.0.2.2")
	h.heard.say("host2", cluster.Record{Network: 1})
	h.awaitNot("02:00:00:00:02:03")
	h.contains("fdb 00:00:00:00:00:00 dev is-v4097 dst 192.0.2.2")
}

// TestSettleGate: a plugin that just started knows nobody; the kernel does.
// What is wrong whatever others say goes even so.
func TestSettleGate(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"), remote(1, "db4", "10.1.0.4", "02:00:00:00:02:04"))
	h.awaitHas("neigh 10.1.0.4")
	h.stop()
	h.heard.change(func() { h.heard.settled, h.heard.streams = false, map[cluster.HostID]cluster.Stream{} })
	h.kernel.Put(kernel.Guard{Dev: "is-v9", Rule: kernel.DropInput}) // nobody's, and not remote
	h.start(hasty)
	h.ok(h.endpoint("web", "app", "10.1.0.4/16"))
	_, err := h.joins("web")
	h.ok(err)
	h.lacks("neigh 10.1.0.4")
	h.lacks("is-v9")
	h.contains("neigh 10.1.0.3")
	h.contains("fdb 02:00:00:00:02:03")
	// New news are taken in meanwhile.
	h.heard.say("host3", remote(1, "new", "10.1.0.5", "02:00:00:00:03:05"))
	h.awaitHas("neigh 10.1.0.5")
	h.contains("neigh 10.1.0.3")
	h.heard.change(func() { h.heard.settled = true })
	h.awaitNot("02:00:00:00:02:03")
	h.contains("neigh 10.1.0.5")
}

// TestSettlesDuringPass: a view that was taken before the news had settled
// removes nothing, also when they settle before it is held against the kernel.
func TestSettlesDuringPass(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.awaitHas("neigh 10.1.0.3")
	h.stop()
	streams := h.heard.streams
	h.heard.change(func() { h.heard.settled, h.heard.streams = false, map[cluster.HostID]cluster.Stream{} })
	h.addresses.asked = func() { h.heard.change(func() { h.heard.settled, h.heard.streams = true, streams }) }
	h.kernel.ResetLog()
	h.start(hasty)
	h.run("web", "app", "10.1.0.2/16")
	h.await("it settled", h.heard.Settled)
	if log := h.kernel.Log(); slices.ContainsFunc(log, func(s string) bool { return strings.HasPrefix(s, "del ") }) {
		t.Errorf("removed something:\n%s", strings.Join(log, "\n"))
	}
}

// TestDeleteWhileUnsettled: a network that Docker removed goes at once.
func TestDeleteWhileUnsettled(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.awaitHas("neigh 10.1.0.3")
	h.heard.change(func() { h.heard.settled = false })
	h.ok(h.delete("app"))
	if left := h.kernel.String(); left != "" {
		t.Fatalf("left in the kernel:\n%s", left)
	}
}

func TestHealsByHand(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
			h.run("web", "app", "10.1.0.2/16 fd01::2/64")
			h.run("api", "app", "10.1.0.5/16")
			h.awaitHas("neigh 10.1.0.3")
			before := h.kernel.String()
			state, err := h.kernel.Dump(context.Background())
			h.ok(err)
			for key := range state {
				h.kernel.Delete(key)
				h.await("all is as before "+key.String()+" was deleted", func() bool { return h.kernel.String() == before })
			}
			h.kernel.SetDown("is-v4097")
			h.await("all is as before the device went down", func() bool { return h.kernel.String() == before })
		})
	}
}

// TestMendTriesAgain: the first attempts fail.
func TestMendTriesAgain(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.kernel.Fail(3, "mend", errors.New("try again"))
	h.kernel.Delete(link("is-v4097"))
	h.await("the interface is back", func() bool { _, ok := h.kernel.Interface("/s/web", "eth0"); return ok })
	h.kernel.Fail(-1, "mend", errors.New("no memory"))
	h.kernel.Delete(link("is-v4097"))
	h.await("it is a problem", func() bool {
		for _, p := range h.Status().Problems {
			if strings.Contains(p.String(), "interface eth0 of the container of endpoint web is gone and cannot be made again: no memory: restart the container") {
				return true
			}
		}
		return false
	})
	h.kernel.Heal()
	h.await("the interface is back", func() bool { _, ok := h.kernel.Interface("/s/web", "eth0"); return ok })
	h.await("no problem is left", func() bool { return len(h.Status().Problems) == 0 })
}

// TestDeviceDiedWhileStopped: the plugin finds out at its start.
func TestDeviceDiedWhileStopped(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.stop()
	h.kernel.Delete(link("is-v4097"))
	h.start(hasty)
	h.await("the interface is back", func() bool { _, ok := h.kernel.Interface("/s/web", "eth0"); return ok })
}

// TestRestartChangesNothing: a restarted plugin takes over what is there.
func TestRestartChangesNothing(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
			h.run("web", "app", "10.1.0.2/16")
			h.awaitHas("neigh 10.1.0.3")
			h.stop()
			h.kernel.ResetLog()
			h.heard.published, h.heard.ever = nil, false
			h.start(hasty)
			h.ok(h.Sync(context.Background(), 0))
			if log := h.kernel.Log(); len(log) > 0 {
				t.Fatalf("changed:\n%s", strings.Join(log, "\n"))
			}
			if told := h.heard.told(); told != "net 1, 10.1.0.2" {
				t.Fatalf("published %s", told)
			}
		})
	}
}

// TestReboot: the kernel is empty and the sandboxes are gone. The endpoints
// that were there are not announced, and dropped when Docker does not speak of
// them; the addresses stay known as long.
func TestReboot(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.run("db", "app", "10.1.0.3/16")
	h.stop()
	state, _ := h.kernel.Dump(context.Background())
	for key := range state {
		h.kernel.Delete(key)
	}
	h.kernel.RemoveSandbox("/s/web")
	h.kernel.RemoveSandbox("/s/db")
	h.start(hasty)
	h.ok(h.Sync(context.Background(), 0))
	if told := h.heard.told(); told != "net 1" {
		t.Fatalf("published %s", told)
	}
	h.contains("link is-v4097")
	if !h.Live(pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.2")) {
		t.Fatal("an address was given up at once")
	}
	// Docker cleans up one of them, and starts it anew.
	h.ends("web")
	h.run("web2", "app", "10.1.0.2/16")
	h.restart(impatient)
	h.await("the other one is forgotten", func() bool { return !h.Live(pools("10.1.0.0/16")[0], netip.MustParseAddr("10.1.0.3")) })
	if told := h.heard.told(); told != "net 1, 10.1.0.2" {
		t.Fatalf("published %s", told)
	}
}

// TestSandboxNotYet: engines up to 27 call Join before the sandbox exists.
func TestSandboxNotYet(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.endpoint("web", "app", "10.1.0.2/16"))
	r, err := h.joins("web")
	h.ok(err)
	for range 5 {
		h.ok(h.Sync(context.Background(), 0))
	}
	if told := h.heard.told(); told != "net 1, 10.1.0.2" {
		t.Fatalf("published %s", told)
	}
	h.ok(h.kernel.Take(r.InterfaceName.SrcName, "/s/web", "eth3"))
	h.await("its name is seen", func() bool { return h.Endpoints()[0].Inside == "eth3" })
}

// TestGivenBack: Docker took the interface out of the container while the
// plugin was down, and did not say so again.
func TestGivenBack(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.stop()
	h.ok(h.kernel.GiveBack("/s/web", "eth0"))
	h.start(impatient)
	h.await("it is not published", func() bool { return h.heard.told() == "net 1" })
	h.awaitNot("is-e")
	h.await("it is forgotten", func() bool { return len(h.Endpoints()) == 0 })
}

// TestForgottenEndpoint: a CreateEndpoint that nothing followed.
func TestForgottenEndpoint(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.endpoint("web", "app", "10.1.0.2/16"))
	h.restart(impatient)
	h.await("it is forgotten", func() bool { return len(h.Endpoints()) == 0 })
	h.refused(func() error { _, err := h.joins("web"); return err }(), "join: endpoint web is not known to this plugin: start the container again")
}

func TestAnnouncements(t *testing.T) {
	for attach, speaker := range map[string]string{"macvlan": "is-a4097", "bridge": "is-b4097"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.heard.say("host2", remote(1, "db", "10.1.0.9", "02:00:00:00:02:09"))
			h.awaitHas("fdb 02:00:00:00:02:09")
			// said reports whether all lines were said of ip as often as they
			// should be, and nothing else of it.
			said := func(ip string, lines ...string) func() bool {
				return func() bool {
					n := map[string]int{}
					for _, a := range h.kernel.Announced() {
						if a.IP.String() == ip {
							n[fmt.Sprintf("%s to %s: %s", a.Dev, a.To, a.MAC)]++
						}
					}
					for _, line := range lines {
						if n[speaker+" to "+line] != len(hasty.announce) {
							return false
						}
					}
					return len(n) == len(lines)
				}
			}
			h.run("web", "app", "10.1.0.2/16 fd01::2/64")
			h.ok(h.Sync(context.Background(), 0))
			if a := h.kernel.Announced(); len(a) != 0 {
				t.Fatalf("the first container was told of itself or of what did not change: %v", a)
			}
			web := h.mac("web")
			h.run("api", "app", "10.1.0.3/16")
			api := h.mac("api")
			h.await("web is told of api", said("10.1.0.3", web+": "+api))

			h.kernel.ResetLog()
			h.heard.say("host2", remote(1, "db2", "10.1.0.9", "02:00:00:00:02:10"))
			h.await("both are told of a new MAC", said("10.1.0.9", web+": 02:00:00:00:02:10", api+": 02:00:00:00:02:10"))

			// It goes, and comes back elsewhere with another MAC.
			h.kernel.ResetLog()
			h.heard.say("host2")
			h.awaitNot("10.1.0.9")
			h.heard.say("host3", remote(1, "db3", "10.1.0.9", "02:00:00:00:03:09"))
			h.await("both are told where it is now", said("10.1.0.9", web+": 02:00:00:00:03:09", api+": 02:00:00:00:03:09"))

			// An own address moves away while the plugin is down.
			h.ends("api")
			h.kernel.ResetLog()
			h.heard.say("host3", remote(1, "db3", "10.1.0.9", "02:00:00:00:03:09"), remote(1, "api", "10.1.0.3", "02:00:00:00:03:03"))
			h.await("web is told that api moved", said("10.1.0.3", web+": 02:00:00:00:03:03"))

			// A change during a restart is seen in the kernel's neighbours.
			h.stop()
			h.kernel.ResetLog()
			h.heard.say("host3", remote(1, "db3", "10.1.0.9", "02:00:00:00:03:77"))
			h.start(hasty)
			h.await("web is told after the restart", said("10.1.0.9", web+": 02:00:00:00:03:77"))
		})
	}
}

// TestStaleRecordBeforeJoin: another host still says that it has an address
// that is now an endpoint's here: the neighbour goes before Join answers.
func TestStaleRecordBeforeJoin(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", remote(1, "old", "10.1.0.2", "02:00:00:00:02:02"))
	h.awaitHas("neigh 10.1.0.2")
	h.ok(h.endpoint("web", "app", "10.1.0.2/16"))
	_, err := h.joins("web")
	h.ok(err)
	h.lacks("neigh 10.1.0.2 ")
	if p := fmt.Sprint(h.Status().Problems); !strings.Contains(p, "10.1.0.2 is held twice: by host1 with endpoint 776562000000 and by host2 with endpoint 6f6c64000000") {
		t.Fatalf("problems: %s", p)
	}
}

func TestUnderlayChanges(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.kernel.ResetLog()
	h.ok(h.SetUnderlay(netip.MustParseAddr("192.0.2.99"), 1400))
	h.awaitHas("link is-v4097 type vxlan id 4097 local 192.0.2.99 dstport 8475 proxy address 6a:be:97:2a:42:9a mtu 1350")
	h.contains("guard notrack tunnel 192.0.2.99:8475")
	h.awaitNot("guard notrack tunnel 192.0.2.1:8475")
	for _, op := range h.kernel.Log() {
		if strings.Contains(op, " link ") && !strings.HasPrefix(op, "set ") {
			t.Fatalf("made anew: %s", op)
		}
	}
	h.refused(h.SetUnderlay(netip.MustParseAddr("fd00::1"), 1400), "change underlay address: 192.0.2.99 is ipv4 and fd00::1 is ipv6: restart the plugin to change the family")
}

func TestPathMTU(t *testing.T) {
	h := startHost(t)
	h.app()
	h.heard.say("host2", cluster.Record{Network: 1})
	before := h.kernel.String()
	h.PathMTU("host2", 1400)
	want := "[path to host2 carries 1400 bytes, not 1500: create the network with -o mtu=1350]"
	if got := fmt.Sprint(h.Status().Problems); got != want {
		t.Fatalf("problems %s, want %s", got, want)
	}
	h.awaitHas("fdb 00:00:00:00:00:00 dev is-v4097 dst 192.0.2.2")
	if after := h.kernel.String(); !strings.Contains(after, strings.TrimSpace(before[strings.Index(before, "link is-v"):])) {
		t.Fatalf("the plan changed:\n%s\nbefore:\n%s", after, before)
	}
	h.PathMTU("host2", 0)
	if got := h.Status().Problems; len(got) != 0 {
		t.Fatalf("problems %v", got)
	}
}

func TestStatus(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16 fd01::2/64")
	h.heard.say("host2", cluster.Record{Network: 1}, remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.awaitHas("neigh 10.1.0.3")
	s := h.Status()
	if s.VTEP.String() != "192.0.2.1" || s.Port != 8475 || s.MTU != 1500 || !s.Settled || s.Networks != 1 || s.Endpoints != 1 || s.Error != "" || len(s.Problems) != 0 {
		t.Fatalf("status %+v", s)
	}
	n := h.Networks()
	if len(n) != 1 || fmt.Sprintf("%+v", n[0]) != "{ID:1 Docker:[app] Pools:[10.1.0.0/16 fd01::/64] Mode:vxlan VNI:4097 Device:is-v4097 Attach:macvlan MTU:1450 ARP:suppress BUM:replicate Gateway:docker Internal:false Foreign:false Parent: VLAN: Host:[] Hosts:[host1 host2] Local:1 Remote:1 NAT: Fallback: Ways:[] Problems:[]}" {
		t.Fatalf("networks %+v", n)
	}
	e := h.Endpoints()
	if len(e) != 2 || e[0].State != "joined" || e[0].Inside != "eth0" || e[1].Host != "host2" || e[1].State != "alive" || e[1].VTEP.String() != "192.0.2.2" {
		t.Fatalf("endpoints %+v", e)
	}
	pool, v6 := pools("10.1.0.0/16")[0], pools("fd01::/64")[0]
	for addr, host := range map[string]string{"10.1.0.2": "host1", "10.1.0.3": "host2", "10.1.0.4": ""} {
		if got := h.WhoHolds(pool, netip.MustParseAddr(addr)); got != host {
			t.Errorf("%s is held by %q, want %q", addr, got, host)
		}
	}
	if !h.Live(v6, netip.MustParseAddr("fd01::2")) || h.Live(pool, netip.MustParseAddr("10.1.0.3")) || !h.Networked(v6) || h.Networked(pools("10.9.0.0/16")[0]) {
		t.Error("Live or Networked is wrong")
	}
	info, _ := h.EndpointOperInfo(context.Background(), &network.InfoRequest{EndpointID: "web"})
	if info.Value["mac"] != h.mac("web") || info.Value["vni"] != "4097" {
		t.Errorf("info %v", info.Value)
	}
}

func TestForget(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.create("second", []string{"10.2.0.0/16"}))
	h.run("web", "app", "10.1.0.2/16")
	forget := func(what string) (string, error) {
		p, err := h.Forget(context.Background(), what)
		return fmt.Sprint(p), err
	}
	for what, refusal := range map[string]string{
		"nothing":     "forget network nothing: this host has no such network: name a Docker network id, a VNI or a subnet as isthmus networks lists them",
		"10.1.0.0/16": "forget network 10.1.0.0/16: a container is on it (endpoint web): stop it first",
		"4097":        "forget network 4097: a container is on it (endpoint web): stop it first",
	} {
		_, err := forget(what)
		h.refused(err, refusal)
	}
	if got, err := forget("4098"); err != nil || got != "[10.2.0.0/16]" {
		t.Fatalf("forgot %s, %v", got, err)
	}
	h.lacks("4098")
	h.ends("web")
	if got, err := forget("fd01::/64"); err != nil || got != "[10.1.0.0/16 fd01::/64]" {
		t.Fatalf("forgot %s, %v", got, err)
	}
	if left := h.kernel.String(); left != "" {
		t.Fatalf("left in the kernel:\n%s", left)
	}
	h.await("the cluster knows", func() bool { return !h.ledger.holds() })
}

// TestReset clears all, also what no intent explains.
func TestReset(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.create("second", []string{"10.2.0.0/16"}, "attach=bridge"))
	h.run("web", "app", "10.1.0.2/16")
	h.run("db", "second", "10.2.0.2/16")
	h.ok(h.endpoint("new", "second", "10.2.0.3/16"))
	_, err := h.joins("new")
	h.ok(err)
	h.kernel.Put(kernel.Link{Name: "is-v999", Kind: kernel.VXLAN, VNI: 999, Port: 8475, Local: netip.MustParseAddr("192.0.2.1")},
		kernel.FDB{Dev: "is-v999", MAC: cluster.MAC{2}, Dst: netip.MustParseAddr("192.0.2.2")}, kernel.Guard{Dev: "is-v999", Rule: kernel.DropInput})
	h.ok(h.Reset(context.Background()))
	if left := h.kernel.String(); strings.Contains(left, "is-") {
		t.Fatalf("left in the kernel:\n%s", left)
	}
	h.await("the cluster knows", func() bool { return !h.ledger.holds() })
	if told := h.heard.told(); told != "" {
		t.Fatalf("published %s", told)
	}
	h.kernel.Put(kernel.Link{Name: "is-v999", Kind: kernel.VXLAN, VNI: 999})
	h.kernel.Fail(-1, "del link", errors.New("busy"))
	h.refused(h.Reset(context.Background()), "reset: del link is-v999: busy")
}

// TestCallsAreBounded: a kernel that does not answer fails the call, in time.
func TestCallsAreBounded(t *testing.T) {
	h := startHost(t)
	h.ok(h.loop.lock(context.Background())) // as if a pass never ended
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := h.CreateNetwork(ctx, request("app", []string{"10.1.0.0/16"}))
	h.refused(err, "create network: apply network: the kernel did not answer in time: context deadline exceeded")
	h.loop.unlock()
	h.await("nothing is left", func() bool { return h.kernel.String() == "" && !h.ledger.holds() })
}

// TestRoutesOfRemovedNetworks: routes to other hosts stay as long as nothing is known
// of these, but not those of a network that was removed here.
func TestRoutesOfRemovedNetworks(t *testing.T) {
	h := startHost(t)
	h.kernel.SetDevice(nic("eth0", func(d *kernel.Device) { d.Addrs = prefixes("192.0.2.1/24") }))
	h.ok(h.create("rt", []string{"10.1.0.0/16"}, "mode=routed"))
	h.ok(h.create("rt2", []string{"10.2.0.0/16"}, "mode=routed"))
	h.heard.change(func() { h.heard.settled = false })
	for _, block := range prefixes("10.1.0.8/29", "10.2.0.8/29") {
		h.kernel.Put(kernel.FIB{Dst: block, Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0"})
	}
	h.ok(h.Sync(context.Background(), 0))
	h.contains("fib 10.1.0.8/29 via 192.0.2.2")
	h.ok(h.delete("rt"))
	h.awaitNot("fib 10.1.0.8/29")
	h.contains("fib 10.2.0.8/29 via 192.0.2.2")
}
