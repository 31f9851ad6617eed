// Package tree makes the directories of files that hosts and machines of a lab
// start from, out of Debian's packages, and keeps them in a cache: they take
// minutes to make, and are only read afterwards.
package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cacheDir holds what is costly to make again.
func cacheDir() string {
	if dir := os.Getenv("ISTHMUS_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/isthmus-lab"
}

// Cached returns a directory of the cache, filled by fill if it is not there.
// Only one process fills at a time; what fill leaves behind when it fails is
// removed.
func Cached(name string, fill func(dir string) error) (string, error) {
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return "", fmt.Errorf("make tree %s: %w", name, err)
	}
	f, err := os.OpenFile(filepath.Join(cacheDir(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("make tree %s: %w", name, err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("make tree %s: lock cache: %w", name, err)
	}
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

// Debian fills dir with the base system of a release and the packages named.
func Debian(ctx context.Context, release string, packages []string, dir string) error {
	mirror, err := aptMirror(ctx)
	if err != nil {
		return err
	}
	include := "--include=" + strings.Join(packages, ",")
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", include, release, dir, mirror)
	cmd.Env = append(os.Environ(), "INITRD=No") // a kernel's package makes none, which would take longer than all else
	// What it mounts there ends with it, whatever ends it, and is not in the tree.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
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

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
