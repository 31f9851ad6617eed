package ipam

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	docker "github.com/docker/go-plugins-helpers/ipam"

	"github.com/isthmus-net/isthmus/cluster"
)

func TestRequestPoolRefusesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name string
		req  docker.RequestPoolRequest
		want string
	}{
		{"unknown option", docker.RequestPoolRequest{Pool: "10.0.0.0/24", Options: options{"spce": "x"}},
			"--ipam-opt spce: unknown option; isthmus knows dhcp, network, space"},
		{"bad name", docker.RequestPoolRequest{Options: options{"network": "a b"}},
			"--ipam-opt network=a b: need up to 64 letters, digits, '_', '.' or '-', the first a letter or digit"},
		{"bad space", docker.RequestPoolRequest{Options: options{"space": "a|b"}},
			"--ipam-opt space=a|b: need up to 64 letters, digits, '_', '.' or '-', the first a letter or digit"},
		{"host bits", docker.RequestPoolRequest{Pool: "10.0.0.5/24"},
			"--subnet 10.0.0.5/24: has bits set beyond its length; did you mean 10.0.0.0/24?"},
		{"no subnet", docker.RequestPoolRequest{Pool: "ten"},
			"--subnet ten: need an address and a prefix length, such as 10.32.0.0/16"},
		{"family", docker.RequestPoolRequest{Pool: "fd00::/64"},
			"--subnet fd00::/64: Docker asked for the other address family"},
		{"null pool", docker.RequestPoolRequest{Pool: "0.0.0.0/0"},
			"--subnet 0.0.0.0/0: isthmus hands out addresses of a real subnet; name one, or leave --subnet out"},
		{"multicast", docker.RequestPoolRequest{Pool: "224.1.0.0/16"},
			"--subnet 224.1.0.0/16: no addresses that containers can have"},
		{"range without subnet", docker.RequestPoolRequest{SubPool: "10.0.0.0/25"},
			"--ip-range 10.0.0.0/25: needs a --subnet that it is part of"},
		{"range of any subnet", docker.RequestPoolRequest{Pool: "0.0.0.0/24", SubPool: "10.0.0.0/25"},
			"--ip-range 10.0.0.0/25: needs a --subnet that it is part of, not 0.0.0.0/24"},
		{"range outside", docker.RequestPoolRequest{Pool: "10.0.0.0/24", SubPool: "10.0.1.0/25"},
			"--ip-range 10.0.1.0/25: is not part of --subnet 10.0.0.0/24"},
		{"range too large", docker.RequestPoolRequest{Pool: "10.0.0.0/24", SubPool: "10.0.0.0/16"},
			"--ip-range 10.0.0.0/16: is not part of --subnet 10.0.0.0/24"},
		{"range host bits", docker.RequestPoolRequest{Pool: "10.0.0.0/24", SubPool: "10.0.0.9/25"},
			"--ip-range 10.0.0.9/25: has bits set beyond its length; did you mean 10.0.0.0/25?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newLab(t, "h1").hosts[0]
			_, err := h.RequestPool(t.Context(), &c.req)
			wantErr(t, err, c.want)
			if st := h.Status(); len(st) != 0 {
				t.Errorf("left behind %+v", st)
			}
		})
	}
}

func TestPoolIDIsStable(t *testing.T) {
	for _, id := range []poolID{
		{key: cluster.PoolKey{Prefix: prefix("10.0.0.0/24")}},
		{key: cluster.PoolKey{Space: "blue", Prefix: prefix("fd00::/64")}, within: prefix("fd00::100/120")},
	} {
		if got, err := parsePoolID(id.String()); err != nil || got != id {
			t.Errorf("parsePoolID(%q) = %v, %v", id, got, err)
		}
	}
	for _, s := range []string{"", "x", "|10.0.0.0", "|10.0.0.0/8|x", "a|b|c|d"} {
		if _, err := parsePoolID(s); err == nil {
			t.Errorf("parsePoolID(%q) succeeded", s)
		}
	}
}

