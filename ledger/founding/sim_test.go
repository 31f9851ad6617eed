package founding

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// world runs machines over a network that delays and loses, in virtual time.
type world struct {
	t        *testing.T
	rng      *rand.Rand
	now      time.Duration
	seq      int
	queue    []happening
	hosts    []*host
	founded  []cluster.ID
	loss     float64
	ids      int
	journal  []string
	patience time.Duration
}

type happening struct {
	at  time.Duration
	seq int
	do  func()
}

// host is one host: what is on its disk, and its machine while it is up.
type host struct {
	w       *world
	name    string
	join    []string
	force   bool
	id      cluster.HostID
	cluster cluster.ID // on disk
	promise Promise    // on disk
	log     cluster.ID // on disk: the log that it founded
	m       *Machine
	run     int
	wants   int
}

func newWorld(t *testing.T, seed uint64) *world {
	return &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), patience: 1400 * time.Millisecond}
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	w.queue = append(w.queue, happening{w.now + d, w.seq, do})
}

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)))
}

// runUntil lets time pass until then, or until ok.
func (w *world) runUntil(then time.Duration, ok func() bool) bool {
	for len(w.queue) > 0 {
		i := 0
		for j, h := range w.queue {
			if cmp.Or(cmp.Compare(h.at, w.queue[i].at), cmp.Compare(h.seq, w.queue[i].seq)) < 0 {
				i = j
			}
		}
		h := w.queue[i]
		if h.at > then {
			break
		}
		w.queue = slices.Delete(w.queue, i, i+1)
		w.now = h.at
		h.do()
		if ok() {
			return true
		}
	}
	w.now = then
	return ok()
}

