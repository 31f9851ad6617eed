package dhcp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/lan/dhcp"
)

// disk is a Store in memory.
type disk struct {
	mu     sync.Mutex
	leases map[dhcp.Key]dhcp.Lease
	broken error
}

func (d *disk) Load() (map[dhcp.Key]dhcp.Lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.leases), d.broken
}

func (d *disk) Put(k dhcp.Key, l dhcp.Lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken == nil {
		d.leases[k] = l
	}
	return d.broken
}

func (d *disk) Delete(k dhcp.Key) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.leases, k)
	return d.broken
}

// keeping is a bench with a Keeper that runs.
type keeping struct {
	*bench
	*dhcp.Keeper
	disk    *disk
	log     bytes.Buffer
	holders map[netip.Addr]string // who else answers for an address
	stop    func()
}

func keep(t *testing.T, test func(k *keeping)) {
	t.Helper()
	bubble(t, func(b *bench) {
		k := &keeping{bench: b, disk: &disk{leases: map[dhcp.Key]dhcp.Lease{}}, holders: map[netip.Addr]string{}}
		k.run()
		defer func() { k.stop() }()
		test(k)
	})
}

// run starts a Keeper with what is on disk.
func (k *keeping) run() {
	k.Helper()
	log := logrus.New()
	log.SetOutput(&k.log)
	var err error
	k.Keeper, err = dhcp.NewKeeper(dhcp.Config{Store: k.disk, Log: log, Client: k.Client,
		Probe: func(_ context.Context, _ string, a netip.Addr) string { return k.holders[a] }})
	if err != nil {
		k.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Keeper.Run(ctx) }()
	k.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			k.Error(err)
		}
	}
}

func (k *keeping) restart(down time.Duration) {
	k.Helper()
	k.stop()
	time.Sleep(down)
	k.run()
	time.Sleep(time.Second)
}

func (k *keeping) get(name string) dhcp.Key {
	k.Helper()
	l, err := k.Keeper.Obtain(k.Context(), "lab", of(name))
	if err != nil {
		k.Fatal(err)
	}
	return dhcp.Key{Group: "lab", Addr: l.Prefix.Addr()}
}

// pass lets time pass to a time since the start of the test.
func (k *keeping) pass(to time.Duration) {
	k.Helper()
	time.Sleep(time.Until(k.start.Add(to)))
	synctest.Wait()
}

// is checks the status of the only lease.
func (k *keeping) is(lost bool, problem string) {
	k.Helper()
	st := k.Keeper.Status()
	if len(st) != 1 || st[0].Lost != lost || (problem == "") != (st[0].Problem == "") || !strings.Contains(st[0].Problem, problem) {
		k.Errorf("after %s: status %+v, want lost=%v, problem %q", time.Since(k.start), st, lost, problem)
	}
}

