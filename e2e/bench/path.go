package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// A path is one way from host 2 to host 1, and what was measured of it, one
// figure a round.
type path struct {
	name    string
	ends    [2]end // on host 2, which asks, and on host 1, which serves
	asks    *lab.Host
	sandbox string // whose network the one that asks is in; empty: the host's
	figures [len(measures)][]float64
}

// measures are the columns of the tables.
var measures = [...]struct{ name, format string }{
	one:       {"1 connection, Mbit/s", "%.0f"},
	several:   {"%d connections, Mbit/s", "%.0f"},
	p50:       {"round trip p50, µs", "%.1f"},
	p99:       {"round trip p99, µs", "%.1f"},
	processor: {"processor µs of a round trip", "%.1f"},
}

const (
	one = iota
	several
	p50
	p99
	processor
)

// batchesPerRound are those of costs, at about 20 ms each.
const batchesPerRound = 20

// hostPath is from one host to the other, without any container.
func hostPath(ctx context.Context, l *lab.Lab) (*path, error) {
	if err := l.Host(1).Command(ctx, "box", "serve").Start(); err != nil {
		return nil, err
	}
	p := &path{name: plainName, asks: l.Host(2)}
	for i, h := range []*lab.Host{l.Host(2), l.Host(1)} {
		p.ends[i] = end{h.Path("/proc/1/ns/net"), h.IP()}
	}
	return p, nil
}

const plainName = "plain host path"

// containerPath starts a container at both ends, on a network that both hosts have.
func containerPath(ctx context.Context, l *lab.Lab, name, network string) (*path, error) {
	progress("starting containers of " + name)
	p := &path{name: name, asks: l.Host(2)}
	for i, h := range []*lab.Host{l.Host(2), l.Host(1)} {
		id, err := h.Docker(ctx, "run", "-d", "--network", network, lab.Image, "box", "serve")
		if err != nil {
			return nil, err
		}
		out, err := h.Docker(ctx, "inspect", "-f", "{{.NetworkSettings.SandboxKey}} {{(index .NetworkSettings.Networks \""+network+"\").IPAddress}}", id)
		if err != nil {
			return nil, err
		}
		sandbox, addr, _ := strings.Cut(out, " ")
		// Seen from here, the host's symbolic link /var/run would lead to this machine's /run.
		p.ends[i].space = h.Path(strings.TrimPrefix(sandbox, "/var"))
		if p.ends[i].addr, err = netip.ParseAddr(addr); err != nil {
			return nil, fmt.Errorf("find %s of %s on %s: %w", id, network, h.Name, err)
		}
		if i == 0 {
			p.sandbox = sandbox
		}
	}
	return p, nil
}

// ask runs a measurement of box at the path's asking end. In a container it is
// entered without the engine, which would take longer than a measurement does.
func (p *path) ask(ctx context.Context, into any, args ...string) error {
	args = append(append([]string{"box"}, args...), p.ends[1].addr.String())
	if p.sandbox != "" {
		args = append([]string{"nsenter", "--net=" + p.sandbox}, args...)
	}
	out, err := p.asks.Exec(ctx, args...)
	if err == nil {
		err = json.Unmarshal([]byte(out), into)
	}
	if err != nil {
		return fmt.Errorf("measure %s by %v: %w", p.name, args, err)
	}
	return nil
}

func (p *path) note(measure int, figure float64) {
	p.figures[measure] = append(p.figures[measure], figure)
}

func (p *path) throughput(ctx context.Context, measure, streams int, length time.Duration) error {
	var got struct{ MbitPerSecond float64 }
	err := p.ask(ctx, &got, "throughput", "--streams", fmt.Sprint(streams), "--for", length.String())
	p.note(measure, got.MbitPerSecond)
	return err
}

func (p *path) roundTrips(ctx context.Context, length time.Duration) error {
	var got struct{ P50Micros, P99Micros float64 }
	err := p.ask(ctx, &got, "rr", "--for", length.String())
	p.note(p50, got.P50Micros)
	p.note(p99, got.P99Micros)
	return err
}

// measure takes rounds: in each, one measurement of all paths, then the next, so
// that what is compared is close in time.
func measure(ctx context.Context, o options, paths []*path) error {
	for round := range o.rounds {
		progress(fmt.Sprintf("round %d of %d", round+1, o.rounds))
		for _, step := range []func(p *path) error{
			func(p *path) error { return p.throughput(ctx, one, 1, o.length) },
			func(p *path) error { return p.throughput(ctx, several, o.streams, o.length) },
			func(p *path) error { return p.roundTrips(ctx, o.length) },
		} {
			for i := range paths {
				// Each round begins with another path, so that none profits from its place.
				if err := step(paths[(i+round)%len(paths)]); err != nil {
					return err
				}
			}
		}
		var ends [][2]end
		for _, p := range paths {
			ends = append(ends, p.ends)
		}
		spent, err := costs(ends, batchesPerRound)
		if err != nil {
			return err
		}
		for i, p := range paths {
			p.note(processor, spent[i])
		}
	}
	return nil
}
