package isthmus

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/isthmus-net/isthmus/"

// mayImport says which packages of this module a package may import, itself
// and what lies below it apart. The parts know nothing of one another: each
// declares what it needs, and plugin plugs them together.
var mayImport = map[string][]string{
	"cluster":       {},
	"transport":     {"cluster"},
	"gossip":        {"cluster", "transport"},
	"ledger":        {"cluster", "transport"},
	"ipam":          {"cluster"},
	"frame":         {"cluster"},
	"lan":           {"cluster", "frame"},
	"bgp":           {},
	"driver":        {"cluster"},
	"driver/kernel": {"cluster", "frame"},
	"plugin":        {"cluster", "transport", "gossip", "ledger", "ipam", "driver", "driver/kernel", "lan", "bgp"},
	"e2e":           {"cluster"},
	"sim":           {}, // its tests drive the pure parts of ledger and ipam
}

// TestImports holds the rule for all files, tests excepted from the part of it
// that keeps siblings apart: they may use the fakes of others.
func TestImports(t *testing.T) {
	seen := 0
	for dir, pkg := range packages(t) {
		part := partOf(dir)
		allowed, ok := mayImport[part]
		if !ok {
			t.Errorf("package %s has no line in mayImport: say what it may import", dir)
			continue
		}
		for _, path := range pkg.imports {
			target, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			seen++
			if !within(target, part) && !slices.ContainsFunc(allowed, func(a string) bool { return within(target, a) }) {
				t.Errorf("%s imports %s: %s may import only %v; declare what it needs, and let plugin provide it", dir, target, part, allowed)
			}
		}
	}
	if seen == 0 {
		t.Error("found no import between packages: the test looks in the wrong place")
	}
}

// TestPackageDocs: each package says what it is, in doc.go or its only file.
func TestPackageDocs(t *testing.T) {
	for dir, pkg := range packages(t) {
		if !pkg.documented {
			t.Errorf("package %s has no package comment: write doc.go", dir)
		}
	}
}

type source struct {
	imports    []string
	documented bool
}

// packages parses all packages of the module, whatever their build tags, test
// files apart; packages of only test files count with these.
func packages(t *testing.T) map[string]source {
	t.Helper()
	out := map[string]source{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != "." && (name == "testdata" || name == "build" || name == "tmpdeps" || strings.HasPrefix(name, ".")) {
				return filepath.SkipDir
			}
			return nil
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		if dir == "." || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		src := out[dir]
		for _, i := range file.Imports {
			src.imports = append(src.imports, strings.Trim(i.Path.Value, `"`))
		}
		src.documented = src.documented || file.Doc != nil
		out[dir] = src
		return nil
	})
	if err != nil {
		t.Fatalf("parse the module: %v", err)
	}
	if len(out) < 5 {
		t.Fatalf("found %d packages: the test looks in the wrong place", len(out))
	}
	return out
}

// partOf finds the longest line of mayImport that covers a directory.
func partOf(dir string) string {
	for p := dir; p != "."; p = filepath.ToSlash(filepath.Dir(p)) {
		if _, ok := mayImport[p]; ok {
			return p
		}
	}
	return dir
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