func TestAutomaticPools(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.routes = []netip.Prefix{prefix("10.64.0.0/23"), prefix("10.64.3.7/32"), prefix("fd00::/8")}
	for _, c := range []struct {
		name   string
		h      *host
		subnet string
		o      options
		want   string
	}{
		{"avoids routes", h1, "", nil, "10.64.2.0/24"},
		{"a new one each time", h1, "", nil, "10.64.4.0/24"},
		{"unique in the cluster", h2, "", nil, "10.64.0.0/24"},
		{"engine 29 size", h2, "0.0.0.0/20", nil, "10.64.16.0/20"},
		{"named", h1, "", options{"network": "app"}, "10.64.5.0/24"},
		{"named elsewhere", h2, "", options{"network": "app"}, "10.64.5.0/24"},
		{"other space", h2, "", options{"space": "blue"}, "10.64.1.0/24"},                                   // not what the host has in the default space
		{"Docker's own options", h2, "", options{"com.docker.network.ipam.serial": "true"}, "10.64.3.0/24"}, // nor what it has in another
	} {
		_, got, err := c.h.requestPool(c.subnet, "", c.o)
		if err != nil || got != prefix(c.want) {
			t.Errorf("%s: pool %v, %v; want %s", c.name, got, err, c.want)
		}
	}
	id, six, err := h2.requestPool("", "", options{"v6": "yes"})
	if err != nil || six.Bits() != 64 || !prefix("fd00::/8").Overlaps(six) || six.Addr() == addr("fd00::") {
		t.Errorf("IPv6 pool %v, %v", six, err)
	}
	if _, err := h2.requestAddress(id, "", forGateway); err != nil {
		t.Error(err)
	}
	if _, _, err := h1.requestPool("", "", options{"v6": "yes"}); err == nil || !strings.Contains(err.Error(), "no free subnet of length /64 is left") {
		t.Errorf("with a route to all of fd00::/8: %v", err)
	}
}

