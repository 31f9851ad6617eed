package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// managedSockets is where the sockets of managed plugins lie on the host.
const managedSockets = "/run/docker/plugins/*/isthmus.sock"

// errNoPlugin says that no plugin listens on this host.
var errNoPlugin = errors.New("find the plugin: none is running on this host; enable it with docker plugin enable, or start isthmus serve, or name its --socket")

// client talks to the local plugin.
type client struct {
	http http.Client
}

// connect finds the plugin's socket: the one that the user named, that of a
// plain install, or that of a managed plugin.
func connect(ctx context.Context, named string) (*client, error) {
	candidates := []string{named}
	if named == "" {
		candidates, _ = filepath.Glob(managedSockets)
		candidates = append([]string{defaultPluginSocket}, candidates...)
	}
	var living []string
	for _, path := range candidates {
		if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
			c.Close()
			living = append(living, path)
		}
	}
	switch {
	case len(living) == 1:
		return &client{http: http.Client{Transport: &http.Transport{DialContext: dialUnix(living[0])}}}, nil
	case len(living) > 1:
		return nil, fmt.Errorf("find the plugin: several are running (%s); name one by --socket", living)
	case named != "":
		return nil, fmt.Errorf("find the plugin: nobody listens on %s: %w", named, errNoPlugin)
	}
	return nil, errNoPlugin
}

// get asks for a report, post for a change; both decode the answer into out.
func (c *client) get(ctx context.Context, name string, out any) error {
	return c.do(ctx, 10*time.Second, http.MethodGet, name, nil, out)
}

func (c *client) post(ctx context.Context, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.do(ctx, 90*time.Second, http.MethodPost, name, body, out)
}

func (c *client) do(ctx context.Context, bound time.Duration, method, name string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://isthmus"+apiPath+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the plugin: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the plugin: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refused struct{ Err string }
		if json.Unmarshal(b, &refused) == nil && refused.Err != "" {
			return errors.New(refused.Err)
		}
		return fmt.Errorf("ask the plugin: it answers %s", resp.Status)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the plugin's answer: %w; is the command as new as the plugin?", err)
	}
	return nil
}
