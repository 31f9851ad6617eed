package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const (
	toolFile    = "box" // of the payload; the tool of labs that are made in the machine
	toolPackage = "github.com/isthmus-net/isthmus/e2e/lab/box"
)

// Suite is which tests to run in a machine, and for how long.
type Suite struct {
	Packages []string      // as for go test
	Tags     string        // build tags, joined by commas
	Run      string        // pattern, as for go test
	Limit    time.Duration // for each package
	Plugin   string        // directory of the managed plugin; tests find it as build/plugin of the repository
	Console  string        // file that gets what the machine's kernel says
}

// Test builds the tests, runs them on a machine, and writes to w what go test
// -json would. The error says that the machine, or a test's program outside of
// its tests, failed; a test that fails is in the output alone.
func Test(ctx context.Context, d Disk, s Suite, w io.Writer, progress func(string)) error {
	console, err := filepath.Abs(s.Console)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(console), 0o755); err != nil {
		return err
	}
	payload, err := os.MkdirTemp(filepath.Dir(console), "payload-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(payload)
	progress("building the tests that run in the machine")
	names, jobs, err := s.fill(ctx, payload)
	if err != nil {
		return fmt.Errorf("build tests for the machine: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit+time.Duration(len(jobs))*(s.Limit+time.Minute),
		errors.New("the tests do not end, although their time is over"))
	defer cancel()
	c := &converter{names: names, w: w}
	err = Run(ctx, d, payload, console, jobs, c, progress)
	return errors.Join(err, c.close(), errors.Join(c.failures...))
}

// fill puts into dir what the machine needs, laid out as the repository is.
func (s Suite) fill(ctx context.Context, dir string) (names []string, jobs []Job, err error) {
	list, err := s.packages(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := build(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, toolFile), toolPackage); err != nil {
		return nil, nil, err
	}
	for _, p := range list {
		to := filepath.Join(dir, p.dir())
		if err := os.MkdirAll(to, 0o755); err != nil {
			return nil, nil, err
		}
		const binary = "tests"
		if err := build(ctx, "go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-tags", s.Tags, "-o", filepath.Join(to, binary), p.ImportPath); err != nil {
			return nil, nil, err
		}
		if err := copyIfThere(filepath.Join(p.Dir, "testdata"), filepath.Join(to, "testdata")); err != nil {
			return nil, nil, err
		}
		names = append(names, p.ImportPath)
		jobs = append(jobs, Job{Dir: p.dir(), Args: []string{"./" + binary, "-test.v=test2json", "-test.paniconexit0",
			"-test.short", "-test.run=" + s.Run, "-test.timeout=" + s.Limit.String()}})
	}
	return names, jobs, copyIfThere(s.Plugin, filepath.Join(dir, "build/plugin"))
}

func build(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // the machine's C library is another
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func copyIfThere(from, to string) error {
	if _, err := os.Stat(from); from == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(from))
}

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath, Dir string
	Module          struct{ Path string }
}

// dir is where the package is in the repository.
func (p goPackage) dir() string {
	return path.Clean("." + strings.TrimPrefix(p.ImportPath, p.Module.Path))
}

func (s Suite) packages(ctx context.Context) ([]goPackage, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-json=ImportPath,Dir,Module", "-tags", s.Tags}, s.Packages...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var list []goPackage
	for in := json.NewDecoder(bytes.NewReader(out)); in.More(); {
		var p goPackage
		if err := in.Decode(&p); err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		list = append(list, p)
	}
	return list, nil
}

// converter turns what test programs print into the events of go test -json, by
// the go command's own tool for that.
type converter struct {
	names    []string
	w        io.Writer
	name     string
	cmd      *exec.Cmd
	in       io.WriteCloser
	failures []error
}

func (c *converter) Begin(job int) error {
	c.name = c.names[job]
	cmd := exec.Command("go", "tool", "test2json", "-t", "-p", c.name)
	cmd.Stdout, cmd.Stderr = c.w, os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("convert output of tests: %w", err)
	}
	c.cmd, c.in = cmd, in
	return nil
}

func (c *converter) Line(line []byte) error {
	_, err := c.in.Write(line)
	return err
}

// End: 1 is the status of tests that failed, which the output tells.
func (c *converter) End(status int) error {
	if status > 1 {
		c.failures = append(c.failures, fmt.Errorf("tests of %s: exit status %d", c.name, status))
	}
	return c.close()
}

// close ends a package; one that did not say that it passed has failed.
func (c *converter) close() error {
	if c.in == nil {
		return nil
	}
	err := errors.Join(c.in.Close(), c.cmd.Wait())
	c.in = nil
	if err != nil {
		return fmt.Errorf("convert output of tests: %w", err)
	}
	return nil
}
