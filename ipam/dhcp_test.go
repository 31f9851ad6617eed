package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
)

// office is a LAN with a DHCP server, and the client of each host.
type office struct {
	mu    sync.Mutex
	free  []netip.Addr
	given map[string]netip.Addr // by who has it
	log   []string
	err   error
	turn  chan struct{} // when set, Obtain waits for it after it is done
	steps chan string   // what was done
}

// await waits until the server has done something.
func (o *office) await(t *testing.T, want string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case got := <-o.steps:
			if got == want {
				return
			}
		case <-late:
			t.Fatalf("not seen: %s", want)
		}
	}
}

// step takes note of what was done. The caller holds o.mu.
func (o *office) step(what string) {
	select {
	case o.steps <- what:
	default:
	}
}

// desk is the DHCP client of one host.
type desk struct {
	*office
	host string
	held map[cluster.PoolKey][]netip.Addr
	n    int
}

func (d *desk) Obtain(_ context.Context, pool cluster.PoolKey, e Endpoint) (netip.Addr, error) {
	d.mu.Lock()
	if d.err != nil {
		defer d.mu.Unlock()
		return netip.Addr{}, d.err
	}
	who := d.host + " " + e.Name
	if e.Name == "" {
		d.n++
		who = fmt.Sprint(d.host, " #", d.n)
	}
	a, ok := d.given[who]
	if !ok {
		if at := slices.Index(d.free, e.Want); at >= 0 {
			a = e.Want
			d.free = slices.Delete(d.free, at, at+1)
		} else if len(d.free) > 0 {
			a, d.free = d.free[0], d.free[1:]
		} else {
			defer d.mu.Unlock()
			return a, errors.New("no DHCP server answers")
		}
	}
	d.given[who] = a
	if !slices.Contains(d.held[pool], a) {
		d.held[pool] = append(d.held[pool], a)
	}
	turn := d.turn
	d.step("obtained " + a.String())
	d.mu.Unlock()
	if turn != nil {
		<-turn
	}
	return a, nil
}

func (d *desk) Held() map[cluster.PoolKey][]netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[cluster.PoolKey][]netip.Addr{}
	for k, v := range d.held {
		out[k] = slices.Clone(v)
	}
	return out
}

func (d *desk) drop(verb string, pool cluster.PoolKey, a netip.Addr, free bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := slices.Index(d.held[pool], a)
	if at < 0 {
		return nil
	}
	d.log = append(d.log, d.host+" "+verb+" "+a.String())
	d.held[pool] = slices.Delete(d.held[pool], at, at+1)
	for who, x := range d.given {
		if x == a {
			delete(d.given, who)
		}
	}
	d.step(verb + " " + a.String())
	if free {
		d.free = append([]netip.Addr{a}, d.free...)
	}
	return nil
}

func (d *desk) Release(_ context.Context, pool cluster.PoolKey, a netip.Addr) error {
	return d.drop("releases", pool, a, true)
}

func (d *desk) Decline(_ context.Context, pool cluster.PoolKey, a netip.Addr, _ string) error {
	return d.drop("declines", pool, a, false)
}

func (o *office) said() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := strings.Join(o.log, ", ")
	o.log = nil
	return out
}

func (o *office) desk(h *host) *desk {
	d := &desk{office: o, host: h.name, held: map[cluster.PoolKey][]netip.Addr{}}
	h.cfg.DHCP = d
	return d
}

// newOffice is a LAN on which two hosts have a network on 10.0.0.0/24.
func newOffice(t *testing.T, free ...string) (*office, []*host, string) {
	t.Helper()
	o := &office{given: map[string]netip.Addr{}, steps: make(chan string, 100)}
	for _, a := range free {
		o.free = append(o.free, addr(a))
	}
	l := newLab(t, "h1", "h2")
	var id string
	for _, h := range l.hosts {
		o.desk(h)
		id = must[string](t)(h.officeNetwork("10.0.0.1"))
	}
	return o, l.hosts, id
}

// officeNetwork is network for a pool with dhcp=on.
func (h *host) officeNetwork(gateway string) (string, error) {
	id, _, err := h.requestPool("10.0.0.0/24", "", options{"dhcp": "on"})
	if err != nil {
		return "", err
	}
	if _, err := h.requestAddress(id, gateway, forGateway); err != nil {
		return "", err
	}
	if err := h.Prepare(h.lab.t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
		return "", err
	}
	h.setNetworked(keyOf(id), true)
	return id, nil
}

