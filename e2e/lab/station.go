package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Station is a machine of the LAN that is no host: one interface, eth0, plugged
// into the switch. Its methods may be called concurrently.
type Station struct {
	Name string
	node *node
	lab  *Lab
}

// A station's port in the switch has its name; "-" is for further ports of hosts.
var stationPattern = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)

// Station adds a machine to the LAN with these addresses on its eth0, and no
// route but theirs. It ends with the lab, or with Station.Remove.
func (l *Lab) Station(ctx context.Context, name string, addrs ...netip.Prefix) (*Station, error) {
	if !stationPattern.MatchString(name) || name == "lo" || name == bridge {
		return nil, fmt.Errorf("add station %q: use up to 15 of a-z and 0-9, a letter first", name)
	}
	l.mu.Lock()
	_, taken := l.state.Nodes[name]
	l.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("add station %q: the lab has that name already", name)
	}
	s := &Station{Name: name, node: l.node(name), lab: l}
	if err := s.start(ctx, addrs); err != nil {
		return nil, errors.Join(fmt.Errorf("add station: %w", err), s.Remove(context.WithoutCancel(ctx)))
	}
	return s, nil
}

func (s *Station) start(ctx context.Context, addrs []netip.Prefix) error {
	if err := s.node.boot(s.lab.toolPath(), s.lab.config.Detached); err != nil {
		return err
	}
	if err := s.lab.remember(s.node); err != nil {
		return err
	}
	if err := s.lab.connect(ctx, s.node, s.Name, "eth0", ""); err != nil {
		return err
	}
	lines := []string{"link set lo up", "link set eth0 up"}
	for _, p := range addrs {
		line := fmt.Sprintf("addr add %s dev eth0", p)
		if p.Addr().Is6() {
			line += " nodad"
		}
		lines = append(lines, line)
	}
	return s.node.batch(ctx, lines...)
}

// Command prepares a command of this machine, with its files and its tools and
// the lab's own, box, that sees the station's network and ends with the station.
// Ending ctx kills it and its children.
func (s *Station) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := s.node.tool(ctx, args...)
	for i, v := range cmd.Env {
		if strings.HasPrefix(v, "PATH=") {
			cmd.Env[i] = v + ":" + filepath.Dir(s.lab.toolPath())
		}
	}
	return cmd
}

// Exec runs such a command and returns what it printed. The error holds what it
// printed to standard error.
func (s *Station) Exec(ctx context.Context, args ...string) (string, error) {
	return s.node.run(s.Command(ctx, args...), args)
}

// Remove ends all that runs on the station and takes it off the switch.
func (s *Station) Remove(ctx context.Context) error {
	if err := s.node.halt(ctx); err != nil {
		return err
	}
	if err := s.lab.unplug(ctx, s.Name); err != nil {
		return err
	}
	if err := s.lab.forget(s.node); err != nil {
		return err
	}
	return os.RemoveAll(s.node.dir)
}
