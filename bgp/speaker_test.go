package bgp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	isolate()
	// The library closes the queue to a router and does not always wait for it
	// to be read empty: that goroutine stays.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/eapache/channels.(*InfiniteChannel).infiniteBuffer"))
}

// These tests run two or more speakers on loopback addresses: one listens as
// the router does, the other connects.

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// node is a speaker that runs, and all sets it imported.
type node struct {
	*Speaker
	log  *lines
	stop func() // ends Run, and waits

	mu   sync.Mutex
	sets [][]Route
}

func (n *node) imports() [][]Route {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.sets)
}

// start runs a speaker until the test ends.
func start(t *testing.T, c Config, change ...func(*Speaker)) *node {
	t.Helper()
	n := &node{log: &lines{}}
	c.Imported = func(routes []Route) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.sets = append(n.sets, routes)
	}
	log := logrus.New()
	log.SetOutput(n.log)
	log.SetLevel(logrus.TraceLevel)
	var err error
	if n.Speaker, err = New(c, log); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(n.Speaker)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Logf("log of AS %d:\n%s", c.AS, n.log)
		}
	})
	return n
}

// pair makes two configurations on 127.0.n.1, which listens and has AS 65000,
// and 127.0.n.2, which connects and has AS 65001.
func pair(t *testing.T, n int) (router, host Config) {
	t.Helper()
	if raceEnabled {
		t.Skip("two speakers of one process share variables of the library")
	}
	a, b := addr(fmt.Sprintf("127.0.%d.1", n)), addr(fmt.Sprintf("127.0.%d.2", n))
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	common := Config{Hold: 9 * time.Second, Restart: time.Minute, ImportMax: 1000, ReceiveMax: 100_000}
	router, host = common, common
	router.AS, router.RouterID, router.Listen = 65000, addr("192.0.2.1"), at
	router.Peers = []Peer{{Addr: b, AS: 65001, Port: at.Port(), Source: a}}
	host.AS, host.RouterID = 65001, addr("192.0.2.2")
	host.Peers = []Peer{{Addr: a, AS: 65000, Port: at.Port(), Source: b}}
	return router, host
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *node) session() Session { return n.Status().Sessions[0] }

func (n *node) wantState(t *testing.T, state State) {
	t.Helper()
	eventually(t, fmt.Sprintf("AS %d is %s", n.config.AS, state), func() bool { return n.session().State == state })
}

// wantImports waits until what was delivered last is the given set.
func (n *node) wantImports(t *testing.T, want []Route) {
	t.Helper()
	eventually(t, fmt.Sprintf("imported are %v", want), func() bool {
		sets := n.imports()
		return len(sets) > 0 && slices.Equal(sets[len(sets)-1], want)
	})
}

func (n *node) wantProblem(t *testing.T, parts ...string) {
	t.Helper()
	var got Session
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("asked for the problem %q, the last status was %+v", parts, got)
		}
	})
	eventually(t, fmt.Sprintf("AS %d reports %q", n.config.AS, parts), func() bool {
		got = n.session()
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(got.Problem, p) })
	})
}

func announce(t *testing.T, n *node, routes ...Route) {
	t.Helper()
	if err := n.Announce(routes); err != nil {
		t.Fatal(err)
	}
}

func routes(hop string, prefixes ...string) (out []Route) {
	for _, p := range prefixes {
		out = append(out, Route{prefix(p), addr(hop)})
	}
	return out
}

// numbered makes 10.N.0.0/16 for N below n.
func numbered(n int) (out []Route) {
	for i := range n {
		out = append(out, Route{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), addr("192.0.2.2")})
	}
	return out
}

var everything = []Match{{prefix("0.0.0.0/0"), true}, {prefix("::/0"), true}}

func TestAnnounceAndWithdraw(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 1)
	a.Import = []Match{{prefix("10.0.0.0/8"), true}, {prefix("fd00::/8"), true}, {prefix("172.16.0.0/12"), false}}
	router, host := start(t, a), start(t, b)
	announce(t, router)
	first := []Route{
		{prefix("10.1.0.0/16"), addr("192.0.2.2")},
		{prefix("10.1.2.3/32"), addr("192.0.2.3")},
		{prefix("fd00:1::/64"), addr("2001:db8::2")},
	}
	ignored := routes("192.0.2.2", "172.16.1.0/24", "198.51.100.0/24")
	announce(t, host, append(ignored, first...)...)
	router.wantImports(t, first)

	got := host.session()
	if got.State != Established || got.Problem != "" || got.Announced != 5 || !got.Graceful || got.Since.IsZero() {
		t.Errorf("the host's session: %+v", got)
	}
	if got := router.session(); got.Received != 5 || got.Accepted != 3 {
		t.Errorf("the router's session: %+v", got)
	}

	// Another next hop, one prefix more, two fewer.
	second := []Route{
		{prefix("10.1.0.0/16"), addr("192.0.2.9")},
		{prefix("172.16.0.0/12"), addr("192.0.2.2")},
	}
	announce(t, host, second...)
	router.wantImports(t, second)
	if diff := cmp.Diff(second, host.Status().Announced, byValue); diff != "" {
		t.Error(diff)
	}
	announce(t, host)
	router.wantImports(t, []Route{})
	if got := host.session(); got.State != Established || got.Announced != 0 {
		t.Errorf("the host's session: %+v", got)
	}

	// A set that is wrong in part changes nothing.
	err := host.Announce([]Route{first[0], {prefix("10.9.0.1/16"), addr("192.0.2.2")}, {prefix("fd00::/64"), addr("192.0.2.2")}})
	if err == nil || strings.Count(err.Error(), "\n") != 1 || len(host.Status().Announced) != 0 {
		t.Errorf("announce: %v", err)
	}
	if err := host.Announce([]Route{first[0], second[0]}); err == nil || !strings.Contains(err.Error(), "two next hops") {
		t.Errorf("announce: %v", err)
	}
}