func TestDHCPRequests(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	_, _, err := h.requestPool("10.0.0.0/24", "", options{"dhcp": "on"})
	wantErr(t, err, "--ipam-opt dhcp=on: this host cannot ask DHCP servers")
	(&office{given: map[string]netip.Addr{}}).desk(h)
	for _, c := range []struct{ subnet, within, value, want string }{
		{"", "", "on", "--ipam-opt dhcp=on: needs the LAN's --subnet"},
		{"0.0.0.0/24", "", "on", "--ipam-opt dhcp=on: needs the LAN's --subnet"},
		{"10.0.0.0/24", "10.0.0.128/25", "on", "--ip-range 10.0.0.128/25: with --ipam-opt dhcp=on the LAN's server chooses the addresses; set the range there"},
		{"10.0.0.0/24", "", "yes", "--ipam-opt dhcp=yes: is on or off"},
	} {
		_, _, err := h.requestPool(c.subnet, c.within, options{"dhcp": c.value})
		wantErr(t, err, c.want)
	}
	for subnet, want := range map[string]string{"10.0.0.0/24": "|10.0.0.0/24|dhcp", "fd00:1::/64": "|fd00:1::/64"} {
		id, _, err := h.requestPool(subnet, "", options{"dhcp": "on"})
		if back, perr := parsePoolID(id); err != nil || perr != nil || id != want || back.String() != id {
			t.Errorf("pool id %q of %s: %v, %v", id, subnet, err, perr)
		}
	}
	if id, _, err := h.requestPool("10.1.0.0/24", "", options{"dhcp": "off"}); err != nil || id != "|10.1.0.0/24" {
		t.Errorf("dhcp=off: %q, %v", id, err)
	}
}

// The server chooses; the cluster knows; nothing is leased ahead, and what is
// not used goes back.
func TestDHCPAddresses(t *testing.T) {
	o, hosts, id := newOffice(t, "10.0.0.70", "10.0.0.71", "10.0.0.72")
	h, other := hosts[0], hosts[1]
	key := keyOf(id)
	h.work()
	if st := h.Status()[0]; len(st.Blocks) > 0 {
		t.Errorf("leased before anybody asked: %+v", st.Blocks)
	}
	web := must[netip.Addr](t)(h.start(id, "", "web"))
	db := must[netip.Addr](t)(other.start(id, "", "db"))
	if web != addr("10.0.0.70") || db != addr("10.0.0.71") {
		t.Errorf("got %s and %s", web, db)
	}
	for _, x := range []struct {
		h *host
		a netip.Addr
	}{{h, web}, {other, db}} {
		x.h.work()
		x.h.surrender(t.Context())
		if x.h.LeaseOf(key, x.a) == 0 || len(x.h.Status()[0].Blocks) != 1 {
			t.Errorf("%s: %+v", x.h.name, x.h.Status()[0].Blocks)
		}
	}
	if got := o.said(); got != "" {
		t.Errorf("gave back what is in use: %s", got)
	}
	h.stop(id, web)
	h.surrender(t.Context())
	if got := o.said(); got != "h1 releases 10.0.0.70" {
		t.Errorf("after the stop: %s", got)
	}
	// The same name wishes for what it had; --ip must be what the server gives.
	o.free = []netip.Addr{addr("10.0.0.80"), addr("10.0.0.70"), addr("10.0.0.81")}
	if a := must[netip.Addr](t)(h.start(id, "", "web")); a != web {
		t.Errorf("web had %s, and got %s", web, a)
	}
	if a := must[netip.Addr](t)(h.start(id, "10.0.0.81", "mail")); a != addr("10.0.0.81") {
		t.Errorf("--ip got %s", a)
	}
	_, err := h.start(id, "10.0.0.99", "ftp")
	wantErr(t, err, "address 10.0.0.99: the DHCP server of the LAN gives 10.0.0.80 instead; reserve 10.0.0.99 there, or leave --ip out")
	h.surrender(t.Context())
	if got := o.said(); got != "h1 releases 10.0.0.80" {
		t.Errorf("after the refusal: %s", got)
	}
}

// A lease may move between hosts: the server knows nothing of the cluster's.
func TestDHCPAddressMoves(t *testing.T) {
	_, hosts, id := newOffice(t, "10.0.0.70")
	for range 3 {
		for _, h := range hosts {
			a := must[netip.Addr](t)(h.start(id, "", "web"))
			h.stop(id, a)
			h.surrender(t.Context())
		}
	}
}

