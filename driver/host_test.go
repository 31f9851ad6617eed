package driver

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
)

// testT is what the tests and the property checks have in common.
type testT interface {
	Helper()
	Fatalf(format string, args ...any)
}

// host is one host with everything about the driver faked. It can be stopped
// and started like a plugin: the fakes and the disk stay.
type host struct {
	t         testT
	path      string
	kernel    *kerneltest.Fake
	door      kernel.Kernel // what the driver gets; kernel unless a test puts something before it
	ledger    *fakeLedger
	heard     *fakeHeard
	addresses *fakeAddresses
	hosts     *fakeHosts
	dhcp      DHCP // nil: none
	routers   bool // there are some that speak BGP

	*Driver
	db   *bbolt.DB
	stop func()
}

// hasty makes the loop fast enough for tests, but forgets nothing: a slow
// machine is no reason. announce has two times, so that a repetition is seen.
var hasty = pace{
	probe: 50 * time.Millisecond,
	audit: 50 * time.Millisecond, sandbox: 20 * time.Millisecond, unseen: 2 * time.Millisecond,
	forget: time.Hour, attach: 20 * time.Millisecond, retry: 2 * time.Millisecond, announce: []time.Duration{0, 10 * time.Millisecond},
}

// impatient also forgets what Docker forgot; for when Docker is done.
var impatient = func() pace {
	p := hasty
	p.forget = 40 * time.Millisecond
	return p
}()

func newHost(t testT, dir string) *host {
	h := &host{t: t, path: filepath.Join(dir, "driver.db"), kernel: kerneltest.New(), ledger: newFakeLedger("host1"), heard: newFakeHeard(), addresses: &fakeAddresses{foreign: map[cluster.PoolKey]bool{}}, hosts: &fakeHosts{given: map[netip.Addr]bool{}}}
	h.door = h.kernel
	return h
}

// startHost returns a running host that is stopped with the test.
func startHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t, t.TempDir())
	h.start(hasty)
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *host) start(p pace) {
	h.t.Helper()
	db := h.open()
	log := logrus.New()
	log.SetOutput(io.Discard)
	d, err := Open(Config{
		DB: db, Host: "host1", Kernel: h.door, Ledger: h.ledger, Heard: h.heard, Addresses: h.addresses, Hosts: h.hosts, DHCP: h.dhcp,
		VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500, BGP: h.routers, Port: 8475, Log: log,
	})
	if err != nil {
		h.t.Fatalf("open driver: %v", err)
	}
	d.pace = p
	h.Driver, h.db = d, db
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	h.stop = func() {
		h.t.Helper()
		cancel()
		if err := <-done; err != nil {
			h.t.Fatalf("run: %v", err)
		}
		db.Close()
	}
}

func (h *host) open() *bbolt.DB {
	h.t.Helper()
	db, err := bbolt.Open(h.path, 0o600, &bbolt.Options{NoSync: true, Timeout: 5 * time.Second})
	if err != nil {
		h.t.Fatalf("open store: %v", err)
	}
	return db
}

func (h *host) restart(p pace) {
	h.t.Helper()
	h.stop()
	h.start(p)
}

// await waits until the condition holds.
func (h *host) await(what string, condition func() bool) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); {
		if time.Now().After(end) {
			h.t.Fatalf("waited in vain: %s\nkernel:\n%s\nlog:\n%s", what, h.kernel, strings.Join(h.kernel.Log(), "\n"))
		}
		time.Sleep(time.Millisecond) // polling a condition
	}
}

func (h *host) has(text string) bool { return strings.Contains(h.kernel.String(), text) }
func (h *host) awaitHas(text string) {
	h.t.Helper()
	h.await("kernel has "+text, func() bool { return h.has(text) })
}
func (h *host) awaitNot(text string) {
	h.t.Helper()
	h.await("kernel lacks "+text, func() bool { return !h.has(text) })
}
func (h *host) lacks(text string) {
	h.t.Helper()
	h.check(!h.has(text), "kernel has "+text+":\n"+h.kernel.String())
}
func (h *host) contains(text string) {
	h.t.Helper()
	h.check(h.has(text), "kernel lacks "+text+":\n"+h.kernel.String())
}
func (h *host) check(ok bool, no string) {
	h.t.Helper()
	if !ok {
		h.t.Fatalf("%s", no)
	}
}

