//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const soakSubnet = "10.60.0.0/24"

// soakTime is how long the soak goes on: ISTHMUS_SOAK, as 10m, or a minute and
// a half.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("ISTHMUS_SOAK")
	if v == "" {
		return 90 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("ISTHMUS_SOAK: %v", err)
	}
	return d
}

// soak starts and stops containers at random on five hosts, while hosts lose
// each other, their plugin, their power, and their last minutes of memory. At
// no moment may two containers hold one address, every start that fails says
// why, and in the end nothing is held for nobody.
func soak(t *testing.T, s *site) {
	d := soakTime(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, for %s", seed, d)
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	k := &soaker{t: t, site: s, why: map[string]int{}}
	var wait sync.WaitGroup
	for _, h := range s.Hosts() {
		wait.Go(func() { k.live(ctx, h, rand.New(rand.NewPCG(seed, uint64(h.Index)))) })
	}
	wait.Go(func() { k.harm(ctx, rand.New(rand.NewPCG(seed, 0))) })
	wait.Go(func() { k.watch(ctx) })
	wait.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d starts, %d stops, %d faults (%s), %d looks at all addresses; starts refused: %v", k.starts, k.stops, len(k.faults), strings.Join(k.faults, " "), k.looks, k.why)
	if k.starts < 20 || len(k.faults) < 3 || k.looks < 10 {
		t.Error("too little happened for this to say anything")
	}
	k.settle()
}

// soaker counts what was done.
type soaker struct {
	t    *testing.T
	site *site

	mu            sync.Mutex
	starts, stops int
	looks         int
	faults        []string
	why           map[string]int // reasons of refused starts
}

func (k *soaker) count(n *int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*n++
}

// live starts and stops containers on one host until ctx ends.
func (k *soaker) live(ctx context.Context, h *lab.Host, r *rand.Rand) {
	const most = 6
	var names []string
	for n := 0; ctx.Err() == nil; n++ {
		if len(names) == most || len(names) > 0 && r.IntN(3) == 0 {
			i := r.IntN(len(names))
			if _, err := h.Docker(ctx, "rm", "-f", names[i]); err == nil {
				k.count(&k.stops)
				names = append(names[:i], names[i+1:]...)
			}
			continue
		}
		name := fmt.Sprintf("soak-%s-%d", h.Name, n)
		args := []string{"run", "-d", "--restart=always", "--name", name, "--network", "soak"}
		if r.IntN(4) == 0 {
			args = append(args, "--ip", fmt.Sprintf("10.60.0.%d", 2+r.IntN(250)))
		}
		_, err := h.Docker(ctx, append(args, lab.Image, "sleep", "100000")...)
		switch {
		case err == nil:
			k.count(&k.starts)
			names = append(names, name)
		case ctx.Err() == nil:
			k.explain(h, err)
			h.Docker(ctx, "rm", "-f", name)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond): // the reason does not go away at once
			}
		}
	}
}

// reasons are what isthmus may refuse a start for.
var reasons = []string{
	"is used by", "in use", "is held by", "belongs to", "is full", "no free address", "voters reachable", "not trusted", "set back",
	"was removed from the cluster", "was copied from there", "cut off", "does not answer", "did not answer in time", "not ready", "is starting",
	"given back", "connection refused", "EOF", "connection reset", "no such file", "not done within",
}

// explain wants each refusal of isthmus to say why. What the engine and the lab
// say of an engine or a host that is down is their own.
func (k *soaker) explain(h *lab.Host, err error) {
	text, why := err.Error(), ""
	if !strings.Contains(text, "IpamDriver.") && !strings.Contains(text, "NetworkDriver.") {
		why = "engine or host away"
	}
	for _, reason := range reasons {
		if why == "" && strings.Contains(text, reason) {
			why = reason
		}
	}
	if why == "" {
		k.t.Errorf("a start on %s failed and does not say why: %v", h.Name, err)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.why[why]++
	if why == "engine or host away" {
		k.t.Logf("%s: %v", h.Name, err)
	}
}

// watch looks at all addresses, again and again.
func (k *soaker) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for _, bad := range twice(ctx, k.site.Hosts(), "soak") {
			k.t.Errorf("duplicate: %s", bad)
		}
		k.count(&k.looks)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // the engines have other work
		}
	}
}

