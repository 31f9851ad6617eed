package sim

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// event is one thing that happens. Its text is "op [what] [who] [whom] [n]",
// as far as the op has them; hosts are letters.
type event struct {
	op        string
	what      string
	who, whom int
	n         int
}

// shapes says which fields the events have, by op.
type shapes map[string]string

func (e event) String() string {
	out := e.op
	for _, field := range strings.Fields(allShapes[e.op]) {
		switch field {
		case "what":
			out += " " + e.what
		case "who":
			out += " " + letter(e.who)
		case "whom":
			out += " " + letter(e.whom)
		case "n":
			out += " " + strconv.Itoa(e.n)
		}
	}
	return out
}

func letter(host int) string { return string(rune('a' + host)) }

func parseEvent(line string) (event, error) {
	fields := strings.Fields(line)
	shape, ok := allShapes[fields[0]]
	want := strings.Fields(shape)
	if !ok || len(want) != len(fields)-1 {
		return event{}, fmt.Errorf("parse event %q: want %q %s", line, fields[0], shape)
	}
	e := event{op: fields[0]}
	for i, field := range want {
		v := fields[i+1]
		switch field {
		case "what":
			e.what = v
		case "who", "whom":
			if len(v) != 1 || v[0] < 'a' || v[0] > 'z' {
				return event{}, fmt.Errorf("parse event %q: %q is not a host", line, v)
			}
			if field == "who" {
				e.who = int(v[0] - 'a')
			} else {
				e.whom = int(v[0] - 'a')
			}
		case "n":
			n, err := strconv.Atoi(v)
			if err != nil {
				return event{}, fmt.Errorf("parse event %q: %w", line, err)
			}
			e.n = n
		}
	}
	return e, nil
}

// recording is a file of testdata: "key: value" lines, an empty line, events.
// Lines that begin with # are for people.
type recording struct {
	keys   map[string]string
	events []event
}

func readRecording(t *testing.T, path string) recording {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := recording{keys: map[string]string{}}
	for _, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if key, value, ok := strings.Cut(line, ":"); ok {
			r.keys[key] = strings.TrimSpace(value)
			continue
		}
		e, err := parseEvent(line)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		r.events = append(r.events, e)
	}
	return r
}

func (r recording) write(t *testing.T, path, comment string) {
	t.Helper()
	var b strings.Builder
	for _, line := range strings.Split(comment, "\n") {
		fmt.Fprintln(&b, "#", line)
	}
	var keys []string
	for k := range r.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "%s: %s\n", k, r.keys[k])
	}
	fmt.Fprintf(&b, "\n%s", script(r.events))
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
