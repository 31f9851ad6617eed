package tree

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// The engine that Debian does not have yet: built from the Go module, it runs
// with the rest of Debian's newest.
const (
	mobyEngine  = "moby"
	mobyBelow   = "sid"
	mobyModule  = "github.com/moby/moby/v2"
	mobyVersion = "v2.0.0-beta.24" // 29
)

// HostPackages is what a host needs of a Debian release, beyond the base system.
func HostPackages(release string) []string {
	list := []string{"docker.io", "docker-compose", "iptables", "nftables", "iproute2", "procps", "kmod", "ca-certificates"}
	if release != "bookworm" { // part of docker.io there
		list = append(list, "docker-cli")
	}
	return list
}

// Engine returns the directories, joined by colons as overlayfs wants them,
// whose files a host with that engine starts from: a Debian release, moby for
// the newest version, or "" for what is installed on this machine. It makes
// those that are not in the cache, which takes minutes, and tells progress of it.
func Engine(ctx context.Context, engine string, progress func(string)) (string, error) {
	if engine == "" {
		return "/", nil
	}
	release := engine
	if engine == mobyEngine {
		release = mobyBelow
	}
	tree, err := Cached(release, func(dir string) error {
		progress("fetching the engine of Debian " + release)
		return Debian(ctx, release, HostPackages(release), dir)
	})
	if err != nil || engine != mobyEngine {
		return tree, err
	}
	built, err := Cached(mobyEngine+"-"+mobyVersion, func(dir string) error {
		progress("building dockerd " + mobyVersion)
		return mobyTree(ctx, dir)
	})
	return built + ":" + tree, err
}

func mobyTree(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "install", mobyModule+"/cmd/dockerd@"+mobyVersion, mobyModule+"/cmd/docker-proxy@"+mobyVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+filepath.Join(dir, "usr/sbin"), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go install: %w: %s", err, tail(string(out), 5))
	}
	return nil
}
