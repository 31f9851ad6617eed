//go:build e2e

package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

func testEngine(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(1)
	if got := must(h.Docker(ctx, "run", "--rm", lab.Image, "echo", "hello")); got != "hello" {
		t.Errorf("the container said %q", got)
	}
	must(h.Docker(ctx, "run", "-d", "--stop-signal", "KILL", "--name", "long", lab.Image, "sleep", "1000"))
	if err := h.KillEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Docker(ctx, "ps"); err == nil {
		t.Error("a killed engine answers")
	}
	must(h.Exec(ctx, "pgrep", "-f", "sleep 1000"))
	for range 2 { // the second time it runs already
		if err := h.StartEngine(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.StopEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	must(h.Docker(ctx, "rm", "-f", "long"))
	if !strings.Contains(h.Logs(), "API listen on") {
		t.Error("the engine's log is missing")
	}
}

func testReboot(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(2)
	identity := must(h.Exec(ctx, "cat", "/etc/machine-id", "/sys/class/net/eth0/address"))
	must(h.Docker(ctx, "run", "-d", "--restart=always", "--name", "always", lab.Image, "sleep", "1000"))
	must(h.Exec(ctx, "sh", "-c", "echo kept >/var/lib/kept; echo lost >/run/lost; ip link add left type bridge"))
	if err := h.Boot(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Docker(ctx, "ps"); err == nil {
		t.Error("Boot started the engine")
	}
	if got := must(h.Exec(ctx, "cat", "/etc/machine-id", "/sys/class/net/eth0/address")); got != identity {
		t.Errorf("the host was\n%s\nand is\n%s", identity, got)
	}
	must(h.Exec(ctx, "grep", "-q", "kept", "/var/lib/kept"))
	for _, gone := range []string{"/run/lost", "/sys/class/net/left", "/sys/class/net/docker0"} {
		if _, err := h.Exec(ctx, "test", "-e", gone); err == nil {
			t.Errorf("%s outlived the reboot", gone)
		}
	}
	if !reaches(ctx, l.Host(1), "host2") {
		t.Error("host2 is not reached after its reboot")
	}
	if err := h.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	if got := must(h.Docker(ctx, "ps", "--format", "{{.Names}}")); got != "always" {
		t.Errorf("after the reboot these run: %q", got)
	}
	if err := h.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	must(h.Docker(ctx, "rm", "-f", "always"))
}

// testPlugin installs a managed plugin from the registry on every host: a volume
// plugin, which needs nothing of the engine, but on the host's network and with
// the sandboxes' directory mounted as a network plugin has it.
func testPlugin(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	dir := t.TempDir()
	for _, sub := range []string{"rootfs/run/docker/plugins", "rootfs/var/run/docker"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool, err := os.ReadFile(l.Host(1).Path("/usr/local/bin/box"))
	if err != nil {
		t.Fatal(err)
	}
	config := `{
		"description": "answers on the host's network", "entrypoint": ["/box", "serve", "--socket", "/run/docker/plugins/box.sock"],
		"interface": {"types": ["docker.volumedriver/1.0"], "socket": "box.sock"},
		"network": {"type": "host"},
		"env": [{"name": "WHO", "value": "nobody", "settable": ["value"]}],
		"mounts": [{"name": "sandboxes", "type": "bind", "source": "/var/run/docker", "destination": "/var/run/docker", "options": ["rbind", "rslave"]}],
		"linux": {"capabilities": ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]}
	}`
	for name, content := range map[string][]byte{"config.json": []byte(config), "rootfs/box": tool} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := l.PushPlugin(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "WHO="+h.Name); err != nil {
			t.Fatal(err)
		}
		if got := must(h.Docker(ctx, "plugin", "inspect", "-f", "{{.Enabled}} {{.Settings.Env}}", "isthmus")); got != "true [WHO="+h.Name+"]" {
			t.Errorf("the plugin of %s is %s", h.Name, got)
		}
		must(h.Exec(ctx, "box", "tcp", h.IP().String())) // it is on the host's network
		must(h.Docker(ctx, "run", "-d", "--name", "sandbox", lab.Image, "sleep", "1000"))
		key := must(h.Docker(ctx, "inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "sandbox"))
		pid := must(h.Exec(ctx, "pgrep", "-f", "^/box serve"))
		within(t, 5*time.Second, "the plugin sees a new sandbox as one", func() bool {
			kind, err := h.Exec(ctx, "stat", "-f", "-c", "%T", "/proc/"+pid+"/root"+key)
			return err == nil && kind == "nsfs"
		})
		must(h.Docker(ctx, "rm", "-f", "sandbox"))
		must(h.Docker(ctx, "plugin", "rm", "-f", "isthmus"))
	}
}

func testCompose(t *testing.T, l *lab.Lab) {
	ctx, must, h := t.Context(), lab.Must(t), l.Host(1)
	file := t.TempDir() + "/pair.yml"
	content := `
services:
  server:
    image: lab/box
    command: box serve
  client:
    image: lab/box
    command: sleep 1000
networks:
  default:
    ipam: {config: [{subnet: 10.77.0.0/24}]}
`
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		must(h.Compose(ctx, file, "pair", "up", "-d"))
		must(h.Compose(ctx, file, "pair", "exec", "-T", "client", "box", "tcp", "server"))
		must(h.Compose(ctx, file, "pair", "down", "-t", "0"))
	}
}

func testSwarm(t *testing.T, l *lab.Lab) {
	ctx, must := t.Context(), lab.Must(t)
	if err := l.Swarm(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	must(l.Host(2).Docker(ctx, "run", "-d", "--name", "server", "--network", "base", lab.Image, "box", "serve"))
	within(t, 20*time.Second, "overlay carries traffic", func() bool {
		_, err := l.Host(1).Docker(ctx, "run", "--rm", "--network", "base", lab.Image, "box", "tcp", "server")
		return err == nil
	})
	must(l.Host(2).Docker(ctx, "rm", "-f", "server"))
	if err := l.LeaveSwarm(ctx); err != nil {
		t.Fatal(err)
	}
}
