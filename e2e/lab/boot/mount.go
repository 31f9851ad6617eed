package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const machine = "/.machine" // the machine's root, while the host's is being built

// mountAll makes the host's own root. All mounts are shared in the end, as
// systemd leaves them on a real host: plugins receive new sandboxes that way.
func mountAll(c Config) error {
	cgroups, err := cgroupMounts()
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("detach mounts from the machine: %w", err)
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", c.Lower, c.Disk, c.Work)
	if err := unix.Mount("overlay", c.Root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mount disk on %s (%s): %w; an overlay cannot lie on another one, name a directory elsewhere in ISTHMUS_LAB_DIR", c.Root, layers, err)
	}
	if err := os.MkdirAll(c.Root+machine, 0o755); err != nil {
		return err
	}
	if err := unix.PivotRoot(c.Root, c.Root+machine); err != nil {
		return fmt.Errorf("change root to %s: %w", c.Root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}

	m := mounter{}
	m.mount("proc", "/proc", "proc", 0, "")
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.mount(machine+"/dev", "/dev", "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	m.mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	for target, source := range c.Binds {
		m.mount(machine+source, target, "", unix.MS_BIND, "")
	}
	for _, dir := range []string{"/lib/modules", "/run/lock", "/etc/docker"} {
		m.mkdir(dir)
	}
	m.cgroups(cgroups)
	if m.err != nil {
		return m.err
	}

	if err := unix.Unmount(machine, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	os.Remove(machine)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// mounter keeps the first error, so that a list of mounts reads as a list.
type mounter struct{ err error }

func (m *mounter) mkdir(dir string) {
	if m.err == nil {
		m.err = os.MkdirAll(dir, 0o755)
	}
}

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	m.mkdir(target)
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s on %s: %w", filepath.Base(source), target, err)
	}
}

// cgroups mounts what the machine has, which in the host's cgroup namespace
// shows the host's part of it alone. With cgroup2 a group that has processes
// cannot have limited children, so the host's own move into a child first.
func (m *mounter) cgroups(list []cgroupMount) {
	for i, c := range list {
		if i == 0 && c.dir != cgroupRoot {
			m.mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755")
		}
		m.mount(c.kind, c.dir, c.kind, 0, c.options)
		if c.kind != "cgroup2" || m.err != nil {
			continue
		}
		m.mkdir(filepath.Join(c.dir, hostGroup))
		if m.err == nil {
			m.err = os.WriteFile(filepath.Join(c.dir, hostGroup, "cgroup.procs"), []byte("0"), 0)
		}
		enableControllers(c.dir)
	}
}

// cgroupMounts lists the machine's mounts of cgroup hierarchies.
func cgroupMounts() ([]cgroupMount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []cgroupMount
	for line := range strings.Lines(string(b)) {
		fields, rest, ok := strings.Cut(line, " - ")
		f, r := strings.Fields(fields), strings.Fields(rest)
		if !ok || len(f) < 5 || len(r) < 3 || (r[0] != "cgroup" && r[0] != "cgroup2") {
			continue
		}
		c := cgroupMount{kind: r[0], dir: f[4]}
		if c.kind == "cgroup" {
			var options []string
			for o := range strings.SplitSeq(r[2], ",") {
				if o != "rw" && o != "ro" {
					options = append(options, o)
				}
			}
			c.options = strings.Join(options, ",")
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("find cgroups: none is mounted; mount cgroup2 on %s", cgroupRoot)
	}
	return list, nil
}
