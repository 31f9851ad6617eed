package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	registryName    = "registry"
	registryPort    = 5000
	registryAddress = "registry:5000"
	registryConfig  = `version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: /var/lib/registry}
  delete: {enabled: true}
http: {addr: ":5000"}
`
)

// Registry is the address of the lab's image registry as hosts know it.
func (l *Lab) Registry() string { return registryAddress }

func (l *Lab) startRegistry(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const config, log = "/etc/lab-registry.yml", "/var/log/registry.log"
	if err := l.sw.WriteFile(config, registryConfig, 0o644); err != nil {
		return err
	}
	pid, err := l.sw.start(ctx, log, "docker-registry", "serve", config)
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	return await(ctx, "start registry", func() (bool, error) {
		if !l.sw.running(pid) {
			said, _ := os.ReadFile(l.sw.disk(log))
			return false, fmt.Errorf("it ended:\n%s", tail(string(said), 10))
		}
		return l.sw.listens(registryPort), nil
	})
}

// listens says whether somebody accepts TCP connections on all addresses of a
// node, by the table that proc_net_tcp(5) describes.
func (n *node) listens(port int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp6", n.pid().Pid))
	return err == nil && strings.Contains(string(b), fmt.Sprintf("%032d:%04X %032d:0000 0A", 0, port, 0))
}

// PushPlugin makes a managed plugin of dir, which holds config.json and rootfs,
// pushes it to the lab's registry as isthmus:latest, and returns the reference
// to install it by.
func (l *Lab) PushPlugin(ctx context.Context, dir string) (string, error) {
	return l.PushPluginAs(ctx, dir, "isthmus:latest")
}

// PushPluginAs is PushPlugin under another name and tag.
func (l *Lab) PushPluginAs(ctx context.Context, dir, name string) (string, error) {
	h := l.Host(1)
	const copied = "/var/tmp/plugin"
	ref := registryAddress + "/" + name
	if err := h.CopyDir(dir, copied); err != nil {
		return "", err
	}
	defer os.RemoveAll(h.Path(copied))
	if _, err := h.Docker(ctx, "plugin", "create", ref, copied); err != nil {
		return "", err
	}
	_, err := h.Docker(ctx, "plugin", "push", ref)
	if _, rmErr := h.Docker(ctx, "plugin", "rm", "-f", ref); err == nil {
		err = rmErr
	}
	return ref, err
}

// InstallPlugin installs and enables a plugin of the registry under the alias
// isthmus. Settings are as for docker plugin install: JOIN=host1.
func (h *Host) InstallPlugin(ctx context.Context, ref string, settings ...string) error {
	args := []string{"plugin", "install", "--grant-all-permissions", "--alias", "isthmus", ref}
	_, err := h.Docker(ctx, append(args, settings...)...)
	return err
}
