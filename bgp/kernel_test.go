//go:build kernel

package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These tests speak with FRR and BIRD as Debian has them. Each router runs in
// a namespace of its own and puts what it hears into the kernel's routes
// there: what a test looks at is what packets would go by.

const password = "correct-horse-battery"

// router is a daemon with its namespace and its directory.
type router struct {
	*space
	dir     string
	name    string
	daemons [][]string // one command line each
	running []*exec.Cmd
}

// giveTo lets a user that daemons change to write into the directory.
func (r *router) giveTo(t *testing.T, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("find the user %s: %v; run scripts/install", name, err)
	}
	id, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(r.dir, id, -1), os.Chmod(filepath.Dir(r.dir), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// start runs the daemons until kill, or the end of the test.
func (r *router) start(t *testing.T) {
	t.Helper()
	for _, line := range r.daemons {
		cmd := exec.Command(line[0], line[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
		log, err := os.OpenFile(filepath.Join(r.dir, filepath.Base(line[0])+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = log, log
		r.in(t, cmd.Start)
		log.Close()
		r.running = append(r.running, cmd)
	}
}

// kill ends the daemons as a crash does.
func (r *router) kill(t *testing.T) {
	t.Helper()
	for _, cmd := range r.running {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	}
	r.running = nil
}

func (r *router) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// say gives the router a command, and returns its answer.
func (r *router) say(t *testing.T, line ...string) string {
	t.Helper()
	out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", line, err, out)
	}
	return string(out)
}

func newRouter(t *testing.T, name string) *router {
	t.Helper()
	r := &router{space: newSpace(t), dir: t.TempDir(), name: name}
	t.Cleanup(func() {
		r.kill(t)
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(r.dir, "*.log"))
			for _, l := range logs {
				text, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", l, text)
			}
		}
	})
	return r
}

// routes returns what the router's kernel holds via the host, by prefix.
func (r *router) routes(t *testing.T) []string {
	t.Helper()
	h, err := netlink.NewHandleAt(r.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := h.RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, route := range all {
			gateway := route.Gw
			if other, ok := route.Via.(*netlink.Via); ok {
				gateway = other.Addr
			}
			via, ok := netip.AddrFromSlice(gateway)
			if route.Dst == nil || !ok || via.IsLinkLocalUnicast() {
				continue
			}
			out = append(out, route.Dst.String()+" via "+via.Unmap().String())
		}
	}
	slices.Sort(out)
	return out
}

func (r *router) wantRoutes(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	deadline := time.Now().Add(60 * time.Second)
	for {
		if got = r.routes(t); slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("routes of %s: %q, want %q", r.name, got, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// watch collects the prefixes of routes that the router's kernel loses, until
// the returned function is called.
func (r *router) watch(t *testing.T) (lost func() []string) {
	t.Helper()
	updates, done := make(chan netlink.RouteUpdate, 1024), make(chan struct{})
	ns := r.ns
	if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{
		Namespace: &ns, ErrorCallback: func(error) {}, // closed by done
	}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var gone []string
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for u := range updates {
			if u.Type == unix.RTM_DELROUTE && u.Dst != nil {
				mu.Lock()
				gone = append(gone, u.Dst.String())
				mu.Unlock()
			}
		}
	}()
	return func() []string {
		close(done)
		<-ended
		mu.Lock()
		defer mu.Unlock()
		return gone
	}
}

// frr makes a router of AS 65000 at the first address, with the host at the
// second as its neighbour.
func frr(t *testing.T, at, host string) *router {
	t.Helper()
	r := newRouter(t, "FRR")
	r.frrWith(t, fmt.Sprintf(`
router bgp 65000
 bgp router-id %[1]s
 no bgp ebgp-requires-policy
 no bgp network import-check
 timers bgp 3 9
 neighbor %[2]s remote-as 65001
 neighbor %[2]s password %[3]s
 neighbor %[2]s ttl-security hops 1
 neighbor %[2]s timers connect 3
 address-family ipv4 unicast
  network 0.0.0.0/0
  network 198.51.100.0/24
 exit-address-family
 address-family ipv6 unicast
  neighbor %[2]s activate
 exit-address-family
`, at, host, password))
	return r
}

// frrWith makes it a router of FRR with the given configuration of BGP.
func (r *router) frrWith(t *testing.T, conf string, more ...string) {
	t.Helper()
	r.giveTo(t, "frr")
	r.write(t, "zebra.conf", "\n")
	r.write(t, "bfdd.conf", "\n")
	r.write(t, "bgpd.conf", conf)
	for _, name := range append([]string{"zebra", "bgpd"}, more...) {
		line := []string{
			"/usr/lib/frr/" + name, "-f", filepath.Join(r.dir, name+".conf"), "-i", filepath.Join(r.dir, name+".pid"),
			"-z", filepath.Join(r.dir, "zserv.api"), "--vty_socket", r.dir, "--log", "stdout",
		}
		if name == "bfdd" {
			line = append(line, "--bfdctl", filepath.Join(r.dir, "bfdd.sock"))
		}
		r.daemons = append(r.daemons, append(line, "-P", "0"))
	}
}

// bird makes a router as frr does.
func bird(t *testing.T, at, host string) *router {
	t.Helper()
	r := newRouter(t, "BIRD")
	table := r.write(t, "table.conf", "route 0.0.0.0/0 blackhole;\nroute 198.51.100.0/24 blackhole;\n")
	conf := r.write(t, "bird.conf", fmt.Sprintf(`
log stderr all;
router id %[1]s;
protocol device { }
protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }
protocol static own {
	ipv4;
	include "%[4]s";
}
protocol bgp host {
	local %[1]s as 65000;
	neighbor %[2]s as 65001;
	password "%[3]s";
	ttl security on;
	hold time 9;
	connect retry time 3;
	connect delay time 1;
	error wait time 1, 3;
	ipv4 { import all; export where source = RTS_STATIC; };
	ipv6 { import all; export none; };
}
`, at, host, password, table))
	r.daemons = [][]string{{"/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(r.dir, "bird.ctl")}}
	return r
}

// hostConfig makes the host of AS 65001 with one router, as a user would.
func hostConfig(t *testing.T, host, router string, change func(*Settings)) Config {
	t.Helper()
	s := Settings{
		AS: "65001", RouterID: host, Peers: router + " as=65000", Passwords: password, TTLSecurity: "on", Hold: "9s",
		Communities: "65001:77,65001:1:2", Import: "0.0.0.0/0",
	}
	change(&s)
	c, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestRouters goes through the life of a host beside each router.
func TestRouters(t *testing.T) {
	for i, kind := range []string{"FRR", "BIRD"} {
		i++
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			at, host := fmt.Sprintf("10.77.%d.1", i), fmt.Sprintf("10.77.%d.2", i)
			at6, host6 := fmt.Sprintf("fd77:%d::1", i), fmt.Sprintf("fd77:%d::2", i)
			var r *router
			if kind == "FRR" {
				r = frr(t, at, host)
			} else {
				r = bird(t, at, host)
			}
			join(t, "r"+kind, r.space, []string{host + "/24", host6 + "/64"}, []string{at + "/24", at6 + "/64"})
			r.start(t)
			life(t, r, at, host, host6)
		})
	}
}

func life(t *testing.T, r *router, at, host, host6 string) {
	c := hostConfig(t, host, at, func(*Settings) {})
	blocks := []Route{
		{prefix("10.32.0.0/24"), addr(host)}, {prefix("10.32.7.5/32"), addr(host)}, {prefix("fd32::/64"), addr(host6)},
	}
	via := []string{"10.32.0.0/24 via " + host, "10.32.7.5/32 via " + host, "fd32::/64 via " + host6}
	fallback := []Route{{prefix("0.0.0.0/0"), addr(at)}}

	// Announced, signed, and heard.
	n := start(t, c)
	announce(t, n, blocks...)
	r.wantRoutes(t, via...)
	n.wantImports(t, fallback)
	if got := n.session(); got.State != Established || got.Received != 2 || got.Accepted != 1 || got.Announced != 3 || !got.Graceful || got.Problem != "" {
		t.Errorf("session: %+v", got)
	}
	r.wantCommunities(t)

	// One block less, one more.
	announce(t, n, append(blocks[1:], Route{prefix("10.32.1.0/24"), addr(host)})...)
	r.wantRoutes(t, append(via[1:], "10.32.1.0/24 via "+host)...)
	announce(t, n, blocks...)
	r.wantRoutes(t, via...)

	// The plugin is upgraded: no route is lost for a moment.
	lost := r.watch(t)
	n.stop()
	c.Restarting = true
	n = start(t, c)
	announce(t, n, blocks...)
	n.wantState(t, Established)
	n.wantImports(t, fallback)
	announce(t, n, append(blocks, Route{prefix("10.32.2.0/24"), addr(host)})...)
	r.wantRoutes(t, append(via, "10.32.2.0/24 via "+host)...)
	if gone := lost(); len(gone) > 0 {
		t.Errorf("routes lost by an upgrade: %v", gone)
	}
	announce(t, n, blocks...)

	// The router crashes, and comes back with nothing.
	r.kill(t)
	n.wantState(t, Connecting)
	r.start(t)
	n.wantState(t, Established)
	r.wantRoutes(t, via...)
	n.wantImports(t, fallback)

	// The host leaves.
	n.Withdraw()
	r.wantRoutes(t)
	n.stop()
}

// wantCommunities looks at what the router knows of a prefix.
func (r *router) wantCommunities(t *testing.T) {
	t.Helper()
	ask := []string{"vtysh", "--vty_socket", r.dir, "-c", "show bgp ipv4 unicast 10.32.0.0/24"}
	want := []string{"65001:77", "65001:1:2"}
	if r.name == "BIRD" {
		ask = []string{"birdc", "-s", filepath.Join(r.dir, "bird.ctl"), "show route 10.32.0.0/24 all"}
		want = []string{"(65001,77)", "(65001, 1, 2)"}
	}
	text := r.say(t, ask...)
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s says of a prefix:\n%s\nwhich lacks %s", r.name, text, w)
		}
	}
}

// TestBFD: a link that dies in silence is noticed long before the hold time.
func TestBFD(t *testing.T) {
	t.Parallel()
	const at, host = "10.79.0.1", "10.79.0.2"
	r := newRouter(t, "FRR")
	r.frrWith(t, fmt.Sprintf(`
router bgp 65000
 bgp router-id %[1]s
 no bgp ebgp-requires-policy
 neighbor %[2]s remote-as 65001
 neighbor %[2]s bfd
`, at, host), "bfdd")
	join(t, "rbfd", r.space, []string{host + "/24"}, []string{at + "/24"})
	r.start(t)
	n := start(t, hostConfig(t, host, at, func(s *Settings) { *s = Settings{AS: s.AS, RouterID: s.RouterID, Peers: s.Peers, BFD: "on"} }))
	announce(t, n, Route{prefix("10.32.0.0/24"), addr(host)})
	r.wantRoutes(t, "10.32.0.0/24 via "+host)
	eventually(t, "BFD is up", func() bool { return n.session().BFD == "up" })

	r.in(t, func() error {
		l, err := netlink.LinkByName("host")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
	n.wantState(t, Connecting) // within a minute; the hold time is 90 s
	if log := n.log.String(); !strings.Contains(log, "BFD hears nothing from it") {
		t.Errorf("log:\n%s", log)
	}
}

// TestUnnumbered: the router is whoever is found on an interface, and IPv4
// prefixes are behind IPv6 addresses.
func TestUnnumbered(t *testing.T) {
	t.Parallel()
	r := newRouter(t, "FRR")
	join(t, "rlink", r.space, []string{"fd80::2/64"}, []string{"fd80::1/64"})
	r.frrWith(t, fmt.Sprintf(`
router bgp 65000
 bgp router-id 10.80.0.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor %[1]s remote-as 65001
 neighbor %[1]s interface host
 neighbor %[1]s capability extended-nexthop
 address-family ipv4 unicast
  network 0.0.0.0/0
 exit-address-family
 address-family ipv6 unicast
  neighbor %[1]s activate
 exit-address-family
`, linkLocal(t, "rlink")))
	r.write(t, "zebra.conf", "interface host\n no ipv6 nd suppress-ra\n ipv6 nd ra-interval 3\n")
	c := hostConfig(t, "10.80.0.2", "rlink", func(s *Settings) { s.Passwords, s.TTLSecurity = "", "off" })
	n := start(t, c)
	announce(t, n, Route{prefix("fd32::/64"), addr("fd80::2")}, Route{prefix("10.32.0.0/24"), addr("fd80::2")})
	n.wantProblem(t, "find the router on rlink")
	r.start(t)
	r.wantRoutes(t, "fd32::/64 via fd80::2", "10.32.0.0/24 via fd80::2")
	eventually(t, "the default route is imported", func() bool { return len(n.Status().Imported) == 1 })
	if hop := n.Status().Imported[0].NextHop; !hop.Is6() || hop.IsLinkLocalUnicast() != (hop.Zone() == "rlink") {
		t.Errorf("next hop of the default route: %v", hop)
	}
	if got := n.session(); got.Peer != "rlink" || got.Address.Zone() != "rlink" {
		t.Errorf("session: %+v", got)
	}
}

// linkLocal returns the link-local address of a link.
func linkLocal(t *testing.T, link string) netip.Addr {
	t.Helper()
	var own netip.Addr
	eventually(t, link+" has a link-local address", func() bool {
		l, err := netlink.LinkByName(link)
		if err != nil {
			t.Fatal(err)
		}
		all, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				own = ip
			}
		}
		return own.IsValid()
	})
	return own
}

// TestFullTableByMistake: a router begins to send all that it knows.
func TestFullTableByMistake(t *testing.T) {
	t.Parallel()
	const size, limit = 50_000, 20_000
	at, host := "10.78.0.1", "10.78.0.2"
	r := bird(t, at, host)
	join(t, "rfull", r.space, []string{host + "/24"}, []string{at + "/24"})
	r.start(t)
	c := hostConfig(t, host, at, func(*Settings) {})
	n := start(t, c)
	announce(t, n, Route{prefix("10.32.0.0/24"), addr(host)})
	r.wantRoutes(t, "10.32.0.0/24 via "+host)
	n.wantImports(t, []Route{{prefix("0.0.0.0/0"), addr(at)}})
	before := heap()

	lost := r.watch(t)
	r.fill(t, size)
	n.wantProblem(t, fmt.Sprintf("sends %d routes that BGP_IMPORT does not let in", size+1), "filter what it sends")
	t.Logf("%d routes received and ignored cost %d MiB", size, (heap()-before)>>20)
	if got := n.session(); got.State != Established || got.Accepted != 1 || got.Received != size+2 {
		t.Errorf("session: %+v", got)
	}
	if got := n.imports(); len(got) != 1 {
		t.Errorf("imports changed: %d sets, last of %d routes", len(got), len(got[len(got)-1]))
	}
	if gone := lost(); len(gone) > 0 {
		t.Errorf("the router lost %v", gone)
	}

	// All that it sends is asked for: the first ones count.
	n.Withdraw()
	n.stop()
	c = hostConfig(t, host, at, func(s *Settings) { s.Import, s.ImportMax = "0.0.0.0/0+", "100" })
	n = start(t, c)
	announce(t, n, Route{prefix("10.32.0.0/24"), addr(host)})
	eventually(t, "the rest is left out", func() bool { return n.Status().LeftOut == size+2-100 })
	for _, set := range n.imports() {
		if len(set) > 100 {
			t.Errorf("delivered %d routes", len(set))
		}
	}
	n.wantProblem(t, "left out", "narrow BGP_IMPORT")
	r.wantRoutes(t, "10.32.0.0/24 via "+host)

	// More than memory is given for.
	n.Withdraw()
	n.stop()
	c.ReceiveMax = limit
	n = start(t, c, func(s *Speaker) { s.cutPause = 2 * time.Second })
	announce(t, n, Route{prefix("10.32.0.0/24"), addr(host)})
	n.wantState(t, Cut)
	n.wantProblem(t, fmt.Sprintf("offers more than %d routes", limit))
	r.fill(t, 0)
	n.wantState(t, Established)
	r.wantRoutes(t, "10.32.0.0/24 via "+host)
}

// fill makes BIRD send so many routes more.
func (r *router) fill(t *testing.T, n int) {
	t.Helper()
	var b strings.Builder
	b.WriteString("route 0.0.0.0/0 blackhole;\nroute 198.51.100.0/24 blackhole;\n")
	for i := range n {
		fmt.Fprintf(&b, "route 20.%d.%d.0/24 blackhole;\n", i>>8, i&255)
	}
	r.write(t, "table.conf", b.String())
	if answer := r.say(t, "birdc", "-s", filepath.Join(r.dir, "bird.ctl"), "configure"); !strings.Contains(answer, "Reconfigured") && !strings.Contains(answer, "Reconfiguration in progress") {
		t.Fatalf("configure: %s", answer)
	}
}

// heap is what the process holds, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
