package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab/boot"
)

// state is what another process needs to know of a lab.
type state struct {
	Config Config             `json:"config"`
	Dir    string             `json:"dir"`   // the disks
	Tree   string             `json:"tree"`  // what the hosts' disks lie on
	Owner  process            `json:"owner"` // who ends it; for a detached lab, who is making it
	Made   bool               `json:"made"`
	Since  time.Time          `json:"since"`
	Nodes  map[string]process `json:"nodes"` // first process of the switch and each host
	Links  links              `json:"links"`
}

// live says whether somebody still wants the lab.
func (s state) live() bool {
	if s.Config.Detached && s.Made {
		return s.Nodes[switchName].alive()
	}
	return s.Owner.alive()
}

func readState(id string) (state, error) {
	var s state
	b, err := os.ReadFile(statePath(id))
	if err != nil {
		return s, fmt.Errorf("find lab %q: %w; `lab list` names those that are up", id, err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("read state of lab %q: %w", id, err)
	}
	return s, nil
}

func (s state) write() error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	path := statePath(s.Config.ID)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// lock holds off every other process that makes or sweeps labs.
func lock() (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, fmt.Errorf("lock labs: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(runDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock labs: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock labs: %w", err)
	}
	return func() { f.Close() }, nil
}

// Summary is a line of List.
type Summary struct {
	ID       string
	Hosts    int
	Engine   string
	Detached bool
	Live     bool // false: left behind, for Sweep
	Made     bool // false: not all of it is up yet
	Since    time.Time
}

// List returns the labs of the machine by id.
func List() ([]Summary, error) {
	ids, err := labIDs()
	if err != nil {
		return nil, err
	}
	var list []Summary
	for _, id := range ids {
		s, err := readState(id)
		if err != nil {
			list = append(list, Summary{ID: id})
			continue
		}
		list = append(list, Summary{ID: id, Hosts: s.Config.Hosts, Engine: s.Config.Engine, Detached: s.Config.Detached, Live: s.live(), Made: s.Made, Since: s.Since})
	}
	return list, nil
}

// labIDs names all labs of which something is left.
func labIDs() ([]string, error) {
	seen := map[string]bool{}
	for _, dir := range []string{runDir, diskDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list labs: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && idPattern.MatchString(e.Name()) {
				seen[e.Name()] = true
			}
		}
	}
	ids := make([]string, 0, len(seen))
	for id := range seen {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids, nil
}

// Sweep removes all that is left of labs whose owner is gone, and returns
// their ids. Labs that are up stay.
func Sweep(ctx context.Context) ([]string, error) {
	unlock, err := lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return sweep(ctx)
}

func sweep(ctx context.Context) ([]string, error) {
	ids, err := labIDs()
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	for _, id := range ids {
		s, err := readState(id)
		if err == nil && s.live() {
			continue
		}
		errs = append(errs, remove(ctx, id, s))
		swept = append(swept, id)
	}
	return swept, errors.Join(errs...)
}

// remove ends every process of a lab and removes its files.
func remove(ctx context.Context, id string, s state) error {
	for name, first := range s.Nodes {
		if err := first.kill(ctx); err != nil {
			return fmt.Errorf("end %s of lab %s: %w", name, id, err)
		}
	}
	// A maker that was killed may have booted a host that it had not noted yet.
	pids, err := boot.CgroupProcesses(cgroupPath(id))
	if err != nil {
		return fmt.Errorf("remove lab %s: %w", id, err)
	}
	for _, pid := range pids {
		if p, err := processOf(pid); err == nil {
			if err := p.kill(ctx); err != nil {
				return fmt.Errorf("remove lab %s: %w", id, err)
			}
		}
	}
	if err := removeCgroups(ctx, cgroupPath(id)); err != nil {
		return fmt.Errorf("remove lab %s: %w", id, err)
	}
	dir := s.Dir
	if dir == "" {
		dir = labDir(id)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove lab %s: %w", id, err)
	}
	return os.RemoveAll(filepath.Dir(statePath(id)))
}
