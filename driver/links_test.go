package driver

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// visits counts the calls that look into sandboxes.
type visits struct {
	kernel.Kernel
	n atomic.Int64
}

func (v *visits) Lodgers(ctx context.Context) (map[int][]kernel.Child, error) {
	v.n.Add(1)
	return v.Kernel.Lodgers(ctx)
}

func (v *visits) Mend(ctx context.Context, h kernel.Handover) (bool, error) {
	v.n.Add(1)
	return v.Kernel.Mend(ctx, h)
}

func (v *visits) Observe(ctx context.Context, h kernel.Handover) (string, error) {
	v.n.Add(1)
	return v.Kernel.Observe(ctx, h)
}

func (v *visits) Mute(ctx context.Context, h kernel.Handover) (bool, error) {
	v.n.Add(1)
	return v.Kernel.Mute(ctx, h)
}

func (v *visits) Tenants(ctx context.Context, dirs ...string) ([]kernel.Tenant, error) {
	v.n.Add(1)
	return v.Kernel.Tenants(ctx, dirs...)
}

// TestPassesVisitNobody: what a pass costs does not grow with the containers, as
// long as nothing happens to them, whether they are on the network or cut off.
func TestPassesVisitNobody(t *testing.T) {
	for _, options := range lanModes[:3] {
		t.Run(at(options), func(t *testing.T) {
			h := newHost(t, t.TempDir())
			door := &visits{Kernel: h.kernel}
			h.door = door
			h.start(defaultPace)
			defer func() { h.stop() }()
			h.lan(options...)
			const many = 20
			for i := range many {
				h.run(fmt.Sprintf("box%d", i), "lan", fmt.Sprintf("10.1.1.%d/16", i))
			}
			quiet := func(what string) {
				t.Helper()
				for range 3 { // what is new is looked at once
					h.ok(h.Sync(anyContext, 0))
				}
				before := door.n.Load()
				for range 10 {
					h.ok(h.Sync(anyContext, 0))
				}
				if n := door.n.Load() - before; n > 0 {
					t.Fatalf("%s: %d visits in ten passes", what, n)
				}
			}
			quiet("all is well")
			h.SetDetached("for a reason")
			quiet("they are cut off")
			h.check(h.down("box0"), "they are not cut off")
			h.SetDetached("")
			quiet("let in again")
			h.check(!h.down("box0"), "they are cut off")
			before := door.n.Load()
			h.run("late", "lan", "10.1.2.1/16")
			h.ok(h.Sync(anyContext, 0))
			if n := door.n.Load() - before; n > many/2 {
				t.Fatalf("a start took %d visits", n)
			}
			quiet("one more is there")
			h.kernel.RemoveDevice("eth1")
			h.kernel.SetDevice(nic("eth1"))
			for i := range many {
				h.await("it is made again", func() bool { _, ok := h.kernel.Interface(fmt.Sprintf("/s/box%d", i), "eth0"); return ok })
			}
			quiet("made again")
		})
	}
}

// TestModeIsLookedAtAnew: a container of somebody else came to the parent since
// the last look into the sandboxes. The kernel would change its mode.
func TestModeIsLookedAtAnew(t *testing.T) {
	h := startHost(t)
	slow := hasty
	slow.sandbox = defaultPace.sandbox
	h.restart(slow)
	h.lan("mode=ipvlan")
	h.kernel.SetDevice(nic("eth1", func(d *kernel.Device) {
		d.Children = []kernel.Child{{Name: "eth0", Kind: kernel.IPvlan, Mode: "l3", Flag: "bridge", Sandbox: "/s/theirs"}}
	}))
	h.ok(h.endpoint("web", "lan", "10.1.0.2/16"))
	h.await("a start is refused", func() bool { // a second after the last look
		_, err := h.joins("web")
		return errorText(err) == "join: parent eth1 serves ipvlan in mode l3 for a container (interface eth0 in /s/theirs), and a parent has one mode: ipvlan in mode l2 would change it there: use -o ipvlan_mode=l3, or another parent"
	})
}
