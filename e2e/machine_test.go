//go:build e2e && machine

package e2e

import (
	"testing"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestMachineVXLAN is what two hosts with a stock kernel must do: it loads what
// it lacks by itself, and leaves nothing behind.
func TestMachineVXLAN(t *testing.T) {
	s := newSite(t, lab.Config{Hosts: 2})
	before := snapshots(t, s)
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run("reach-"+attach, func(t *testing.T) { reachability(t, s, attach, "10.32.0.0/16", "fd32::/64") })
	}
	t.Run("nothing-left", func(t *testing.T) { nothingLeft(t, s, before) })
}
