//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// stateDir is where the managed plugin's state lies on a host.
func stateDir(ctx context.Context, h *lab.Host) (string, error) {
	dir, err := h.Docker(ctx, "plugin", "inspect", "-f", "/var/lib/docker/plugins/{{.Id}}/propagated-mount", driverName)
	return strings.TrimSpace(dir), err
}

// saveState copies a host's state as it is at one moment, as a snapshot of the
// machine would, and returns where it is.
func saveState(ctx context.Context, h *lab.Host, name string) (string, error) {
	dir, err := stateDir(ctx, h)
	if err != nil {
		return "", err
	}
	to := "/var/tmp/state-" + name
	_, err = h.Exec(ctx, "sh", "-c", fmt.Sprintf(
		`rm -rf %[1]s; pid=$(pidof isthmus); kill -STOP $pid; cp -a %[2]s %[1]s; result=$?; kill -CONT $pid; exit $result`, to, dir))
	return to, err
}

// putState replaces a host's state by a copy. The plugin must not run.
func putState(ctx context.Context, h *lab.Host, from string) error {
	dir, err := stateDir(ctx, h)
	if err != nil {
		return err
	}
	_, err = h.Exec(ctx, "sh", "-c", fmt.Sprintf("find %[1]s -mindepth 1 -delete && cp -a %[2]s/. %[1]s/", dir, from))
	return err
}

// loseState empties a host's state. The plugin must not run.
func loseState(ctx context.Context, h *lab.Host) error {
	dir, err := stateDir(ctx, h)
	if err != nil {
		return err
	}
	_, err = h.Exec(ctx, "find", dir, "-mindepth", "1", "-delete")
	return err
}

// copyState puts the saved state of one host, which may be off, on another.
func copyState(ctx context.Context, from *lab.Host, saved string, to *lab.Host) error {
	const landed = "/var/tmp/state-landed"
	if _, err := to.Exec(ctx, "rm", "-rf", landed); err != nil {
		return err
	}
	if err := to.CopyDir(from.DiskPath(saved), landed); err != nil {
		return err
	}
	return putState(ctx, to, landed)
}

// swapState stops a host's plugin for as long as its state, or its settings,
// are changed.
func swapState(ctx context.Context, h *lab.Host, change func() error) error {
	if _, err := h.Docker(ctx, "plugin", "disable", "-f", driverName); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	_, err := h.Docker(ctx, "plugin", "enable", driverName)
	return err
}
