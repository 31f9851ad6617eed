package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := identity(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "identity"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	again, err := identity(dir)
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("the identity changed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "identity"), []byte("-----BEGIN"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := identity(dir); err == nil || !strings.Contains(err.Error(), "isthmus reset") {
		t.Errorf("a damaged identity: %v; want the remedy", err)
	}
	other, err := identity(t.TempDir())
	if err != nil || bytes.Equal(first, other) {
		t.Errorf("two hosts have one identity: %v", err)
	}
}

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := writeFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != text {
			t.Errorf("got %q, want %q", b, text)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left something behind: %v", entries)
	}
}

func TestWipe(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "raft", "snapshots"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := identity(dir); err != nil {
		t.Fatal(err)
	}
	if err := wipe(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v; want the directory, empty", entries, err)
	}
	if err := wipe(filepath.Join(dir, "none")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing to wipe: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	for name, ok := range map[string]bool{"host1": true, "a.b-c_d": true, "localhost": false, "": false, "-a": false, "a b": false, "(none)": false} {
		if got := isName(name); got != ok {
			t.Errorf("isName(%q) = %t", name, got)
		}
	}
	if got, err := nodeName("db-1"); err != nil || got != "db-1" {
		t.Errorf("got %q, %v", got, err)
	}
}