func TestNothingIsImportedByDefault(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 2)
	router, host := start(t, a), start(t, b)
	announce(t, router)
	announce(t, host, numbered(20)...)
	eventually(t, "the router has heard all", func() bool { return router.session().Received == 20 })
	router.wantImports(t, []Route{})
	if got := router.imports(); len(got) != 1 {
		t.Errorf("delivered: %v", got)
	}
}

func TestNoTransit(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 3)
	c, d := pair(t, 4)
	// The host has two routers: a, which announces, and c.
	a.Peers[0].AS, c.Peers[0].AS = 65001, 65001
	c.AS, c.RouterID, c.Import = 65003, addr("192.0.2.3"), everything
	d.Peers[0].AS = 65003
	b.Peers, b.Import = append(b.Peers, d.Peers...), everything
	left, host, right := start(t, a), start(t, b), start(t, c)
	announce(t, left, numbered(2)...)
	announce(t, right)
	announce(t, host, routes("192.0.2.9", "172.16.0.0/16")...)
	host.wantImports(t, numbered(2))
	right.wantImports(t, routes("192.0.2.9", "172.16.0.0/16"))
	for _, s := range host.Status().Sessions {
		if s.Announced != 1 {
			t.Errorf("announced to %s: %d", s.Peer, s.Announced)
		}
	}
	if got := right.session(); got.Received != 1 {
		t.Errorf("the host passed on: %+v", got)
	}
}

func TestImportIsBounded(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 5)
	a.Import, a.ImportMax = everything, 4
	router, host := start(t, a), start(t, b)
	announce(t, router)
	all := append(numbered(9), routes("192.0.2.2", "0.0.0.0/0")...)
	announce(t, host, all...)
	want := append(routes("192.0.2.2", "0.0.0.0/0"), numbered(3)...)
	router.wantImports(t, want)
	eventually(t, "the rest is counted", func() bool { return router.Status().LeftOut == 6 })
	router.wantProblem(t, "sends 10 routes that BGP_IMPORT lets in", "6 of all routers' are left out", "raise BGP_IMPORT_MAX")
	for _, set := range router.imports() {
		if len(set) > 4 {
			t.Errorf("delivered %d routes", len(set))
		}
	}

	// What was left out comes in when there is room.
	announce(t, host, numbered(9)[5:]...)
	router.wantImports(t, numbered(9)[5:])
	eventually(t, "nothing is left out", func() bool { s := router.Status(); return s.LeftOut == 0 && s.Sessions[0].Problem == "" })
}

func TestTooMuchCutsTheSession(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 6)
	a.ReceiveMax = 20
	router, host := start(t, a, func(s *Speaker) { s.cutPause = time.Second }), start(t, b)
	announce(t, router)
	announce(t, host, numbered(50)...)
	router.wantState(t, Cut)
	router.wantProblem(t, "offers more than 20 routes", "filter what it sends", "next attempt at")
	host.wantProblem(t, "closed the session", "announces more prefixes than the router allows")
	if got := router.session(); got.Received != 0 {
		t.Errorf("the cut session holds %d routes", got.Received)
	}

	announce(t, host, numbered(5)...)
	router.wantState(t, Established)
	eventually(t, "few are taken", func() bool { return router.session().Received == 5 })
}

func TestManyUnaskedAreReported(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 7)
	router, host := start(t, a), start(t, b)
	announce(t, router)
	var many []Route
	for i := range 1500 {
		many = append(many, Route{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24), addr("192.0.2.2")})
	}
	announce(t, host, many...)
	router.wantProblem(t, "sends 1500 routes that BGP_IMPORT does not let in", "filter what it sends")
	if got := router.session(); got.State != Established {
		t.Errorf("session: %+v", got)
	}
	router.wantImports(t, []Route{})
}

