package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/go-plugins-helpers/network"
	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// fuse is a door to the kernel that burns after some calls: the plugin is dead
// from then on. Nothing reaches the kernel or the disk any more.
type fuse struct {
	kernel.Kernel
	mu   sync.Mutex
	left int
	burn func()
}

var errDead = errors.New("plugin is dead")

func (f *fuse) dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left--
	if f.left == 0 {
		f.burn()
	}
	return f.left <= 0
}

func (f *fuse) burnt() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left <= 0
}

func (f *fuse) Dump(ctx context.Context) (kernel.State, error) {
	if f.dead() {
		return nil, errDead
	}
	return f.Kernel.Dump(ctx)
}

// Do dies between any two operations.
func (f *fuse) Do(ctx context.Context, ops []kernel.Op) error {
	var errs []error
	for _, op := range ops {
		if f.dead() {
			return errDead
		}
		errs = append(errs, f.Kernel.Do(ctx, []kernel.Op{op}))
	}
	return errors.Join(errs...)
}

func (f *fuse) Hand(ctx context.Context, h kernel.Handover) error {
	if f.dead() {
		return errDead
	}
	return f.Kernel.Hand(ctx, h)
}

func (f *fuse) Mend(ctx context.Context, h kernel.Handover) (bool, error) {
	if f.dead() {
		return false, errDead
	}
	return f.Kernel.Mend(ctx, h)
}

func (f *fuse) Observe(ctx context.Context, h kernel.Handover) (string, error) {
	if f.dead() {
		return "", errDead
	}
	return f.Kernel.Observe(ctx, h)
}

func (f *fuse) Links(ctx context.Context) ([]kernel.Device, error) {
	if f.dead() {
		return nil, errDead
	}
	return f.Kernel.Links(ctx)
}

func (f *fuse) Lodgers(ctx context.Context) (map[int][]kernel.Child, error) {
	if f.dead() {
		return nil, errDead
	}
	return f.Kernel.Lodgers(ctx)
}

// docker is what Docker believes, and does whatever the plugin answers.
type docker struct {
	*host
	networks map[string]string // subnet by id
	running  map[string]string // address by container
}

func (d *docker) create(id, subnet, options string) {
	if d.host.create(id, []string{subnet}, strings.Fields(options)...) == nil {
		d.networks[id] = subnet
	}
}

func (d *docker) start(id, networkID, ip string) {
	if d.host.endpoint(id, networkID, ip) != nil {
		return
	}
	r, err := d.joins(id)
	if err == nil {
		err = d.host.kernel.Take(r.InterfaceName.SrcName, "/s/"+id, "eth0")
	}
	if err != nil {
		_ = d.DeleteEndpoint(context.Background(), &network.DeleteEndpointRequest{EndpointID: id})
		return
	}
	d.running[id] = ip
}

func (d *docker) end(id string) {
	delete(d.running, id)
	_ = d.Leave(context.Background(), &network.LeaveRequest{EndpointID: id})
	_ = d.host.kernel.GiveBack("/s/"+id, "eth0")
	d.host.kernel.RemoveSandbox("/s/" + id)
	_ = d.DeleteEndpoint(context.Background(), &network.DeleteEndpointRequest{EndpointID: id})
}

func (d *docker) remove(id string) {
	_ = d.host.delete(id)
	delete(d.networks, id)
}

// healthy reports whether the kernel is as planned, each running container has
// its interface, and exactly the running ones are published.
func (d *docker) healthy() error {
	if err := d.Sync(context.Background(), 0); err != nil {
		return err
	}
	have, err := d.host.kernel.Dump(context.Background())
	if err != nil {
		return err
	}
	if ops := kernel.Diff(have, Plan(d.store.intent(), d.view()).State, kernel.Options{}); len(ops) > 0 {
		return fmt.Errorf("not as planned: %v", ops)
	}
	told := ", " + d.heard.told() + ", "
	for id, ip := range d.running {
		in, ok := d.host.kernel.Interface("/s/"+id, "eth0")
		if !ok || fmt.Sprint(in.Addrs) != "["+ip+"]" {
			return fmt.Errorf("%s has interface %+v, want %s", id, in, ip)
		}
		addr, _, _ := strings.Cut(ip, "/")
		if !strings.Contains(told, ", "+addr+", ") {
			return fmt.Errorf("%s is not published: %s", addr, told)
		}
	}
	if n := strings.Count(told, "10."); n != len(d.running) {
		return fmt.Errorf("%d endpoints are published, %d run: %s", n, len(d.running), told)
	}
	if n := strings.Count(d.host.kernel.String(), "(handed over)") + strings.Count(d.host.kernel.String(), "link is-e"); n > len(d.running) {
		return fmt.Errorf("%d interfaces for %d containers:\n%s", n, len(d.running), d.host.kernel)
	}
	return nil
}

func (d *docker) heal() {
	d.t.Helper()
	var last error
	defer func() {
		if last != nil {
			d.t.Fatalf("does not heal: %v", last)
		}
	}()
	d.await("it heals", func() bool { last = d.healthy(); return last == nil })
}

// clear removes everything, by hand what Docker does not know of, and checks
// that nothing is left anywhere.
func (d *docker) clear() {
	d.t.Helper()
	for id := range d.running {
		d.end(id)
	}
	for id := range d.networks {
		d.remove(id)
	}
	for id, n := range d.store.intent().Networks {
		d.await("the network's endpoints are forgotten", func() bool {
			_, err := d.Forget(context.Background(), n.ID)
			return err == nil || d.store.intent().Networks[id].ID == ""
		})
	}
	d.await("nothing is left", func() bool {
		in := d.store.intent()
		return d.host.kernel.String() == "" && !d.ledger.holds() && len(in.Networks)+len(in.Endpoints) == 0 && d.heard.told() == ""
	})
}

