//go:build e2e && engines

package lab_test

import (
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestEngines runs each engine that is not this machine's. It has a tag of its
// own, as the first run fetches and builds for some minutes.
func TestEngines(t *testing.T) {
	for _, c := range []struct{ engine, api string }{
		{"trixie", "1.45"},
		{"sid", "1.51"},
		{"moby", "1.56"},
	} {
		t.Run(c.engine, func(t *testing.T) {
			ctx, must := t.Context(), lab.Must(t)
			l := lab.New(t, lab.Config{Hosts: 1, Engine: c.engine})
			h := l.Host(1)
			got := must(h.Docker(ctx, "version", "--format", "{{.Server.APIVersion}}"))
			if got != c.api {
				t.Errorf("the engine speaks API %s, want %s", got, c.api)
			}
			if policy := must(h.Exec(ctx, "iptables", "-S", "FORWARD")); !strings.HasPrefix(policy, "-P FORWARD DROP") {
				t.Errorf("the engine left the FORWARD policy at %q", policy)
			}
			testPlugin(t, l)
			testCompose(t, l)
			if err := h.Reboot(ctx); err != nil {
				t.Fatal(err)
			}
			if got := must(h.Docker(ctx, "run", "--rm", lab.Image, "hostname")); got == "" {
				t.Error("a container said nothing")
			}
		})
	}
}
