package machine

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// recorder is a Reader that writes down what it is told.
type recorder struct {
	told []string
	fail error
}

func (r *recorder) Begin(job int) error {
	r.told = append(r.told, fmt.Sprint("begin ", job))
	return nil
}
func (r *recorder) End(status int) error {
	r.told = append(r.told, fmt.Sprint("end ", status))
	return nil
}
func (r *recorder) Line(line []byte) error {
	r.told = append(r.told, strings.TrimRight(string(line), "\n"))
	return r.fail
}

// follow lets a machine say something on its port, and hang up.
func follow(t *testing.T, says string, jobs int, r *recorder) (version string, err error) {
	t.Helper()
	port, err := net.Listen("unix", filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	done := make(chan error)
	go func() {
		conn, err := net.Dial("unix", port.Addr().String())
		if err == nil {
			_, err = conn.Write([]byte(says))
			conn.Close()
		}
		done <- err
	}()
	q := &qemu{ended: make(chan struct{})}
	defer close(q.ended)
	err = q.follow(port, "@X", jobs, r, func(v string) { version = v })
	if sent := <-done; sent != nil {
		t.Fatal(sent)
	}
	return version, err
}

func TestFollow(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name, says string
		jobs       int
		told       []string
		fail       error
		err        string
	}{
		{name: "two jobs", jobs: 2,
			says: "noise\n@X up 6.1.0-50\na\n@X end 0\n@Xb\n@X 12\n@X end 2\nlate\n",
			told: []string{"begin 0", "a", "end 0", "begin 1", "@Xb", "@X 12", "end 2"}},
		{name: "down before it is up", jobs: 1, says: "noise\n", err: "0 of 1 jobs"},
		{name: "down between jobs", jobs: 2, says: "@X up 6.1.0-50\n@X end 0\nhalf",
			told: []string{"begin 0", "end 0", "begin 1"}, err: "1 of 2 jobs"},
		{name: "reader fails", jobs: 1, says: "@X up 6.1.0-50\na\nb\n@X end 0\n",
			told: []string{"begin 0", "a"}, fail: broken, err: "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &recorder{fail: c.fail}
			version, err := follow(t, c.says, c.jobs, r)
			if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if !slices.Equal(r.told, c.told) {
				t.Errorf("reader was told %q, want %q", r.told, c.told)
			}
			if strings.Contains(c.says, "up") && version != "6.1.0-50" {
				t.Errorf("kernel %q is up", version)
			}
		})
	}
}

func TestQuoted(t *testing.T) {
	for _, word := range []string{"", "a b", "it's", `$(x) "y" \ *`, "two\nlines", "'"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quoted(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q arrives as %q, %v", word, out, err)
		}
	}
}

// TestInit: what init tells of the jobs is what follow understands.
func TestInit(t *testing.T) {
	program := initOf("@X", []Job{{Dir: "a", Args: []string{"./tests", "-run=a|b"}}, {Args: []string{"false"}}})
	for _, line := range []string{"cd '/isthmus/a' && './tests' '-run=a|b' </dev/null >&3 2>&3", "cd '/isthmus/' && 'false' "} {
		if !strings.Contains(program, "\n"+line) {
			t.Errorf("no line %q in:\n%s", line, program)
		}
	}
	var tells strings.Builder
	for line := range strings.Lines(program) {
		if strings.HasPrefix(line, "printf ") || strings.HasPrefix(line, "echo ") {
			tells.WriteString(line)
		}
	}
	cmd := exec.Command("sh")
	cmd.Stdin = strings.NewReader("exec 3>&1\n" + tells.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	version, err := follow(t, string(out), 2, r)
	if want := []string{"begin 0", "", "end 0", "begin 1", "", "end 0"}; err != nil || version == "" || !slices.Equal(r.told, want) {
		t.Errorf("kernel %q, reader was told %q, %v, want %q", version, r.told, err, want)
	}
}

// TestArchive reads the archive as the kernel does.
func TestArchive(t *testing.T) {
	var a archive
	a.add("dir", 0o40755, nil)
	a.device("dev", 0o20600, 5, 1)
	a.add("dir/file", 0o100644, []byte("hello"))
	a.add("TRAILER!!!", 0, nil)
	var got []string
	for b := a.Bytes(); len(b) > 0; {
		field := func(i int) int {
			n, err := strconv.ParseInt(string(b[6+8*i:14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		if !bytes.HasPrefix(b, []byte("070701")) {
			t.Fatalf("no magic number where it should be: %.20q", b)
		}
		aligned := func(n int) int { return (n + 3) / 4 * 4 }
		name, size := field(11), field(6)
		content := aligned(110 + name)
		got = append(got, fmt.Sprintf("%s %o %d:%d %s", b[110:110+name-1], field(1), field(9), field(10), b[content:content+size]))
		b = b[aligned(content+size):]
	}
	want := []string{"dir 40755 0:0 ", "dev 20600 5:1 ", "dir/file 100644 0:0 hello", "TRAILER!!! 0 0:0 "}
	if !slices.Equal(got, want) {
		t.Errorf("archive holds %q, want %q", got, want)
	}
}
