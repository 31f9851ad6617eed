package driver

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadmeNamesOptions holds the README's table of options against the code:
// the same keys, and for each of them the same values.
func TestReadmeNamesOptions(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n## Network options\n")
	if !ok {
		t.Fatal("README.md has no section Network options")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\| (.*?) \\|").FindAllStringSubmatch(section, -1) {
		for _, key := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[key[1]] = row[2]
		}
	}
	for _, o := range options {
		if o.modes != nil && !slices.ContainsFunc(o.modes, built) || o.set == nil && o.key != "mode" {
			continue // has nothing to say in this version
		}
		text, ok := documented[o.key]
		if !ok {
			t.Errorf("README.md does not name the option %s", o.key)
		}
		for _, v := range o.values {
			if !strings.Contains(text, "`"+v+"`") {
				t.Errorf("README.md does not name %s=%s", o.key, v)
			}
		}
		delete(documented, o.key)
	}
	for key := range documented {
		t.Errorf("README.md names the option %s, which the code does not know or refuses", key)
	}
}
