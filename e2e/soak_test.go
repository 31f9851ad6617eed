//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const soakSubnet = "10.60.0.0/24"

// atLength is the larger of two sizes where there is time (make soak).
func atLength[T any](usual, long T) T {
	if os.Getenv("ISTHMUS_SOAK") != "" {
		return long
	}
	return usual
}

// soakTime is how long the soak goes on: ISTHMUS_SOAK, as 10m, or three
// quarters of a minute.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("ISTHMUS_SOAK")
	if v == "" {
		return 45 * time.Second
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("ISTHMUS_SOAK: %v", err)
	}
	return d
}

// soak starts and stops containers at random on five hosts, while hosts lose
// each other, their plugin, their power, and their last minutes of memory, are
// copied, and are removed. At no moment may two containers hold one address,
// every start that fails says why, and in the end nothing is held for nobody.
func soak(t *testing.T, s *site) {
	d := soakTime(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, for %s", seed, d)
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	k := &soaker{t: t, site: s, why: map[string]int{}, removed: map[*lab.Host]bool{}, busy: make([]sync.Mutex, len(s.Hosts()))}
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

	looking sync.RWMutex // held for a whole look at all addresses
	// removed are the hosts that the cluster has removed. Their containers are
	// cut off, and what they had is others' at once.
	removed map[*lab.Host]bool
	busy    []sync.Mutex // of each host: held while its containers are changed
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
			if k.end(ctx, h, names[i]) {
				names = append(names[:i], names[i+1:]...)
			}
			continue
		}
		name := fmt.Sprintf("soak-%s-%d", h.Name, n)
		args := []string{"run", "-d", "--restart=always", "--name", name, "--network", "soak"}
		if r.IntN(4) == 0 {
			args = append(args, "--ip", fmt.Sprintf("10.60.0.%d", 2+r.IntN(250)))
		}
		if k.begin(ctx, h, append(args, lab.Image, "sleep", "100000")) {
			names = append(names, name)
			continue
		}
		k.end(ctx, h, name)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // the reason does not go away at once
		}
	}
}

// begin starts a container, and reports whether it runs.
func (k *soaker) begin(ctx context.Context, h *lab.Host, args []string) bool {
	k.busy[h.Index-1].Lock()
	defer k.busy[h.Index-1].Unlock()
	_, err := h.Docker(ctx, args...)
	switch {
	case err == nil:
		k.count(&k.starts)
	case ctx.Err() == nil:
		k.explain(h, err)
	}
	return err == nil
}

// end removes a container, and reports whether it is gone.
func (k *soaker) end(ctx context.Context, h *lab.Host, name string) bool {
	k.busy[h.Index-1].Lock()
	defer k.busy[h.Index-1].Unlock()
	_, err := h.Docker(ctx, "rm", "-f", name)
	if err == nil {
		k.count(&k.stops)
	}
	return err == nil || strings.Contains(err.Error(), "No such container")
}

// reasons are what isthmus may refuse a start for.
var reasons = []string{
	"is used by", "in use", "is held by", "belongs to", "is full", "no free address", "voters reachable", "not trusted", "set back",
	"was removed from the cluster", "was copied from there", "cut off", "does not answer", "did not answer in time", "not ready", "is starting",
	"given back", "connection refused", "EOF", "connection reset", "no such file", "not done within",
	"is not known to this plugin", // whose state was set back, or reset, in the midst of a start
	"keeps block",                 // that was set back, and whose block was granted to another host after node rm
	"empty body",                  // the engine asked again after the plugin was killed in the midst of a call
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
		k.look(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // the engines have other work
		}
	}
}

func (k *soaker) look(ctx context.Context) {
	k.looking.RLock()
	defer k.looking.RUnlock()
	in := slices.DeleteFunc(k.site.Hosts(), func(h *lab.Host) bool { return k.removed[h] })
	for _, bad := range twice(ctx, in, "soak") {
		k.t.Errorf("duplicate: %s", bad)
	}
	k.count(&k.looks)
}

