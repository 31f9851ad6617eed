package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/driver/kernel/kerneltest"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// host is a whole plugin in this process: real parts, loopback between them,
// a kernel in memory, and the engine played by the test.
type host struct {
	t      *testing.T
	cfg    Config
	kernel *kerneltest.Fake
	lan    *lantest.Net // that its interfaces lead to
	server *landlord    // that gives addresses there
	stop   func()
	socket http.Client
}

// freePort finds a port that is free for TCP and UDP.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		u, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			u.Close()
			return uint16(port)
		}
	}
	t.Fatal("found no free port")
	return 0
}

// newHosts makes hosts 1 to n, stopped, which all join by one list.
func newHosts(t *testing.T, n int, secret string) []*host {
	t.Helper()
	var hosts []*host
	var join []string
	for i := 1; i <= n; i++ {
		join = append(join, fmt.Sprintf("127.0.1.%d:%d", i, freePort(t)))
	}
	for i := 1; i <= n; i++ {
		dir := t.TempDir()
		h := &host{t: t, kernel: kerneltest.New(), lan: &lantest.Net{}, server: &landlord{given: map[string]netip.Addr{}}, stop: func() {}}
		h.cfg = Config{
			Name: fmt.Sprintf("host%d", i), Secret: Secret(secret), GossipPort: netip.MustParseAddrPort(join[i-1]).Port(), VXLANPort: 8475,
			DockerSocket: "/dev/null", Socket: filepath.Join(dir, "isthmus.sock"), State: filepath.Join(dir, "state"),
		}
		if i > 1 {
			h.cfg.Join = join
		}
		h.kernel.SetUnderlay(kernel.Underlay{Name: "eth0", MTU: 1500, Addr: netip.MustParseAddr(fmt.Sprintf("127.0.1.%d", i)), MAC: fmt.Sprintf("02:00:00:00:00:%02x", i)})
		h.socket = http.Client{Transport: &http.Transport{DialContext: dialUnix(h.cfg.Socket), DisableKeepAlives: true}, Timeout: 15 * time.Second}
		t.Cleanup(func() { h.stop() })
		hosts = append(hosts, h)
	}
	return hosts
}

func (h *host) start() {
	h.t.Helper()
	log := logrus.New()
	log.SetOutput(testWriter{h.t, h.cfg.Name})
	s := newServer(h.cfg, func() (kernel.Kernel, error) { return h.kernel, nil }, log)
	s.look = 100 * time.Millisecond
	s.probe = func(string, ...cluster.MAC) (lan.Wire, error) { return h.lan.Open(), nil }
	s.dhcp = h.server
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, nil) }()
	h.stop = func() {
		h.stop = func() {}
		cancel()
		select {
		case err := <-done:
			if err != nil {
				h.t.Errorf("%s: %v", h.cfg.Name, err)
			}
		case <-time.After(20 * time.Second):
			h.t.Errorf("%s does not stop", h.cfg.Name)
		}
	}
}

type testWriter struct {
	t    *testing.T
	name string
}

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s %s", w.name, bytes.TrimSpace(b))
	return len(b), nil
}

// call does one call of the engine; it fails the test on an error, try returns it.
func (h *host) call(method string, req map[string]any) map[string]any {
	h.t.Helper()
	resp, err := h.try(method, req)
	if err != nil {
		h.t.Fatalf("%s: %s %v: %v", h.cfg.Name, method, req, err)
	}
	return resp
}

func (h *host) try(method string, req map[string]any) (map[string]any, error) {
	h.t.Helper()
	body, _ := json.Marshal(req)
	resp, err := h.socket.Post("http://plugin/"+method, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := map[string]any{}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, err
	}
	if e, _ := out["Err"].(string); e != "" {
		return nil, fmt.Errorf("%s", e)
	}
	return out, nil
}

// createNetwork does what docker network create does.
func (h *host) createNetwork(id, subnet string) {
	h.t.Helper()
	if _, err := h.create(id, subnet, nil, nil); err != nil {
		h.t.Fatal(err)
	}
}

