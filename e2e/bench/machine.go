package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/isthmus-net/isthmus/e2e/lab/machine"
)

// inMachine runs this program with the given flags on the kernel of a Debian
// release, in a machine that is emulated: what it prints tells nothing but
// ratios.
func inMachine(ctx context.Context, release, plugin string, args []string) (err error) {
	disk, err := machine.DiskOf(ctx, release, progress)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "isthmus-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	payload := filepath.Join(dir, "payload")
	progress("building what runs in the machine")
	for _, program := range []string{"bench", "lab/box"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w",
			"-o", filepath.Join(payload, filepath.Base(program)), "github.com/isthmus-net/isthmus/e2e/"+program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the machine's C library is another
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w; run it inside the repository: %s", program, err, out)
		}
	}
	if err := os.CopyFS(filepath.Join(payload, "plugin"), os.DirFS(plugin)); err != nil {
		return err
	}
	job := machine.Job{Args: append([]string{"./bench", "-plugin", "plugin"}, args...)}
	var out printer
	if err := machine.Run(ctx, disk, payload, filepath.Join(dir, "console"), []machine.Job{job}, &out, progress); err != nil {
		return err
	}
	return out.failed
}

// printer prints what the job prints.
type printer struct{ failed error }

func (*printer) Begin(int) error { return nil }

func (*printer) Line(line []byte) error {
	_, err := os.Stdout.Write(line)
	return err
}

func (p *printer) End(status int) error {
	if status != 0 {
		p.failed = errors.New("it failed in the machine, as printed above")
	}
	return nil
}
