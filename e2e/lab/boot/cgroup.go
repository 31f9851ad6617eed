package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	hostGroup  = "host" // where the host's own processes are in cgroup2
)

type cgroupMount struct {
	kind    string // cgroup or cgroup2
	dir     string
	options string // controllers or name of a version 1 hierarchy
}

// joinCgroups makes the group path in every hierarchy and moves this process
// into it.
func joinCgroups(path string) error {
	list, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, c := range list {
		dir := c.dir
		for name := range strings.SplitSeq(path, "/") {
			if c.kind == "cgroup2" {
				enableControllers(dir)
			}
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			inheritCpuset(dir)
		}
		if err := join(dir); err != nil {
			return err
		}
	}
	return nil
}

func join(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	return nil
}

// inheritCpuset gives a new version 1 cpuset its parent's CPUs: it starts with
// none, and then takes no process.
func inheritCpuset(dir string) {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		if parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err == nil {
			os.WriteFile(filepath.Join(dir, file), parent, 0)
		}
	}
}

// enableControllers passes each cgroup2 controller on to the children of a
// group. One that cannot be passed on is one that containers do without.
func enableControllers(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for name := range strings.FieldsSeq(string(b)) {
		os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0)
	}
}

// enter moves this process, which was brought into the host's namespaces from
// outside, into the host's cgroups, and runs a command in its place.
func enter(args []string) error {
	list, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, c := range list {
		dir := c.dir
		if c.kind == "cgroup2" {
			dir = filepath.Join(dir, hostGroup)
		}
		if err := join(dir); err != nil {
			return err
		}
	}
	if len(args) > 2 && args[0] == "-log" {
		return background(args[1], args[2:])
	}
	if len(args) == 0 {
		return errors.New("enter host: name a command")
	}
	program, err := lookPath(args[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", program, unix.Exec(program, args, os.Environ()))
}

// RemoveCgroups removes the group path and all below it from every hierarchy.
// Its processes must have ended.
func RemoveCgroups(path string) error {
	dirs, err := groups(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// CgroupProcesses lists the processes in the group path and all below it, as
// the machine numbers them.
func CgroupProcesses(path string) ([]int, error) {
	dirs, err := groups(path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // removed meanwhile
		}
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// groups lists the directories of the group path in all hierarchies, each
// before those in it.
func groups(path string) ([]string, error) {
	list, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, c := range list {
		filepath.WalkDir(filepath.Join(c.dir, path), func(dir string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, dir)
			}
			return nil
		})
	}
	return dirs, nil
}
