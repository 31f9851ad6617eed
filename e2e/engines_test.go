//go:build e2e && engines

package e2e

import (
	"testing"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestEngines repeats what depends on the engine on those that are not this
// machine's: 26.1, 28.5 and 29.
func TestEngines(t *testing.T) {
	for _, engine := range []string{"trixie", "sid", "moby"} {
		t.Run(engine, func(t *testing.T) {
			s := newSite(t, lab.Config{Hosts: 3, Engine: engine})
			before := snapshots(t, s)
			for _, attach := range []string{"macvlan", "bridge"} {
				t.Run("reach-"+attach, func(t *testing.T) { reachability(t, s, attach, "10.32.0.0/16", "fd32::/64") })
			}
			t.Run("ports", func(t *testing.T) { publishedPorts(t, s) })
			t.Run("pools", func(t *testing.T) { poolChoices(t, s) })
			t.Run("move", func(t *testing.T) { moves(t, s) })
			t.Run("kill-plugin", func(t *testing.T) { killPlugin(t, s) })
			t.Run("mend", func(t *testing.T) { mends(t, s) })
			t.Run("nothing-left", func(t *testing.T) { nothingLeft(t, s, before) })
			t.Run("restart-engine", func(t *testing.T) { restartEngine(t, s) })
			t.Run("removed-while-disabled", func(t *testing.T) { removedWhileDisabled(t, s) })
		})
	}
}
