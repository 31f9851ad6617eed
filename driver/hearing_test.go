package driver

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// counted is a kernel that counts the probes that were answered.
type counted struct {
	kernel.Kernel
	answers atomic.Int32
}

func (c *counted) Echo(ctx context.Context, probes []kernel.Probe) ([]bool, error) {
	answers, err := c.Kernel.Echo(ctx, probes)
	for _, yes := range answers {
		if yes {
			c.answers.Add(1)
		}
	}
	return answers, err
}

// TestGatewayHostIsDeaf: who is the gateway for all, and answers no more, is stood in
// for until it answers again, although the cluster still takes it for alive.
func TestGatewayHostIsDeaf(t *testing.T) {
	h := newHost(t, t.TempDir())
	door := &counted{Kernel: h.kernel}
	h.door = door
	h.start(hasty)
	defer func() { h.stop() }()
	h.kernel.SetDevice(nic("eth0", func(d *kernel.Device) { d.Addrs = prefixes("192.0.2.1/24") }))
	r := request("app", []string{"10.1.0.0/16"}, "gateway=host:host2")
	r.IPv4Data[0].Gateway = "10.1.0.1/16"
	h.ok(h.CreateNetwork(anyContext, r))
	h.heard.say("host2", cluster.Record{Network: 1})
	elsewhere, here := "neigh 10.1.0.1 dev is-v4097", "addr 10.1.0.1/32 dev is-b4097"
	h.awaitHas(elsewhere)
	h.lacks(here)
	h.await("host2 answers", func() bool { return door.answers.Load() > 1 }) // who never did may be forbidden to
	h.kernel.SetDeaf(netip.MustParseAddr("192.0.2.2"), true)
	h.awaitHas(here)
	h.lacks(elsewhere)
	h.kernel.SetDeaf(netip.MustParseAddr("192.0.2.2"), false)
	h.awaitHas(elsewhere)
	h.lacks(here)
}
