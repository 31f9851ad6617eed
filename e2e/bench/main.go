// Command bench measures, side by side in interleaved rounds on one lab of two
// hosts, the plain host path, Docker's Swarm overlay, and isthmus in both attach
// kinds: TCP throughput, TCP request-response times, and the processor time that
// a packet costs. It prints medians and their ratios; absolute figures of a
// shared machine mean little.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

func main() {
	rounds := flag.Int("rounds", 8, "interleaved rounds of the paths; 0 leaves them out")
	blocks := flag.Int("refills", 200, "blocks that each host leases; 0 leaves that out")
	// Several keep all processors busy, so that throughput shows what a path
	// costs and not how fast one process copies.
	streams := flag.Int("streams", 4, "connections at once, for throughput")
	length := flag.Duration("for", 3*time.Second, "length of each measurement")
	plugin := flag.String("plugin", "build/plugin", "directory of the managed plugin")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := filepath.Abs(*plugin)
	if err == nil && *rounds > 0 {
		err = run(ctx, *rounds, *streams, *length, dir)
	}
	if err == nil && *blocks > 0 {
		err = refills(ctx, *blocks, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A path is one way from host 2 to host 1.
type path struct {
	name string
	ask  func(ctx context.Context, args ...string) (string, error) // runs box on host 2's end
	addr string                                                    // of host 1's end
	ends [2]end
	mbit []float64
	p50  []float64
	p99  []float64
}

const driver = "isthmus:latest"

func run(ctx context.Context, rounds, streams int, length time.Duration, plugin string) (err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: 2, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); err == nil {
			err = downErr
		}
	}()
	paths, err := prepare(ctx, l, plugin)
	if err != nil {
		return err
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, rounds)
		for i := range paths {
			// Each round begins with another path, so that none profits from its place.
			if err := paths[(i+round)%len(paths)].measure(ctx, streams, length); err != nil {
				return err
			}
		}
	}
	show(paths)
	if err := showCosts(paths); err != nil {
		return err
	}
	return starts(ctx, l, rounds)
}

// prepare makes the four paths, with containers at both ends of three of them.
func prepare(ctx context.Context, l *lab.Lab, plugin string) ([]*path, error) {
	ref, err := l.PushPlugin(ctx, plugin)
	if err != nil {
		return nil, err
	}
	if err := l.Swarm(ctx, "overlay"); err != nil {
		return nil, err
	}
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "JOIN=host1,host2", "CLUSTER_KEY=only for the benchmark"); err != nil {
			return nil, err
		}
	}
	for _, h := range l.Hosts() {
		for i, attach := range []string{"macvlan", "bridge"} {
			if _, err := h.Docker(ctx, "network", "create", "-d", driver, "--ipam-driver", driver, "--scope", "local",
				"--subnet", fmt.Sprintf("10.%d.0.0/24", 61+i), "-o", "attach="+attach, "by-"+attach); err != nil {
				return nil, err
			}
		}
	}
	var inside [2]string // what is to be seen of hosts 2 and 1 in /proc
	for i, h := range []*lab.Host{l.Host(2), l.Host(1)} {
		serve := h.Command(ctx, "box", "serve")
		if err := serve.Start(); err != nil {
			return nil, err
		}
		inside[i] = fmt.Sprintf("/proc/%d", serve.Process.Pid)
	}
	paths := []*path{{
		name: "plain host path", addr: l.Host(1).IP().String(),
		ends: [2]end{{inside[0] + "/ns/net", l.Host(2).IP()}, {inside[1] + "/ns/net", l.Host(1).IP()}},
		ask: func(ctx context.Context, args ...string) (string, error) {
			return l.Host(2).Exec(ctx, append([]string{"box"}, args...)...)
		},
	}}
	for _, network := range []string{"overlay", "by-macvlan", "by-bridge"} {
		var ends [2]end
		for i, at := range []struct {
			host *lab.Host
			name string
		}{{l.Host(2), "ask-" + network}, {l.Host(1), "serve-" + network}} {
			if _, err := at.host.Docker(ctx, "run", "-d", "--name", at.name, "--network", network, lab.Image, "box", "serve"); err != nil {
				return nil, err
			}
			out, err := at.host.Docker(ctx, "inspect", "-f", "{{.NetworkSettings.SandboxKey}} {{(index .NetworkSettings.Networks \""+network+"\").IPAddress}}", at.name)
			if err != nil {
				return nil, err
			}
			sandbox, addr, _ := strings.Cut(strings.TrimSpace(out), " ")
			// Seen from here, the host's symbolic link /var/run would lead to this machine's /run.
			ends[i].space = inside[i] + "/root" + strings.TrimPrefix(sandbox, "/var")
			if ends[i].addr, err = netip.ParseAddr(addr); err != nil {
				return nil, err
			}
		}
		name := "isthmus vxlan, " + strings.TrimPrefix(network, "by-")
		if network == "overlay" {
			name = "Docker's Swarm overlay"
		}
		paths = append(paths, &path{name: name, addr: ends[1].addr.String(), ends: ends,
			ask: func(ctx context.Context, args ...string) (string, error) {
				return l.Host(2).Docker(ctx, append([]string{"exec", "ask-" + network, "box"}, args...)...)
			}})
	}
	return paths, nil
}

func (p *path) measure(ctx context.Context, streams int, length time.Duration) error {
	var stream struct{ MbitPerSecond float64 }
	if err := p.ask1(ctx, &stream, "throughput", "--streams", fmt.Sprint(streams), "--for", length.String(), p.addr); err != nil {
		return err
	}
	var rr struct{ P50Micros, P99Micros float64 }
	if err := p.ask1(ctx, &rr, "rr", "--for", length.String(), p.addr); err != nil {
		return err
	}
	p.mbit = append(p.mbit, stream.MbitPerSecond)
	p.p50 = append(p.p50, rr.P50Micros)
	p.p99 = append(p.p99, rr.P99Micros)
	return nil
}

func (p *path) ask1(ctx context.Context, into any, args ...string) error {
	out, err := p.ask(ctx, args...)
	if err == nil {
		err = json.Unmarshal([]byte(out), into)
	}
	if err != nil {
		return fmt.Errorf("measure %s by %v: %w", p.name, args, err)
	}
	return nil
}

func show(paths []*path) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "path\tMbit/s\tp50 µs\tp99 µs\tthroughput / overlay\tp50 / overlay\tp99 / overlay\tthroughput / plain\tp50 / plain")
	plain, overlay := paths[0], paths[1]
	for _, p := range paths {
		fmt.Fprintf(w, "%s\t%.0f\t%.1f\t%.1f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\n", p.name, median(p.mbit), median(p.p50), median(p.p99),
			median(p.mbit)/median(overlay.mbit), median(p.p50)/median(overlay.p50), median(p.p99)/median(overlay.p99),
			median(p.mbit)/median(plain.mbit), median(p.p50)/median(plain.p50))
	}
	w.Flush()
	fmt.Printf("medians of %d interleaved rounds\n", len(plain.mbit))
}

// showCosts measures and prints the processor time of each path.
func showCosts(paths []*path) error {
	var ends [][2]end
	for _, p := range paths {
		ends = append(ends, p.ends)
	}
	spent, err := costs(ends, 100)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "path\tprocessor µs of a round trip\t/ overlay\t/ plain")
	for i, p := range paths {
		fmt.Fprintf(w, "%s\t%.1f\t%.2f\t%.2f\n", p.name, spent[i], spent[i]/spent[1], spent[i]/spent[0])
	}
	return w.Flush()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
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
