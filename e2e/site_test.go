//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// driverName is what users write behind -d and --ipam-driver.
const driverName = "isthmus:latest"

// A site is a lab with the managed plugin installed on every host.
type site struct {
	*lab.Lab
	ref string
}

// pluginDir returns build/plugin, which scripts/test has made.
func pluginDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../build/plugin")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "config.json"))
	}
	if err != nil {
		t.Fatalf("find the plugin to install: %v: run scripts/plugin first", err)
	}
	return dir
}

// newSite brings up a lab and installs the plugin from its registry on each
// host, all with one JOIN list and one key, as the README says.
func newSite(t *testing.T, c lab.Config, settings ...string) *site {
	t.Helper()
	s := &site{Lab: lab.New(t, c)}
	ref, err := s.PushPlugin(t.Context(), pluginDir(t))
	if err != nil {
		t.Fatal(err)
	}
	s.ref = ref
	each(t, s.Hosts(), func(h *lab.Host) error { return s.install(t.Context(), h, settings...) })
	s.awaitMembers(t, len(s.Hosts()))
	return s
}

const clusterKey = "correct horse battery staple"

// install puts the plugin on a host with a key and all hosts in JOIN.
func (s *site) install(ctx context.Context, h *lab.Host, settings ...string) error {
	if err := h.WriteFile("/etc/isthmus.key", clusterKey+"\n", 0o600); err != nil {
		return err
	}
	var names []string
	for _, h := range s.Hosts() {
		names = append(names, h.Name)
	}
	all := append([]string{"key.source=/etc/isthmus.key", "JOIN=" + strings.Join(names, ",")}, settings...)
	if err := h.InstallPlugin(ctx, s.ref, all...); err != nil {
		return err
	}
	return linkBinary(ctx, h)
}

// linkBinary does what the README says to have the command on the PATH.
func linkBinary(ctx context.Context, h *lab.Host) error {
	_, err := h.Exec(ctx, "sh", "-c",
		`ln -sf "$(docker plugin inspect -f '/var/lib/docker/plugins/{{.Id}}/rootfs/isthmus' `+driverName+`)" /usr/local/bin/isthmus`)
	return err
}

// awaitMembers waits until each of the hosts, or all, counts n members that are
// alive, or that wait with it for the first network.
func (s *site) awaitMembers(t *testing.T, n int, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range s.orAll(hosts) {
		eventually(t, 30*time.Second, func() error {
			members, err := membersOf(t.Context(), h)
			if err != nil {
				return err
			}
			alive := 0
			for _, m := range members {
				if m.State == "alive" || m.State == "waiting" {
					alive++
				}
			}
			if alive != n {
				return fmt.Errorf("%s counts %d of %d members alive: %+v", h.Name, alive, n, members)
			}
			return nil
		})
	}
}

type member struct {
	ID    string
	State string
	Info  struct{ Name string }
}

func membersOf(ctx context.Context, h *lab.Host) ([]member, error) {
	out, err := isthmus(ctx, h, "members", "--json")
	if err != nil {
		return nil, err
	}
	var members []member
	return members, decode(out, &members)
}

// isthmus runs the command line on a host. What it printed counts although it
// found that not all is well.
func isthmus(ctx context.Context, h *lab.Host, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := h.Command(ctx, append([]string{"isthmus"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		return "", fmt.Errorf("isthmus %s on %s: %w: %s", strings.Join(args, " "), h.Name, err, stderr.String())
	}
	return string(out), nil
}

func decode(out string, into any) error {
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("decode %.300q: %w", out, err)
	}
	return nil
}

// createNetwork creates a network on the given hosts, or on all.
func (s *site) createNetwork(t *testing.T, name string, args []string, hosts ...*lab.Host) {
	t.Helper()
	each(t, s.orAll(hosts), func(h *lab.Host) error {
		_, err := createNetwork(t.Context(), h, name, args...)
		return err
	})
}

func createNetwork(ctx context.Context, h *lab.Host, name string, args ...string) (string, error) {
	all := append([]string{"network", "create", "-d", driverName, "--ipam-driver", driverName}, args...)
	return h.Docker(ctx, append(all, name)...)
}

func (s *site) removeNetwork(t *testing.T, name string, hosts ...*lab.Host) {
	t.Helper()
	each(t, s.orAll(hosts), func(h *lab.Host) error { return removeNetwork(h, name) })
}

// removeNetwork removes a network whose containers are removed. Engines up to
// 20.10 say that a container is gone before they remove its endpoints
// (daemon/monitor.go: SetStopped comes before Cleanup), so it asks again. They
// also count a network's endpoints wrongly when several come or go at once
// (libnetwork/endpoint_cnt.go reads and writes without one lock; moby issue
// 42119): a count that no container explains is set right by a restart.
func removeNetwork(h *lab.Host, name string) error {
	ctx, restarted := context.Background(), false
	for begun := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		_, err := h.Docker(ctx, "network", "rm", name)
		if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
			return err
		}
		if time.Since(begun) < 20*time.Second {
			continue
		}
		left, _ := h.Docker(ctx, "network", "inspect", "-f", "{{json .Containers}}", name)
		if restarted || strings.TrimSpace(left) != "{}" {
			return fmt.Errorf("%w: %s", err, left)
		}
		restarted, begun = true, time.Now()
		if err := h.StopEngine(ctx); err != nil {
			return err
		}
		if err := h.StartEngine(ctx); err != nil {
			return err
		}
	}
}

func (s *site) orAll(hosts []*lab.Host) []*lab.Host {
	if len(hosts) == 0 {
		return s.Hosts()
	}
	return hosts
}