// kinds are networks that have little in common, as the options of each.
var kinds = []string{
	"attach=macvlan", "attach=bridge",
	"mode=macvlan parent=eth1.50 host_access=on", "mode=ipvlan ipvlan_mode=l3 parent=eth2.60.7 host_access=on",
}

// TestCrashAnywhere kills the plugin at every single step of two containers'
// lives, starts it again, and expects the running ones unharmed, the rest gone.
func TestCrashAnywhere(t *testing.T) {
	for _, options := range kinds {
		for step := 1; ; step++ {
			if !crashAt(t, options, step) {
				t.Logf("%s: %d steps", options, step-1)
				if step < 20 {
					t.Fatalf("only %d steps: the script does not work", step-1)
				}
				break
			}
		}
	}
}

func crashAt(t *testing.T, options string, step int) (burnt bool) {
	h := newHost(t, t.TempDir())
	f := &fuse{Kernel: h.kernel, left: step}
	h.door = f
	f.burn = func() { h.db.Close() }
	h.heard.say("host2", remote(1, "remote", "172.16.0.9", "02:00:00:00:02:09"))
	h.kernel.SetDevice(nic("eth1"))
	h.kernel.SetDevice(nic("eth2"))
	h.start(hasty)
	d := &docker{host: h, networks: map[string]string{}, running: map[string]string{}}
	d.create("network", "10.1.0.0/16", options)
	d.start("web", "network", "10.1.0.2/16")
	d.start("db", "network", "10.1.0.3/16")
	if !f.burnt() {
		h.kernel.Delete(link("is-v4097"), link("eth1.50"), link("eth2.60"))
	}
	_ = h.Sync(context.Background(), 0)
	d.end("web")
	if len(d.running) == 0 {
		d.remove("network")
	}
	burnt = f.burnt()
	h.stop()
	h.door = h.kernel
	h.start(impatient)
	d.heal()
	d.clear()
	h.stop()
	return burnt
}

// TestAnything: whatever users, Docker, other hosts and bad luck do, in the end
// the kernel is as planned, running containers have their interfaces, and when
// all is removed nothing is left.
func TestAnything(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost(t, dir)
		h.path += fmt.Sprint(rapid.Uint64().Draw(t, "file"))
		h.kernel.SetDevice(nic("eth1"))
		h.kernel.SetDevice(nic("eth2"))
		h.start(hasty)
		d := &docker{host: h, networks: map[string]string{}, running: map[string]string{}}
		defer func() { h.stop() }()
		number := 0
		steps := rapid.SliceOfN(rapid.IntRange(0, 10), 1, 12).Draw(t, "steps")
		for _, s := range steps {
			n := rapid.IntRange(1, len(kinds)).Draw(t, "network")
			id := fmt.Sprint("network", n)
			switch s {
			case 0, 1:
				d.create(id, fmt.Sprintf("10.%d.0.0/16", n), kinds[n-1])
			case 2, 3, 4:
				if d.networks[id] != "" {
					number++
					d.start(fmt.Sprintf("%05d", number), id, fmt.Sprintf("10.%d.0.%d/16", n, number))
				}
			case 5:
				for c := range d.running {
					d.end(c)
					break
				}
			case 6:
				used := false
				for _, ip := range d.running {
					used = used || strings.HasPrefix(ip, fmt.Sprintf("10.%d.", n))
				}
				if !used {
					d.remove(id)
				}
			case 7:
				ip := fmt.Sprintf("172.%d.0.%d", n, rapid.IntRange(1, 3).Draw(t, "remote"))
				h.heard.say("host2", remote(uint32(n), "r", ip, fmt.Sprintf("02:00:00:00:02:%02x", rapid.IntRange(0, 3).Draw(t, "mac"))))
			case 8:
				state, _ := h.kernel.Dump(context.Background())
				for key := range state {
					if slices.ContainsFunc([]string{"is-v", "is-b", "is-h", "eth"}, func(begin string) bool { return strings.HasPrefix(key.Dev, begin) }) {
						h.kernel.Delete(key)
						break
					}
				}
			case 10:
				switch nic := nic("eth" + fmt.Sprint(rapid.IntRange(1, 2).Draw(t, "parent"))); rapid.IntRange(0, 3).Draw(t, "accident") {
				case 0:
					h.kernel.RemoveDevice(nic.Name)
				case 1:
					nic.Up = false
					h.kernel.SetDevice(nic)
				case 2:
					nic.MTU = 1300
					h.kernel.SetDevice(nic)
				default:
					h.kernel.SetDevice(nic)
				}
			case 9:
				if rapid.Bool().Draw(t, "restart") {
					h.restart(hasty)
				} else {
					h.kernel.Fail(rapid.IntRange(1, 4).Draw(t, "faults"), rapid.SampledFrom([]string{"add", "del", "hand", "mend", "dump", "observe", "links"}).Draw(t, "what"), errors.New("bad luck"))
				}
			}
		}
		h.kernel.Heal()
		h.kernel.SetDevice(nic("eth1"))
		h.kernel.SetDevice(nic("eth2"))
		h.restart(impatient)
		d.heal()
		d.clear()
	})
}
