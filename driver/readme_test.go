package driver

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameOptions holds the tables of options against the code, that of the
// README, of networks in a LAN and of routed ones: the same keys, and for each of them the
// same values.
func TestDocsNameOptions(t *testing.T) {
	documented := map[string]string{}
	for file, head := range map[string]string{"../README.md": "Network options", "../docs/underlay.md": "Options", "../docs/routing.md": "Options"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, section, ok := strings.Cut(string(text), "\n## "+head+"\n")
		if !ok {
			t.Fatalf("%s has no section %s", file, head)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\| (.*?) \\|").FindAllStringSubmatch(section, -1) {
			for _, key := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
				documented[key[1]] = row[2]
			}
		}
	}
	for _, o := range options {
		if o.set == nil && o.key != "mode" {
			continue // has nothing to say in this version
		}
		text, ok := documented[o.key]
		if !ok {
			t.Errorf("no documentation names the option %s", o.key)
		}
		for _, v := range o.values {
			if !strings.Contains(text, "`"+v+"`") {
				t.Errorf("the documentation does not name %s=%s", o.key, v)
			}
		}
		delete(documented, o.key)
	}
	for key := range documented {
		t.Errorf("the documentation names the option %s, which the code does not know or refuses", key)
	}
}
