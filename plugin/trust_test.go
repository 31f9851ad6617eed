package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
)

// TestBarred: before this host is let in by a rebuilt registry, and before it
// says that a cluster which took it out may have its addresses, its containers
// are cut off; and still, or again, from the first moment of its next start.
func TestBarred(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	pool := cluster.PoolKey{Prefix: netip.MustParsePrefix("10.9.0.0/24")}
	for _, c := range []struct {
		name, want string
		bar        func(context.Context, *node) error
	}{
		{"rebuilt", "the registry of the cluster was rebuilt (generation 2)", func(ctx context.Context, n *node) error { return n.prepare(ctx, 2) }},
		{"removed", "this host was removed from the cluster", func(ctx context.Context, n *node) error {
			if n.confirm(ctx) {
				return errors.New("confirmed without a cluster")
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHosts(t, 1, "")[0]
			if err := os.MkdirAll(h.cfg.State, 0o700); err != nil {
				t.Fatal(err)
			}
			open := func() *node {
				t.Helper()
				u, err := h.kernel.Underlay(t.Context(), netip.Addr{})
				if err != nil {
					t.Fatal(err)
				}
				n, err := openNode(h.cfg, h.kernel, u, log)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			n := open()
			if why := n.driver.Status().Detached; why != "" {
				t.Fatalf("cut off: %s", why)
			}
			if err := n.ipam.Adopt(pool, netip.MustParseAddr("10.9.0.2"), "web"); err != nil {
				t.Fatal(err)
			}
			running, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- n.driver.Run(running) }()
			// The ledger does not run: what is proposed waits until the end.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := c.bar(ctx, n); err != nil {
				t.Fatal(err)
			}
			if why := n.driver.Status().Detached; !strings.HasPrefix(why, c.want) {
				t.Errorf("cut off for %q", why)
			}
			stop()
			if err := errors.Join(<-done, n.discard()); err != nil {
				t.Fatal(err)
			}
			n = open()
			if why := n.driver.Status().Detached; !strings.HasPrefix(why, c.want) {
				t.Errorf("started again: cut off for %q", why)
			}
			if err := n.discard(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