// create is createNetwork with --ipam-opt and -o; it returns the pool's id.
func (h *host) create(id, subnet string, ipamOptions, options map[string]string) (poolID string, err error) {
	h.t.Helper()
	p, err := h.try("IpamDriver.RequestPool", map[string]any{"AddressSpace": "isthmus", "Pool": subnet, "SubPool": "", "Options": ipamOptions, "V6": false})
	if err != nil {
		return "", err
	}
	poolID = p["PoolID"].(string)
	gw := h.call("IpamDriver.RequestAddress", map[string]any{"PoolID": poolID, "Address": "", "Options": map[string]string{"RequestAddressType": "com.docker.network.gateway"}})
	_, err = h.try("NetworkDriver.CreateNetwork", map[string]any{
		"NetworkID": id,
		"Options":   map[string]any{"com.docker.network.enable_ipv6": false, "com.docker.network.generic": options},
		"IPv4Data":  []any{map[string]any{"AddressSpace": "isthmus", "Pool": p["Pool"], "Gateway": gw["Address"]}},
		"IPv6Data":  []any{},
	})
	if err != nil {
		h.call("IpamDriver.ReleasePool", map[string]any{"PoolID": poolID})
	}
	return poolID, err
}

// endpoint is what docker run leaves.
type endpoint struct{ id, addr, pool, link, gateway string }

// startContainer does what docker run does.
func (h *host) startContainer(network, poolID, id string) endpoint {
	h.t.Helper()
	return h.startNamed(network, poolID, id, "")
}

// startNamed is startContainer on an engine that tells the container's name.
func (h *host) startNamed(network, poolID, id, name string) endpoint {
	h.t.Helper()
	options := map[string]string{}
	if name != "" {
		options["com.docker.network.endpoint.name"] = name
	}
	a := h.call("IpamDriver.RequestAddress", map[string]any{"PoolID": poolID, "Address": "", "Options": options})
	addr := a["Address"].(string)
	made := h.call("NetworkDriver.CreateEndpoint", map[string]any{
		"NetworkID": network, "EndpointID": id, "Interface": map[string]any{"Address": addr, "AddressIPv6": "", "MacAddress": ""},
		"Options": map[string]any{"com.docker.network.endpoint.exposedports": []any{}, "com.docker.network.portmap": []any{}},
	})
	if iface, _ := made["Interface"].(map[string]any); iface == nil || iface["MacAddress"] == "" || iface["Address"] != "" {
		h.t.Errorf("CreateEndpoint answered %v; want only a MAC address", made)
	}
	sandbox := "/var/run/docker/netns/" + id[:12]
	joined := h.call("NetworkDriver.Join", map[string]any{"NetworkID": network, "EndpointID": id, "SandboxKey": sandbox, "Options": map[string]any{}})
	link := joined["InterfaceName"].(map[string]any)["SrcName"].(string)
	if err := h.kernel.Take(link, sandbox, "eth0"); err != nil {
		h.t.Errorf("%s: Docker cannot take the interface: %v", h.cfg.Name, err)
	}
	h.call("NetworkDriver.ProgramExternalConnectivity", map[string]any{"NetworkID": network, "EndpointID": id, "Options": map[string]any{}})
	gateway, _ := joined["Gateway"].(string)
	return endpoint{id: id, addr: addr, pool: poolID, link: link, gateway: gateway}
}

// stopContainer does what docker rm -f does.
func (h *host) stopContainer(network string, e endpoint) {
	h.t.Helper()
	h.call("NetworkDriver.RevokeExternalConnectivity", map[string]any{"NetworkID": network, "EndpointID": e.id})
	h.call("NetworkDriver.Leave", map[string]any{"NetworkID": network, "EndpointID": e.id})
	if err := h.kernel.GiveBack("/var/run/docker/netns/"+e.id[:12], "eth0"); err != nil {
		h.t.Errorf("%s: Docker cannot give the interface back: %v", h.cfg.Name, err)
	}
	h.call("NetworkDriver.DeleteEndpoint", map[string]any{"NetworkID": network, "EndpointID": e.id})
	h.call("IpamDriver.ReleaseAddress", map[string]any{"PoolID": e.pool, "Address": strings.Split(e.addr, "/")[0]})
}

func (h *host) get(name string, out any) {
	h.t.Helper()
	ctx := context.Background()
	c, err := connect(ctx, h.cfg.Socket)
	if err == nil {
		err = c.get(ctx, name, out)
	}
	if err != nil {
		h.t.Fatalf("%s: %s: %v", h.cfg.Name, name, err)
	}
}

func (h *host) status() Status {
	h.t.Helper()
	var s Status
	h.get("status", &s)
	return s
}

// await waits for a condition, and says what it was where it does not come.
func (h *host) await(what string, cond func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s, _ := json.MarshalIndent(h.status(), "", " ")
			h.t.Fatalf("%s: waited in vain: %s\n%s\n%s", h.cfg.Name, what, h.kernel, s)
		}
	}
}

