package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeNamesSettings holds the README's table of settings against the
// struct: the same names, and the same defaults.
func TestReadmeNamesSettings(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(readme), "\n## Settings\n")
	if !ok {
		t.Fatal("README.md has no section Settings")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	table, after, _ := strings.Cut(section, "\n\n`SCOPE")
	documented := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) \| (.*?) \|`).FindAllStringSubmatch(table, -1) {
		for _, name := range regexp.MustCompile("`([A-Za-z_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[name[1]] = row[2]
		}
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Settings]()) {
		name, fallback := f.Tag.Get("env"), f.Tag.Get("default")
		if mount := f.Tag.Get("mount"); mount != "" {
			name, fallback = mount, "/dev/null"
		}
		if name == "" || strings.Contains("`SCOPE"+after, "`"+name) {
			continue // a path that users leave alone, or reserved
		}
		text, ok := documented[name]
		if !ok || !strings.Contains(text, fallback) {
			t.Errorf("README.md says of %s %q, want it named with the default %q", name, text, fallback)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("README.md names the setting %s, which there is not", name)
	}
}