// What another host holds and does not give is declined, for another one.
func TestDHCPAddressHeldElsewhere(t *testing.T) {
	o, hosts, id := newOffice(t, "10.0.0.70", "10.0.0.71", "10.0.0.72", "10.0.0.73")
	h, other := hosts[0], hosts[1]
	for range 2 {
		must[netip.Addr](t)(other.start(id, "", ""))
	}
	o.mu.Lock() // the server forgot
	o.given = map[string]netip.Addr{}
	o.free = []netip.Addr{addr("10.0.0.70"), addr("10.0.0.71"), addr("10.0.0.72")}
	o.mu.Unlock()
	if a := must[netip.Addr](t)(h.start(id, "", "web")); a != addr("10.0.0.72") {
		t.Errorf("got %s", a)
	}
	if got := o.said(); got != "h1 declines 10.0.0.70, h1 declines 10.0.0.71" {
		t.Errorf("said %s", got)
	}
	// Asked for by name while it runs: it stays with whom it is.
	if _, err := h.start(id, "", "web"); err == nil || !strings.Contains(err.Error(), "10.0.0.72 of subnet 10.0.0.0/24 is in use by web on this host") {
		t.Errorf("a second web: %v", err)
	}
	h.surrender(t.Context())
	if got := o.said(); got != "" {
		t.Errorf("said %s", got)
	}
}

func TestDHCPRefusals(t *testing.T) {
	o, hosts, id := newOffice(t, "192.168.7.9", "10.0.0.1")
	h := hosts[0]
	_, err := h.start(id, "", "web")
	wantErr(t, err, "the DHCP server of the LAN gives 192.168.7.9, which is not part of --subnet 10.0.0.0/24: create the network on the LAN's own subnet")
	h.surrender(t.Context())
	if got := o.said(); got != "h1 releases 192.168.7.9" {
		t.Errorf("said %s", got)
	}
	o.free = []netip.Addr{addr("10.0.0.1")}
	if _, err := h.start(id, "10.0.0.1", "web"); err == nil || !strings.Contains(err.Error(), "is the gateway of subnet 10.0.0.0/24") {
		t.Errorf("the gateway: %v", err)
	}
	o.err = errors.New("no DHCP server answers")
	_, err = h.start(id, "", "web")
	wantErr(t, err, "subnet 10.0.0.0/24: no DHCP server answers")
	if used := h.Used(keyOf(id)); len(used) > 0 {
		t.Errorf("used %v", used)
	}
}

// Between the server's answer and its use nothing is given back; after a crash
// there it is.
func TestDHCPSurrenderWaits(t *testing.T) {
	o, hosts, id := newOffice(t, "10.0.0.70", "10.0.0.71")
	h := hosts[0]
	o.turn = make(chan struct{})
	done := make(chan error)
	go func() {
		_, err := h.start(id, "", "web")
		done <- err
	}()
	d := h.cfg.DHCP.(*desk)
	o.await(t, "obtained 10.0.0.70")
	h.surrender(t.Context())
	if got := o.said(); got != "" {
		t.Errorf("gave back what is being handed out: %s", got)
	}
	close(o.turn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := d.Obtain(t.Context(), keyOf(id), Endpoint{Name: "db"}); err != nil { // and crash
		t.Fatal(err)
	}
	h.reboot()
	h.cfg.DHCP = d
	h.surrender(t.Context())
	if got := o.said(); got != "h1 releases 10.0.0.71" {
		t.Errorf("after a crash: %s", got)
	}
	// A pool that is known no more.
	h.cfg.DHCP = d
	d.held[cluster.PoolKey{Prefix: prefix("10.9.0.0/24")}] = []netip.Addr{addr("10.9.0.9")}
	h.surrender(t.Context())
	if got := o.said(); got != "h1 releases 10.9.0.9" {
		t.Errorf("of an unknown pool: %s", got)
	}
}

// Run does it by itself.
func TestDHCPRun(t *testing.T) {
	o, hosts, id := newOffice(t, "10.0.0.70")
	h := hosts[0]
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.Run(ctx) }()
	h.stop(id, must[netip.Addr](t)(h.start(id, "", "web")))
	o.await(t, "releases 10.0.0.70")
	if got := o.said(); got != "h1 releases 10.0.0.70" {
		t.Errorf("said %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
