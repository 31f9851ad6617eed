package kerneltest_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

var ctx = context.Background()

func add(objects ...kernel.Object) (ops []kernel.Op) {
	for _, o := range objects {
		ops = append(ops, kernel.Op{Action: kernel.Add, Object: o})
	}
	return ops
}

var (
	tunnel = kernel.Link{Name: "is-v", Kind: kernel.VXLAN, MTU: 1450, VNI: 7, Local: netip.MustParseAddr("192.0.2.1"), Port: 8475}
	bridge = kernel.Link{Name: "is-b", Kind: kernel.Bridge, MTU: 1450}
	macs   = []cluster.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	child  = kernel.Handover{
		Link:    kernel.Link{Name: "is-c", Kind: kernel.Macvlan, Parent: "is-v", MAC: macs[0], MTU: 1450},
		Sandbox: "/box", Name: "eth3",
		Addrs:  []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
		Routes: []kernel.Route{{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.0.0.1")}},
	}
	pair = kernel.Handover{
		Link:    kernel.Link{Name: "is-e", Kind: kernel.Veth, MAC: macs[1], MTU: 1450, Peer: "is-h"},
		Host:    kernel.Link{Name: "is-h", Kind: kernel.Veth, MTU: 1450, Master: "is-b", Standing: kernel.Adopted},
		Sandbox: "/box",
	}
	entry = kernel.FDB{Dev: "is-v", MAC: cluster.MAC{2, 9}, Dst: netip.MustParseAddr("192.0.2.9")}
)

func expect(t *testing.T, f *kerneltest.Fake, want string) {
	t.Helper()
	if got := f.String(); got != strings.TrimPrefix(want, "\n") {
		t.Errorf("got\n%swant%s", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLifeOfEndpoints(t *testing.T) {
	f := kerneltest.New()
	must(t, f.Do(ctx, add(tunnel, bridge, entry)))
	for _, h := range []kernel.Handover{child, pair} {
		must(t, f.Hand(ctx, h))
	}
	expect(t, f, `
fdb 02:09:00:00:00:00 dev is-v dst 192.0.2.9
link is-b type bridge mtu 1450
link is-c type macvlan link is-v address 02:00:00:00:00:01 mtu 1450 down
link is-e type veth address 02:00:00:00:00:02 mtu 1450 down
link is-h type veth master is-b mtu 1450
link is-v type vxlan id 7 local 192.0.2.1 dstport 8475 mtu 1450
`)
	if name, err := f.Observe(ctx, child); name != "" || !errors.Is(err, kernel.ErrNoSandbox) {
		t.Errorf("observed %q, %v", name, err)
	}
	must(t, f.Take("is-c", "/box", "eth3"))
	must(t, f.Take("is-e", "/box", "eth1"))
	if name, err := f.Observe(ctx, child); name != "eth3" || err != nil {
		t.Errorf("observed %q, %v", name, err)
	}

	// What is below dies, and takes them along; mending brings them back.
	f.Delete(tunnel.Key(), pair.Host.Key())
	expect(t, f, `
link is-b type bridge mtu 1450
`)
	if _, err := f.Mend(ctx, child); err == nil {
		t.Error("mended on nothing")
	}
	must(t, f.Do(ctx, add(tunnel)))
	for _, h := range []kernel.Handover{child, pair} {
		for _, want := range []bool{true, false} {
			if made, err := f.Mend(ctx, h); made != want || err != nil {
				t.Errorf("mend %s: %v, %v", h.Link.Name, made, err)
			}
		}
	}
	expect(t, f, `
link is-b type bridge mtu 1450
link is-h type veth master is-b mtu 1450
link is-v type vxlan id 7 local 192.0.2.1 dstport 8475 mtu 1450
sandbox /box eth0: link is-e type veth address 02:00:00:00:00:02 mtu 1450
sandbox /box eth3: link is-c type macvlan link is-v address 02:00:00:00:00:01 mtu 1450 inet 10.0.0.2/24 route 10.9.0.0/16 via 10.0.0.1
`)
	must(t, f.GiveBack("/box", "eth3"))
	f.RemoveSandbox("/box")
	expect(t, f, `
link is-b type bridge mtu 1450
link is-c type macvlan link is-v address 02:00:00:00:00:01 mtu 1450 down
link is-v type vxlan id 7 local 192.0.2.1 dstport 8475 mtu 1450
`)
}

func TestFaults(t *testing.T) {
	f := kerneltest.New()
	boom := errors.New("boom")
	f.Fail(1, "add link is-v", boom)
	err := f.Do(ctx, add(tunnel, bridge, entry))
	if !errors.Is(err, boom) || !strings.Contains(err.Error(), "add link is-v: boom") || !strings.Contains(err.Error(), "add fdb is-v 02:09:00:00:00:00: no such VXLAN device") {
		t.Errorf("error: %v", err)
	}
	expect(t, f, `
link is-b type bridge mtu 1450
`)
	must(t, f.Do(ctx, add(tunnel, entry)))
	if log := f.Log(); len(log) != 5 || !strings.HasSuffix(log[0], "# boom") || log[1] != "add link is-b type bridge mtu 1450" {
		t.Errorf("log: %q", log)
	}
	f.Fail(-1, "dump", boom)
	for range 3 {
		if _, err := f.Dump(ctx); !errors.Is(err, boom) {
			t.Error(err)
		}
	}
	f.Heal()
	if s, err := f.Dump(ctx); err != nil || len(s) != 3 {
		t.Error(s, err)
	}
}

func TestWatch(t *testing.T) {
	f := kerneltest.New()
	ctx, cancel := context.WithCancel(ctx)
	changed, ended := make(chan struct{}, 1), make(chan error)
	go func() { ended <- f.Watch(ctx, changed) }()
	<-changed // at the start
	f.Put(tunnel)
	<-changed
	f.SetDown("is-v")
	<-changed
	cancel()
	must(t, <-ended)
}

// What stands on a parent of somebody else shares its fate, as with Linux.
func TestParents(t *testing.T) {
	f := kerneltest.New()
	vlan := kernel.Link{Name: "eth0.5", Kind: kernel.VLAN, Parent: "eth0", VID: 5, Proto: "802.1q"}
	own := kernel.Link{Name: "is-h", Kind: kernel.IPvlan, Parent: "eth0.5", Mode: "l2"}
	address := kernel.Addr{Dev: "is-h", Prefix: netip.MustParsePrefix("10.5.0.1/32")}
	route := kernel.FIB{Dst: netip.MustParsePrefix("10.5.0.7/32"), Dev: "is-h", Src: netip.MustParseAddr("10.5.0.1")}
	guest := kernel.Handover{Link: kernel.Link{Name: "is-c", Kind: kernel.IPvlan, Parent: "eth0.5"}, Sandbox: "/box"}
	all := add(vlan, own, address, route)
	f.Lack(kernel.IPvlan)
	if err := f.Do(ctx, all); err == nil || !strings.Contains(err.Error(), "add link is-h: kernel lacks ipvlan: load the module ipvlan") {
		t.Error(err)
	}
	if able, _ := f.Makes(ctx, kernel.IPvlan); able {
		t.Error("makes what it lacks")
	}
	f.Lack()
	must(t, f.Do(ctx, all))
	must(t, f.Hand(ctx, guest))
	must(t, f.Take("is-c", "/box", "eth0"))
	if name, err := f.Observe(ctx, guest); name != "eth0" || err != nil {
		t.Errorf("observed %q, %v", name, err)
	}
	if tenants, _ := f.Tenants(ctx); len(tenants) != 1 || tenants[0].Link != "is-c" || tenants[0].Below != "eth0.5" {
		t.Errorf("tenants %+v", tenants)
	}
	expect(t, f, `
addr 10.5.0.1/32 dev is-h
fib 10.5.0.7/32 dev is-h src 10.5.0.1
link eth0.5 type vlan link eth0 protocol 802.1Q id 5 mtu 1500
link is-h type ipvlan link eth0.5 mode l2 bridge mtu 1500
sandbox /box eth0: link is-c type ipvlan link eth0.5 mode l2 bridge mtu 1500
`)

	// Refusals.
	for text, l := range map[string]kernel.Link{
		"parent eth0.5 is busy":                    {Name: "is-m", Kind: kernel.Macvlan, Parent: "eth0.5"},
		"VLAN 5 exists as eth0.5":                  {Name: "is-5", Kind: kernel.VLAN, Parent: "eth0", VID: 5},
		"mtu 9000 is above that of eth0":           {Name: "eth0.6", Kind: kernel.VLAN, Parent: "eth0", VID: 6, MTU: 9000},
		"stands in the way that isthmus did not":   {Name: "eth0", Kind: kernel.Dummy},
		"no such parent eth7":                      {Name: "is-m", Kind: kernel.Macvlan, Parent: "eth7"},
		"a passthru link is alone on its parent":   {Name: "is-m", Kind: kernel.Macvlan, Parent: "eth1", Mode: "passthru"},
		"have link eth0.5 type vlan link eth0 pro": {Name: "eth0.5", Kind: kernel.VLAN, Parent: "eth0", VID: 5, Proto: "802.1ad"},
	} {
		f.SetDevice(kernel.Device{Name: "eth1", Kind: "device", MTU: 1500, Up: true, Children: []kernel.Child{{Name: "theirs", Kind: kernel.Macvlan, Mode: "bridge", Sandbox: "/theirs"}}})
		if err := f.Do(ctx, add(l)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", l, err)
		}
	}
	links, err := f.Links(ctx)
	must(t, err)
	inside, err := f.Lodgers(ctx)
	must(t, err)
	var lines []string
	for _, d := range links {
		line := d.Name
		for _, c := range append(d.Children, inside[d.Index]...) {
			line += " " + string(c.Kind) + " " + c.Mode + " " + c.Sandbox + "/" + c.Name
		}
		lines = append(lines, line)
	}
	if got, want := strings.Join(lines, "\n"), "eth0\neth0.5 ipvlan l2 /is-h ipvlan l2 /box/eth0\neth1 macvlan bridge /theirs/theirs\nis-h"; got != want {
		t.Errorf("links\n%s\nwant\n%s", got, want)
	}

	// Mode and MTU reach all ipvlan links of the parent.
	own.Mode, own.MTU = "l3", 1500
	must(t, f.Do(ctx, []kernel.Op{{Action: kernel.Set, Object: own}}))
	f.SetDevice(kernel.Device{Name: "eth0", Kind: "device", MTU: 1400, Up: true})
	if in, _ := f.Interface("/box", "eth0"); in.Link.Mode != "l3" || in.Link.MTU != 1400 {
		t.Errorf("inside: %s", in.Link)
	}
	f.SetDevice(kernel.Device{Name: "eth0", Kind: "device", MTU: 1400})
	if err := f.Do(ctx, []kernel.Op{{Action: kernel.Set, Object: vlan}}); err == nil || !strings.Contains(err.Error(), "parent eth0 is down") {
		t.Error(err)
	}
	f.SetDevice(kernel.Device{Name: "eth0", Kind: "device", MTU: 1400, Up: true})

	// Renamed, all stays; removed, all goes.
	f.RenameDevice("eth0", "lan0")
	expect(t, f, `
addr 10.5.0.1/32 dev is-h
fib 10.5.0.7/32 dev is-h src 10.5.0.1
link eth0.5 type vlan link lan0 protocol 802.1Q id 5 mtu 1400
link is-h type ipvlan link eth0.5 mode l3 bridge mtu 1400
sandbox /box eth0: link is-c type ipvlan link eth0.5 mode l3 bridge mtu 1400
`)
	f.Delete(address.Key())
	expect(t, f, `
link eth0.5 type vlan link lan0 protocol 802.1Q id 5 mtu 1400
link is-h type ipvlan link eth0.5 mode l3 bridge mtu 1400
sandbox /box eth0: link is-c type ipvlan link eth0.5 mode l3 bridge mtu 1400
`)
	f.Heed("lan0")
	if got := f.Heeded(); len(got) != 1 || got[0] != "lan0" {
		t.Error(got)
	}
	f.RemoveDevice("lan0")
	expect(t, f, "")
	if _, err := f.Mend(ctx, guest); err == nil {
		t.Error("mended without a parent")
	}
}
