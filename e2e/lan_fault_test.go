//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

const (
	faultSubnet = "10.94.0.0/24"
	mendTime    = 15 * time.Second
)

// faults: whatever happens to a parent, a plugin or a host, all works again
// within 15 s, running containers included, and status says meanwhile what is wrong.
func (l *lan) faults(t *testing.T) {
	one, two := l.Host(1), l.Host(2)
	if err := l.AddLink(t.Context(), 1, "lan0"); err != nil {
		t.Fatal(err)
	}
	l.createNetwork(t, "fault", []string{"--subnet", faultSubnet, "-o", "mode=macvlan", "-o", "parent=eth0", "-o", "parent.host1=lan0"}, one, two)
	a, b := run(t, one, "fault-a", "fault"), run(t, two, "fault-b", "fault", "--restart=always")
	works := func() error { return asked(a.exec).reaches(t, b.ip4) }
	mended := func(t *testing.T) {
		t.Helper()
		took := eventually(t, mendTime, works)
		t.Logf("works again after %s", took.Round(10*time.Millisecond))
	}
	eventually(t, 10*time.Second, works)
	was := normal(a.must(t, "ip", "-o", "address", "show", "eth0"))

	t.Run("unplugged", func(t *testing.T) {
		if err := l.HostDown(2); err != nil {
			t.Fatal(err)
		}
		l.status(t, two, "parent eth0 has no carrier", "cable")
		if err := l.HostUp(2); err != nil {
			t.Fatal(err)
		}
		mended(t)
		l.statusWithout(t, two, "has no carrier")
	})
	t.Run("down", func(t *testing.T) {
		lab.Must(t)(one.Exec(t.Context(), "ip", "link", "set", "lan0", "down"))
		l.status(t, one, "parent lan0 is down", "ip link set lan0 up")
		lab.Must(t)(one.Exec(t.Context(), "ip", "link", "set", "lan0", "up"))
		mended(t)
	})
	t.Run("renamed", func(t *testing.T) {
		rename := func(from, to string) {
			lab.Must(t)(one.Exec(t.Context(), "sh", "-ec", fmt.Sprintf("ip link set %[1]s down; ip link set %[1]s name %[2]s; ip link set %[2]s up", from, to)))
		}
		rename("lan0", "lan9")
		l.status(t, one, "parent lan0 does not exist", "use ")
		if err := works(); err != nil { // what runs goes on
			t.Error(err)
		}
		// A new container waits for the parent, which the error names.
		if _, err := start(t.Context(), one, "fault-new", "fault"); err == nil || !strings.Contains(err.Error(), "lan0") {
			t.Errorf("a new container without the parent: %v, want it refused with its name", err)
		}
		one.Docker(t.Context(), "rm", "-f", "fault-new")
		rename("lan9", "lan0")
		mended(t)
		took := eventually(t, mendTime, func() error {
			one.Docker(t.Context(), "rm", "-f", "fault-new")
			_, err := start(t.Context(), one, "fault-new", "fault")
			return err
		})
		t.Logf("a new container starts %s after that", took.Round(10*time.Millisecond))
		one.Docker(t.Context(), "rm", "-f", "fault-new")
		l.statusWithout(t, one, "does not exist")
	})
	t.Run("deleted", func(t *testing.T) {
		lab.Must(t)(one.Exec(t.Context(), "ip", "link", "del", "lan0"))
		l.status(t, one, "parent lan0 does not exist", "use ")
		if err := l.AddLink(t.Context(), 1, "lan0"); err != nil {
			t.Fatal(err)
		}
		mended(t)
		if now := normal(a.must(t, "ip", "-o", "address", "show", "eth0")); now != was {
			t.Errorf("the container's interface had\n%s\nand has\n%s", was, now)
		}
		l.statusWithout(t, one, "does not exist")
	})
	t.Run("plugin-killed", func(t *testing.T) {
		stream := a.begin(t, "box", "stream", "--over", "udp", "--for", "4s", "--interval", "5ms", b.ip4)
		old := pluginPID(t, one)
		begun := time.Now()
		lab.Must(t)(one.Exec(t.Context(), "kill", "-9", old))
		var fresh *box
		eventually(t, mendTime, func() (err error) {
			one.Docker(t.Context(), "rm", "-f", "fault-fresh")
			fresh, err = start(t.Context(), one, "fault-fresh", "fault")
			if err == nil {
				err = asked(fresh.exec).reaches(t, b.ip4)
			}
			return err
		})
		t.Logf("a new container works %s after the kill", time.Since(begun).Round(10*time.Millisecond))
		removeBoxes(t, fresh)
		out, err := stream.wait(20 * time.Second)
		var f flow
		if err == nil {
			err = decode(out, &f)
		}
		if err != nil || f.Sent < 300 || f.Lost != 0 || f.Duplicates != 0 {
			t.Errorf("flow over the kill: %v %+v, want no loss and no duplicate", err, f)
		}
	})
	t.Run("deleted-without-plugin", func(t *testing.T) {
		lab.Must(t)(one.Exec(t.Context(), "sh", "-ec", "kill -9 "+pluginPID(t, one)+"; ip link del lan0"))
		if err := l.AddLink(t.Context(), 1, "lan0"); err != nil {
			t.Fatal(err)
		}
		mended(t)
	})
	t.Run("rebooted", func(t *testing.T) {
		before := b.ip4
		begun := time.Now()
		if err := two.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("the engine answers after %s", time.Since(begun).Round(10*time.Millisecond))
		took := eventually(t, mendTime, func() error {
			if err := b.inspect(t.Context()); err != nil || b.ip4 == "" {
				return fmt.Errorf("%s is not up: %v", b.name, err)
			}
			return works()
		})
		t.Logf("works again %s after that; its address was %s and is %s", took.Round(10*time.Millisecond), before, b.ip4)
	})
	removeBoxes(t, a, b)
	l.removeNetwork(t, "fault", one, two)
	forget(t, faultSubnet, one, two)
	lab.Must(t)(one.Exec(t.Context(), "ip", "link", "del", "lan0"))
	l.awaitMembers(t, len(l.Hosts()))
}