// A box is a running container of the lab's image.
type box struct {
	host     *lab.Host
	name     string
	id       string // where the test needs it
	network  string
	ip4, ip6 string
	mac      string
}

// run starts a container that serves every kind of traffic.
func run(t *testing.T, h *lab.Host, name, network string, args ...string) *box {
	t.Helper()
	b, err := start(t.Context(), h, name, network, args...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func start(ctx context.Context, h *lab.Host, name, network string, args ...string) (*box, error) {
	all := append([]string{"run", "-d", "--name", name, "--hostname", name, "--network", network}, args...)
	if _, err := h.Docker(ctx, append(all, lab.Image, "box", "serve")...); err != nil {
		return nil, fmt.Errorf("run %s on %s: %w", name, h.Name, err)
	}
	b := &box{host: h, name: name, network: network}
	return b, b.inspect(ctx)
}

// inspect learns the addresses that the container has now.
func (b *box) inspect(ctx context.Context) error {
	out, err := b.host.Docker(ctx, "inspect", "-f", "{{json .NetworkSettings.Networks}}", b.name)
	if err != nil {
		return err
	}
	var networks map[string]struct{ IPAddress, GlobalIPv6Address, MacAddress string }
	if err := decode(out, &networks); err != nil {
		return err
	}
	n := networks[b.network]
	b.ip4, b.ip6, b.mac = n.IPAddress, n.GlobalIPv6Address, n.MacAddress
	return nil
}

// exec runs a command in the container.
func (b *box) exec(ctx context.Context, args ...string) (string, error) {
	out, err := b.host.Docker(ctx, append([]string{"exec", b.name}, args...)...)
	if err != nil {
		return out, fmt.Errorf("in %s on %s: %w", b.name, b.host.Name, err)
	}
	return out, nil
}

func (b *box) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.exec(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A session is a command that runs on a host or in a container while the test
// does something else.
type session struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	mu     sync.Mutex
	out    []string
	stderr bytes.Buffer
	done   chan struct{}
}

// begin starts a command in the container.
func (b *box) begin(t *testing.T, args ...string) *session {
	t.Helper()
	return begin(t, b.host, append([]string{"docker", "exec", b.name}, args...)...)
}

// begin starts a command on a host and waits for the first line that it prints,
// by which it says that it is ready.
func begin(t *testing.T, h *lab.Host, args ...string) *session {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &session{cancel: cancel, done: make(chan struct{})}
	s.cmd = h.Command(ctx, args...)
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = &s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	go func() {
		defer close(s.done)
		scan := bufio.NewScanner(stdout)
		once := sync.OnceFunc(func() { close(first) })
		defer once()
		for scan.Scan() {
			s.mu.Lock()
			s.out = append(s.out, scan.Text())
			s.mu.Unlock()
			once()
		}
	}()
	t.Cleanup(cancel)
	select {
	case <-first:
	case <-time.After(20 * time.Second):
		t.Fatalf("%v on %s says nothing: %s", args, h.Name, s.stderr.String())
	}
	return s
}

// lines returns what the command printed so far; it must not have ended.
func (s *session) lines() ([]string, error) {
	select {
	case <-s.done:
		return nil, fmt.Errorf("%v ended: %v: %s", s.cmd.Args, s.cmd.Wait(), s.stderr.String())
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.out), nil
}

// wait waits for the end of the command and returns the last line it printed.
func (s *session) wait(within time.Duration) (string, error) {
	select {
	case <-s.done:
	case <-time.After(within):
		s.cancel()
		<-s.done
		return "", fmt.Errorf("%v does not end within %s", s.cmd.Args, within)
	}
	err := s.cmd.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) == 0 {
		return "", fmt.Errorf("%v printed nothing: %v: %s", s.cmd.Args, err, s.stderr.String())
	}
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", s.cmd.Args, err, s.stderr.String())
	}
	return s.out[len(s.out)-1], err
}

// oneOnEach runs a container of the network on every host.
func (s *site) oneOnEach(t *testing.T, network string, args ...string) []*box {
	t.Helper()
	boxes := make([]*box, len(s.Hosts()))
	each(t, s.Hosts(), func(h *lab.Host) (err error) {
		boxes[h.Index-1], err = start(t.Context(), h, network+"-"+h.Name, network, args...)
		return err
	})
	return boxes
}

func removeBoxes(t *testing.T, boxes ...*box) {
	t.Helper()
	var wait sync.WaitGroup
	for _, b := range boxes {
		wait.Go(func() {
			if _, err := b.host.Docker(context.Background(), "rm", "-f", b.name); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// each does something on hosts at once and fails the test when any fails.
func each(t *testing.T, hosts []*lab.Host, do func(*lab.Host) error) {
	t.Helper()
	errs := make([]error, len(hosts))
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() { errs[i] = do(h) })
	}
	wait.Wait()
	failed := false
	for i, err := range errs {
		if err != nil {
			failed = true
			t.Errorf("%s: %v", hosts[i].Name, err)
		}
	}
	if failed {
		t.FailNow()
	}
}

// eventually waits for a condition, and fails with its last reason.
func eventually(t *testing.T, within time.Duration, check func() error) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := retry(within, 50*time.Millisecond, check); err != nil {
		t.Fatalf("not within %s: %v", within, err)
	}
	return time.Since(begun)
}

// retry asks another process until it has what is wanted, and returns its last
// reason when that does not come in time.
func retry(within, every time.Duration, check func() error) error {
	for begun := time.Now(); ; time.Sleep(every) {
		if err := check(); err == nil || time.Since(begun) > within {
			return err
		}
	}
}
