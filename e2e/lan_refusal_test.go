//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// refusals: what cannot work in this LAN, on this host or with this kernel is
// said at once, with the cause and the remedy.
func (l *lan) refusals(t *testing.T) {
	h := l.Host(1)
	before := snapshot(t, h)
	for _, dev := range []string{"port0", "mine0", "alone0", "docker0v", "free0"} {
		if err := l.AddLink(t.Context(), 1, dev); err != nil {
			t.Fatal(err)
		}
	}
	lab.Must(t)(h.Exec(t.Context(), "sh", "-ec", "ip link add br9 type bridge; ip link set port0 master br9"))
	l.createNetwork(t, "mine", []string{"--subnet", "10.92.1.0/24", "-o", "mode=macvlan", "-o", "parent=mine0"}, h)
	l.createNetwork(t, "alone", []string{"--subnet", "10.92.2.0/24", "-o", "mode=macvlan", "-o", "parent=alone0", "-o", "macvlan_mode=passthru"}, h)
	docker(t, h, "network", "create", "-d", "macvlan", "--subnet", "10.92.3.0/24", "-o", "parent=docker0v", "theirs")
	theirs := run(t, h, "theirs-box", "theirs")

	create := func(args ...string) func() error {
		return func() error {
			_, err := createNetwork(t.Context(), h, "refused", append([]string{"--subnet", "10.92.9.0/24"}, args...)...)
			h.Docker(t.Context(), "network", "rm", "refused")
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func() error
		says []string
	}{
		{"kernel-lacks-ipvlan", create("-o", "mode=ipvlan", "-o", "parent=free0"), []string{"ipvlan", "modprobe ipvlan"}},
		{"kernel-lacks-vlans", create("-o", "mode=macvlan", "-o", "parent=eth0.50"), []string{"vlan", "modprobe 8021q"}},
		{"no-parent", create("-o", "mode=macvlan"), []string{"parent=", "eth0", "--internal"}},
		{"parent-of-another-host", create("-o", "mode=macvlan", "-o", "parent.host2=eth0"), []string{"parent.host1="}},
		{"missing", create("-o", "mode=macvlan", "-o", "parent=nope0"), []string{"nope0", "does not exist", "eth0"}},
		{"bridge-port", create("-o", "mode=macvlan", "-o", "parent=port0"), []string{"port0", "port of bridge br9", "parent=br9"}},
		{"passthru-second", create("-o", "mode=macvlan", "-o", "parent=mine0", "-o", "macvlan_mode=passthru"), []string{"passthru", "mine0", "10.92.1.0/24"}},
		{"beside-passthru", create("-o", "mode=macvlan", "-o", "parent=alone0"), []string{"alone0", "10.92.2.0/24", "passthru"}},
		{"passthru-of-the-host", create("-o", "mode=macvlan", "-o", "parent=eth0", "-o", "macvlan_mode=passthru"), []string{"passthru", "eth0"}},
		{"ipvlan-beside-macvlan", create("-o", "mode=ipvlan", "-o", "parent=mine0"), []string{"mine0", "macvlan", "10.92.1.0/24", "cannot serve ipvlan"}},
		{"ipvlan-beside-dockers", create("-o", "mode=ipvlan", "-o", "parent=docker0v"), []string{"docker0v", "macvlan", "a container", "cannot serve ipvlan"}},
		{"passthru-beside-dockers", create("-o", "mode=macvlan", "-o", "parent=docker0v", "-o", "macvlan_mode=passthru"), []string{"passthru", "docker0v", "a container"}},
		{"host-access-private", create("-o", "mode=macvlan", "-o", "parent=eth0", "-o", "macvlan_mode=private", "-o", "host_access=on"), []string{"host_access", "private"}},
		{"mtu", create("-o", "mode=macvlan", "-o", "parent=eth0", "-o", "mtu=9000"), []string{"mtu=9000", "eth0", "1500"}},
		{"dhcp-with-range", create("-o", "mode=macvlan", "-o", "parent=eth0", "--ipam-opt", "dhcp=on", "--ip-range", "10.92.9.64/26"), []string{"dhcp", "--ip-range"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.do()
			if err == nil {
				t.Fatal("accepted")
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the error does not name %q: %v", word, err)
				}
			}
			t.Log(err)
		})
	}
	t.Run("published-port", func(t *testing.T) {
		b := run(t, h, "published", "mine", "-p", "8082:80")
		defer removeBoxes(t, b)
		if out, err := l.Host(2).Exec(t.Context(), "box", "get", fmt.Sprintf("http://%s:8082/", h.IP())); err == nil {
			t.Errorf("the host answers on a published port: %s", out)
		}
		// By its own address, though, it is reached.
		lab.Must(t)(l.machine.Exec(t.Context(), "ip", "address", "replace", "10.92.1.200/24", "dev", "eth0"))
		defer l.machine.Exec(t.Context(), "ip", "address", "del", "10.92.1.200/24", "dev", "eth0")
		eventually(t, 10*time.Second, func() error {
			_, err := l.machine.Exec(t.Context(), "box", "get", fmt.Sprintf("http://%s/", b.ip4))
			return err
		})
	})
	removeBoxes(t, theirs)
	docker(t, h, "network", "rm", "theirs")
	for name, subnet := range map[string]string{"mine": "10.92.1.0/24", "alone": "10.92.2.0/24"} {
		l.removeNetwork(t, name, h)
		forget(t, subnet, h)
	}
	lab.Must(t)(h.Exec(t.Context(), "sh", "-ec", "for dev in br9 port0 mine0 alone0 docker0v free0; do ip link del $dev; done"))
	eventually(t, 15*time.Second, func() error { return unchanged(t.Context(), h, before) })
}

