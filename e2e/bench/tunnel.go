package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// tunnel measures isthmus in both attach kinds, and without a tunnel, beside Docker's
// Swarm overlay, and how soon another host knows of a container.
func tunnel(ctx context.Context, o options) (err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: 2, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); err == nil {
			err = downErr
		}
	}()
	paths, err := tunnelPaths(ctx, l, o.plugin)
	if err != nil {
		return err
	}
	var compare []ratio
	plain, overlay := paths[0], paths[1]
	for _, to := range []*path{overlay, plain} {
		for _, of := range paths {
			if of != to {
				compare = append(compare, ratio{of, to})
			}
		}
	}
	if err := report(ctx, o, l, paths, compare); err != nil {
		return err
	}
	return starts(ctx, l, o.rounds)
}

// tunnelPaths makes the paths, with containers at both ends of all but the first.
func tunnelPaths(ctx context.Context, l *lab.Lab, plugin string) ([]*path, error) {
	ref, err := l.PushPlugin(ctx, plugin)
	if err != nil {
		return nil, err
	}
	if err := l.Swarm(ctx, "overlay"); err != nil {
		return nil, err
	}
	progress("installing the plugin")
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "JOIN=host1,host2", "CLUSTER_KEY=only for the benchmark"); err != nil {
			return nil, err
		}
	}
	for _, h := range l.Hosts() {
		for i, option := range []string{"attach=macvlan", "attach=bridge", "mode=host-gw", "mode=routed"} {
			_, name, _ := strings.Cut(option, "=")
			if _, err := h.Docker(ctx, "network", "create", "-d", driver, "--ipam-driver", driver, "--scope", "local",
				"--subnet", fmt.Sprintf("10.%d.0.0/24", 61+i), "-o", option, "by-"+name); err != nil {
				return nil, err
			}
		}
	}
	plain, err := hostPath(ctx, l)
	if err != nil {
		return nil, err
	}
	paths := []*path{plain}
	for _, p := range []struct{ name, network string }{
		{"Docker's Swarm overlay", "overlay"},
		{"isthmus vxlan, macvlan", "by-macvlan"},
		{"isthmus vxlan, bridge", "by-bridge"},
		{"isthmus host-gw", "by-host-gw"},
		{"isthmus routed", "by-routed"},
	} {
		made, err := containerPath(ctx, l, p.name, p.network)
		if err != nil {
			return nil, err
		}
		paths = append(paths, made)
	}
	return paths, nil
}

// starts measures how long after a container's start on host 1 the forwarding
// entry for it is on host 2, beside how long the start itself takes.
func starts(ctx context.Context, l *lab.Lab, rounds int) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	monitor := l.Host(2).Command(watching, "stdbuf", "-oL", "bridge", "monitor", "fdb")
	out, err := monitor.StdoutPipe()
	if err != nil {
		return err
	}
	if err := monitor.Start(); err != nil {
		return err
	}
	type sighting struct {
		line string
		at   time.Time
	}
	seen := make(chan sighting, 1024)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			seen <- sighting{scan.Text(), time.Now()}
		}
	}()
	var run, entry []float64
	for i := range rounds {
		name := fmt.Sprintf("start-%d", i)
		begin := time.Now()
		if _, err := l.Host(1).Docker(ctx, "run", "-d", "--name", name, "--network", "by-macvlan", lab.Image, "box", "serve"); err != nil {
			return err
		}
		run = append(run, float64(time.Since(begin).Milliseconds()))
		mac, err := l.Host(1).Docker(ctx, "inspect", "-f", "{{(index .NetworkSettings.Networks \"by-macvlan\").MacAddress}}", name)
		if err != nil {
			return err
		}
		for deadline := time.After(10 * time.Second); ; {
			select {
			case s := <-seen:
				if !strings.HasPrefix(s.line, strings.TrimSpace(mac)) {
					continue
				}
				entry = append(entry, float64(s.at.Sub(begin).Milliseconds()))
			case <-deadline:
				return fmt.Errorf("measure starts: host 2 never had an entry for %s", name)
			}
			break
		}
	}
	fmt.Printf("start of a container on host 1: docker run returns after %.0f ms, host 2 has its forwarding entry after %.0f ms (medians of %d)\n",
		median(run), median(entry), rounds)
	return nil
}
