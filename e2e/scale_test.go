//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// maxRSS is what the plugin may hold in memory, in kB.
const maxRSS = 60 << 10

// TestMemory drives a plugin as an engine would, to 100 networks and 1,000
// endpoints with real links, and looks at its resident memory.
func TestMemory(t *testing.T) {
	const networks, endpoints = 100, 10
	l := lab.New(t, lab.Config{Hosts: 1})
	h := l.Host(1)
	binary, err := os.ReadFile(filepath.Join(pluginDir(t), "rootfs", "isthmus"))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile("/usr/local/bin/isthmus", string(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	serve := h.Command(context.WithoutCancel(t.Context()), "isthmus", "serve")
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { serve.Process.Kill(); serve.Wait() })
	p := pluginClient(h.Path("/run/docker/plugins/isthmus.sock"))
	eventually(t, 20*time.Second, func() error {
		out, err := isthmus(t.Context(), h, "members")
		if err == nil && !strings.Contains(out, "host1") {
			err = fmt.Errorf("no cluster yet: %s", out)
		}
		return err
	})

	var wait sync.WaitGroup
	slots := make(chan struct{}, 8)
	for n := range networks {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := p.network(t.Context(), n, endpoints); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	out := lab.Must(t)(h.Exec(t.Context(), "sh", "-c", "ip -o link | grep -c 'is-e'"))
	if got := strings.TrimSpace(out); got != fmt.Sprint(networks*endpoints) {
		t.Errorf("%s interfaces made, want %d", got, networks*endpoints)
	}
	status := lab.Must(t)(h.Exec(t.Context(), "sh", "-c", "cat /proc/$(pidof isthmus)/status"))
	for line := range strings.Lines(status) {
		var kb int
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			fmt.Sscan(rest, &kb)
			t.Logf("resident: %d kB with %d networks and %d endpoints", kb, networks, networks*endpoints)
			if kb == 0 || kb > maxRSS {
				t.Errorf("resident memory is %d kB, want at most %d", kb, maxRSS)
			}
		}
	}
}

// client speaks Docker's plugin protocol.
type client struct{ http.Client }

func pluginClient(socket string) *client {
	return &client{http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}}
}

func (c *client) call(ctx context.Context, method string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", method, res.Status, answer)
	}
	return json.Unmarshal(answer, response)
}

// network creates a network and joins endpoints to it.
func (c *client) network(ctx context.Context, n, endpoints int) error {
	type m map[string]any
	var pool struct{ PoolID, Pool string }
	if err := c.call(ctx, "IpamDriver.RequestPool", m{"AddressSpace": "isthmus", "Pool": fmt.Sprintf("10.100.%d.0/24", n)}, &pool); err != nil {
		return err
	}
	var gateway, address struct{ Address string }
	if err := c.call(ctx, "IpamDriver.RequestAddress", m{"PoolID": pool.PoolID,
		"Options": m{"RequestAddressType": "com.docker.network.gateway"}}, &gateway); err != nil {
		return err
	}
	id := fmt.Sprintf("%064x", n+1)
	var none struct{}
	if err := c.call(ctx, "NetworkDriver.CreateNetwork", m{"NetworkID": id, "Options": m{}, "IPv6Data": []any{},
		"IPv4Data": []m{{"AddressSpace": "isthmus", "Pool": pool.Pool, "Gateway": gateway.Address}}}, &none); err != nil {
		return err
	}
	for e := range endpoints {
		if err := c.call(ctx, "IpamDriver.RequestAddress", m{"PoolID": pool.PoolID}, &address); err != nil {
			return err
		}
		endpoint := fmt.Sprintf("%08x%056x", n*endpoints+e+1, 0)
		if err := c.call(ctx, "NetworkDriver.CreateEndpoint", m{"NetworkID": id, "EndpointID": endpoint, "Options": m{},
			"Interface": m{"Address": address.Address}}, &none); err != nil {
			return err
		}
		if err := c.call(ctx, "NetworkDriver.Join", m{"NetworkID": id, "EndpointID": endpoint, "Options": m{},
			"SandboxKey": "/var/run/docker/netns/" + endpoint[:12]}, &none); err != nil {
			return err
		}
	}
	return nil
}
