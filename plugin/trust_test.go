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

// TestPrepare: before this host is let in by a rebuilt registry its containers
// are cut off, and still are from the first moment of its next start.
func TestPrepare(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	const want = "the registry of the cluster was rebuilt (generation 2)"
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
		n, err := openNode(h.cfg, doors{kernel: h.kernel}, u, log)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := open()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.driver.Run(ctx) }()
	// It has nothing to let go of.
	if err := n.prepare(ctx, 1); err != nil || n.driver.Status().Detached != "" {
		t.Errorf("%v, cut off for %q", err, n.driver.Status().Detached)
	}
	if err := n.ipam.Adopt(cluster.PoolKey{Prefix: netip.MustParsePrefix("10.9.0.0/24")}, netip.MustParseAddr("10.9.0.2"), "web"); err != nil {
		t.Fatal(err)
	}
	h.kernel.Fail(-1, "dump", errors.New("out of memory"))
	hasty, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := n.prepare(hasty, 2); err == nil {
		t.Error("ready although its containers may not be cut off")
	}
	h.kernel.Heal()
	if err := n.prepare(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if why := n.driver.Status().Detached; !strings.HasPrefix(why, want) {
		t.Errorf("cut off for %q", why)
	}
	stop()
	if err := errors.Join(<-done, n.discard()); err != nil {
		t.Fatal(err)
	}
	n = open()
	if why := n.driver.Status().Detached; !strings.HasPrefix(why, want) {
		t.Errorf("started again: cut off for %q", why)
	}
	if err := n.discard(); err != nil {
		t.Fatal(err)
	}
}
