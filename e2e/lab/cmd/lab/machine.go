package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab/machine"
)

type machineCmd struct {
	Release string `help:"Debian release whose kernel and engine to run: bookworm has Linux 6.1, trixie 6.12." default:"bookworm"`
	Console string `help:"File that gets what the kernel says." default:"build/console"`

	Disk machineDiskCmd `cmd:"" help:"Make what a machine starts from, if the cache has it not."`
	Test machineTestCmd `cmd:"" help:"Run tests in a machine; prints what go test -json prints."`
	Exec machineExecCmd `cmd:"" help:"Start a machine, run a command on it, power it off."`
}

func (m *machineCmd) disk(ctx context.Context) (machine.Disk, error) {
	return machine.DiskOf(ctx, m.Release, progress)
}

func progress(step string) { fmt.Fprintln(os.Stderr, "machine:", step) }

type machineDiskCmd struct{}

func (*machineDiskCmd) Run(ctx context.Context, c *commands) error {
	_, err := c.Machine.disk(ctx)
	return err
}

type machineTestCmd struct {
	Packages []string      `arg:"" help:"As for go test."`
	Tags     string        `help:"Build tags, joined by commas."`
	Pattern  string        `name:"run" help:"Pattern, as for go test." default:"."`
	Limit    time.Duration `help:"For the tests of a package." default:"20m"`
	Plugin   string        `help:"Directory of the managed plugin." default:"build/plugin"`
}

func (m *machineTestCmd) Run(ctx context.Context, c *commands) error {
	d, err := c.Machine.disk(ctx)
	if err != nil {
		return err
	}
	return machine.Test(ctx, d, machine.Suite{
		Packages: m.Packages, Tags: m.Tags, Run: m.Pattern, Limit: m.Limit, Plugin: m.Plugin, Console: c.Machine.Console,
	}, os.Stdout, progress)
}

type machineExecCmd struct {
	Args []string `arg:"" passthrough:"" help:"Command and its arguments."`
}

func (m *machineExecCmd) Run(ctx context.Context, c *commands) error {
	d, err := c.Machine.disk(ctx)
	if err != nil {
		return err
	}
	console, err := filepath.Abs(c.Machine.Console)
	if err != nil {
		return err
	}
	payload, err := os.MkdirTemp("", "isthmus-machine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(payload)
	var p printer
	if err := machine.Run(ctx, d, payload, console, []machine.Job{{Args: m.Args}}, &p, progress); err != nil {
		return err
	}
	if p.status != 0 {
		return fmt.Errorf("the command ended with status %d", p.status)
	}
	return nil
}

// printer shows what one command prints.
type printer struct{ status int }

func (*printer) Begin(int) error { return nil }

func (*printer) Line(line []byte) error {
	_, err := os.Stdout.Write(line)
	return err
}

func (p *printer) End(status int) error {
	p.status = status
	return nil
}