// harm does one fault after the other, each kind once in every round, and
// undoes it.
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
		name    string
		lasting bool // costs what does not return by itself
		do      func() error
	}{
		{"kill", false, func() error {
			_, err := any().Exec(context.Background(), "sh", "-c", "kill -9 $(pidof isthmus)")
			return err
		}},
		{"isolate", false, func() error {
			err := s.Isolate(any().Index)
			rest(5*time.Second, 15*time.Second)
			return err
		}},
		{"one-way", false, func() error {
			a := 1 + r.IntN(5)
			err := s.CutOneWay(a, 1+a%5)
			rest(5*time.Second, 15*time.Second)
			return err
		}},
		{"minority", false, func() error {
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
		{"lossy", false, func() error {
			a := 1 + r.IntN(5)
			err := s.Loss(a, 1+a%5, 30)
			rest(5*time.Second, 10*time.Second)
			return err
		}},
		{"reboot", false, func() error { return any().Reboot(context.Background()) }},
		{"set-back", true, func() error { return k.setBack(any(), rest) }},
		{"clone", true, func() error { return k.clone(r, rest) }},
		{"node-rm", true, func() error { return k.remove(r, rest) }},
	}
	var round []int
	for ctx.Err() == nil {
		if len(round) == 0 {
			round = r.Perm(len(faults))
		}
		f := faults[round[0]]
		round = round[1:]
		if f.lasting {
			if err := k.whole(ctx); err != nil {
				k.t.Errorf("before fault %s: %v", f.name, err)
				return
			}
			if ctx.Err() != nil {
				return
			}
		}
		k.t.Logf("fault %s", f.name)
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

// resting waits, for a time between two limits, or until the soak ends.
type resting func(least, most time.Duration)

// What is begun is undone also when the soak ends meanwhile.
var undisturbed = context.Background()

// wholeTime is within which the voters are three again, and well, after a fault
// is over.
const wholeTime = 2 * time.Minute

// whole waits for that before a lasting fault: a state that was set back costs a
// voter its log for good, and two at a time are more than three voters can bear.
// That it comes by itself is part of what is tested.
func (k *soaker) whole(ctx context.Context) error {
	return retry(wholeTime, 500*time.Millisecond, func() error {
		err := confirmed(ctx, k.site.Host(1))
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// setBack gives a host the plugin's state of some seconds ago, below its
// running containers.
func (k *soaker) setBack(h *lab.Host, rest resting) error {
	copied, err := saveState(undisturbed, h, "soak")
	if err != nil {
		return err
	}
	rest(5*time.Second, 15*time.Second)
	return swapState(undisturbed, h, func() error { return putState(undisturbed, h, copied) })
}

// clone lets a host come up with the state of another for a while, below its
// own running containers. The other is off half of the time, so that its copy
// speaks first.
func (k *soaker) clone(r *rand.Rand, rest resting) error {
	drawn := r.Perm(len(k.site.Hosts()))
	original, copied, off := k.site.Host(1+drawn[0]), k.site.Host(1+drawn[1]), r.IntN(2) == 0
	own, err := saveState(undisturbed, copied, "own")
	if err != nil {
		return err
	}
	image, err := saveState(undisturbed, original, "image")
	if err != nil {
		return err
	}
	if off {
		if err := original.PowerOff(undisturbed); err != nil {
			return err
		}
	}
	if err := swapState(undisturbed, copied, func() error { return copyState(undisturbed, original, image, copied) }); err != nil {
		return err
	}
	rest(5*time.Second, 15*time.Second)
	if off {
		if err := original.Reboot(undisturbed); err != nil {
			return err
		}
	}
	return swapState(undisturbed, copied, func() error { return putState(undisturbed, copied, own) })
}

// remove has two hosts say node rm of a third, which is off half of the time
// and comes back, and makes that a new host in the end.
func (k *soaker) remove(r *rand.Rand, rest resting) error {
	drawn := r.Perm(len(k.site.Hosts()))
	h, off := k.site.Host(1+drawn[0]), r.IntN(2) == 0
	k.setRemoved(h, true)
	if off {
		if err := h.PowerOff(undisturbed); err != nil {
			return err
		}
	}
	said := make(chan error)
	for _, i := range drawn[1:3] {
		go func() { said <- removeNode(undisturbed, k.site.Host(1+i), h.Name) }()
	}
	if err := errors.Join(<-said, <-said); err != nil {
		return err
	}
	rest(3*time.Second, 10*time.Second)
	if off {
		if err := h.Reboot(undisturbed); err != nil {
			return err
		}
		rest(3*time.Second, 10*time.Second)
	}
	k.busy[h.Index-1].Lock()
	defer k.busy[h.Index-1].Unlock()
	if err := removeAll(undisturbed, h, "soak"); err != nil {
		return err
	}
	if err := rejoin(undisturbed, h); err != nil {
		return err
	}
	k.setRemoved(h, false)
	return nil
}

func (k *soaker) setRemoved(h *lab.Host, removed bool) {
	k.looking.Lock()
	defer k.looking.Unlock()
	k.removed[h] = removed
}

// removeNode says node rm on a host until the cluster, which may just have lost
// its leader, agreed.
func removeNode(ctx context.Context, on *lab.Host, name string) error {
	return retry(45*time.Second, 500*time.Millisecond, func() error {
		_, err := on.Exec(ctx, "isthmus", "node", "rm", name)
		return err
	})
}

// settleTime is within which everything that Docker gave up is free again, also
// what it released while the plugin's state was an older one: a look into all
// sandboxes finds within a minute that one is gone. Its endpoint is dropped after
// another; one whose interface was never seen in a sandbox, only after five.
// Without an endpoint for a minute, the address is freed. Each step begins up to
// ten seconds after the one before, and the clocks start with the plugin.
const settleTime = 8 * time.Minute

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
	each(t, s.Hosts(), func(h *lab.Host) error { return removeAll(t.Context(), h, "soak") })
	begun := time.Now()
	for _, h := range s.Hosts() {
		// Rarely: these minutes the plugins have other work than to answer.
		if err := retry(settleTime-time.Since(begun), time.Second, func() error { return settled(t.Context(), s, h) }); err != nil {
			t.Fatalf("not within %s: %v", settleTime, err)
		}
		t.Logf("%s counts nothing as used %s after the last container was removed", h.Name, time.Since(begun).Round(time.Second))
	}
	for _, h := range s.Hosts() {
		eventually(t, wholeTime, func() error { return confirmed(t.Context(), h) })
	}
}

// confirmed wants the voters whole, as a host sees them, and the host itself
// trusted: the last fault may have set it back.
func confirmed(ctx context.Context, h *lab.Host) error {
	st, err := statusOf(ctx, h)
	switch {
	case err != nil:
		return err
	case !st.Ledger.Reachable || len(st.Ledger.Voters) != 3 || slices.ContainsFunc(st.Ledger.Voters, func(v voter) bool { return !v.Healthy }):
		return fmt.Errorf("%s: the voters are not whole again: %+v", h.Name, st.Ledger)
	case strings.Contains(fmt.Sprint(st.Problems), "containers of this host are cut off"):
		return fmt.Errorf("%s is not confirmed: %+v", h.Name, st.Problems)
	}
	return nil
}

// settled wants nothing used on a host, and no block held for a host that is
// gone.
func settled(ctx context.Context, s *site, h *lab.Host) error {
	pool, err := poolOf(ctx, h, soakSubnet)
	if err != nil {
		return err
	}
	if len(pool.Used) > 0 {
		return fmt.Errorf("%s still counts as used: %+v", h.Name, pool.Used)
	}
	members, err := membersOf(ctx, h)
	if err != nil {
		return err
	}
	free := 0
	for _, b := range pool.Blocks {
		if !slices.ContainsFunc(members, func(m member) bool { return m.ID == b.Holder && m.State == "alive" }) {
			return fmt.Errorf("%s sees block %s held by %s, which is no member", h.Name, b.Block, b.Host)
		}
		free += b.Free // of this host's blocks
	}
	for _, share := range pool.Shares {
		if share.Name == h.Name && share.Addresses != free {
			return fmt.Errorf("%s holds %d addresses, of which %d are free", h.Name, share.Addresses, free)
		}
	}
	return nil
}
