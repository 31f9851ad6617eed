//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// churn: many starts on each host at once, then their removal. No address twice,
// and every endpoint is in the other hosts' FDB within 1 s of its Join.
func churn(t *testing.T, s *site) {
	starts := atLength(12, 50)
	// Internal, so that Docker tells of a container as soon as Join has answered,
	// and not when it has plugged it into a second network.
	s.createNetwork(t, "churn", []string{"--subnet", "10.37.0.0/16", "--internal"})
	dev := map[string]string{}
	for _, h := range s.Hosts() {
		dev[h.Name] = vxlanOf(t, h, "10.37.0.0/16")
	}
	var mu sync.Mutex
	var boxes []*box
	recorded := newRecord(t, s)
	begun := time.Now()
	each(t, s.Hosts(), func(h *lab.Host) error {
		slots := make(chan struct{}, 2) // three engines on two shared cores start no more at once
		var wait sync.WaitGroup
		errs := make([]error, starts)
		for i := range starts {
			wait.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				b, err := startQuick(t.Context(), h, fmt.Sprintf("churn-%s-%d", h.Name, i), "churn")
				if err != nil {
					errs[i] = err
					return
				}
				mu.Lock()
				boxes = append(boxes, b)
				mu.Unlock()
			})
		}
		wait.Wait()
		for _, err := range errs {
			if err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("%d starts on each of %d hosts took %s", starts, len(s.Hosts()), time.Since(begun).Round(time.Second))
	addresses := map[string]string{}
	for _, b := range boxes {
		if other, twice := addresses[b.ip4]; twice {
			t.Errorf("%s and %s both have %s", b.name, other, b.ip4)
		}
		addresses[b.ip4] = b.name
	}
	// And one on each host by itself.
	burst := boxes
	var alone []*box
	for _, h := range s.Hosts() {
		b, err := startQuick(t.Context(), h, "churn-late-"+h.Name, "churn")
		if err != nil {
			t.Fatal(err)
		}
		alone = append(alone, b)
	}
	boxes = slices.Concat(burst, alone)
	for _, h := range s.Hosts() {
		eventually(t, 5*time.Second, func() error {
			out, err := h.Exec(t.Context(), "bridge", "fdb", "show", "dev", dev[h.Name])
			if err != nil {
				return err
			}
			for _, b := range boxes {
				if b.host != h && !strings.Contains(out, b.mac+" dst "+b.host.IP().String()) {
					return fmt.Errorf("%s lacks %s of %s", h.Name, b.mac, b.name)
				}
			}
			return nil
		})
	}
	joined := map[string]time.Time{}
	for _, h := range s.Hosts() {
		joins(t, h, begun, joined)
	}
	known(t, recorded, burst, joined)
	known(t, recorded, alone, joined)
	recorded.end()
	each(t, s.Hosts(), func(h *lab.Host) error { return removeAll(t.Context(), h, "churn") })
	for _, h := range s.Hosts() {
		eventually(t, 10*time.Second, func() error {
			out, err := h.Exec(t.Context(), "bridge", "fdb", "show", "dev", dev[h.Name])
			if err != nil {
				return err
			}
			for _, b := range boxes {
				if strings.Contains(out, b.mac) {
					return fmt.Errorf("%s still has %s of %s", h.Name, b.mac, b.name)
				}
			}
			return nil
		})
	}
	s.removeNetwork(t, "churn")
}

// startQuick runs an idle container without the docker command, which costs
// more than the engine's own part.
func startQuick(ctx context.Context, h *lab.Host, name, network string) (*box, error) {
	create := map[string]any{"Image": lab.Image, "Cmd": []string{"sleep", "10000"}, "HostConfig": map[string]any{"NetworkMode": network}}
	var made struct{ ID string }
	var seen struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, MacAddress string }
		}
	}
	err := engine(ctx, h, http.MethodPost, "/containers/create?name="+name, create, &made)
	if err == nil {
		err = engine(ctx, h, http.MethodPost, "/containers/"+made.ID+"/start", nil, nil)
	}
	if err == nil {
		err = engine(ctx, h, http.MethodGet, "/containers/"+made.ID+"/json", nil, &seen)
	}
	if err != nil {
		return nil, fmt.Errorf("run %s on %s: %w", name, h.Name, err)
	}
	n := seen.NetworkSettings.Networks[network]
	return &box{host: h, name: name, id: made.ID, network: network, ip4: n.IPAddress, mac: n.MacAddress}, nil
}

