//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// station is a link on a parent, and what ip -d link shows of it.
type station struct {
	link  kernel.Link
	shows []string
}

// stations lists one link of each mode and flag of a kind.
func stations(kind kernel.Kind) (out []station) {
	if kind == kernel.IPvlan {
		for _, mode := range []string{"", "l2 bridge", "l3", "l3s", "private", "vepa", "l3 private", "l3 vepa", "l3s private", "l3s vepa"} {
			l := kernel.Link{Name: "is-p1", Kind: kind, Parent: "eth0", MTU: 1500}
			for _, word := range strings.Fields(mode) {
				if strings.HasPrefix(word, "l") {
					l.Mode = word
				} else {
					l.Flag = word
				}
			}
			out = append(out, station{l, []string{fmt.Sprintf("ipvlan  mode %s %s", orWord(l.Mode, "l2"), orWord(l.Flag, "bridge"))}})
		}
		return out
	}
	l := kernel.Link{Name: "is-p1", Kind: kind, Parent: "eth0", MTU: 1400, MAC: mac(0x71)}
	for _, mode := range []string{"", "bridge", "private", "vepa", "source", "passthru"} {
		l := l
		l.Mode = mode
		shows := []string{"macvlan mode " + orWord(mode, "bridge")}
		switch mode {
		case "passthru":
			l.MAC = cluster.MAC{}
		case "source":
			l.Sources = kernel.JoinMACs([]cluster.MAC{mac(3), mac(1), mac(2)})
			shows = append(shows, "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03")
		case "vepa":
			l.BCQueue = 77
			shows = append(shows, "bcqueuelen 77")
		}
		out = append(out, station{l, shows})
	}
	return out
}

func orWord(word, otherwise string) string {
	if word == "" {
		return otherwise
	}
	return word
}

// A container's interface on a parent of somebody else, in each mode: through
// Docker's hands, and again after its parent died.
func TestLinuxStationsInSandboxes(t *testing.T) {
	t.Parallel()
	for _, kind := range []kernel.Kind{kernel.Macvlan, kernel.IPvlan} {
		t.Run(string(kind), func(t *testing.T) {
			s := newSpace(t)
			s.parent()
			if !makes(t, s.open(), kind) {
				return
			}
			all := stations(kind)
			t.Run("each mode", func(t *testing.T) { inEachMode(t, all) })
			for _, c := range all {
				switch c.link.Mode + c.link.Flag { // what differs by more than a word
				case "", "source", "passthru", "l3sprivate":
					t.Run("life "+c.link.Mode+c.link.Flag, func(t *testing.T) { lifeOf(t, c) })
				}
			}
		})
	}
}

// child is what its parent shall see of it, in a sandbox.
func (c station) child(sandbox string) kernel.Child {
	return kernel.Child{
		Name: "eth0", Kind: c.link.Kind, Mode: orWord(c.link.Mode, defaultMode[c.link.Kind]), Flag: orWord(c.link.Flag, defaultFlag[c.link.Kind]),
		Ours: true, Sandbox: sandbox,
	}
}

// inEachMode hands over an interface of each mode, and mends it.
func inEachMode(t *testing.T, all []station) {
	ctx := context.Background()
	s, box := newSpace(t), newSpace(t)
	s.parent()
	k := s.openAt(box)
	for _, c := range all {
		h := kernel.Handover{Link: c.link, Sandbox: box.path(), Name: "eth0"}
		h.Link.Name = "is-q0123456789"
		if err := k.Hand(ctx, h); err != nil {
			t.Fatal(err)
		}
		contains(t, s.sh("ip -d link show %[1]s; ip link set %[1]s netns %[2]s name eth0", h.Link.Name, box.path()), c.shows...)
		if made, err := k.Mend(ctx, h); made || err != nil {
			t.Fatalf("%s: mended what is there: %t, %v", c.link, made, err)
		}
		const showAndDelete = "ip -d link show eth0; ip link del eth0"
		contains(t, box.sh(showAndDelete), c.shows...)
		if made, err := k.Mend(ctx, h); !made || err != nil {
			t.Fatalf("%s: mended %t, %v", c.link, made, err)
		}
		if got := device(t, k, "eth0").Children; len(got) != 1 || got[0] != c.child(got[0].Sandbox) {
			t.Errorf("%s: children %+v", c.link, got)
		}
		contains(t, box.sh(showAndDelete), c.shows...)
	}
}