func (h *host) awaitUp() {
	h.t.Helper()
	h.await("the socket is there", func() bool { _, err := connect(context.Background(), h.cfg.Socket); return err == nil })
	h.await("belongs to a cluster, or is ready to found one", func() bool {
		s := h.status()
		return s.Ready && (s.Cluster != "" && s.Ledger.Fresh || s.Ledger.Founding != "" && s.Ledger.Error == "")
	})
}

func (h *host) awaitAlive(n int) {
	h.t.Helper()
	h.await(fmt.Sprintf("%d members alive", n), func() bool {
		alive := 0
		for _, m := range h.status().Members {
			if m.State == cluster.Alive || m.State == cluster.Waiting {
				alive++
			}
		}
		return alive == n
	})
}

func id64(prefix string) string { return (prefix + strings.Repeat("0", 64))[:64] }

// vtep is what a host's tunnels stand on.
func (h *host) vtep() string {
	u, _ := h.kernel.Underlay(context.Background(), netip.Addr{})
	return u.Addr.String()
}

// TestThreeHosts walks through the life of a network: made on three hosts,
// containers started, found by the others; a plugin restarted; a host that
// works alone; all of it taken away.
func TestThreeHosts(t *testing.T) {
	hosts := newHosts(t, 3, "a secret of the cluster")
	for _, h := range hosts {
		h.start()
		h.awaitUp()
	}
	for _, h := range hosts {
		h.awaitAlive(3)
		s := h.status()
		if s.Cluster != hosts[0].status().Cluster || !s.Encrypted {
			t.Errorf("%s: cluster %s, encrypted %t", s.Name, s.Cluster, s.Encrypted)
		}
	}

	network := func(i int) string { return id64(fmt.Sprintf("%02d", i)) } // random per host, for Docker
	var poolID string
	var eps []endpoint
	for i, h := range hosts {
		h.createNetwork(network(i), "10.32.0.0/16")
		poolID = h.call("IpamDriver.RequestPool", map[string]any{"AddressSpace": "isthmus", "Pool": "10.32.0.0/16", "SubPool": "", "V6": false})["PoolID"].(string)
		h.call("IpamDriver.ReleasePool", map[string]any{"PoolID": poolID})
		eps = append(eps, h.startContainer(network(i), poolID, id64(fmt.Sprintf("e%d", i))))
	}
	addrs := map[string]bool{}
	for _, e := range eps {
		addrs[e.addr] = true
	}
	if len(addrs) != 3 || addrs["10.32.0.1/16"] {
		t.Errorf("addresses %v: want three, the gateway not among them", addrs)
	}
	for i, h := range hosts {
		for j, e := range eps {
			if i == j {
				continue
			}
			ip := strings.Split(e.addr, "/")[0]
			h.await("knows "+ip, func() bool {
				text := h.kernel.String()
				return strings.Contains(text, "neigh "+ip+" ") && strings.Contains(text, "dst "+hosts[j].vtep())
			})
		}
		var all []driver.EndpointStatus
		h.get("endpoints", &all)
		if len(all) != 3 {
			t.Errorf("%s: %d endpoints, want 3", h.cfg.Name, len(all))
		}
		h.await("all is well", func() bool { return len(h.status().Problems) == 0 })
	}
	if out, err := runCommand(t, "--socket", hosts[1].cfg.Socket, "status"); err != nil || !strings.Contains(out, "All is well.") || !strings.Contains(out, "10.32.0.0/16") {
		t.Errorf("isthmus status: %v\n%s", err, out)
	}
	for _, command := range []string{"members", "networks", "endpoints", "ipam"} {
		out, err := runCommand(t, "--socket", hosts[2].cfg.Socket, command)
		if err != nil || !strings.Contains(out, "host1") {
			t.Errorf("isthmus %s: %v\n%s", command, err, out)
		}
		out, err = runCommand(t, "--json", "--socket", hosts[2].cfg.Socket, command)
		if err != nil || !json.Valid([]byte(out)) {
			t.Errorf("isthmus %s --json: %v\n%s", command, err, out)
		}
	}

	// A plugin restarts: the kernel is left alone, and nobody forgets.
	before := hosts[1].kernel.String()
	hosts[1].stop()
	if after := hosts[1].kernel.String(); after != before {
		t.Errorf("stopping changed the kernel:\n%s\nwas:\n%s", after, before)
	}
	hosts[1].kernel.ResetLog()
	hosts[1].start()
	hosts[1].awaitUp()
	hosts[1].awaitAlive(3)
	hosts[1].await("settles with the same kernel", func() bool { return hosts[1].status().Networks[0].Remote == 2 && hosts[1].kernel.String() == before })
	if log := hosts[1].kernel.Log(); slices.ContainsFunc(log, func(s string) bool { return strings.HasPrefix(s, "del ") }) {
		t.Errorf("the restart removed something:\n%s", strings.Join(log, "\n"))
	}

	// A host works alone, from its first moment on.
	for _, h := range hosts {
		h.stop()
	}
	hosts[2].start()
	hosts[2].await("the socket is there", func() bool { _, err := connect(context.Background(), hosts[2].cfg.Socket); return err == nil })
	start := time.Now()
	alone := hosts[2].startContainer(network(2), poolID, id64("ef"))
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("a container start took %s with all other hosts down", took)
	}
	if addrs[alone.addr] {
		t.Errorf("address %s was given twice", alone.addr)
	}
	hosts[2].stopContainer(network(2), alone)
	for _, h := range hosts[:2] {
		h.start()
		h.awaitUp()
	}

	// All is taken away, and nothing stays.
	for i, h := range hosts {
		h.awaitAlive(3)
		h.stopContainer(network(i), eps[i])
		h.call("IpamDriver.ReleasePool", map[string]any{"PoolID": poolID})
		h.call("NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": network(i)})
		h.await("its kernel is empty", func() bool { return h.kernel.String() == "" })
	}

	// What is kept for the network's return goes when that is forgotten.
	for _, h := range hosts {
		h.call("IpamDriver.ReleasePool", map[string]any{"PoolID": poolID}) // was requested twice
		var done ForgetReport
		c, err := connect(context.Background(), h.cfg.Socket)
		if err == nil {
			err = c.post(context.Background(), "networks/forget", ForgetRequest{What: "10.32.0.0/16"}, &done)
		}
		if err != nil || len(done.Pools) != 1 {
			t.Errorf("%s: forget: %+v, %v", h.cfg.Name, done, err)
		}
	}
	for _, h := range hosts {
		h.await("the cluster has no pool", func() bool {
			var pools []PoolReport
			h.get("ipam", &pools)
			return len(pools) == 0
		})
	}
}

