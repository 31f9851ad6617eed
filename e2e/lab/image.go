package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/isthmus-net/isthmus/e2e/lab/boot"
)

// Image is on every engine of a lab: busybox, and the tool box on its PATH.
const Image = "lab/box"

const (
	toolPackage = "github.com/isthmus-net/isthmus/e2e/lab/box"
	busybox     = "/bin/busybox"
)

// toolPath is where the machine has the tool, for as long as the lab is up.
func (l *Lab) toolPath() string { return filepath.Join(l.dir, "box") }

// prebuilt names the variable that holds the path of the tool where it cannot be
// built.
const prebuilt = "ISTHMUS_LAB_TOOL"

func (l *Lab) buildTool(ctx context.Context) error {
	if tool := os.Getenv(prebuilt); tool != "" {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, "cp", tool, l.toolPath()).CombinedOutput(); err != nil {
			return fmt.Errorf("copy the tool that %s names: %w: %s", prebuilt, err, out)
		}
		return nil
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", l.toolPath(), toolPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w; run it inside the repository: %s", toolPackage, err, out)
	}
	return nil
}

// installTool puts the tool on the disk of a node that is not up.
func installTool(tool string, n *node) error {
	path := n.disk(boot.Tool)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Link(tool, path)
}

// buildImage makes the file system of Image as a tar archive.
func buildImage(tool string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("build image: %w; scripts/install brings busybox", err)
	}
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(content)
		}
	}
	for _, dir := range []string{"bin", "sbin", "usr", "usr/bin", "usr/sbin", "etc", "root", "tmp", "var", "var/run", "proc", "sys", "dev"} {
		add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\n"))
	for name, path := range map[string]string{"bin/busybox": busybox, "bin/box": tool} {
		content, readErr := os.ReadFile(path)
		if readErr != nil {
			return nil, fmt.Errorf("build image: %w", readErr)
		}
		add(tar.Header{Name: name, Mode: 0o755}, content)
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	return b.Bytes(), nil
}

func (h *Host) importImage(ctx context.Context, image []byte) error {
	query := url.Values{"fromSrc": {"-"}, "repo": {Image}, "tag": {"latest"}, "changes": {`CMD ["/bin/sh"]`}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/images/create?"+query.Encode(), bytes.NewReader(image))
	if err != nil {
		return err
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		return fmt.Errorf("import image on %s: %w", h.Name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("import image on %s: %w", h.Name, err)
	}
	if resp.StatusCode != http.StatusOK || bytes.Contains(body, []byte(`"error"`)) {
		return fmt.Errorf("import image on %s: %s: %s", h.Name, resp.Status, body)
	}
	return nil
}