func TestAutomaticIPv6NeedsACluster(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	h.cfg.Ledger = alone{cutLedger{h.Host, h}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := h.RequestPool(ctx, &docker.RequestPoolRequest{V6: true})
	wantErr(t, err, "choose a subnet: this host does not belong to a cluster yet; see isthmus status, or name a --subnet")
}

// alone is the ledger of a host without a cluster.
type alone struct{ cutLedger }

func (alone) Registry() *cluster.Registry { return &cluster.Registry{} }

func TestPoolsAreCountedPerNetwork(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	whole := must[string](t)(h.network("10.0.0.0/24", "", ""))
	again := must[string](t)(h.network("10.0.0.0/24", "", ""))
	half := must[string](t)(h.network("10.0.0.0/24", "10.0.0.128/25", ""))
	if whole != again || whole == half {
		t.Fatalf("pool ids %q, %q, %q", whole, again, half)
	}
	key := keyOf(whole)
	for n, id := range []string{whole, half, whole} {
		if !h.Holds(key) {
			t.Fatalf("not held after %d of 3 releases", n)
		}
		h.remove(id)
		h.reboot()
	}
	if h.Holds(key) {
		t.Error("held after all releases")
	}
	for _, id := range []string{whole, "|10.9.0.0/24", "nonsense"} {
		if err := h.release(id); err != nil {
			t.Errorf("release of %q: %v", id, err)
		}
	}
}

func TestComposeDownAndUpWithAllOthersDown(t *testing.T) {
	for _, c := range []struct {
		name, subnet, gateway string
		o                     options
	}{
		{"named subnet", "10.0.0.0/24", "", nil},
		{"gateway", "10.0.0.0/24", "10.0.0.254", nil},
		{"picked by the cluster", "", "", nil},
		{"shared by name", "", "", options{"network": "app"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newLab(t, "h1").hosts[0]
			up := func() (string, netip.Prefix, netip.Addr) {
				id, pool, err := h.requestPool(c.subnet, "", c.o)
				if err != nil {
					t.Fatal(err)
				}
				must[netip.Addr](t)(h.requestAddress(id, c.gateway, forGateway))
				must[netip.Addr](t)(h.requestAddress(id, offset(pool, 7).String(), nil))
				if err := h.Prepare(t.Context(), []cluster.PoolKey{keyOf(id)}); err != nil {
					t.Fatal(err)
				}
				return id, pool, must[netip.Addr](t)(h.start(id, "", "web"))
			}
			id, pool, first := up()
			h.Reach(false)
			h.stop(id, first)
			h.remove(id)
			h.reboot()
			id2, pool2, second := up()
			if id2 != id || pool2 != pool || second != first {
				t.Errorf("after up: %s %s %s, before down: %s %s %s", id2, pool2, second, id, pool, first)
			}
		})
	}
}

func TestUnreachableLedger(t *testing.T) {
	h := newLab(t, "h1").hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	h.Reach(false)
	h.reboot()
	const why = "reach the voter: cut off; new networks and blocks wait until it returns"
	_, err := h.network("10.1.0.0/24", "", "")
	wantErr(t, err, why)
	for range 6 { // of the first block: 8 less network and gateway
		must[netip.Addr](t)(h.start(id, "", ""))
	}
	_, err = h.start(id, "", "")
	wantErr(t, err, "no free address of subnet 10.0.0.0/24 is left on this host, and none can be leased: "+why)
	_, err = h.start(id, "10.0.0.99", "")
	wantErr(t, err, "address 10.0.0.99 lies in no block of this host, and cannot be leased: "+why)
	h.Reach(true)
	if err := h.Hello(); err != nil {
		t.Fatal(err)
	}
	must[netip.Addr](t)(h.start(id, "", ""))
	must[netip.Addr](t)(h.start(id, "10.0.0.99", ""))
}

func TestOverlap(t *testing.T) {
	l := newLab(t, "h1", "h2")
	h1, h2 := l.hosts[0], l.hosts[1]
	must[string](t)(h1.network("10.0.0.0/16", "", ""))
	for _, h := range l.hosts {
		_, err := h.network("10.0.4.0/24", "", "")
		wantErr(t, err, "10.0.4.0/24 overlaps the pool 10.0.0.0/16, which h1 holds: use exactly 10.0.0.0/16 to share its network, choose another --subnet, or remove the network there")
	}
	must[string](t)(h2.network("10.0.0.0/16", "", ""))
	if _, _, err := h2.requestPool("10.0.4.0/24", "", options{"space": "blue"}); err != nil {
		t.Errorf("in another space: %v", err)
	}
}

func TestParkedPoolsMakeRoom(t *testing.T) {
	t.Run("own", func(t *testing.T) {
		h := newLab(t, "h1").hosts[0]
		h.remove(must[string](t)(h.network("10.0.0.0/16", "", "")))
		must[string](t)(h.network("10.0.4.0/24", "", ""))
	})
	t.Run("of another host", func(t *testing.T) {
		l := newLab(t, "h1", "h2")
		l.hosts[0].remove(must[string](t)(l.hosts[0].network("10.0.0.0/16", "", "")))
		must[string](t)(l.hosts[1].network("10.0.4.0/24", "", ""))
		if n := len(l.log.Registry().Pools); n != 1 {
			t.Errorf("%d pools left", n)
		}
	})
	t.Run("with the network's other family", func(t *testing.T) {
		l := newLab(t, "h1", "h2")
		h1 := l.hosts[0]
		four, six := must[string](t)(h1.network("10.0.0.0/16", "", "")), must[string](t)(h1.network("fd00:1::/64", "", ""))
		res, err := h1.Propose(t.Context(), cluster.Command{AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{keyOf(four), keyOf(six)}}})
		if err != nil {
			t.Fatal(err)
		}
		h1.remove(four)
		h1.remove(six)
		if _, err := h1.Propose(t.Context(), cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: res.Network.ID}}); err != nil {
			t.Fatal(err)
		}
		must[string](t)(l.hosts[1].network("10.0.4.0/24", "", ""))
	})
	t.Run("a live endpoint does not", func(t *testing.T) {
		l := newLab(t, "h1", "h2")
		h1 := l.hosts[0]
		id := must[string](t)(h1.network("10.0.0.0/16", "", ""))
		must[netip.Addr](t)(h1.start(id, "", "web"))
		if err := h1.release(id); err != nil {
			t.Fatal(err)
		}
		_, err := l.hosts[1].network("10.0.4.0/24", "", "")
		wantErr(t, err, "10.0.4.0/24 overlaps the pool 10.0.0.0/16, which h1 holds: use exactly 10.0.0.0/16 to share its network, choose another --subnet, or remove the network there")
	})
	t.Run("after a day", func(t *testing.T) {
		l := newLab(t, "h1")
		h := l.hosts[0]
		h.remove(must[string](t)(h.network("10.0.0.0/16", "", "")))
		l.pass(keepTime - time.Minute)
		h.work()
		if n := len(l.log.Registry().Pools); n != 1 {
			t.Fatalf("%d pools before its time", n)
		}
		l.pass(time.Minute)
		h.work()
		if r := l.log.Registry(); len(r.Pools)+len(r.Leases) != 0 {
			t.Errorf("left %v %v", r.Pools, r.Leases)
		}
	})
}

func TestForget(t *testing.T) {
	l := newLab(t, "h1")
	h := l.hosts[0]
	id := must[string](t)(h.network("10.0.0.0/24", "", ""))
	a := must[netip.Addr](t)(h.start(id, "", ""))
	h.setLive(id, a, false)
	l.pass(startTime)
	if err := h.Forget(t.Context(), keyOf(id)); err != nil {
		t.Fatal(err)
	}
	if h.Holds(keyOf(id)) {
		t.Error("held after forget")
	}
	h.work()
	if r := l.log.Registry(); len(r.Pools)+len(r.Leases) != 0 {
		t.Errorf("left %v %v", r.Pools, r.Leases)
	}
	if err := h.Forget(t.Context(), keyOf(id)); err != nil {
		t.Errorf("forget again: %v", err)
	}
}
