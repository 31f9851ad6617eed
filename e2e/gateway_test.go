//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestGateways runs what three hosts must do whose overlay networks have gateways of
// their own: one on every host, and one on host1 that another one stands in for.
func TestGateways(t *testing.T) {
	r := &routes{site: newSite(t, lab.Config{Hosts: 3}, "FORWARD=on"), boxes: map[string][]*box{}, joined: map[[2]string]bool{{"every", "gw2"}: true, {"gw2", "every"}: true, {"hidden", "gw2"}: true, {"gw2", "hidden"}: true}}
	before := snapshots(t, r.site)
	var err error
	if r.machine, err = r.Station(t.Context(), "machine", netip.MustParsePrefix(outside+"/24")); err != nil {
		t.Fatal(err)
	}
	serve := r.machine.Command(context.WithoutCancel(t.Context()), "box", "serve")
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	r.create(t, "every", "--subnet 10.70.0.0/16 --ipv6 --subnet fd70::/64 -o gateway=distributed")
	r.create(t, "one", "--subnet 10.71.0.0/16 -o gateway=host:host1")
	r.create(t, "gw2", "--subnet 10.72.0.0/24 -o mode=host-gw -o route_to=10.70.0.0/16,10.73.0.0/24")
	r.create(t, "hidden", "--subnet 10.73.0.0/24 -o mode=routed --internal") // reaches that alone
	for _, part := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"reach", r.reach},
		{"world", r.throughGateways},
		{"publish", func(t *testing.T) {
			r.publish(t, r.Host(1), "every", "one")
			r.publish(t, r.Host(2), "one", "every") // its gateway is elsewhere
		}},
		{"fail-over", r.failOver},
		{"remove", r.remove},
		{"nothing-left", func(t *testing.T) {
			serve.Process.Kill()
			serve.Wait()
			if err := r.machine.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, r.site, before)
		}},
	} {
		if !t.Run(part.name, part.do) {
			return
		}
	}
}

// throughGateways: the world sees each host's own address, or that of host1.
func (r *routes) throughGateways(t *testing.T) {
	for i, h := range r.Hosts() {
		for network, gateway := range map[string]*lab.Host{"every": h, "one": r.Host(1)} {
			eventually(t, 10*time.Second, func() error { return leavesBy(r.boxes[network][i], gateway) })
		}
	}
}

// leavesBy reports whether a container reaches the world by a host.
func leavesBy(b *box, h *lab.Host) error {
	out, err := b.exec(context.Background(), "box", "get", "http://"+outside+"/")
	if err == nil && !strings.Contains(out, " "+h.IP().String()+":") {
		err = fmt.Errorf("the world sees %q, want %s", out, h.IP())
	}
	return err
}

// failOver: the host that is the gateway loses its power, and returns.
func (r *routes) failOver(t *testing.T) {
	first, b := r.Host(1), r.boxes["one"][2]
	if err := first.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var second *lab.Host // the first of the others, by an id that is drawn by lot
	eventually(t, 20*time.Second, func() (err error) {
		for _, second = range r.Hosts()[1:] {
			if err = leavesBy(b, second); err == nil {
				return nil
			}
		}
		return err
	})
	t.Logf("by %s after %s", second.Name, time.Since(begun))
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the gateway moved after %s, want 5 s at most", took)
	}
	eventually(t, 20*time.Second, func() error { // and all say the same
		for _, h := range r.Hosts()[1:] {
			out, err := isthmus(t.Context(), h, "status")
			if !strings.Contains(out, "its gateway, host host1, is not reached: "+second.Name+" stands in") {
				return fmt.Errorf("status of %s does not say who is the gateway: %v\n%s", h.Name, err, out)
			}
			if err := leavesBy(r.boxes["one"][h.Index-1], second); err != nil {
				return err
			}
		}
		return nil
	})
	if err := first.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() error { return leavesBy(b, first) })
}
