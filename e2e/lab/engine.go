package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	engineLog  = "/var/log/dockerd.log"
	enginePID  = "/run/docker.pid"
	startLimit = 3 * time.Minute // an engine that clears up after a crash, on a busy machine, needs its time
	stopLimit  = 60 * time.Second
)

// StartEngine starts the host's engine and waits until it answers. An engine
// that runs is left alone.
func (h *Host) StartEngine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	pid, err := h.enginePID()
	if err != nil {
		if pid, err = h.start(ctx, engineLog, "dockerd"); err != nil {
			return fmt.Errorf("start engine of %s: %w", h.Name, err)
		}
	}
	return h.awaitEngine(ctx, pid)
}

// StartEngineAsync starts the host's engine without waiting for its answer.
func (h *Host) StartEngineAsync(ctx context.Context) error {
	if _, err := h.start(ctx, engineLog, "dockerd"); err != nil {
		return fmt.Errorf("start engine of %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) awaitEngine(ctx context.Context, pid int) error {
	return await(ctx, "start engine of "+h.Name, func() (bool, error) {
		if !h.running(pid) {
			return false, fmt.Errorf("it ended:\n%s", tail(h.Logs(), 20))
		}
		return h.answers(ctx), nil
	})
}

func (h *Host) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return false
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		return false
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// enginePID finds the running engine, in terms of the host's processes.
func (h *Host) enginePID() (int, error) {
	b, err := os.ReadFile(h.Path(enginePID))
	if err != nil {
		return 0, fmt.Errorf("find engine of %s: %w", h.Name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("find engine of %s: %w", h.Name, err)
	}
	name, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/comm", pid)))
	if err != nil || !strings.HasPrefix(string(name), "dockerd") {
		return 0, fmt.Errorf("find engine of %s: it is not running", h.Name)
	}
	return pid, nil
}

// StopEngine ends the engine in good order, containers and plugins first.
func (h *Host) StopEngine(ctx context.Context) error { return h.endEngine(ctx, "TERM") }

// KillEngine ends the engine at once; containers and plugins run on.
func (h *Host) KillEngine(ctx context.Context) error { return h.endEngine(ctx, "KILL") }

func (h *Host) endEngine(ctx context.Context, signal string) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	pid, err := h.enginePID()
	if err != nil {
		return err
	}
	if _, err := h.Exec(ctx, "kill", "-"+signal, strconv.Itoa(pid)); err != nil {
		return err
	}
	return await(ctx, "end engine of "+h.Name, func() (bool, error) { return !h.running(pid), nil })
}

// Logs returns all that the host's engine ever logged; plugins log there too.
func (h *Host) Logs() string {
	b, err := os.ReadFile(h.disk(engineLog))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
