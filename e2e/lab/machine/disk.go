package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/e2e/lab/tree"
)

// Disk is what a machine starts from: files that are only read.
type Disk struct {
	Release string // Debian's name of it
	Kernel  string // path of the kernel's image
	Initrd  string // path of what mounts the disk
	Image   string // path of the ext4 file system with everything else
}

// kernelPackage is the kernel without drivers of real hardware, which a machine
// has none of. Network modules are all there.
const kernelPackage = "linux-image-cloud-amd64"

// packages is what hosts, labs and their tests need inside a machine: what
// scripts/install brings, without that which builds, and without compose, which
// drags in as much as all else and has nothing to do with the kernel.
func packages(release string) []string {
	list := slices.DeleteFunc(tree.HostPackages(release), func(p string) bool { return p == "docker-compose" })
	return append(list, kernelPackage, "docker-registry", "busybox-static", "tcpdump", "ethtool", "dnsmasq-base", "iputils-ping")
}

// DiskOf returns the disk of a release, such as bookworm with Linux 6.1 or trixie
// with 6.12, and makes it when it is not in the cache, which takes minutes.
func DiskOf(ctx context.Context, release string, progress func(string)) (Disk, error) {
	made := sha256.Sum256(fmt.Append(nil, packages(release), initrdModules, initrdScript, payloadDir))
	dir, err := tree.Cached(fmt.Sprintf("machine-%s-%x", release, made[:4]), func(dir string) error {
		progress("fetching the kernel and the engine of Debian " + release)
		return makeDisk(ctx, release, dir)
	})
	in := func(file string) string { return filepath.Join(dir, file) }
	return Disk{Release: release, Kernel: in("vmlinuz"), Initrd: in("initrd"), Image: in("disk")}, err
}

func makeDisk(ctx context.Context, release, dir string) error {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := tree.Debian(ctx, release, packages(release), root); err != nil {
		return err
	}
	version, err := kernelOf(root)
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(root, "boot/vmlinuz-"+version), filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	initrd, err := makeInitrd(ctx, root, version)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd"), initrd, 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(root, "boot")); err != nil { // an initrd of Debian's, which no one reads
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, payloadDir), 0o755); err != nil {
		return err
	}
	if err := makeFileSystem(ctx, root, filepath.Join(dir, "disk"), 16<<30); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// kernelOf returns the version of the one kernel that a tree has.
func kernelOf(root string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, "lib/modules/*/modules.dep"))
	if err != nil || len(found) != 1 {
		return "", errors.Join(fmt.Errorf("find kernel in %s: %d with modules, want 1", root, len(found)), err)
	}
	return filepath.Base(filepath.Dir(found[0])), nil
}

// makeFileSystem writes a directory into a sparse image of an ext4 file system of
// size bytes, for which nothing needs to be mounted.
func makeFileSystem(ctx context.Context, dir, image string, size int64) error {
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", dir, image).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make file system of %s: %w: %s", dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// modules lists the files of a kernel's modules and of those they need, in the
// order in which they are to be loaded.
func modules(ctx context.Context, root, version string, names []string) ([]string, error) {
	args := append([]string{"--show-depends", "--dirname", root, "--set-version", version, "--all"}, names...)
	out, err := exec.CommandContext(ctx, "modprobe", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("find modules of Linux %s: %w: %s", version, err, bytes.TrimSpace(out))
	}
	var files []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "insmod" && !seen[f[1]] { // the rest is built in
			seen[f[1]] = true
			files = append(files, f[1])
		}
	}
	return files, nil
}
