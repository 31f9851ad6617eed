package machine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

const payloadDir = "/isthmus" // where the machine finds the second disk

// initrdModules is what it takes to find the disks and the port.
var initrdModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4"}

const initrdScript = `#!/bin/busybox sh
die() { echo "initrd: $*"; exec /bin/busybox reboot -f; }
/bin/busybox mount -t devtmpfs dev /dev || die "no /dev"
while read -r module; do
	/bin/busybox insmod "/modules/$module" || die "load $module"
done </modules/list
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || die "no disk"
/bin/busybox mount -t ext4 -o ro /dev/vdb /root` + payloadDir + ` || die "no payload"
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /bin/sh ` + payloadDir + `/` + initFile + `
die "nothing to start"
`

// makeInitrd returns the initial RAM disk of the kernel in a tree.
func makeInitrd(ctx context.Context, root, version string) ([]byte, error) {
	var a archive
	for _, dir := range []string{"bin", "dev", "modules", "root"} {
		a.add(dir, 0o40755, nil)
	}
	a.device("dev/console", 0o20600, 5, 1) // else nobody hears what init says
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		return nil, fmt.Errorf("make initrd: %w", err)
	}
	a.add("bin/busybox", 0o100755, busybox)
	files, err := modules(ctx, root, version, initrdModules)
	if err != nil {
		return nil, fmt.Errorf("make initrd: %w", err)
	}
	var list strings.Builder
	for _, file := range files {
		content, err := uncompressed(ctx, file)
		if err != nil {
			return nil, fmt.Errorf("make initrd: %w", err)
		}
		name := strings.TrimSuffix(path.Base(file), ".xz")
		a.add("modules/"+name, 0o100644, content)
		fmt.Fprintln(&list, name)
	}
	a.add("modules/list", 0o100644, []byte(list.String()))
	a.add("init", 0o100755, []byte(initrdScript))
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes(), nil
}

// uncompressed reads a module: newer releases compress them, and busybox does
// not load those.
func uncompressed(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	content, err := exec.CommandContext(ctx, "xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("uncompress %s: %w", file, err)
	}
	return content, nil
}

// archive is a cpio archive as the kernel wants it, described in its
// Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	bytes.Buffer
	files int
}

func (a *archive) add(name string, mode int, content []byte) {
	a.entry(name, mode, content, 0, 0)
}

func (a *archive) device(name string, mode, major, minor int) {
	a.entry(name, mode, nil, major, minor)
}

func (a *archive) entry(name string, mode int, content []byte, major, minor int) {
	a.files++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.files, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(content)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