// TestUnderlayChanges: a new MTU is told to all; a new address makes a new
// node, with the same identity, below the same socket.
func TestUnderlayChanges(t *testing.T) {
	hosts := newHosts(t, 2, "")
	for _, h := range hosts {
		h.start()
		h.awaitUp()
	}
	hosts[0].createNetwork(id64("01"), "10.32.0.0/16") // the first network founds the cluster
	hosts[0].awaitAlive(2)
	hosts[1].await("belongs to the cluster", func() bool { s := hosts[1].status(); return s.Cluster != "" && s.Ledger.Fresh })
	hosts[1].kernel.SetUnderlay(kernel.Underlay{Name: "eth0", MTU: 1400, Addr: netip.MustParseAddr("127.0.1.2"), MAC: "02:00:00:00:00:02"})
	hosts[0].await("hears of the MTU", func() bool {
		return slices.ContainsFunc(hosts[0].status().Members, func(m cluster.Member) bool { return m.Info.Name == "host2" && m.Info.MTU == 1400 })
	})
	id := hosts[1].status().Host
	hosts[1].kernel.SetUnderlay(kernel.Underlay{Name: "eth0", MTU: 1400, Addr: netip.MustParseAddr("127.0.1.7"), MAC: "02:00:00:00:00:02"})
	hosts[0].await("hears of the address", func() bool {
		return slices.ContainsFunc(hosts[0].status().Members, func(m cluster.Member) bool {
			return m.ID == id && m.State == cluster.Alive && m.Address.Addr() == netip.MustParseAddr("127.0.1.7")
		})
	})
	hosts[1].awaitUp()
	if got := hosts[1].status().Host; got != id {
		t.Errorf("the host is %s now, was %s", got, id)
	}
}

// TestBootBeforeNetwork: a new host waits for an address and says so; one that
// had an address goes on with it.
func TestBootBeforeNetwork(t *testing.T) {
	h := newHosts(t, 1, "")[0]
	h.kernel.Fail(-1, "underlay", fmt.Errorf("network is unreachable"))
	h.start()
	h.await("says what it waits for", func() bool {
		if _, err := connect(context.Background(), h.cfg.Socket); err != nil {
			return false
		}
		s := h.status()
		return !s.Ready && len(s.Problems) == 1 && strings.Contains(s.Problems[0].Cause, "network is unreachable")
	})
	h.kernel.Heal()
	h.awaitUp()
	h.createNetwork(id64("01"), "10.32.0.0/16")
	h.stop()
	h.kernel.Fail(-1, "underlay", fmt.Errorf("network is unreachable"))
	h.start()
	h.await("is ready without a network", func() bool {
		_, err := connect(context.Background(), h.cfg.Socket)
		return err == nil && h.status().Ready
	})
	h.startContainer(id64("01"), h.call("IpamDriver.RequestPool", map[string]any{"AddressSpace": "isthmus", "Pool": "10.32.0.0/16"})["PoolID"].(string), id64("e1"))
	h.await("says that the network is away", func() bool {
		return slices.ContainsFunc(h.status().Problems, func(p driver.Problem) bool { return strings.Contains(p.Cause, "network is unreachable") })
	})
}