// removeAll removes the containers of a network. An engine that got no CPU for
// some seconds gives up killing them; it is asked again.
func removeAll(ctx context.Context, h *lab.Host, network string) error {
	var failed error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		out, err := h.Docker(ctx, "ps", "-aq", "--filter", "network="+network)
		if err != nil || out == "" {
			return err
		}
		_, failed = h.Docker(ctx, append([]string{"rm", "-f"}, strings.Fields(out)...)...)
	}
	return failed
}

// joins adds when each container of a host was connected to its network, by the
// engine's own record. It keeps the newest 256 events, three a start.
func joins(t *testing.T, h *lab.Host, since time.Time, joined map[string]time.Time) {
	t.Helper()
	out := lab.Must(t)(h.Docker(t.Context(), "events", "--since", fmt.Sprint(since.Unix()), "--until", fmt.Sprint(time.Now().Unix()+1),
		"--filter", "type=network", "--filter", "event=connect", "--format", "{{json .}}"))
	for line := range strings.Lines(out) {
		var e struct {
			TimeNano int64
			Actor    struct{ Attributes struct{ Container string } }
		}
		if err := decode(line, &e); err != nil {
			t.Fatal(err)
		}
		if _, again := joined[e.Actor.Attributes.Container]; !again {
			joined[e.Actor.Attributes.Container] = time.Unix(0, e.TimeNano)
		}
	}
}

// engine does one request of the engine's API.
func engine(ctx context.Context, h *lab.Host, method, path string, request, response any) error {
	var body bytes.Buffer
	if request != nil {
		if err := json.NewEncoder(&body).Encode(request); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, &body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.Client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, answer)
	}
	if response == nil {
		return nil
	}
	return decode(string(answer), response)
}

// known: each of the containers was in the FDB of each other host within 1 s of
// its Join, not counting the time in which either host got no CPU: what else
// this machine does is none of isthmus's.
func known(t *testing.T, r record, boxes []*box, joined map[string]time.Time) {
	t.Helper()
	const limit = time.Second
	var made, done []lag
	eventually(t, 5*time.Second, func() (err error) {
		made, done, err = r.lags(boxes, joined)
		return err
	})
	t.Logf("%d entries until another host has them (and how much of that a host waited for a CPU):\nfrom the beginning of Join:%s\nfrom its end:%s",
		len(done), distribution(made), distribution(done))
	for _, l := range done {
		if l.took-l.waited > limit {
			t.Errorf("%s had no entry for %s of %s within %s of the end of its Join, but after %s, %s of that without a CPU",
				l.on.Name, l.box.mac, l.box.name, limit, l.took, l.waited)
		}
	}
}

// moves: an address that moves to another host is reached there within 2 s, by
// containers that talked to it before, on every host.
func moves(t *testing.T, s *site) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			s.createNetwork(t, "moving", []string{"--subnet", "10.38.0.0/24", "--ipv6", "--subnet", "fd38::/64", "-o", "attach=" + attach})
			watchers := s.oneOnEach(t, "moving")
			defer func() {
				removeBoxes(t, watchers...)
				s.removeNetwork(t, "moving")
			}()
			for _, to := range []int{1, 2, 3, 1} {
				b := run(t, s.Host(to), "nomad", "moving", "--ip", "10.38.0.200", "--ip6", "fd38::200")
				took := make([]time.Duration, len(watchers))
				each(t, s.Hosts(), func(h *lab.Host) error {
					begun := time.Now()
					for {
						_, err := watchers[h.Index-1].exec(t.Context(), "sh", "-ec", "ping -c 1 -W 1 "+b.ip4+"; ping -c 1 -W 1 "+b.ip6)
						took[h.Index-1] = time.Since(begun).Round(time.Millisecond)
						if err == nil || took[h.Index-1] > 2*time.Second {
							return err
						}
					}
				})
				t.Logf("on host%d, reached from host1, host2 and host3 after %v", to, took)
				removeBoxes(t, b)
			}
		})
	}
}
