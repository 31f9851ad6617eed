package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestListen: a socket left by a killed process is replaced, a living one not.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "isthmus.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another isthmus") {
		t.Errorf("a second one on a living socket: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(path)
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	l.Close()
}

func TestServeStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "isthmus.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{gate: newGate(), bound: time.Second, log: quiet()}
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	if _, err := connect(ctx, path); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket file stays: %v", err)
	}
	if _, err := connect(context.Background(), path); !errors.Is(err, errNoPlugin) {
		t.Errorf("connect to nobody: %v", err)
	}
}

// TestCommandsWithoutNode: status says what is waited for, and no command
// takes that for well.
func TestCommandsWithoutNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "isthmus.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{cfg: Config{Name: "host1", Secret: Secret("0123456789abcdef")}, gate: newGate(), bound: time.Second, log: quiet()}
	s.gate.Shut(&refusedSettings{errors.New("the settings are refused: read SCOPE")})
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })

	var out bytes.Buffer
	if err := (statusCommand{}).Run(ctx, &console{out: &out, socket: path}); !errors.Is(err, errNotWell) {
		t.Errorf("status: %v", err)
	}
	if !strings.Contains(out.String(), "isthmus is not ready: the settings are refused: read SCOPE") {
		t.Errorf("status says:\n%s", out.String())
	}
	for name, run := range map[string]func(context.Context, *console) error{
		"members": membersCommand{}.Run, "networks": networksList{}.Run, "endpoints": endpointsCommand{}.Run, "ipam": ipamCommand{}.Run,
		"forget": networksForget{What: "x"}.Run, "reset": resetCommand{}.Run,
	} {
		err := run(ctx, &console{out: &out, socket: path})
		if err == nil || !strings.Contains(err.Error(), "settings are refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
	out.Reset()
	if err := (statusCommand{}).Run(ctx, &console{out: &out, socket: path, json: true}); !errors.Is(err, errNotWell) {
		t.Errorf("status --json: %v", err)
	}
	var st Status
	if err := json.Unmarshal(out.Bytes(), &st); err != nil || st.Ready || !st.Encrypted || st.Name != "host1" {
		t.Errorf("status --json: %v\n%s", err, out.String())
	}
	out.Reset()
	if err := (versionCommand{}).Run(ctx, &console{out: &out, socket: path}); err != nil || out.String() != "isthmus dev\n" {
		t.Errorf("version: %v %q", err, out.String())
	}
}

func TestLaterCommands(t *testing.T) {
	for _, args := range []string{"doctor", "trace 10.0.0.1 10.0.0.2", "watch", "key rotate"} {
		if _, err := runCommand(t, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), "this version does not have this command yet") {
			t.Errorf("%s: %v", args, err)
		}
	}
}