func (h *host) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("unexpected error: %v", err)
	}
}

func (h *host) refused(err error, text string) {
	h.t.Helper()
	if errorText(err) != text {
		h.t.Fatalf("error:\n got %q\nwant %q", errorText(err), text)
	}
}

// request is a CreateNetwork as Docker sends it.
func request(id string, pools []string, options ...string) *network.CreateNetworkRequest {
	r := &network.CreateNetworkRequest{NetworkID: id, Options: map[string]any{}}
	generic := map[string]any{}
	for _, o := range options {
		k, v, _ := strings.Cut(o, "=")
		if k == "--internal" {
			r.Options[internalKey] = true
			continue
		}
		generic[k] = v
	}
	r.Options[genericKey] = generic
	for _, p := range pools {
		space, prefix, given := strings.Cut(p, "|")
		if !given {
			space, prefix = AddressSpace, p
		}
		data := &network.IPAMData{AddressSpace: space, Pool: prefix}
		if strings.Contains(prefix, ":") {
			r.IPv6Data = append(r.IPv6Data, data)
		} else {
			r.IPv4Data = append(r.IPv4Data, data)
		}
	}
	return r
}

func (h *host) create(id string, pools []string, options ...string) error {
	return h.CreateNetwork(context.Background(), request(id, pools, options...))
}

// app creates the network that most tests use: VNI 4097, cluster network 1.
func (h *host) app(options ...string) {
	h.t.Helper()
	h.ok(h.create("app", []string{"10.1.0.0/16", "fd01::/64"}, options...))
}

func (h *host) endpoint(id, networkID, ip string) error {
	v4, v6, _ := strings.Cut(ip, " ")
	r, err := h.CreateEndpoint(context.Background(), &network.CreateEndpointRequest{
		NetworkID: networkID, EndpointID: id, Interface: &network.EndpointInterface{Address: v4, AddressIPv6: v6},
	})
	named := !h.store.intent().Networks[networkID].anonymous()
	if err == nil && ((r.Interface.MacAddress != "") != named || r.Interface.Address != "" || r.Interface.AddressIPv6 != "") {
		err = fmt.Errorf("answered %+v: want nothing but a MAC, and that %v", r.Interface, named)
	}
	return err
}

func (h *host) joins(id string) (*network.JoinResponse, error) {
	return h.Join(context.Background(), &network.JoinRequest{EndpointID: id, SandboxKey: "/s/" + id})
}

// run does all that Docker does for a container's start.
func (h *host) run(id, networkID, ip string) {
	h.t.Helper()
	h.ok(h.endpoint(id, networkID, ip))
	r, err := h.joins(id)
	h.ok(err)
	h.ok(h.kernel.Take(r.InterfaceName.SrcName, "/s/"+id, r.InterfaceName.DstPrefix+"0"))
	h.await(id+" is seen in its sandbox", func() bool { return h.store.intent().Endpoints[id].Inside != "" })
}

// ends does all that Docker does for a container's stop. What is not there any
// more, Docker passes over.
func (h *host) ends(id string) {
	h.t.Helper()
	h.ok(h.Leave(context.Background(), &network.LeaveRequest{EndpointID: id}))
	for _, name := range []string{"eth0"} {
		_ = h.kernel.GiveBack("/s/"+id, name)
	}
	h.kernel.RemoveSandbox("/s/" + id)
	h.ok(h.DeleteEndpoint(context.Background(), &network.DeleteEndpointRequest{EndpointID: id}))
}

func (h *host) delete(id string) error {
	return h.DeleteNetwork(context.Background(), &network.DeleteNetworkRequest{NetworkID: id})
}

func (h *host) mac(id string) string { return h.store.intent().Endpoints[id].MAC.String() }

func pools(prefixes ...string) []cluster.PoolKey {
	var out []cluster.PoolKey
	for _, p := range prefixes {
		out = append(out, cluster.PoolKey{Prefix: netip.MustParsePrefix(p)})
	}
	return out
}
