//go:build e2e && engines

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestDockerfile builds the rootfs of the plugin as the Dockerfile says, without
// any network, and compares it with the one that scripts/plugin made.
func TestDockerfile(t *testing.T) {
	l := lab.New(t, lab.Config{Hosts: 1})
	h, want := l.Host(1), filepath.Join(pluginDir(t), "rootfs")
	said := lab.Must(t)(output(t.Context(), nil, filepath.Join(want, "isthmus"), "version"))
	version, ok := strings.CutPrefix(said, "isthmus ")
	if !ok {
		t.Fatalf("isthmus version printed %q", said)
	}
	importGo(t, h, toolchainOf(t, "../Dockerfile"))

	const source, built = "/var/tmp/isthmus", "/var/tmp/rootfs"
	if err := h.CopyDir("..", source); err != nil {
		t.Fatal(err)
	}
	build(t, h, "--network", "none", "--build-arg", "VERSION="+version, "--output", built, source)

	if d := cmp.Diff(files(t, want), files(t, h.Path(built))); d != "" {
		t.Errorf("the Dockerfile makes another rootfs (+) than scripts/plugin (-), if that ran on this source:\n%s", d)
	}
}

// toolchainOf returns the image that a Dockerfile begins with.
func toolchainOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	from := regexp.MustCompile(`(?m)^FROM (golang:\S+) AS build$`).FindSubmatch(b)
	if from == nil {
		t.Fatalf("%s begins with no image of golang", path)
	}
	return string(from[1])
}

// importGo makes an image of that name out of this machine's Go, so that none
// is fetched. It differs from the real one in that a shell is all it has beside
// Go, and that modules come out of a directory.
func importGo(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	ctx, must := t.Context(), lab.Must(t)
	const dir = "/var/tmp/golang"
	if err := os.MkdirAll(h.Path(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	root := must(output(ctx, nil, "go", "env", "GOROOT"))
	// Debian's has symbolic links to other places.
	must(output(ctx, nil, "cp", "-rL", root, h.Path(dir+"/go")))
	if err := h.CopyDir(modules(t), dir+"/modules"); err != nil {
		t.Fatal(err)
	}
	dockerfile := "FROM " + lab.Image + `
ENV GOPATH=/go GOTOOLCHAIN=local GOPROXY=file:///modules PATH=/usr/local/go/bin:/bin
COPY go /usr/local/go
COPY modules /modules
`
	if err := h.WriteFile(dir+"/Dockerfile", dockerfile, 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, h, "--tag", name, dir)
}

// modules returns a directory with what the module needs to be built, laid out
// as a module proxy. It comes out of the machine's module cache.
func modules(t *testing.T) string {
	t.Helper()
	ctx, must := t.Context(), lab.Must(t)
	must(output(ctx, nil, "go", "mod", "download")) // what only other platforms need may be missing
	cache := must(output(ctx, nil, "go", "env", "GOMODCACHE"))
	dir := t.TempDir()
	proxy := "file://" + filepath.Join(cache, "cache/download")
	must(output(ctx, []string{"GOMODCACHE=" + dir, "GOPROXY=" + proxy, "GOSUMDB=off"}, "go", "mod", "download", "-modcacherw"))
	return filepath.Join(dir, "cache/download")
}

// build runs docker build with BuildKit, which --output needs.
func build(t *testing.T, h *lab.Host, args ...string) {
	t.Helper()
	lab.Must(t)(h.Exec(t.Context(), append([]string{"env", "DOCKER_BUILDKIT=1", "docker", "build", "--progress", "plain"}, args...)...))
}

// output runs a command of this machine, in this directory, and returns what it
// printed. env is added to the machine's.
func output(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// files describes all below a directory: mode, owner, content.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		all[name] = fmt.Sprintf("%s %d:%d", info.Mode(), owner.Uid, owner.Gid)
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all[name] += fmt.Sprintf(" %d bytes, SHA-256 %x", len(content), sha256.Sum256(content))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("%s is empty", dir)
	}
	return all
}
