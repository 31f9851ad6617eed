package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// treePackages is what a host needs of Debian, beyond the base system.
const treePackages = "docker.io,docker-cli,docker-compose,iptables,nftables,iproute2,procps,kmod,ca-certificates"

// mobyEngine is the engine that Debian does not have yet: built from the Go
// module, it runs with the rest of Debian's newest.
const (
	mobyEngine  = "moby"
	mobyBelow   = "sid"
	mobyModule  = "github.com/moby/moby/v2"
	mobyVersion = "v2.0.0-beta.24" // 29
)

// engineTree returns the directories, joined by colons as overlayfs wants them,
// whose files a host with that engine starts from. It makes those that are not
// in the cache, which takes minutes.
func engineTree(ctx context.Context, engine string, progress func(string)) (string, error) {
	if engine == "" {
		return "/", nil
	}
	fail := func(err error) (string, error) { return "", fmt.Errorf("make tree of engine %s: %w", engine, err) }
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(filepath.Join(cacheDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fail(err)
	}
	release := engine
	if engine == mobyEngine {
		release = mobyBelow
	}
	tree, err := cached(release, func(dir string) error {
		progress("fetching the engine of Debian " + release)
		return debianTree(ctx, release, dir)
	})
	if err != nil || engine != mobyEngine {
		return tree, err
	}
	built, err := cached(mobyEngine+"-"+mobyVersion, func(dir string) error {
		progress("building dockerd " + mobyVersion)
		return mobyTree(ctx, dir)
	})
	return built + ":" + tree, err
}

// cached returns a directory of the cache, filled by fill if it is not there.
func cached(name string, fill func(dir string) error) (string, error) {
	dir := filepath.Join(cacheDir(), name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	half := dir + ".new"
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	if err := fill(half); err != nil {
		return "", errors.Join(fmt.Errorf("make tree %s: %w", dir, err), os.RemoveAll(half))
	}
	return dir, os.Rename(half, dir)
}

func debianTree(ctx context.Context, release, dir string) error {
	mirror, err := aptMirror(ctx)
	if err != nil {
		return err
	}
	packages := treePackages
	if release == "bookworm" {
		packages = strings.Replace(packages, "docker-cli,", "", 1) // part of docker.io there
	}
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+packages, release, dir, mirror)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w: %s", err, tail(string(out), 5))
	}
	for _, downloads := range []string{"var/cache/apt", "var/lib/apt/lists"} {
		if err := os.RemoveAll(filepath.Join(dir, downloads)); err != nil {
			return err
		}
	}
	return nil
}

func mobyTree(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "install", mobyModule+"/cmd/dockerd@"+mobyVersion, mobyModule+"/cmd/docker-proxy@"+mobyVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+filepath.Join(dir, "usr/sbin"), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go install: %w: %s", err, tail(string(out), 5))
	}
	return nil
}

// aptMirror is where this machine gets its own Debian packages from.
func aptMirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("find Debian mirror: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		// Not bookworm-updates, nor another archive's suites.
		if uri, release, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.ContainsAny(release, "-/") {
			return uri, nil
		}
	}
	return "", fmt.Errorf("find Debian mirror: apt knows none; add one to its sources")
}
