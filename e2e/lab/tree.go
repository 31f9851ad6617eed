package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// treePackages is what a host needs of Debian, beyond the base system.
const treePackages = "docker.io,docker-cli,docker-compose,iptables,nftables,iproute2,procps,kmod,ca-certificates"

// engineTree returns the directory whose files a host with that engine starts
// from, and makes it if there is none yet, which takes minutes.
func engineTree(ctx context.Context, engine string, progress func(string)) (string, error) {
	if engine == "" {
		return "/", nil
	}
	tree := filepath.Join(cacheDir(), engine)
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return "", fmt.Errorf("make tree of %s: %w", engine, err)
	}
	f, err := os.OpenFile(filepath.Join(cacheDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("make tree of %s: %w", engine, err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("make tree of %s: %w", engine, err)
	}
	if _, err := os.Stat(tree); err == nil {
		return tree, nil
	}
	progress("fetching the engine of Debian " + engine)
	mirror, err := aptMirror(ctx)
	if err != nil {
		return "", err
	}
	half := tree + ".new"
	if err := os.RemoveAll(half); err != nil {
		return "", err
	}
	packages := treePackages
	if engine == "bookworm" {
		packages = strings.Replace(packages, "docker-cli,", "", 1) // part of docker.io there
	}
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+packages, engine, half, mirror)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make tree of %s: %w: %s", engine, err, tail(string(out), 5))
	}
	return tree, os.Rename(half, tree)
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