// times lists when the server heard something, rounded to seconds.
func (k *keeping) times() string {
	var out []string
	for _, s := range k.Sent() {
		m, err := dhcpv4.FromBytes(s.Frame[42:])
		if err != nil {
			k.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %s", s.At.Sub(k.start).Round(time.Second), m.MessageType()))
	}
	return strings.Join(out, ", ")
}

// A day of a lease of an hour: one question every half an hour.
func TestKeeperRenews(t *testing.T) {
	keep(t, func(k *keeping) {
		k.reaches = func(netip.Addr) bool { return true }
		news := k.Subscribe()
		key := k.get("web")
		k.said()
		<-news
		k.pass(24 * time.Hour)
		if n := strings.Count(k.said(), "to me, in use 192.0.2.10"); n != 47 && n != 48 {
			k.Errorf("%d renewals in a day", n)
		}
		k.is(false, "")
		if l, _ := k.Keeper.Lease(key); l.Expires.Before(time.Now().Add(30*time.Minute)) || k.disk.leases[key].Expires != l.Expires {
			k.Errorf("lease until %s, on disk %s", l.Expires, k.disk.leases[key].Expires)
		}
		select {
		case <-news:
			k.Error("a renewal without news is told")
		default:
		}
		k.extra = func(m *dhcpv4.DHCPv4) { m.UpdateOption(dhcpv4.OptRouter([]byte{192, 0, 2, 254})) }
		time.Sleep(time.Hour)
		<-news
		if l, _ := k.Keeper.Lease(key); l.Router != addr("192.0.2.254") {
			k.Errorf("router %s", l.Router)
		}
	})
}

// The container got another MAC than the server was asked for: the server is told,
// and if it does not take it, all stays as it was.
func TestKeeperBears(t *testing.T) {
	keep(t, func(k *keeping) {
		k.reaches = func(netip.Addr) bool { return true }
		key := k.get("web")
		was, _ := k.Keeper.Lease(key)
		k.Keeper.Bear(key, was.MAC)
		k.Keeper.Bear(dhcp.Key{Group: "lab", Addr: addr("192.0.2.99")}, mac(77))
		k.said()
		k.pass(time.Minute)
		if got := k.said(); got != "" {
			k.Errorf("said %s", got)
		}
		k.Keeper.Bear(key, mac(77))
		k.pass(2 * time.Minute)
		l, _ := k.Keeper.Lease(key)
		if l.MAC != mac(77) || k.disk.leases[key].MAC != mac(77) || !bytes.Equal(l.ClientID, was.ClientID) {
			k.Errorf("the lease is %+v, on disk %+v", l, k.disk.leases[key])
		}
		k.is(false, "")
		k.do(func() { k.refuse = "no" })
		k.Keeper.Bear(key, mac(78))
		k.pass(3 * time.Minute)
		if l, _ := k.Keeper.Lease(key); l.MAC != mac(77) || !strings.Contains(k.log.String(), "another MAC") {
			k.Errorf("the lease is %+v; log:\n%s", l, &k.log)
		}
		k.is(false, "")
		k.do(func() { k.refuse = "" })
		k.pass(24 * time.Hour)
		k.is(false, "")
		if err := k.Keeper.Release(k.Context(), key); err != nil {
			k.Error(err)
		}
	})
}

// The server falls silent for longer than the lease: RFC 2131 section 4.4.5.
// The container keeps its address, and gets it back.
func TestKeeperSilence(t *testing.T) {
	keep(t, func(k *keeping) {
		k.reaches = func(netip.Addr) bool { return true }
		k.get("web")
		k.do(func() { k.silent = true })
		k.Sent()
		k.pass(29 * time.Minute)
		if got := k.times(); got != "" {
			k.Error(got)
		}
		k.pass(52 * time.Minute)
		// Each try: three to the server, three to all, twelve seconds; then half of what is left to T2.
		if got := k.times(); !strings.HasPrefix(got, "30m0s REQUEST, 30m1s REQUEST, 30m3s REQUEST, 30m6s REQUEST, 30m7s REQUEST, 30m9s REQUEST, 41m21s REQUEST, ") {
			k.Error(got)
		}
		k.is(false, "renew address 192.0.2.10 by DHCP on eth0: no DHCP server answers")
		k.pass(54 * time.Minute)
		k.said()
		k.pass(59 * time.Minute)
		if got := k.said(); strings.Contains(got, "to me") || !strings.Contains(got, "in use 192.0.2.10") {
			k.Errorf("rebinding: %s", got)
		}
		k.is(false, "rebind address")
		k.pass(65 * time.Minute)
		k.is(true, "regain address 192.0.2.10")
		if n := strings.Count(k.log.String(), "belongs to the DHCP server again"); n != 1 {
			k.Errorf("the loss is told %d times", n)
		}
		k.said()
		k.pass(75 * time.Minute)
		if n := strings.Count(k.said(), "DISCOVER"); n < 20 || n > 30 { // three copies a try
			k.Errorf("%d DISCOVERs in ten minutes", n)
		}
		k.do(func() { k.silent = false })
		k.pass(77 * time.Minute)
		k.is(false, "")
		if !strings.Contains(k.log.String(), "DHCP lease is back") {
			k.Error("the return is not told")
		}
	})
}

// A server that lost its memory refuses; the address is free, so it is had again.
func TestKeeperRefused(t *testing.T) {
	keep(t, func(k *keeping) {
		key := k.get("web")
		k.do(func() {
			k.given = map[string]netip.Addr{}
			k.reaches = func(netip.Addr) bool { return true }
			k.refuse = "who are you"
		})
		k.said()
		k.pass(31 * time.Minute)
		k.is(true, "regain address 192.0.2.10 by DHCP on eth0: DHCP server 192.0.2.1 refuses the address: who are you")
		k.do(func() { k.refuse = "" })
		k.pass(33 * time.Minute)
		k.is(false, "")
		k.do(func() { k.given = map[string]netip.Addr{"another": key.Addr}; k.refuse = "who are you" })
		k.pass(64 * time.Minute)
		k.is(true, "offers 192.0.2.11 now instead")
		k.said()
		if err := k.Keeper.Release(k.Context(), key); err != nil {
			k.Error(err)
		}
		k.heard() // what belongs to another is not given back
	})
}

func TestKeeperRestart(t *testing.T) {
	const confirm = "REQUEST from 02:00:00:00:00:32, wants 192.0.2.10, called web"
	keep(t, func(k *keeping) {
		key := k.get("web")
		k.said()
		k.restart(time.Minute)
		k.heard(confirm)
		k.is(false, "")
		if again := k.get("web"); again != key {
			k.Errorf("asked again: %s", again.Addr)
		}
		k.heard() // it is kept

		k.do(func() { k.silent = true })
		k.restart(time.Minute)
		time.Sleep(10 * time.Second)
		k.is(false, "confirm address 192.0.2.10 by DHCP on eth0: no DHCP server answers")
		k.do(func() { k.silent = false })
		time.Sleep(20 * time.Minute)
		k.is(false, "")
		k.said()

		k.restart(2 * time.Hour) // expired meanwhile
		k.heard("DISCOVER from 02:00:00:00:00:32, wants 192.0.2.10, called web",
			"REQUEST from 02:00:00:00:00:32, wants 192.0.2.10, of 192.0.2.1, called web")
		k.is(false, "")

		k.do(func() { k.given = map[string]netip.Addr{string(dhcp.Identity("web")): addr("192.0.2.12")} })
		k.restart(time.Minute) // the server gave it another one
		time.Sleep(10 * time.Second)
		k.is(true, "offers 192.0.2.12 now instead")
		if next := k.get("web"); next.Addr != addr("192.0.2.12") {
			k.Errorf("asked again: %s", next.Addr)
		}
		k.do(func() { k.disk.broken = errors.New("disk is full") })
		if _, err := dhcp.NewKeeper(dhcp.Config{Store: k.disk, Log: logrus.New()}); !errors.Is(err, k.disk.broken) {
			k.Error(err)
		}
	})
}

func TestKeeperGivesBack(t *testing.T) {
	keep(t, func(k *keeping) {
		web, db := k.get("web"), k.get("db")
		if got := k.Held("lab"); len(got) != 2 || got[0] != web.Addr || got[1] != db.Addr || len(k.Held("other")) > 0 {
			k.Errorf("held %v", got)
		}
		k.said()
		for range 2 {
			if err := k.Keeper.Release(k.Context(), web); err != nil {
				k.Error(err)
			}
		}
		k.heard("RELEASE from 02:00:00:00:00:32 to me, in use 192.0.2.10, of 192.0.2.1")
		if _, ok := k.disk.leases[web]; ok || len(k.disk.leases) != 1 || len(k.Held("lab")) != 1 {
			k.Errorf("on disk %v", k.disk.leases)
		}
		if err := k.Keeper.Decline(k.Context(), db, "leased to another host"); err != nil {
			k.Error(err)
		}
		k.heard("DECLINE from 02:00:00:00:00:32, wants 192.0.2.11, of 192.0.2.1: leased to another host")

		// A server out of reach is no reason to keep what is not wanted.
		web = k.get("web")
		k.Down = errors.New("network is down")
		if err := k.Keeper.Release(k.Context(), web); err != nil || len(k.disk.leases) > 0 {
			k.Errorf("%v, on disk %v", err, k.disk.leases)
		}
		if !strings.Contains(k.log.String(), "network is down") {
			k.Error("not told")
		}
		k.Down = nil
		k.disk.broken = errors.New("disk is full")
		if _, err := k.Keeper.Obtain(k.Context(), "lab", of("web")); !errors.Is(err, k.disk.broken) || len(k.Held("lab")) > 0 {
			k.Errorf("without a disk: %v, held %v", err, k.Held("lab"))
		}
	})
}

// The server gives what somebody else on the LAN has.
func TestKeeperDeclines(t *testing.T) {
	keep(t, func(k *keeping) {
		k.holders[addr("192.0.2.10")], k.holders[addr("192.0.2.11")] = "02:00:00:00:00:63", "02:00:00:00:00:63"
		if key := k.get("web"); key.Addr != addr("192.0.2.12") {
			k.Errorf("got %s", key.Addr)
		}
		if n := strings.Count(k.said(), "DECLINE from 02:00:00:00:00:32, wants 192.0.2.1"); n != 2 {
			k.Errorf("%d declined", n)
		}
		k.do(func() { k.bad = nil; k.free = append(k.free, addr("192.0.2.13")) })
		k.holders[addr("192.0.2.13")] = "02:00:00:00:00:63"
		_, err := k.Keeper.Obtain(k.Context(), "lab", of("db"))
		if err == nil || !strings.Contains(err.Error(), "DHCP server 192.0.2.1 gives address 192.0.2.1") || !strings.Contains(err.Error(), "which 02:00:00:00:00:63 on the LAN answers for") {
			k.Errorf("all taken: %v", err)
		}
	})
}

// While a lease is renewed it cannot be given back, and afterwards it is.
func TestKeeperTurns(t *testing.T) {
	keep(t, func(k *keeping) {
		k.reaches = func(netip.Addr) bool { return true }
		web := k.get("web")
		k.do(func() { k.deaf = func(m *dhcpv4.DHCPv4) bool { return m.MessageType() == dhcpv4.MessageTypeRequest } })
		k.pass(30*time.Minute + 2*time.Second)
		ctx, cancel := context.WithTimeout(k.Context(), time.Second)
		defer cancel()
		if err := k.Keeper.Release(ctx, web); !errors.Is(err, context.DeadlineExceeded) {
			k.Errorf("while it is renewed: %v", err)
		}
		if err := k.Keeper.Release(k.Context(), web); err != nil || len(k.Held("lab")) > 0 {
			k.Errorf("afterwards: %v, held %v", err, k.Held("lab"))
		}
		k.said()
		time.Sleep(2 * time.Hour)
		k.heard()
	})
}
