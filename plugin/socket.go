package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/dhcp"
)

// manifest is what a plain install answers to Docker's first question; for a
// managed plugin config.json says it.
const manifest = `{"Implements": ["NetworkDriver", "IpamDriver"]}`

// server is the plugin's socket: it is there from the first moment to the
// last, whatever becomes of the node below it.
type server struct {
	cfg        Config
	openKernel func() (kernel.Kernel, error)
	gate       *gate
	opening    sync.Mutex                                                   // held while a node is being opened, or the host is reset without one
	bound      time.Duration                                                // of one call of Docker
	look       time.Duration                                                // how often the underlay is looked at
	probe      func(ifname string, groups ...cluster.MAC) (lan.Wire, error) // as in doors
	dhcp       dhcp.Speaker
	log        logrus.FieldLogger
}

// handler serves Docker's calls and the plugin's own API.
func (s *server) handler(routes []route) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
		fmt.Fprintln(w, manifest)
	})
	for _, rt := range routes {
		mux.HandleFunc("/"+rt.method, func(w http.ResponseWriter, r *http.Request) { s.serveCall(w, r, rt) })
	}
	s.addReports(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		encodeStatus(w, http.StatusNotFound, "call "+r.URL.Path+": isthmus does not have it")
	})
	return mux
}

// Serve answers on l until ctx ends, and then lets what has begun end.
func (s *server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.handler(routes), ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	})
	err := srv.Serve(l)
	if stop() {
		return fmt.Errorf("serve plugin socket: %w", err)
	}
	if err := <-stopped; err != nil {
		return fmt.Errorf("stop plugin socket: %w", errors.Join(err, srv.Close()))
	}
	return nil
}

// listen opens the plugin's socket. A socket file that nobody listens on, left
// by a process that was killed, is replaced; a living one is not.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open plugin socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("open plugin socket %s: another isthmus is listening there; stop it first, or choose another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open plugin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open plugin socket: %w", err)
	}
	// The API below the socket can reset the host: root only.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("open plugin socket: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// gate holds the node that calls may use, or the reason why there is none.
type gate struct {
	mu      sync.Mutex
	node    *node
	reason  error
	changed chan struct{} // closed and replaced on every change
}

func newGate() *gate {
	return &gate{reason: errors.New("isthmus is starting"), changed: make(chan struct{})}
}

// Open lets calls through to n.
func (g *gate) Open(n *node) { g.set(n, nil) }

// Shut holds calls back; reason is what they say when they cannot wait longer.
func (g *gate) Shut(reason error) { g.set(nil, reason) }

func (g *gate) set(n *node, reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.node, g.reason = n, reason
	close(g.changed)
	g.changed = make(chan struct{})
}

// Now returns the node, or nil and the reason.
func (g *gate) Now() (*node, error) {
	n, _, reason := g.now()
	return n, reason
}

func (g *gate) now() (*node, <-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.node, g.changed, g.reason
}

// Wait returns the node, as soon as there is one, for at most callWait.
func (g *gate) Wait(ctx context.Context) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	for {
		n, changed, reason := g.now()
		if n != nil {
			return n, nil
		}
		if errors.As(reason, new(*refusedSettings)) {
			return nil, reason
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("isthmus is not ready: %w", reason)
		}
	}
}

// refusedSettings is the one reason that does not pass by waiting.
type refusedSettings struct{ error }

func (r *refusedSettings) Unwrap() error { return r.error }
