//go:build e2e && machine

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// TestMachineLANFaults is what needs VLANs and ipvlan of the kernel: devices that
// isthmus makes, and their ends, and what a parent cannot be twice.
func TestMachineLANFaults(t *testing.T) {
	l := newLAN(t, 0, 0)
	before := snapshots(t, l.site)
	t.Run("vlan", l.vlanDevice)
	t.Run("ipvlan", l.ipvlanParent)
	t.Run("nothing-left", func(t *testing.T) { nothingLeft(t, l.site, before) })
}

// devices lists the links of a host that are called so.
func devices(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	return lab.Must(t)(h.Exec(t.Context(), "sh", "-c", "ip -br link | awk '{print $1}' | grep '^"+name+"@' || true"))
}

// vlanDevice: what isthmus made comes back when it is deleted, and after a boot,
// with the running containers, and goes with its last network. What the user made
// stays.
func (l *lan) vlanDevice(t *testing.T) {
	const subnet, users = "10.98.50.0/24", "10.98.60.0/24"
	one := l.Host(1)
	l.createNetwork(t, "tagged", []string{"--subnet", subnet, "-o", "mode=macvlan", "-o", "parent=eth0.50"})
	boxes := l.boxes(t, "tagged", "A", "C")
	a, c := boxes["A"], boxes["C"]
	docker(t, one, "update", "--restart", "always", a.name)
	works := func() error {
		if err := a.inspect(t.Context()); err != nil || a.ip4 == "" {
			return fmt.Errorf("%s is not up: %v", a.name, err)
		}
		return asked(c.exec).reaches(t, a.ip4)
	}
	eventually(t, mendTime, works)
	lab.Must(t)(one.Exec(t.Context(), "ip", "link", "del", "eth0.50"))
	took := eventually(t, mendTime, works)
	t.Logf("eth0.50 deleted: works again after %s", took.Round(10*time.Millisecond))
	begun := time.Now()
	if err := one.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("the engine answers %s after the reboot began", time.Since(begun).Round(10*time.Millisecond))
	took = eventually(t, mendTime, works)
	t.Logf("rebooted: works again %s after that", took.Round(10*time.Millisecond))

	lab.Must(t)(one.Exec(t.Context(), "sh", "-ec", "ip link add link eth0 name eth0.60 type vlan id 60; ip link set eth0.60 up"))
	l.createNetwork(t, "users", []string{"--subnet", users, "-o", "mode=macvlan", "-o", "parent=eth0.60"}, one)
	l.removeNetwork(t, "users", one)
	forget(t, users, one)
	l.drop(t, "tagged", boxes, subnet)
	for _, h := range l.Hosts() {
		eventually(t, mendTime, func() error {
			if left := devices(t, h, "eth0.50"); left != "" {
				return fmt.Errorf("%s still has %s after its last network", h.Name, left)
			}
			return nil
		})
	}
	if devices(t, one, "eth0.60") == "" {
		t.Error("eth0.60, which the user made, is gone with the network on it")
	}
	lab.Must(t)(one.Exec(t.Context(), "ip", "link", "del", "eth0.60"))
}

// ipvlanParent: a parent has one mode of ipvlan, and host_access works in it.
func (l *lan) ipvlanParent(t *testing.T) {
	const subnet = "10.98.70.0/24"
	one := l.Host(1)
	l.createNetwork(t, "slaves", []string{"--subnet", lanSubnet4, "--gateway", router4, "--ip-range", "10.99.0.128/26",
		"-o", "mode=ipvlan", "-o", "parent=eth0", "-o", "host_access=on"})
	boxes := l.boxes(t, "slaves", "A", "C")
	defer l.drop(t, "slaves", boxes, lanSubnet4)
	a, c := boxes["A"], boxes["C"]
	for _, options := range [][]string{{"mode=ipvlan", "ipvlan_mode=l3"}, {"mode=ipvlan", "ipvlan_flag=private"}, {"mode=macvlan"}} {
		args := []string{"--subnet", subnet, "-o", "parent=eth0"}
		for _, o := range options {
			args = append(args, "-o", o)
		}
		_, err := createNetwork(t.Context(), one, "other", args...)
		if err == nil || !strings.Contains(err.Error(), lanSubnet4) || !strings.Contains(err.Error(), "parent eth0 serves ipvlan") {
			t.Errorf("%v beside ipvlan l2: %v, want it refused with the network's name", options, err)
		}
		one.Docker(t.Context(), "network", "rm", "other")
	}
	if _, err := start(t.Context(), one, "mac", "slaves", "--mac-address", "02:62:00:00:00:01"); err == nil || !strings.Contains(err.Error(), "--mac-address") {
		t.Errorf("--mac-address in ipvlan: %v, want it refused", err)
	}
	one.Docker(t.Context(), "rm", "-f", "mac")
	for what, try := range map[string]struct {
		from asked
		to   []string
	}{
		"host to its own container":     {one.Exec, []string{a.ip4}},
		"container to its own host":     {a.exec, []string{one.IP().String(), c.ip4, machine4}},
		"host to a container elsewhere": {one.Exec, []string{c.ip4}},
		"machine":                       {l.machine.Exec, []string{a.ip4, c.ip4, one.IP().String()}},
	} {
		eventually(t, mendTime, func() error {
			if err := try.from.reaches(t, try.to...); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
}
