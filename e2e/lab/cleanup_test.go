//go:build e2e

package lab_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestOwner ends a process that made a lab, in the ways that leave it no time
// to clean up, and sees that the lab is gone, and swept by the next.
func TestOwner(t *testing.T) {
	if id := os.Getenv("LAB_TEST_OWN"); id != "" {
		l := lab.New(t, lab.Config{ID: id, Hosts: 1})
		os.Stdout.WriteString("owned\n" + strings.Join(namespaces(t, l), "\n") + "\n\n")
		<-t.Context().Done()
	}
	for _, c := range []struct {
		id     string
		signal os.Signal
	}{{"owner-killed", os.Kill}, {"owner-interrupted", os.Interrupt}} {
		t.Run(c.id, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwner$", "-test.v")
			cmd.Env = append(os.Environ(), "LAB_TEST_OWN="+c.id)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			made := trace{ids: []string{c.id}}
			owned := false
			lines := bufio.NewScanner(stdout)
			for lines.Scan() && !(owned && lines.Text() == "") {
				if owned {
					made.namespaces = append(made.namespaces, lines.Text())
				}
				owned = owned || lines.Text() == "owned"
			}
			if len(made.namespaces) == 0 {
				t.Fatal("the owner made no lab")
			}
			cmd.Process.Signal(c.signal)
			go io.Copy(io.Discard, stdout)
			if cmd.Wait() == nil {
				t.Error("the owner ended well")
			}
			within(t, 10*time.Second, "namespaces are gone", func() bool { return len(made.left(t)) == 0 })
			if c.signal == os.Kill {
				if _, err := lab.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			made.gone(t)
		})
	}
}

// TestTwoLabs has two labs at once, with the same addresses.
func TestTwoLabs(t *testing.T) {
	ctx := t.Context()
	a, b := lab.New(t, lab.Config{Hosts: 1}), lab.New(t, lab.Config{Hosts: 2})
	if a.ID() == b.ID() {
		t.Fatalf("both labs are %q", a.ID())
	}
	if reaches(ctx, a.Host(1), "10.99.0.2") || !reaches(ctx, b.Host(1), "10.99.0.2") {
		t.Error("a host is reached from the other lab, or not from its own")
	}
	if _, err := lab.Up(ctx, lab.Config{ID: a.ID(), Hosts: 1}); err == nil || !strings.Contains(err.Error(), "is up already") {
		t.Errorf("making a lab of the same name again said: %v", err)
	}
	if swept, err := lab.Sweep(ctx); err != nil || slices.Contains(swept, a.ID()) || slices.Contains(swept, b.ID()) {
		t.Errorf("swept %q, %v: labs that are up", swept, err)
	}
	if err := b.Down(); err != nil {
		t.Fatal(err)
	}
	lab.Must(t)(a.Host(1).Docker(ctx, "ps"))
}

// trace is what was seen of labs while they were up.
type trace struct{ ids, namespaces []string }

func (r *trace) note(t *testing.T, l *lab.Lab) {
	t.Helper()
	r.ids = append(r.ids, l.ID())
	r.namespaces = append(r.namespaces, namespaces(t, l)...)
}

// namespaces lists those of all hosts, containers included, by inode.
func namespaces(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	var list []string
	for _, h := range l.Hosts() {
		out := lab.Must(t)(h.Exec(t.Context(), "lsns", "-n", "-o", "NS"))
		list = append(list, strings.Fields(out)...)
	}
	shared := machineNamespaces(t)
	return slices.DeleteFunc(list, func(ns string) bool { return slices.Contains(shared, ns) })
}

// machineNamespaces are those that hosts may share with the machine.
func machineNamespaces(t *testing.T) []string {
	t.Helper()
	var list []string
	links, _ := filepath.Glob("/proc/self/ns/*")
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil {
			_, inode, _ := strings.Cut(strings.Trim(name, "]"), "[")
			list = append(list, inode)
		}
	}
	return list
}

// left lists namespaces that exist still.
func (r *trace) left(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("lsns", "-n", "-o", "NS").Output()
	if err != nil {
		t.Fatal(err)
	}
	now := strings.Fields(string(out))
	return slices.DeleteFunc(slices.Clone(r.namespaces), func(ns string) bool { return !slices.Contains(now, ns) })
}

// gone fails the test when anything of the labs is left.
func (r *trace) gone(t *testing.T) {
	t.Helper()
	if len(r.namespaces) < 5 {
		t.Fatalf("saw only the namespaces %q of a lab", r.namespaces)
	}
	if left := r.left(t); len(left) > 0 {
		t.Errorf("namespaces are left: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range r.ids {
		for _, pattern := range []string{"/run/isthmus-lab/", "/var/tmp/isthmus-lab/", "/sys/fs/cgroup/isthmus-lab-", "/sys/fs/cgroup/*/isthmus-lab-"} {
			if found, _ := filepath.Glob(pattern + id); len(found) > 0 {
				t.Errorf("left behind: %q", found)
			}
		}
		if strings.Contains(string(mounts), id) {
			t.Errorf("a mount of lab %s is left on the machine", id)
		}
	}
}