// harm does one fault after the other, and undoes it.
func (k *soaker) harm(ctx context.Context, r *rand.Rand) {
	s := k.site
	rest := func(least, most time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(least + time.Duration(r.Int64N(int64(most-least)))):
		}
	}
	any := func() *lab.Host { return s.Host(1 + r.IntN(len(s.Hosts()))) }
	faults := []struct {
		name string
		do   func() error
	}{
		{"kill", func() error {
			_, err := any().Exec(context.Background(), "sh", "-c", "kill -9 $(pidof isthmus)")
			return err
		}},
		{"isolate", func() error {
			err := s.Isolate(any().Index)
			rest(5*time.Second, 15*time.Second)
			return err
		}},
		{"one-way", func() error {
			a := 1 + r.IntN(5)
			err := s.CutOneWay(a, 1+a%5)
			rest(5*time.Second, 15*time.Second)
			return err
		}},
		{"minority", func() error {
			first := r.IntN(5)
			var err error
			for _, a := range []int{first, first + 1} {
				for b := first + 2; b < first+5 && err == nil; b++ {
					err = s.Cut(1+a%5, 1+b%5)
				}
			}
			rest(5*time.Second, 15*time.Second)
			return err
		}},
		{"lossy", func() error {
			a := 1 + r.IntN(5)
			err := s.Loss(a, 1+a%5, 30)
			rest(5*time.Second, 10*time.Second)
			return err
		}},
		{"reboot", func() error { return any().Reboot(context.Background()) }},
		{"set-back", func() error { return k.setBack(any(), rest) }},
	}
	for ctx.Err() == nil {
		f := faults[r.IntN(len(faults))]
		if err := f.do(); err != nil {
			k.t.Errorf("fault %s: %v", f.name, err)
			return
		}
		if err := s.Heal(); err != nil {
			k.t.Error(err)
			return
		}
		k.mu.Lock()
		k.faults = append(k.faults, f.name)
		k.mu.Unlock()
		rest(2*time.Second, 6*time.Second)
	}
}

// setBack gives a host the plugin's state of some seconds ago, below its
// running containers.
func (k *soaker) setBack(h *lab.Host, rest func(least, most time.Duration)) error {
	dir, err := h.Docker(context.Background(), "plugin", "inspect", "-f", "/var/lib/docker/plugins/{{.Id}}/propagated-mount", driverName)
	if err != nil {
		return err
	}
	dir = strings.TrimSpace(dir)
	const copied = "/var/tmp/state-soak"
	if _, err := h.Exec(context.Background(), "sh", "-c", fmt.Sprintf(
		`rm -rf %[1]s; pid=$(pidof isthmus); kill -STOP $pid; cp -a %[2]s %[1]s; kill -CONT $pid`, copied, dir)); err != nil {
		return err
	}
	rest(5*time.Second, 15*time.Second)
	for _, step := range [][]string{
		{"docker", "plugin", "disable", "-f", driverName},
		{"sh", "-c", fmt.Sprintf("find %[1]s -mindepth 1 -delete && cp -a %[2]s/. %[1]s/", dir, copied)},
		{"docker", "plugin", "enable", driverName},
	} {
		if _, err := h.Exec(context.Background(), step...); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until all hosts are whole again, removes every container, and
// wants every address back.
func (k *soaker) settle() {
	t, s := k.t, k.site
	if err := s.Heal(); err != nil {
		t.Fatal(err)
	}
	s.awaitMembers(t, len(s.Hosts()))
	if bad := twice(t.Context(), s.Hosts(), "soak"); len(bad) > 0 {
		t.Errorf("in the end: %v", bad)
	}
	each(t, s.Hosts(), func(h *lab.Host) error {
		out, err := h.Exec(t.Context(), "sh", "-c", `docker ps -aq --filter name=soak- | xargs -r docker rm -f`)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	for _, h := range s.Hosts() {
		// What Docker released while the state was a newer one is found in steps
		// of a minute: the sandbox is gone, its endpoint, its address; five for
		// an endpoint that was not seen in a sandbox yet.
		eventually(t, 8*time.Minute, func() error {
			pool, err := poolOf(t.Context(), h, soakSubnet)
			if err == nil && len(pool.Used) > 0 {
				err = fmt.Errorf("%s still counts as used: %+v", h.Name, pool.Used)
			}
			return err
		})
	}
}