// commandsIn returns the commands of a page that are typed at a prompt.
func commandsIn(t *testing.T, page, prompt string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	goesOn := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, prompt); ok {
			all = append(all, "")
			line, goesOn = rest, true
		}
		if !goesOn {
			continue
		}
		line, goesOn = strings.CutSuffix(line, "\\")
		all[len(all)-1] += line + " "
	}
	return all
}

// migrate: the lines of docs/migrate.md work as they are written there, and
// containers reach each other at every step.
func (l *lan) migrate(t *testing.T) {
	const subnet = "192.168.7.0/24"
	lines := [][]string{commandsIn(t, "../docs/migrate.md", "host1$ "), commandsIn(t, "../docs/migrate.md", "host2$ ")}
	for _, of := range lines {
		of0, of1 := slices.ContainsFunc(of[:1], dockers), slices.ContainsFunc(of[1:], dockers)
		if len(of) != 2 || !of0 || of1 {
			t.Fatalf("lines of the page are %q, want Docker's and isthmus'", of)
		}
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("192.168.7.64/27"), netip.MustParsePrefix("192.168.7.96/27")}
	hosts := l.Hosts()[:2]
	boxes := make([]*box, 2)
	create := func(i, step int) {
		t.Helper()
		lab.Must(t)(hosts[i].Exec(t.Context(), "sh", "-ec", lines[i][step]))
		boxes[i] = run(t, hosts[i], fmt.Sprintf("lan-%d", i), "lan", "--ip", ranges[i].Addr().Next().Next().Next().String())
		more := run(t, hosts[i], fmt.Sprintf("more-%d", i), "lan")
		if a, err := netip.ParseAddr(more.ip4); err != nil || !ranges[i].Contains(a) || more.ip4 == boxes[i].ip4 {
			t.Errorf("%s got %q beside %s, want another one of %s", more.name, more.ip4, boxes[i].ip4, ranges[i])
		}
		removeBoxes(t, more)
	}
	works := func() {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if err := asked(boxes[0].exec).reaches(t, boxes[1].ip4); err != nil {
				return err
			}
			return asked(boxes[1].exec).reaches(t, boxes[0].ip4)
		})
	}
	create(0, 0)
	create(1, 0)
	works()
	for i, h := range hosts {
		removeBoxes(t, boxes[i])
		if err := removeNetwork(h, "lan"); err != nil {
			t.Fatal(err)
		}
		create(i, 1)
		works()
	}
	removeBoxes(t, boxes...)
	l.removeNetwork(t, "lan", hosts...)
	forget(t, subnet, hosts...)
}

func dockers(line string) bool { return strings.Contains(line, "-d macvlan ") }
