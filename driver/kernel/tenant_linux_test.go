//go:build kernel

package kernel_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Tenants finds what stands on our devices, in whatever sandbox it is, and
// nothing else.
func TestLinuxTenants(t *testing.T) {
	t.Parallel()
	a, b := newNodes(t, kernel.Macvlan, "192.0.2.")
	second, bystander := newSpace(t), newSpace(t)
	dir := t.TempDir()
	for name, s := range map[string]*space{"web": a.box, "web-again": a.box, "second": second, "bystander": bystander, "host": a.space, "elsewhere": b.box} {
		if err := os.Symlink(s.path(), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"empty", "gone"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}

	// A bridge network beside it, with a container that is in both, and one that
	// has interfaces of others.
	a.want.Put(kernel.Link{Name: "is-b2", Kind: kernel.Bridge, MAC: mac(0x52), MTU: 1450}, kernel.Guard{Dev: "is-b2", Rule: kernel.DropBridgeInput})
	apply(t, a.k, a.want)
	h := kernel.Handover{
		Link: kernel.Link{Name: "is-e0123456789", Kind: kernel.Veth, MAC: mac(0x61), MTU: 1450, Peer: "is-p0123456789"},
		Host: kernel.Link{Name: "is-p0123456789", Kind: kernel.Veth, Standing: kernel.Adopted, MTU: 1450, Master: "is-b2"},
	}
	if err := a.k.Hand(context.Background(), h); err != nil {
		t.Fatal(err)
	}
	take(a.space, second, "is-e0123456789", "eth1", "10.33.0.5/24")
	child := kernel.Handover{Link: kernel.Link{Name: "is-c2", Kind: kernel.Macvlan, MAC: mac(0x62), MTU: 1450, Parent: "is-v1"}}
	if err := a.k.Hand(context.Background(), child); err != nil {
		t.Fatal(err)
	}
	take(a.space, second, "is-c2", "net0", "10.32.0.77/24", "10.32.0.78/24", "fd32::77/64")
	a.sh(`ip link add theirs type bridge; ip link add theirs0 type veth peer name eth0 netns %[1]s; ip link set theirs0 master theirs
		ip link add dummy0 type bridge; ip link add link u0 name mv0 netns %[1]s type macvlan mode bridge`, bystander.path())
	bystander.sh("ip link add is-v1 type bridge; ip link add link is-v1 name is-c9 type macvlan mode bridge; ip addr add 10.32.0.99/24 dev is-c9")

	list := func(k *kernel.Linux) (lines []string) {
		t.Helper()
		tenants, err := k.Tenants(context.Background(), dir, filepath.Join(dir, "none"), filepath.Join(dir, "empty"))
		if err != nil {
			t.Error(err)
		}
		for _, x := range tenants {
			name := strings.TrimSuffix(filepath.Base(x.Sandbox), "-again")
			lines = append(lines, fmt.Sprint(name, " ", x.Name, " ", x.MAC, " ", x.Kind, " ", x.Below, " ", x.Master, " ", x.Addrs))
		}
		slices.Sort(lines)
		return lines
	}
	want := []string{
		"second eth1 02:00:00:00:00:61 veth is-p0123456789 is-b2 [10.33.0.5/24]",
		"second net0 02:00:00:00:00:62 macvlan is-v1  [10.32.0.77/24 10.32.0.78/24 fd32::77/64]",
		"web eth0 02:00:00:00:00:11 macvlan is-v1  [10.32.0.11/24 fd32::11/64]",
	}
	if got := list(a.k); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The same directory, seen from the other host.
	if got := list(b.k); !slices.Equal(got, []string{"elsewhere eth0 02:00:00:00:00:12 macvlan is-v1  [10.32.0.12/24 fd32::12/64]"}) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	// Its usual directory need not be named.
	var k *kernel.Linux
	if err := a.in(func() (err error) { k, err = kernel.Open(kernel.Config{Sandboxes: dir}); return err }); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	tenants, err := k.Tenants(context.Background())
	if err != nil || len(tenants) != 3 {
		t.Errorf("%d tenants, %v", len(tenants), err)
	}
}
