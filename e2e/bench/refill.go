package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// A caller speaks to the plugin of a host as its engine does.
type caller struct {
	host   *lab.Host
	dir    *os.File // of the socket, kept open
	leads  bool
	held   []map[string]any // addresses
	client http.Client
}

func newCaller(ctx context.Context, h *lab.Host) (*caller, error) {
	id, err := h.Docker(ctx, "plugin", "inspect", "-f", "{{.Id}}", driver)
	if err != nil {
		return nil, err
	}
	// The whole path is too long for the address of a socket.
	dir, err := os.Open(h.Path("/run/docker/plugins/" + strings.TrimSpace(id)))
	if err != nil {
		return nil, err
	}
	socket := fmt.Sprintf("/proc/self/fd/%d/isthmus.sock", dir.Fd())
	c := &caller{host: h, dir: dir}
	c.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	return c, nil
}

func (c *caller) call(ctx context.Context, method string, request map[string]any) (map[string]any, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s on %s: %s: %s", method, c.host.Name, res.Status, text)
	}
	return answer, nil
}

// address requests any address of a pool, and says how long that took.
func (c *caller) address(ctx context.Context, pool any) (float64, error) {
	begin := time.Now()
	answer, err := c.call(ctx, "IpamDriver.RequestAddress", map[string]any{"PoolID": pool})
	took := float64(time.Since(begin).Microseconds()) / 1000
	if err != nil {
		return 0, err
	}
	c.held = append(c.held, map[string]any{"PoolID": pool, "Address": strings.Split(fmt.Sprint(answer["Address"]), "/")[0]})
	return took, nil
}

// refills measures on three hosts, all voters, how long a request for an address
// takes while the host has one at hand, and while it must first lease a block
// from the cluster: through the log of three hosts, with each one's disk. The
// requests are those of an engine, to the plugin's own socket. A pool that is
// new to a host has no block there, so each pool gives one sample, and is given
// back.
func refills(ctx context.Context, samples int, plugin string) (err error) {
	l, err := lab.Up(ctx, lab.Config{Hosts: 3, Progress: progress})
	if err != nil {
		return err
	}
	defer func() {
		if downErr := l.Down(); err == nil {
			err = downErr
		}
	}()
	ref, err := l.PushPlugin(ctx, plugin)
	if err != nil {
		return err
	}
	var callers []*caller
	for _, h := range l.Hosts() {
		if err := h.InstallPlugin(ctx, ref, "JOIN=host1,host2,host3", "CLUSTER_KEY=only for the benchmark"); err != nil {
			return err
		}
		c, err := newCaller(ctx, h)
		if err != nil {
			return err
		}
		defer c.dir.Close()
		callers = append(callers, c)
	}
	// The first pool founds the cluster.
	if _, err := callers[0].call(ctx, "IpamDriver.RequestPool", map[string]any{"Pool": "10.255.0.0/24"}); err != nil {
		return err
	}
	for _, c := range callers {
		if err := c.awaitVoters(ctx, 3); err != nil {
			return err
		}
	}
	var hand, leader, follower []float64
	for i := range samples {
		subnet := fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)
		for _, c := range callers {
			pool, err := c.call(ctx, "IpamDriver.RequestPool", map[string]any{"Pool": subnet})
			if err != nil {
				return err
			}
			took, err := c.address(ctx, pool["PoolID"])
			if err != nil {
				return err
			}
			if c.leads {
				leader = append(leader, took)
			} else {
				follower = append(follower, took)
			}
			if took, err = c.address(ctx, pool["PoolID"]); err != nil {
				return err
			}
			hand = append(hand, took)
		}
		for _, c := range callers {
			if err := c.forget(ctx, subnet); err != nil {
				return err
			}
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "request for an address, three hosts\tp50 ms\tp99 ms\tmost ms\tsamples")
	for _, row := range []struct {
		name string
		took []float64
	}{{"one at hand", hand}, {"a new block first, on the leader", leader}, {"a new block first, on another host", follower}} {
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t%d\n", row.name, quantile(row.took, 0.5), quantile(row.took, 0.99), quantile(row.took, 1), len(row.took))
	}
	return w.Flush()
}

// forget gives a pool back for good, with the addresses of it, and waits until
// the cluster knows: what is measured next shall not wait for it.
func (c *caller) forget(ctx context.Context, subnet string) error {
	pool := c.held[0]["PoolID"]
	for _, a := range c.held {
		if _, err := c.call(ctx, "IpamDriver.ReleaseAddress", a); err != nil {
			return err
		}
	}
	c.held = nil
	if _, err := c.call(ctx, "IpamDriver.ReleasePool", map[string]any{"PoolID": pool}); err != nil {
		return err
	}
	if _, err := c.call(ctx, "isthmus/v1/networks/forget", map[string]any{"what": subnet}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var pools []struct {
			Pool  string
			Hosts []string
		}
		if err := c.get("ipam", &pools); err != nil {
			return err
		}
		held := false
		for _, p := range pools {
			held = held || p.Pool == subnet && slices.Contains(p.Hosts, c.host.Name)
		}
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s has given back %s: %w", c.host.Name, subnet, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// get asks the plugin's own API.
func (c *caller) get(name string, into any) error {
	res, err := c.client.Get("http://plugin/isthmus/v1/" + name)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(into)
}

// awaitVoters waits until the host's plugin is in a cluster with that many voters, and
// learns whether it leads.
func (c *caller) awaitVoters(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		var status struct {
			Name   string
			Ledger struct {
				Voters []struct {
					Name            string
					Leader, Healthy bool
				}
			}
		}
		if err := c.get("status", &status); err != nil {
			return err
		}
		voters, led := 0, false
		for _, v := range status.Ledger.Voters {
			if v.Healthy {
				voters++
			}
			led = led || v.Leader
			if v.Leader {
				c.leads = v.Name == status.Name
			}
		}
		if voters == n && led {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d voters on %s: there are %+v", n, c.host.Name, status.Ledger.Voters)
		case <-time.After(time.Second):
		}
	}
}

func progress(step string) { fmt.Fprintln(os.Stderr, step) }