func (w *world) log(format string, args ...any) {
	w.journal = append(w.journal, fmt.Sprintf("%6.3fs ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) host(name string, join ...string) *host {
	h := &host{w: w, name: name, join: join}
	w.hosts = append(w.hosts, h)
	h.wipe()
	return h
}

func (w *world) find(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	w.t.Fatalf("no host %s", name)
	return nil
}

func (h *host) wipe() {
	h.w.ids++
	h.id = cluster.HostID(fmt.Sprintf("%s#%d", h.name, h.w.ids))
	h.cluster, h.promise, h.log = "", Promise{}, ""
}

func (h *host) start() {
	h.run++
	h.w.log("%s starts (cluster %q, promise %q)", h.name, h.cluster, h.promise.Cluster)
	h.m = New(Config{Host: h.id, Join: h.join, Force: h.force, Promise: h.promise})
	if h.wants = 0; h.log != "" && h.cluster == "" {
		h.m = nil // it answers nothing before the log is replayed
		h.replay()
		return
	}
	h.tick(h.run)
}

// replay finds out from the log on disk which cluster this is.
func (h *host) replay() {
	run := h.run
	h.w.after(h.w.between(200*time.Millisecond, 600*time.Millisecond), func() {
		if h.run == run {
			h.m = cmp.Or(h.m, New(Config{Host: h.id}))
			h.cluster, h.promise = h.log, Promise{}
		}
	})
}

func (h *host) crash() {
	h.run++
	h.m = nil
	h.w.log("%s crashes", h.name)
}

func (h *host) up() bool { return h.m != nil }

func (h *host) tick(run int) {
	if h.run != run || h.cluster != "" {
		return
	}
	h.w.ids++
	h.step(Tick{Fresh: cluster.ID(fmt.Sprintf("%04x-%d", h.w.rng.IntN(1<<16), h.w.ids))})
	h.w.after(h.w.between(250*time.Millisecond, 500*time.Millisecond), func() { h.tick(run) })
}

// want asks for a cluster, and gives up after five seconds.
func (h *host) want() {
	if !h.up() || h.cluster != "" {
		return
	}
	run := h.run
	h.wants++
	h.step(Want{})
	h.w.after(5*time.Second, func() {
		if h.run == run {
			if h.wants--; h.wants == 0 {
				h.step(Sated{})
			}
		}
	})
}

func (h *host) answer() Answer {
	a := Answer{Host: h.id, Name: h.name, Cluster: h.cluster, Promise: h.promise}
	if h.cluster == "" {
		a.Founds = h.m.Founds()
	}
	return a
}

// call carries a question to a host and its answer back.
func (h *host) call(patience time.Duration, to *host, serve func(reply func(func())), failed func(string)) {
	w, run, done := h.w, h.run, false
	finish := func(f func()) {
		if !done && h.run == run && h.up() {
			done = true
			f()
		}
	}
	lost := func() bool { return w.rng.Float64() < w.loss }
	w.after(patience, func() { finish(func() { failed("no answer") }) })
	if lost() {
		return
	}
	delay := func() time.Duration { return w.between(time.Millisecond, 30*time.Millisecond) }
	w.after(delay(), func() {
		if !to.up() {
			w.after(delay(), func() { finish(func() { failed("connection refused") }) })
			return
		}
		serve(func(back func()) {
			if !lost() {
				w.after(delay(), func() { finish(back) })
			}
		})
	})
}

func (h *host) step(e Event) {
	if !h.up() || h.cluster != "" {
		if e, ok := e.(Asked); ok {
			e.Token.(func(bool))(false)
		}
		return
	}
	for _, effect := range h.m.Step(e) {
		h.do(effect)
	}
}

func (h *host) do(e Effect) {
	w, run := h.w, h.run
	switch e := e.(type) {
	case Ask:
		to := w.find(e.Peer)
		h.call(w.patience, to, func(reply func(func())) {
			a := to.answer()
			reply(func() { h.step(Answered{Peer: e.Peer, Self: to == h, Answer: a}) })
		}, func(err string) { h.step(Answered{Peer: e.Peer, Self: to == h, Err: err}) })
	case Record:
		to := w.find(e.Peer)
		h.call(w.patience, to, func(reply func(func())) {
			to.step(Asked{Promise: Promise{Cluster: e.Cluster, Founder: h.id, Name: h.name}, Force: e.Force, Token: func(ok bool) {
				a := to.answer()
				reply(func() { h.step(Recorded{Peer: e.Peer, Cluster: e.Cluster, OK: ok, Answer: a}) })
			}})
		}, func(err string) { h.step(Recorded{Peer: e.Peer, Cluster: e.Cluster, Err: err}) })
	case Persuade:
		to := w.find(e.Peer)
		h.call(4*time.Second, to, func(reply func(func())) {
			to.want()
			until := w.now + 5*time.Second
			var look func()
			look = func() {
				if to.up() && to.cluster != "" {
					a := to.answer()
					reply(func() { h.step(Persuaded{Peer: e.Peer, Answer: a}) })
				} else if to.up() && w.now < until {
					w.after(20*time.Millisecond, look)
				}
			}
			look()
		}, func(err string) { h.step(Persuaded{Peer: e.Peer, Err: err}) })
	case Keep:
		h.promise = e.Promise
		w.log("%s keeps %q of %s", h.name, e.Promise.Cluster, e.Promise.Founder)
	case Reply:
		e.Token.(func(bool))(e.OK)
	case Found:
		w.after(w.between(time.Millisecond, 20*time.Millisecond), func() {
			if h.run != run {
				return
			}
			w.log("%s founds %s", h.name, e.Cluster)
			w.founded = append(w.founded, e.Cluster)
			h.log = e.Cluster
			h.replay()
		})
	case Enter:
		var ok []string
		for _, p := range e.Peers {
			if w.find(p).up() && w.find(p).cluster == e.Cluster {
				ok = append(ok, p)
			}
		}
		w.after(w.between(2*time.Millisecond, 300*time.Millisecond), func() {
			switch {
			case h.run != run:
			case len(ok) == 0:
				h.step(Entered{Err: "nobody there"})
			default:
				w.log("%s enters %s", h.name, e.Cluster)
				h.cluster, h.promise = e.Cluster, Promise{}
			}
		})
	default:
		w.t.Fatalf("unknown effect %T", e)
	}
}

func (w *world) all(ok func(*host) bool) func() bool {
	return func() bool { return !slices.ContainsFunc(w.hosts, func(h *host) bool { return !ok(h) }) }
}

func in(h *host) bool { return h.cluster != "" }

// check fails when there is more than one cluster.
func (w *world) check(seed uint64) {
	w.t.Helper()
	if len(w.founded) > 1 {
		for _, line := range w.journal {
			w.t.Log(line)
		}
		w.t.Fatalf("seed %d: clusters %v were founded", seed, w.founded)
	}
}

func names(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("host%d", i+1))
	}
	return out
}

