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