// lifeOf does to an interface all that Docker, users and accidents do.
func lifeOf(t *testing.T, c station) {
	ctx := context.Background()
	s, box := newSpace(t), newSpace(t)
	s.parent()
	k := s.openAt(box)
	h := kernel.Handover{Link: c.link, Sandbox: box.path(), Name: "eth0", Addrs: []netip.Prefix{prefix("192.0.2.77/24"), prefix("fd02::77/64")}, Routes: []kernel.Route{{Dst: prefix("0.0.0.0/0")}}}
	h.Link.Name = "is-q0123456789"
	observed := func(want string) {
		t.Helper()
		if name, err := k.Observe(ctx, h); name != want || err != nil {
			t.Errorf("observed %q, %v, want %q", name, err, want)
		}
	}
	tenant := func(want int) {
		t.Helper()
		tenants, err := k.Tenants(ctx)
		if err != nil || len(tenants) != want {
			t.Fatalf("tenants %v, %v", tenants, err)
		}
		if want == 0 {
			return
		}
		x := tenants[0]
		known := x.Link == h.Link.Name && h.Link.MAC.IsZero() || x.Link == "" && x.MAC == h.Link.MAC
		if !known || x.Kind != c.link.Kind || x.Below != "eth0" || x.Name != "eth0" || !slices.Contains(x.Addrs, prefix("192.0.2.77/24")) {
			t.Errorf("tenant %+v", x)
		}
	}
	for range 2 { // what stands there is replaced
		if err := k.Hand(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	contains(t, s.sh("ip -d link show %s", h.Link.Name), c.shows...)
	observed("")
	s.sh("ip link set %s netns %s", h.Link.Name, box.path())
	observed("")
	box.sh("ip link set %s name eth0", h.Link.Name)
	observed("eth0") // without addresses yet
	if made, err := k.Mend(ctx, h); made || err != nil {
		t.Errorf("mended what Docker is configuring: %t, %v", made, err)
	}
	box.sh("ip addr add 192.0.2.77/24 dev eth0; ip link set eth0 up")
	tenant(1)
	if got := device(t, k, "eth0").Children; len(got) != 1 || got[0] != c.child(got[0].Sandbox) {
		t.Errorf("children %+v", got)
	}

	// Another list of sources, and another MTU, reach it there.
	h.Link.MTU = 1300
	if c.link.Mode == "source" {
		h.Link.Sources = mac(9).String()
	}
	mend := func(want bool) {
		t.Helper()
		if made, err := k.Mend(ctx, h); made != want || err != nil {
			t.Fatalf("mended: %t, %v", made, err)
		}
	}
	mend(false)
	contains(t, box.sh("ip -d link show eth0"), "mtu 1300")
	h.Link.MTU = 1350
	mend(false)
	contains(t, box.sh("ip -d link show eth0"), "mtu 1300")
	h.Follow = true
	mend(false)
	out := box.sh("ip -d link show eth0")
	contains(t, out, "mtu 1350")
	if c.link.Mode == "source" {
		contains(t, out, mac(9).String())
		if strings.Contains(out, mac(1).String()) {
			t.Errorf("an old source stays: %s", out)
		}
	}

	// The parent is unplugged, and another one comes.
	s.sh("ip link del eth0")
	tenant(0)
	if made, err := k.Mend(ctx, h); made || err == nil || !strings.Contains(err.Error(), "find parent eth0") {
		t.Errorf("mended without a parent: %t, %v", made, err)
	}
	s.parent()
	box.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
	mend(true)
	mend(false)
	out = box.sh("ip -d link show eth0; ip addr show eth0; ip route show default")
	contains(t, out, append(c.shows[:1:1], "mtu 1350", "inet 192.0.2.77/24", "inet6 fd02::77/64", ",UP", "default dev eth0 scope link")...)
	observed("eth0")
	tenant(1)

	// Renamed by the user of the container, it is the same.
	box.sh("ip link set eth0 down; ip link set eth0 name net7; ip link set eth0 up 2>/dev/null || ip link set net7 up")
	observed("net7")
	mend(false)

	// Killed half-way, with and without its alias.
	for _, undo := range []string{"ip link set net7 alias ''; ip link set net7 name " + h.Link.Name, "true"} {
		box.sh("ip link set net7 down; %s; ip link set $(ip -br link | sed -n 's/^\\(is-q[0-9]*\\|net7\\).*/\\1/p' | cut -d@ -f1) group %d", undo, kernel.Group+1)
		h.Name = "net7"
		mend(true)
		observed("net7")
	}
}

var (
	defaultMode = map[kernel.Kind]string{kernel.Macvlan: "bridge", kernel.IPvlan: "l2"}
	defaultFlag = map[kernel.Kind]string{kernel.IPvlan: "bridge"}
)
