package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/e2e/lab/tree"
)

const switchName = "switch"

// Lab is a set of hosts, other machines, and the switch between them. Its methods may be called
// concurrently.
type Lab struct {
	config Config
	dir    string
	sw     *node
	hosts  []*Host

	mu    sync.Mutex // guards state
	state state
}

// Up makes a lab, removing those that were left behind first. It returns when
// every engine answers and has the image [Image]. Unless detached, the lab ends
// with this process; Down must be called either way to remove it.
func Up(ctx context.Context, c Config) (*Lab, error) {
	c, err := c.checked()
	if err != nil {
		return nil, err
	}
	l, err := reserve(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx); err != nil {
		if ctx.Err() != nil { // what failed then failed for that
			err = fmt.Errorf("make lab: %w", context.Cause(ctx))
		}
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

// reserve takes an id for the lab, so that no one else takes or sweeps it.
func reserve(ctx context.Context, c Config) (*Lab, error) {
	unlock, err := lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := sweep(ctx); err != nil {
		return nil, err
	}
	if c.ID == "" {
		b := make([]byte, 3)
		rand.Read(b)
		c.ID = hex.EncodeToString(b)
	}
	if _, err := readState(c.ID); err == nil {
		return nil, fmt.Errorf("make lab: %q is up already; end it with `lab down --id %s`, or choose another id", c.ID, c.ID)
	}
	owner, err := processOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	l := assemble(state{Config: c, Dir: labDir(c.ID), Owner: owner, Since: time.Now(), Nodes: map[string]process{}})
	return l, l.state.write()
}

// assemble makes the values of a lab without starting anything.
func assemble(s state) *Lab {
	l := &Lab{config: s.Config, dir: s.Dir, state: s}
	l.sw = l.node(switchName)
	for i := 1; i <= s.Config.Hosts; i++ {
		h := &Host{node: l.node(fmt.Sprintf("host%d", i)), Index: i, lab: l}
		h.Name = h.name
		h.binds = map[string]string{"/var/lib/docker": filepath.Join(h.dir, "docker")}
		l.hosts = append(l.hosts, h)
	}
	return l
}

func (l *Lab) node(name string) *node {
	return &node{
		name: name, dir: filepath.Join(l.dir, name), cgroup: cgroupPath(l.config.ID) + "/" + name,
		lower: "/", first: l.state.Nodes[name],
	}
}

func (l *Lab) up(ctx context.Context) error {
	l.config.Progress("building the tool that runs on the hosts")
	if err := l.buildTool(ctx); err != nil {
		return err
	}
	image, err := buildImage(l.toolPath())
	if err != nil {
		return err
	}
	lower, err := tree.Engine(ctx, l.config.Engine, l.config.Progress)
	if err != nil {
		return err
	}
	l.config.Progress("starting the switch and the registry")
	if err := l.startSwitch(ctx); err != nil {
		return err
	}
	l.config.Progress(fmt.Sprintf("starting %d hosts and their engines", len(l.hosts)))
	l.state.Tree = lower
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range l.hosts {
		h.lower = lower
		g.Go(func() error {
			if err := h.install(); err != nil {
				return err
			}
			if err := h.powerOn(gctx); err != nil {
				return err
			}
			if err := h.StartEngine(gctx); err != nil {
				return err
			}
			return h.importImage(gctx, image)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Made = true
	return l.state.write()
}

// Attach returns a detached lab that another process made.
func Attach(id string) (*Lab, error) {
	s, err := readState(id)
	if err != nil {
		return nil, err
	}
	switch {
	case !s.live():
		return nil, fmt.Errorf("attach to lab %q: it has ended; `lab sweep` removes what is left of it", id)
	case !s.Config.Detached:
		return nil, fmt.Errorf("attach to lab %q: it belongs to process %d, and ends with that", id, s.Owner.Pid)
	case !s.Made:
		return nil, fmt.Errorf("attach to lab %q: process %d is still making it", id, s.Owner.Pid)
	}
	s.Config.Progress = func(string) {}
	l := assemble(s)
	for _, h := range l.hosts {
		h.lower = s.Tree
	}
	return l, nil
}

// Down ends every process of the lab and removes its disks.
func (l *Lab) Down() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return remove(ctx, l.config.ID, l.state)
}

// ID names the lab among those of the machine.
func (l *Lab) ID() string { return l.config.ID }

// Hosts returns all hosts, host1 first.
func (l *Lab) Hosts() []*Host { return append([]*Host(nil), l.hosts...) }

// Host returns host i, counted from 1.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// remember notes a node's new first process for other processes and for Sweep.
func (l *Lab) remember(n *node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Nodes[n.name] = n.pid()
	return l.state.write()
}

// forget is for a node that is gone for good.
func (l *Lab) forget(n *node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.state.Nodes, n.name)
	return l.state.write()
}