func TestRestartWithoutAFlap(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 8)
	a.Import = everything
	router := start(t, a)
	announce(t, router)
	host := start(t, b)
	announce(t, host, numbered(3)...)
	router.wantImports(t, numbered(3))

	host.stop()
	router.wantState(t, Connecting)
	b.Restarting = true
	host = start(t, b)
	eventually(t, "the new process waits for what to announce", func() bool { return host.session().State == Waiting })
	announce(t, host, numbered(4)...)
	router.wantImports(t, numbered(4))
	router.wantState(t, Established)
	for i, set := range router.imports()[1:] {
		if len(set) < 3 {
			t.Errorf("set %d lost routes: %v", i+1, set)
		}
	}

	// Leaving for good is no restart.
	host.Withdraw()
	router.wantImports(t, []Route{})
	announce(t, host, numbered(4)...)
	if got := host.Status(); !got.Withdrawn || len(got.Announced) != 0 {
		t.Errorf("announced after the farewell: %+v", got)
	}
	host.stop()
	router.wantProblem(t, "closed the session", "shut down or reconfigured")
}

func TestRouterThatRestartsHearsAllAgain(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 9)
	a.Import, b.Import = everything, everything
	router, host := start(t, a), start(t, b)
	announce(t, router, routes("192.0.2.1", "0.0.0.0/0")...)
	announce(t, host, numbered(3)...)
	router.wantImports(t, numbered(3))
	host.wantImports(t, routes("192.0.2.1", "0.0.0.0/0"))

	router.stop()
	host.wantProblem(t, "closed the connection without a word")
	a.Restarting = true
	router = start(t, a)
	announce(t, router, routes("192.0.2.1", "0.0.0.0/0")...)
	router.wantImports(t, numbered(3))
	host.wantState(t, Established)
	if got := host.imports(); len(got) != 1 {
		t.Errorf("the default route flapped: %v", got)
	}
}

func TestWrongAS(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 10)
	a.Peers[0].AS = 65009 // expects another AS of the host
	router, host := start(t, a), start(t, b)
	announce(t, router)
	announce(t, host, numbered(1)...)
	router.wantProblem(t, "not of AS 65009", "correct as= in BGP_PEERS")
	host.wantProblem(t, "does not expect AS 65001")
	if got := host.session(); got.State != Connecting {
		t.Errorf("session: %+v", got)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	_, b := pair(t, 11)
	host := start(t, b)
	announce(t, host, numbered(1)...)
	host.wantProblem(t, "connect to 127.0.11.1 port", "connection refused", "add this host as its neighbour")
}

func TestPassword(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse-battery"
	a, b := pair(t, 12)
	a.Peers[0].Password, b.Peers[0].Password = secret, secret
	a.Import = everything
	router, host := start(t, a), start(t, b)
	announce(t, router)
	announce(t, host, numbered(1)...)
	router.wantImports(t, numbered(1))
	for _, n := range []*node{router, host} {
		js, err := json.Marshal(n.Status())
		if err != nil {
			t.Fatal(err)
		}
		if n.stop(); strings.Contains(n.log.String()+string(js), secret) {
			t.Error("a password is in the status or the log")
		}
		if !strings.Contains(string(js), `"password":"set"`) {
			t.Errorf("status: %s", js)
		}
	}
	if !strings.Contains(host.log.String(), "gobgp: ") {
		t.Error("the library's log does not arrive")
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 13)
	a.Peers[0].Password, b.Peers[0].Password = "right", "wrong"
	router, host := start(t, a), start(t, b)
	announce(t, router)
	announce(t, host, numbered(1)...)
	host.wantProblem(t, "no answer", "has another password", "compare the passwords")

	a, b = pair(t, 14)
	a.Peers[0].Password = "right"
	router, host = start(t, a), start(t, b)
	announce(t, router)
	announce(t, host, numbered(1)...)
	host.wantProblem(t, "no answer", "expects a password")
	if got := router.session(); got.State == Established {
		t.Errorf("a session without the password: %+v", got)
	}
}

// A session that could not be signed as asked is none.
func TestPasswordThatTheKernelRefuses(t *testing.T) {
	t.Parallel()
	a, b := pair(t, 17)
	a.Peers[0].Password = Secret(strings.Repeat("x", maxPassword+1))
	router, host := start(t, a), start(t, b)
	announce(t, host, numbered(1)...)
	announce(t, router)
	router.wantProblem(t, "set the password of 127.0.17.2: invalid argument", "refused")
	router.wantState(t, Waiting)
	host.wantProblem(t, "refused the session")
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	a, _ := pair(t, 15)
	l, err := net.Listen("tcp", a.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, err := New(a, logrus.New())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "choose another BGP_LISTEN") {
		t.Errorf("run: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	a, _ := pair(t, 16)
	for name, change := range map[string]func(*Config){
		"no AS number":  func(c *Config) { c.AS = 0 },
		"no router id":  func(c *Config) { c.RouterID = netip.Addr{} },
		"no router;":    func(c *Config) { c.Peers = nil },
		"not a checked": func(c *Config) { c.ReceiveMax = 0 },
	} {
		c := a
		change(&c)
		if _, err := New(c, logrus.New()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