// TestReset: refused while containers are attached; then all goes, and the
// host that starts is a new one.
func TestReset(t *testing.T) {
	hosts := newHosts(t, 2, "a secret of the cluster")
	for _, h := range hosts {
		h.start()
		h.awaitUp()
	}
	h := hosts[1]
	h.awaitAlive(2)
	h.createNetwork(id64("01"), "10.32.0.0/16")
	pool := h.call("IpamDriver.RequestPool", map[string]any{"AddressSpace": "isthmus", "Pool": "10.32.0.0/16"})["PoolID"].(string)
	h.startContainer(id64("01"), pool, id64("e1"))
	old := h.status().Host
	if _, err := runCommand(t, "--socket", h.cfg.Socket, "reset"); err == nil || !strings.Contains(err.Error(), "attached") {
		t.Errorf("reset with a container: %v", err)
	}
	if _, err := runCommand(t, "--socket", hosts[0].cfg.Socket, "reset"); err == nil || !strings.Contains(err.Error(), "only voter") {
		t.Errorf("reset of the voter: %v", err)
	}
	out, err := runCommand(t, "--socket", h.cfg.Socket, "reset", "--force")
	if err != nil || out != "Reset: this is a new host now.\n" {
		t.Fatalf("reset --force: %v\n%s", err, out)
	}
	h.await("is a new host", func() bool { s := h.status(); return s.Ready && s.Host != old && s.Cluster != "" && s.Ledger.Fresh })
	if text := h.kernel.String(); strings.Contains(strings.ReplaceAll(text, "sandbox", ""), "link is-") && !strings.HasPrefix(text, "sandbox") {
		t.Errorf("left in the kernel:\n%s", text)
	}
	if s := h.status(); len(s.Networks) != 0 || s.Endpoints != 0 {
		t.Errorf("the new host has networks: %+v", s.Networks)
	}
	// What the old one held is free: the same subnet is made anew.
	hosts[0].await("the cluster dropped the network", func() bool {
		var pools []PoolReport
		hosts[0].get("ipam", &pools)
		return len(pools) == 0
	})
}

// TestResetHalfDead: a host whose state is damaged says so, and is reset all
// the same.
func TestResetHalfDead(t *testing.T) {
	h := newHosts(t, 1, "")[0]
	h.start()
	h.awaitUp()
	h.createNetwork(id64("01"), "10.32.0.0/16")
	h.await("has a device", func() bool { return h.kernel.String() != "" })
	h.stop()
	if err := os.WriteFile(filepath.Join(h.cfg.State, "identity"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.await("says what is wrong", func() bool {
		_, err := connect(context.Background(), h.cfg.Socket)
		if err != nil {
			return false
		}
		s := h.status()
		return len(s.Problems) == 1 && strings.Contains(s.Problems[0].Cause, "isthmus reset")
	})
	if _, err := runCommand(t, "--socket", h.cfg.Socket, "reset"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("reset without --force: %v", err)
	}
	if out, err := runCommand(t, "--socket", h.cfg.Socket, "reset", "--force"); err != nil {
		t.Errorf("reset --force: %v\n%s", err, out)
	}
	h.awaitUp()
	if s := h.status(); len(s.Networks) != 0 || len(s.Problems) != 0 || h.kernel.String() != "" {
		t.Errorf("after the reset: %+v\n%s", s, h.kernel)
	}
}

// TestResetWithout clears the kernel of a host on which no plugin runs.
func TestResetWithout(t *testing.T) {
	hosts := newHosts(t, 1, "")
	h := hosts[0]
	h.start()
	h.awaitUp()
	h.createNetwork(id64("01"), "10.32.0.0/16")
	h.await("has a device", func() bool { return h.kernel.String() != "" })
	h.stop()
	if err := resetWithout(context.Background(), h.kernel, h.cfg.State); err != nil {
		t.Fatal(err)
	}
	if text := h.kernel.String(); text != "" {
		t.Errorf("left in the kernel:\n%s", text)
	}
	if entries, err := filepath.Glob(filepath.Join(h.cfg.State, "*")); err != nil || len(entries) != 0 {
		t.Errorf("left on disk: %v, %v", entries, err)
	}
}