// The same list on all hosts, which start in any order and all want a cluster:
// exactly one comes out, within five seconds after the last of them started.
func TestSameListGivesOneCluster(t *testing.T) {
	for seed := range uint64(2000) {
		w := newWorld(t, seed)
		list := names(1 + w.rng.IntN(7))
		last := time.Duration(0)
		for _, name := range list {
			h := w.host(name, list...)
			at := time.Duration(0)
			if seed%3 > 0 {
				at = w.between(0, 4*time.Second)
			}
			last = max(last, at)
			w.after(at, h.start)
			w.after(at+w.between(0, time.Second), h.want)
		}
		again := last + time.Millisecond
		for _, h := range w.hosts {
			w.after(again, h.want)
		}
		ok := w.runUntil(again+5*time.Second, w.all(in))
		w.check(seed)
		if !ok {
			for _, h := range w.hosts {
				if !in(h) {
					text, stuck := h.m.Text()
					t.Logf("%s: %s (stuck %v)", h.name, text, stuck)
				}
			}
			t.Fatalf("seed %d: not all of %d hosts have a cluster: %v", seed, len(list), w.journal)
		}
	}
}

// Nobody wants a cluster: there is none.
func TestNothingIsFoundedUnasked(t *testing.T) {
	w := newWorld(t, 1)
	for _, name := range names(3) {
		w.host(name, names(3)...)
	}
	w.host("host4")
	for _, h := range w.hosts {
		h.start()
	}
	w.runUntil(time.Minute, func() bool { return false })
	if len(w.founded) != 0 {
		t.Errorf("founded %v", w.founded)
	}
	if text, stuck := w.hosts[1].m.Text(); stuck || text != "no cluster yet: it is founded with the first network; of JOIN, host1 and host3 answer" {
		t.Errorf("%q, stuck %v", text, stuck)
	}
	if text, stuck := w.hosts[3].m.Text(); stuck || text != "no cluster yet: it is founded with the first network" {
		t.Errorf("%q, stuck %v", text, stuck)
	}
}

// Hosts crash and come back, answers get lost, and the lists have the same
// entries, up to five of them in any order: never two clusters, and one in the
// end where the order is the same.
func TestOneClusterInAWorldOfFaults(t *testing.T) {
	for seed := range uint64(600) {
		w := newWorld(t, seed)
		w.loss = []float64{0, 0.1, 0.3}[seed%3]
		shuffled := seed%2 == 0
		list := names(2 + w.rng.IntN(4))
		if !shuffled {
			list = names(2 + w.rng.IntN(8))
		}
		for _, name := range list {
			own := slices.Clone(list)
			if shuffled {
				w.rng.Shuffle(len(own), func(i, j int) { own[i], own[j] = own[j], own[i] })
			}
			h := w.host(name, own...)
			w.after(w.between(0, time.Second), h.start)
			for range 10 {
				w.after(w.between(0, 30*time.Second), h.want)
			}
			for range w.rng.IntN(4) {
				w.after(w.between(time.Second, 20*time.Second), func() {
					if h.up() {
						h.crash()
						w.after(w.between(0, 3*time.Second), h.start)
					}
				})
			}
		}
		w.runUntil(31*time.Second, func() bool { return false })
		w.check(seed)
		w.loss = 0
		for range 4 {
			for _, h := range w.hosts {
				w.after(0, h.want)
			}
			w.runUntil(w.now+6*time.Second, w.all(in))
		}
		w.check(seed)
		if !shuffled && !w.all(in)() {
			t.Fatalf("seed %d: not all hosts have a cluster: %v", seed, w.journal)
		}
	}
}

// A founder that lost its disk does not found a second cluster while any of
// those that agreed to the first is in reach.
func TestWipedFounderFoundsNoSecondCluster(t *testing.T) {
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		list := names(3 + w.rng.IntN(3))
		for _, name := range list {
			w.host(name, list...)
		}
		for _, h := range w.hosts {
			h.start()
		}
		founder := w.hosts[0]
		w.after(w.between(0, time.Second), w.hosts[1].want)
		if !w.runUntil(10*time.Second, func() bool { return len(w.founded) == 1 }) {
			t.Fatalf("seed %d: nothing founded", seed)
		}
		founder.crash()
		founder.wipe()
		// Those who entered already are one case, and those who hold a promise
		// another.
		w.after(w.between(0, 2*time.Second), founder.start)
		for i := range 5 {
			w.after(time.Duration(i+1)*3*time.Second, founder.want)
		}
		w.runUntil(w.now+20*time.Second, func() bool { return false })
		w.check(seed)
	}
}
