//go:build kernel

package ipam

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/dhcp"
	"github.com/isthmus-net/isthmus/lan/lantest"
)

// keeperDHCP is a DHCP over a Keeper.
type keeperDHCP struct {
	*dhcp.Keeper
	host string
}

func group(pool cluster.PoolKey) string { b, _ := pool.MarshalText(); return string(b) }

func (k keeperDHCP) Obtain(ctx context.Context, pool cluster.PoolKey, e Endpoint) (netip.Addr, error) {
	name := e.Name
	if name == "" {
		name = rand.Text()
	}
	id := dhcp.Identity(k.host, group(pool), name)
	l, err := k.Keeper.Obtain(ctx, group(pool), dhcp.Request{Interface: "eth0", ClientID: id, MAC: dhcp.MACOf(id), Hostname: e.Name, Addr: e.Want})
	return l.Addr, err
}

func (k keeperDHCP) Held() map[cluster.PoolKey][]netip.Addr {
	out := map[cluster.PoolKey][]netip.Addr{}
	for _, s := range k.Status() {
		var pool cluster.PoolKey
		if pool.UnmarshalText([]byte(s.Key.Group)) == nil {
			out[pool] = append(out[pool], s.Key.Addr)
		}
	}
	return out
}

func (k keeperDHCP) Release(ctx context.Context, pool cluster.PoolKey, a netip.Addr) error {
	return k.Keeper.Release(ctx, dhcp.Key{Group: group(pool), Addr: a})
}

func (k keeperDHCP) Decline(ctx context.Context, pool cluster.PoolKey, a netip.Addr, why string) error {
	return k.Keeper.Decline(ctx, dhcp.Key{Group: group(pool), Addr: a}, why)
}

// Two hosts of a cluster on one real LAN, with a dnsmasq and a stranger on it:
// by DHCP and out of blocks.
func TestLinuxLAN(t *testing.T) {
	wire, far := lantest.NewSpace(t), lantest.NewSpace(t)
	spaces := []*lantest.Space{lantest.NewSpace(t), lantest.NewSpace(t)}
	wire.Switch(append(spaces, far)...)
	far.Sh("ip addr add 10.0.0.1/24 dev eth0; ip addr add 10.0.0.70/24 dev eth0; ip addr add 10.1.0.2/24 dev eth0")
	leases := filepath.Join(t.TempDir(), "leases")
	server := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file", "--no-ping", "--log-facility=-",
		"--interface=eth0", "--bind-interfaces", "--dhcp-leasefile="+leases, "--dhcp-range=10.0.0.70,10.0.0.73,255.255.255.0,1h")
	if err := far.In(server.Start); err != nil {
		t.Fatalf("%v (scripts/install brings it)", err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })

	log := logrus.New()
	log.SetOutput(t.Output())
	l := newLab(t, "h1", "h2")
	open := func(n int) {
		h, space := l.hosts[n], spaces[n]
		prober := lan.New(lan.Config{Log: log})
		h.cfg.Probe = func(ctx context.Context, _ cluster.PoolKey, a netip.Addr) (holder string, taken bool) {
			_ = space.In(func() error {
				held, err := prober.Probe(ctx, "eth0", a)
				if mac, ok := held[a]; ok {
					holder, taken = mac.String(), true
				}
				return err
			})
			return holder, taken
		}
		keeper, err := dhcp.NewKeeper(dhcp.Config{Store: dhcp.Bolt{DB: h.db}, Log: log,
			Client: dhcp.Client{Open: func(ifname string, also cluster.MAC) (w lan.Wire, err error) {
				return w, space.In(func() error { w, err = dhcp.Open(ifname, also); return err })
			}},
			Probe: func(ctx context.Context, _ string, a netip.Addr) string {
				holder, _ := h.cfg.Probe(ctx, cluster.PoolKey{}, a)
				return holder
			}})
		if err != nil {
			t.Fatal(err)
		}
		h.cfg.DHCP = keeperDHCP{keeper, h.name}
	}
	var id, plain string
	for n, h := range l.hosts {
		open(n)
		id = must[string](t)(h.officeNetwork("10.0.0.1"))
		plain = must[string](t)(h.network("10.1.0.0/24", "", "10.1.0.1"))
	}
	given := func() (n int) {
		b, err := os.ReadFile(leases)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	have := func(want int) {
		t.Helper()
		lantest.Await(t, "leases of dnsmasq", func() error {
			if n := given(); n != want {
				return fmt.Errorf("%d of %d", n, want)
			}
			return nil
		})
	}
	seen := map[netip.Addr]bool{}
	first := map[int]netip.Addr{}
	for n, h := range l.hosts {
		first[n] = must[netip.Addr](t)(h.start(id, "", "web"))
		seen[first[n]] = true
	}
	if len(seen) != 2 || seen[addr("10.0.0.70")] {
		t.Errorf("by DHCP: %v", seen)
	}
	have(2)
	h := l.hosts[0]
	h.stop(id, first[0])
	h.surrender(t.Context())
	have(1)
	if a := must[netip.Addr](t)(h.start(id, "", "web")); a != first[0] {
		t.Errorf("web had %s, and got %s", first[0], a)
	}
	h.reboot() // the plugin, not the container
	open(0)
	h.surrender(t.Context())
	if n := given(); n != 2 {
		t.Errorf("%d leases after a restart", n)
	}
	h.stop(id, first[0])
	h.surrender(t.Context())
	have(1)

	if a := must[netip.Addr](t)(h.start(plain, "", "")); a != addr("10.1.0.3") {
		t.Errorf("beside a stranger at 10.1.0.2: %s", a)
	}
	if got := conflicts(h); !strings.HasPrefix(got, "10.1.0.2 ") {
		t.Errorf("status: %q", got)
	}
}
