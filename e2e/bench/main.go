// Command bench measures ways between two hosts of a lab, side by side in
// interleaved rounds: the plain host path, Docker's own drivers (Swarm overlay,
// macvlan, ipvlan) and isthmus in the same modes. Of each it takes TCP throughput,
// TCP request-response times, and the processor time that a packet costs. It
// prints tables of medians and of ratios within a round, with their spread;
// absolute figures of a shared machine mean little. It also measures requests for
// addresses.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const driver = "isthmus:latest"

// options say what to measure, and for how long.
type options struct {
	rounds  int
	blocks  int
	streams int
	length  time.Duration
	paths   string
	plugin  string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 8, "interleaved rounds of the paths; 0 leaves them out")
	flag.IntVar(&o.blocks, "refills", 200, "blocks that each host leases; 0 leaves that out")
	// Several keep all processors busy, so that throughput shows what a path
	// costs and not how fast one process copies.
	flag.IntVar(&o.streams, "streams", 4, "connections at once, where there are several")
	flag.DurationVar(&o.length, "for", 3*time.Second, "length of each measurement")
	flag.StringVar(&o.paths, "paths", "vxlan,macvlan,ipvlan", "what to take paths of (vxlan: and host-gw and routed); what the kernel lacks is left out")
	flag.StringVar(&o.plugin, "plugin", "build/plugin", "directory of the managed plugin")
	release := flag.String("machine", "", "Debian release whose kernel to measure on, such as bookworm, in an emulated machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx, *release); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context, release string) error {
	kinds, tunnels, err := o.kinds()
	if err != nil {
		return err
	}
	if o.plugin, err = filepath.Abs(o.plugin); err != nil {
		return err
	}
	if release != "" {
		return inMachine(ctx, release, o.plugin, []string{"-rounds", fmt.Sprint(o.rounds), "-refills", fmt.Sprint(o.blocks),
			"-streams", fmt.Sprint(o.streams), "-for", o.length.String(), "-paths", o.paths})
	}
	if o.rounds > 0 && tunnels {
		if err := tunnel(ctx, o); err != nil {
			return err
		}
	}
	if o.rounds > 0 && len(kinds) > 0 {
		if err := lan(ctx, o, kinds); err != nil {
			return err
		}
	}
	if o.blocks > 0 {
		return refills(ctx, o.blocks, o.plugin)
	}
	return nil
}

// kinds understands what to take paths of.
func (o options) kinds() (kinds []lanKind, tunnels bool, err error) {
	for name := range strings.SplitSeq(o.paths, ",") {
		i := slices.IndexFunc(lanKinds, func(k lanKind) bool { return k.name == name })
		switch {
		case name == "vxlan":
			tunnels = true
		case i < 0:
			return nil, false, fmt.Errorf("paths of %q: use some of vxlan, macvlan and ipvlan, with commas between", name)
		default:
			kinds = append(kinds, lanKinds[i])
		}
	}
	return kinds, tunnels, nil
}

// report measures the paths and prints the tables, and under what conditions
// they came to be.
func report(ctx context.Context, o options, l *lab.Lab, paths []*path, compare []ratio) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	engine, err := l.Host(1).Docker(ctx, "version", "-f", "{{.Server.Version}}")
	if err != nil {
		return err
	}
	before, err := load()
	if err != nil {
		return err
	}
	if err := measure(ctx, o, paths); err != nil {
		return err
	}
	after, err := load()
	if err != nil {
		return err
	}
	fmt.Printf("\n%s\nMedians of %d interleaved rounds of %s each, in parentheses the middle half of them; ratios are of the same round.\n"+
		"Linux %s, engine %s, %d processors, load %s before and %s after.\n", tables(paths, compare, o.streams),
		o.rounds, o.length, unix.ByteSliceToString(name.Release[:]), engine, runtime.NumCPU(), before, after)
	return nil
}

// load is the machine's average of the last minute.
func load() (string, error) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	minute, _, _ := strings.Cut(string(b), " ")
	return minute, nil
}
