package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Host is one Docker host of a lab.
type Host struct {
	*node
	Name  string // host1
	Index int    // 1
	lab   *Lab
}

// IP is the host's address on the underlay: IPv4, but with IPv6Underlay.
func (h *Host) IP() netip.Addr {
	if h.lab.config.IPv6Underlay {
		return h.IP6()
	}
	return address(underlay4, h.Index)
}

// IP6 is the host's IPv6 address on the underlay.
func (h *Host) IP6() netip.Addr { return address(underlay6, h.Index) }

// Docker runs the docker command of the host and returns what it printed.
func (h *Host) Docker(ctx context.Context, args ...string) (string, error) {
	return h.Exec(ctx, append([]string{"docker"}, args...)...)
}

// Client talks HTTP to the host's engine, without a process per call. Requests
// go to http://docker/...
func (h *Host) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", h.Path("/run/docker.sock"))
		},
	}}
}

// SetMTU changes the MTU in bytes of the host's underlay link, on both ends.
func (h *Host) SetMTU(ctx context.Context, mtu int) error {
	if _, err := h.ip(ctx, "link", "set", "eth0", "mtu", strconv.Itoa(mtu)); err != nil {
		return err
	}
	_, err := h.lab.sw.ip(ctx, "link", "set", h.Name, "mtu", strconv.Itoa(mtu))
	return err
}

// install writes what a host's disk has before it boots for the first time.
func (h *Host) install() error {
	if err := os.MkdirAll(filepath.Join(h.dir, "docker"), 0o710); err != nil {
		return err
	}
	id := sha256.Sum256([]byte(h.lab.config.ID + h.Name))
	files := map[string]string{
		"/etc/hostname":           h.Name + "\n",
		"/etc/machine-id":         hex.EncodeToString(id[:16]) + "\n",
		"/etc/hosts":              h.lab.hostsFile(),
		"/etc/resolv.conf":        fmt.Sprintf("nameserver %s\n", h.lab.gateway()),
		"/etc/docker/daemon.json": fmt.Sprintf("{\"insecure-registries\": [%q]}\n", registryAddress),
	}
	for file, content := range files {
		if err := h.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	return installTool(h.lab.toolPath(), h.node)
}

func (l *Lab) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	fmt.Fprintf(&b, "%s %s\n", l.gateway(), registryName)
	for _, h := range l.hosts {
		fmt.Fprintf(&b, "%s %s\n", h.IP(), h.Name)
	}
	return b.String()
}

// gateway is the switch's address, the default route of every host.
func (l *Lab) gateway() netip.Addr {
	if l.config.IPv6Underlay {
		return address(underlay6, switchIndex)
	}
	return address(underlay4, switchIndex)
}

// powerOn boots the host and plugs it in. No engine runs then.
func (h *Host) powerOn(ctx context.Context) error {
	if err := h.boot(h.lab.toolPath(), h.lab.config.Detached); err != nil {
		return err
	}
	if err := h.lab.remember(h.node); err != nil {
		return err
	}
	return h.lab.plugIn(ctx, h)
}

// PowerOff ends all that runs on the host at once, as pulling its cord would.
// What is on its disk stays.
func (h *Host) PowerOff(ctx context.Context) error {
	if err := h.halt(ctx); err != nil {
		return err
	}
	return h.lab.unplug(ctx, h.Name)
}

// Boot powers the host off and on again, without starting its engine.
func (h *Host) Boot(ctx context.Context) error {
	if err := h.PowerOff(ctx); err != nil {
		return err
	}
	return h.powerOn(ctx)
}

// Reboot powers the host off and on again, and starts its engine.
func (h *Host) Reboot(ctx context.Context) error {
	if err := h.Boot(ctx); err != nil {
		return err
	}
	return h.StartEngine(ctx)
}
