package lab

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDifference(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after []string
		want          string
	}{
		{"nothing", nil, nil, ""},
		{"equal, other order", []string{"a", "b"}, []string{"b", "a"}, ""},
		{"made and removed", []string{"a", "b"}, []string{"b", "c"}, "- a\n+ c"},
		{"one of two removed", []string{"a", "a"}, []string{"a"}, "- a"},
		{"changed", []string{"link x mtu 1500"}, []string{"link x mtu 1450"}, "+ link x mtu 1450\n- link x mtu 1500"},
	} {
		if got := Difference(c.before, c.after); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestFlattenRuleset(t *testing.T) {
	got := flattenRuleset(`table inet a {
	set s {
		type ipv4_addr
		elements = { 10.0.0.1,
			     10.0.0.2 }
	}

	chain c {
		type filter hook input priority 0; policy accept;
		counter drop
	}
}
table ip b {
}
`)
	want := []string{
		"nft table inet a", "nft table inet a set s", "nft table inet a set s: type ipv4_addr",
		"nft table inet a set s: elements = { 10.0.0.1,", "nft table inet a set s: 10.0.0.2 }",
		"nft table inet a chain c", "nft table inet a chain c: type filter hook input priority 0; policy accept;",
		"nft table inet a chain c: counter drop", "nft table ip b",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLinks(t *testing.T) {
	s := links{
		Loss: map[pair]int{{2, 1}: 100, {1, 2}: 30},
		MTU:  map[pair]int{{1, 3}: 1400},
	}
	const want = `table bridge lab
delete table bridge lab
table bridge lab {
	chain forward {
		type filter hook forward priority 0
		iifname "host1" oifname "host2" numgen random mod 100 < 30 drop
		iifname "host2" oifname "host1" drop
		iifname "host1" oifname "host3" meta length > 1400 drop
	}
}
`
	if d := cmp.Diff(want, s.ruleset()); d != "" {
		t.Error(d)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back links
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.ruleset() != want {
		t.Errorf("another process reads the links as\n%s", back.ruleset())
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		config Config
		want   string
	}{
		{"id", Config{ID: "../x"}, "id"},
		{"hosts", Config{Hosts: 300}, "300 hosts"},
		{"mtu", Config{MTU: 100}, "MTU 100"},
		{"engine", Config{Engine: "a/b"}, "engine"},
	} {
		if _, err := c.config.checked(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", c.name, err, c.want)
		}
	}
}
