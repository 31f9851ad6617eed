package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

var anyContext = context.Background()

func TestLifeOfAContainer(t *testing.T) {
	for _, attach := range []string{"macvlan", "bridge"} {
		t.Run(attach, func(t *testing.T) {
			h := startHost(t)
			h.app("attach=" + attach)
			h.contains("link is-v4097 type vxlan id 4097 local 192.0.2.1 dstport 8475 proxy")
			h.run("web", "app", "10.1.0.2/16 fd01::2/64")
			in, ok := h.kernel.Interface("/s/web", "eth0")
			if !ok || in.Link.MAC.String() != h.mac("web") || in.Link.MTU != 1450 || fmt.Sprint(in.Addrs) != "[10.1.0.2/16 fd01::2/64]" {
				t.Fatalf("inside: %+v", in)
			}
			if told := h.heard.told(); told != "net 1, 10.1.0.2" {
				t.Fatalf("published %s", told)
			}
			h.ends("web")
			if told := h.heard.told(); told != "net 1" {
				t.Fatalf("published %s", told)
			}
			h.lacks("is-e")
			h.lacks("is-p")
			h.ok(h.delete("app"))
			if left := h.kernel.String(); left != "" {
				t.Fatalf("left in the kernel:\n%s", left)
			}
			h.await("the cluster knows", func() bool { return !h.ledger.holds() })
			if told := h.heard.told(); told != "" {
				t.Fatalf("published %s", told)
			}
		})
	}
}

func TestJoinAnswer(t *testing.T) {
	for _, c := range []struct {
		options []string
		disable bool
	}{
		{nil, false},
		{[]string{"gateway=docker"}, false},
		{[]string{"gateway=none"}, true},
		{[]string{"--internal"}, true},
	} {
		t.Run(strings.Join(c.options, " "), func(t *testing.T) {
			h := startHost(t)
			h.app(c.options...)
			h.ok(h.endpoint("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", "app", "10.1.0.2/16"))
			r, err := h.Join(anyContext, &network.JoinRequest{EndpointID: "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", SandboxKey: "/s/x"})
			h.ok(err)
			if r.InterfaceName.SrcName != "is-e0011223344" || r.InterfaceName.DstPrefix != "eth" || r.Gateway != "" || r.GatewayIPv6 != "" || len(r.StaticRoutes) != 0 || r.DisableGatewayService != c.disable {
				t.Fatalf("answer %+v", r)
			}
		})
	}
}

func TestCallsAreIdempotent(t *testing.T) {
	h := startHost(t)
	h.app()
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	mac, before := h.mac("web"), h.kernel.String()
	r, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{NetworkID: "app", EndpointID: "web", Interface: &network.EndpointInterface{Address: "10.1.0.2/16"}})
	h.ok(err)
	if r.Interface.MacAddress != mac {
		t.Fatalf("a repeated CreateEndpoint answers %s, the first one %s", r.Interface.MacAddress, mac)
	}
	_, err = h.joins("web")
	h.ok(err)
	if after := h.kernel.String(); after != before {
		t.Fatalf("a repeated Join changed the kernel:\n%s\nbefore:\n%s", after, before)
	}
	for range 2 {
		h.ends("web")
		h.ok(h.delete("app"))
	}
	if left := h.kernel.String(); left != "" {
		t.Fatalf("left in the kernel:\n%s", left)
	}
}

// TestUnknown: Docker tells of things that this plugin never heard of, after
// its state was lost.
func TestUnknown(t *testing.T) {
	h := startHost(t)
	h.ok(h.Leave(anyContext, &network.LeaveRequest{EndpointID: "x"}))
	h.ok(h.DeleteEndpoint(anyContext, &network.DeleteEndpointRequest{EndpointID: "x"}))
	h.ok(h.delete("x"))
	_, err := h.joins("0123456789abcdef")
	h.refused(err, "join: endpoint 0123456789ab is not known to this plugin: start the container again")
	h.refused(h.endpoint("e", "0123456789abcdef", "10.1.0.2/16"), "create endpoint: network 0123456789ab is not known to this plugin, whose state was lost: remove the network and create it again")
	info, err := h.EndpointOperInfo(anyContext, &network.InfoRequest{EndpointID: "x"})
	if err != nil || info.Value == nil {
		t.Fatalf("got %+v, %v", info, err)
	}
}

func TestCreateNetworkRefusals(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup func(h *host)
		pools []string
		opts  []string
		err   string
	}{
		{"unknown option", nil, []string{"10.1.0.0/16"}, []string{"attach=ipvlan"}, "create network: option attach=ipvlan is unknown: the values are auto, macvlan, bridge"},
		{"foreign IPAM", nil, []string{"LocalDefault|10.1.0.0/16"}, nil, "create network: addresses of 10.1.0.0/16 come from another IPAM driver, which does not know what other hosts use: add --ipam-driver isthmus:latest (or -o ipam=foreign, and see to it that no two hosts use one address)"},
		{"foreign but ours", nil, []string{"10.1.0.0/16"}, []string{"ipam=foreign"}, "create network: option ipam=foreign: the addresses come from isthmus: drop the option, or choose another --ipam-driver"},
		{"null IPAM", nil, []string{"null|0.0.0.0/0"}, nil, "create network: the network has no subnet: add --ipam-driver isthmus:latest"},
		{"no pool", nil, nil, nil, "create network: the network has no subnet: add --ipam-driver isthmus:latest"},
		{"space on one side", nil, []string{"10.1.0.0/16"}, []string{"space=blue"}, "create network: pool 10.1.0.0/16 in space blue was not handed out by isthmus: pass the same NAME to --ipam-opt space=NAME and -o space=NAME, or neither"},
		{"mtu too large", nil, []string{"10.1.0.0/16"}, []string{"mtu=1500"}, "create network: mtu=1500 needs packets of 1550 bytes, but the underlay carries 1500: use -o mtu=1450 or less, or leave it out"},
		{"Docker's mtu too large", nil, []string{"10.1.0.0/16"}, []string{"com.docker.network.driver.mtu=9000"}, "create network: mtu=8950 needs packets of 9000 bytes, but the underlay carries 1500: use -o mtu=1450 or less, or leave it out"},
		{"mtu too small for IPv6", nil, []string{"fd01::/64"}, []string{"mtu=1200"}, "create network: mtu=1200 is too small for IPv6, which needs 1280: use -o mtu=1280 or more, or no IPv6 subnet"},
		{"mtu of another host", func(h *host) { h.elsewhere(cluster.Definition{Mode: "vxlan", MTU: 8000}) }, []string{"10.1.0.0/16"}, nil, "create network: host2 created the network with mtu=8000 needs packets of 8050 bytes, but the underlay carries 1500: remove it on all hosts and create it with -o mtu=1450 or less"},
		{"contradiction", func(h *host) { h.elsewhere(cluster.Definition{Mode: "vxlan", ARP: "flood"}) }, []string{"10.1.0.0/16"}, []string{"arp=suppress"}, "create network: attach network 10.1.0.0/16: network 10.1.0.0/16 is {Mode:vxlan VNI:4097 MTU:0 ARP:flood BUM:replicate Encrypt: Underlay: Submode: Flag: VLAN: Fallback: Gateway:docker RouteTo:}"},
		{"no answer", func(h *host) { h.ledger.cut(true) }, []string{"10.1.0.0/16"}, nil, "create network: attach network 10.1.0.0/16: ask the cluster: host9 does not answer"},
		{"no addresses", func(h *host) { h.addresses.fail(errors.New("pool is full")) }, []string{"10.1.0.0/16"}, nil, "create network: pool is full"},
		{"device in the way", func(h *host) { h.kernel.Fail(-1, "add link is-v4097", errors.New("VNI is in use")) }, []string{"10.1.0.0/16"}, nil, "create network: add link is-v4097: VNI is in use\nadd link is-a4097: no such parent is-v4097"},
		{"kernel unreadable", func(h *host) { h.kernel.Fail(-1, "dump", errors.New("no netlink")) }, []string{"10.1.0.0/16"}, nil, "create network: read the kernel's state: no netlink"},
		{"guard refused", func(h *host) { h.kernel.Fail(-1, "add guard", errors.New("no nftables")) }, []string{"10.1.0.0/16"}, nil, "create network: add guard is-a4097 drop-input: no nftables\nadd guard is-v4097 drop-input: no nftables"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := startHost(t)
			if c.setup != nil {
				c.setup(h)
			}
			h.refused(h.create("n", c.pools, c.opts...), c.err)
			// Nothing half-made is left, as soon as the obstacle is.
			h.kernel.Heal()
			h.ledger.cut(false)
			h.await("nothing is left", func() bool { return h.kernel.String() == "" && !h.ledger.holds() })
			if n := len(h.store.intent().Networks); n != 0 {
				t.Fatalf("%d networks are stored", n)
			}
		})
	}
}

// elsewhere has host2 create 10.1.0.0/16.
func (h *host) elsewhere(def cluster.Definition) {
	h.t.Helper()
	_, err := h.ledger.propose(anyContext, cluster.Command{Host: "host2", AttachNetwork: &cluster.AttachNetwork{Pools: pools("10.1.0.0/16"), Def: def}})
	h.ok(err)
}

func TestTwoDockerNetworksAreOne(t *testing.T) {
	h := startHost(t)
	h.app("attach=bridge")
	h.ok(h.create("again", []string{"fd01::/64", "10.1.0.0/16"}, "attach=bridge"))
	h.refused(h.create("third", []string{"10.1.0.0/16", "fd01::/64"}, "attach=macvlan"), "create network: networks again and third of this host have the same subnets (10.1.0.0/16 + fd01::/64) and so are one network, but the first has attach=bridge, the second attach=macvlan: use the same, or other subnets")
	h.refused(h.create("third", []string{"10.1.0.0/16", "fd01::/64"}, "attach=bridge", "--internal"), "create network: networks again and third of this host have the same subnets (10.1.0.0/16 + fd01::/64) and so are one network, but the first has internal=false, the second internal=true: use the same, or other subnets")
	h.run("web", "app", "10.1.0.2/16")
	h.run("db", "again", "10.1.0.3/16")
	h.ends("web")
	h.ok(h.delete("app"))
	h.contains("is-b4097")
	if _, ok := h.kernel.Interface("/s/db", "eth0"); !ok {
		t.Fatal("removing one of two Docker networks took a container off the other")
	}
	h.ends("db")
	h.ok(h.delete("again"))
	if left := h.kernel.String(); left != "" {
		t.Fatalf("left in the kernel:\n%s", left)
	}
}

// TestWithoutTheCluster: a network that the local copy of the registry has is
// removed and made again while nobody answers.
func TestWithoutTheCluster(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ledger.cut(true)
	h.run("web", "app", "10.1.0.2/16")
	h.ends("web")
	h.ok(h.delete("app"))
	h.app()
	h.run("web2", "app", "10.1.0.2/16")
	h.ends("web2")
	h.ok(h.delete("app"))
	h.restart(hasty)
	h.await("it keeps asking", func() bool { return h.ledger.count() > 3 })
	h.ledger.cut(false)
	h.await("the cluster knows in the end", func() bool { return !h.ledger.holds() })
}

// TestRedefine: a network that nobody holds any more may be created with other
// options, at once after its removal; while nobody answers, with the same only.
func TestRedefine(t *testing.T) {
	h := startHost(t)
	for _, c := range []struct {
		options []string
		want    string
	}{
		{[]string{"arp=flood"}, "dstport 8475 address"},
		{nil, "dstport 8475 proxy address"},
		{[]string{"mtu=1300"}, "mtu 1300"},
		{nil, "mtu 1450"},
	} {
		h.ok(h.create("n", []string{"10.1.0.0/16"}, c.options...))
		h.contains(c.want)
		h.ok(h.delete("n"))
	}
	h.ok(h.create("n", []string{"10.1.0.0/16"}))
	h.ledger.cut(true)
	h.ok(h.delete("n"))
	h.refused(h.create("n", []string{"10.1.0.0/16"}, "arp=flood"), "create network: redefine network 10.1.0.0/16: ask the cluster: host9 does not answer")
	h.ok(h.create("n", []string{"10.1.0.0/16"}, "arp=suppress"))
}

// TestAttachInBackground: a network that others hold is used at once.
func TestAttachInBackground(t *testing.T) {
	h := startHost(t)
	h.elsewhere(cluster.Definition{Mode: "vxlan", Underlay: "ipv4"})
	h.ledger.cut(true)
	h.ok(h.create("n", []string{"10.1.0.0/16"}))
	h.contains("is-v4097")
	if h.ledger.holds() {
		t.Fatal("the cluster was asked")
	}
	h.await("it is a problem meanwhile", func() bool { return len(h.Networks()[0].Problems) == 1 })
	h.ledger.cut(false)
	h.await("the cluster knows", h.ledger.holds)
	h.await("it is no problem any more", func() bool { return len(h.Networks()[0].Problems) == 0 })
}

// TestRegistryRebuilt: the cluster forgot the network and numbers it anew.
func TestRegistryRebuilt(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("web", "app", "10.1.0.2/16")
	h.ledger.mu.Lock()
	reg := *h.ledger.reg
	reg.Networks, reg.NextNet, reg.Gen = map[uint32]cluster.Network{}, 9, 1
	reg.Index++
	h.ledger.reg = &reg
	h.ledger.mu.Unlock()
	h.agree.wake()
	h.await("records carry the new number", func() bool { return h.heard.told() == "net 9, 10.1.0.2" })
	h.contains("is-v4097") // the VNI is kept, so no device was made anew
	if log := strings.Join(h.kernel.Log(), "\n"); strings.Contains(log, "del link is-v4097") {
		t.Fatalf("the device was made anew:\n%s", log)
	}
}

func TestForeignIPAM(t *testing.T) {
	h := startHost(t)
	h.ok(h.create("n", []string{"LocalDefault|10.1.0.0/16"}, "ipam=foreign"))
	if !h.ledger.holds() || len(h.ledger.Registry().Pools) != 1 {
		t.Fatal("the pool was not attached")
	}
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.refused(h.endpoint("web", "n", "10.1.0.3/16"), "create endpoint: address 10.1.0.3 is in use by a container on host2: give each host an --ip-range of its own, or use --ipam-driver isthmus:latest")
	h.ok(h.endpoint("web", "n", "10.1.0.4/16"))
	if lease := h.store.intent().Endpoints["web"].Lease4; lease != 0 {
		t.Fatalf("lease %d for an address of another IPAM", lease)
	}
	h.ledger.cut(true)
	h.ok(h.delete("n"))
	h.restart(hasty)
	h.ledger.cut(false)
	h.await("pool and network are given back", func() bool { return !h.ledger.holds() })
	h.await("and that is remembered", func() bool { return len(h.store.intent().Parting) == 0 })
}

func TestCreateEndpointRefusals(t *testing.T) {
	h := startHost(t)
	h.app()
	h.run("0123456789abcdef", "app", "10.1.0.2/16")
	ask := func(i *network.EndpointInterface, options map[string]any) error {
		_, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{NetworkID: "app", EndpointID: "e", Interface: i, Options: options})
		return err
	}
	for _, c := range []struct {
		name    string
		i       *network.EndpointInterface
		options map[string]any
		err     string
	}{
		{"nothing", nil, nil, "create endpoint: no endpoint id or no interface"},
		{"no address", &network.EndpointInterface{}, nil, "create endpoint: it has no address"},
		{"outside", &network.EndpointInterface{Address: "10.2.0.2/16"}, nil, "create endpoint: address 10.2.0.2 is outside of the network's subnets (10.1.0.0/16 + fd01::/64)"},
		{"in use", &network.EndpointInterface{Address: "10.1.0.2/16"}, nil, "create endpoint: address 10.1.0.2 is in use by another container of this host (endpoint 0123456789ab)"},
		{"MAC in use", &network.EndpointInterface{Address: "10.1.0.3/16", MacAddress: h.mac("0123456789abcdef")}, nil, "create endpoint: MAC address " + h.mac("0123456789abcdef") + " is in use by another container of this host (endpoint 0123456789ab): choose another --mac-address"},
		{"multicast MAC", &network.EndpointInterface{Address: "10.1.0.3/16", MacAddress: "01:00:5e:00:00:01"}, nil, "create endpoint: MAC address 01:00:5e:00:00:01 is not one of a single host: choose another --mac-address"},
		{"bad MAC", &network.EndpointInterface{Address: "10.1.0.3/16", MacAddress: "x"}, nil, `create endpoint: parse MAC address "x": need six hexadecimal pairs`},
		{"option", &network.EndpointInterface{Address: "10.1.0.3/16"}, map[string]any{"ingress": "1"}, "create endpoint: endpoint option ingress is unknown: isthmus has no endpoint options, but for Docker's own"},
		{"name", &network.EndpointInterface{Address: "10.1.0.3/16"}, map[string]any{ifnameKey: "is-1"}, `create endpoint: interface name "is-1": need a letter and at most 11 letters, digits, dots, dashes or underscores, and a number`},
	} {
		t.Run(c.name, func(t *testing.T) { h.refused(ask(c.i, c.options), c.err) })
	}
	r, err := h.CreateEndpoint(anyContext, &network.CreateEndpointRequest{NetworkID: "app", EndpointID: "e", Interface: &network.EndpointInterface{Address: "10.1.0.3/16", MacAddress: "02:00:00:00:00:09"}, Options: map[string]any{ifnameKey: "vpn0", "com.docker.network.portmap": []any{}}})
	h.ok(err)
	if *r.Interface != (network.EndpointInterface{}) {
		t.Fatalf("answered %+v though Docker gave all", r.Interface)
	}
	j, err := h.joins("e")
	h.ok(err)
	if j.InterfaceName.DstPrefix != "vpn" {
		t.Fatalf("named %q", j.InterfaceName.DstPrefix)
	}
}

// TestJoinFails: the kernel refuses; Docker deletes the endpoint then.
func TestJoinFails(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.endpoint("web", "app", "10.1.0.2/16"))
	h.kernel.Fail(-1, "hand", errors.New("no memory"))
	_, err := h.joins("web")
	h.refused(err, "join: no memory")
	h.kernel.Heal()
	h.kernel.Fail(-1, "link is-v4097", errors.New("no memory"))
	h.kernel.Delete(kernel.Link{Name: "is-v4097"}.Key())
	_, err = h.joins("web")
	h.refused(err, "join: add link is-v4097: no memory\nadd link is-a4097: no memory")
	if told := h.heard.told(); strings.Contains(told, "10.1.0.2") {
		t.Fatalf("published %s", told)
	}
	h.ok(h.DeleteEndpoint(anyContext, &network.DeleteEndpointRequest{EndpointID: "web"}))
	h.kernel.Heal()
	h.ok(h.delete("app"))
	h.await("nothing is left", func() bool { return h.kernel.String() == "" })
}

// TestJoinMakesWhatIsMissing: somebody deletes the device just before a Join.
func TestJoinMakesWhatIsMissing(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.endpoint("web", "app", "10.1.0.2/16"))
	h.kernel.Delete(kernel.Link{Name: "is-v4097"}.Key())
	_, err := h.joins("web")
	h.ok(err)
	h.contains("link is-v4097")
	h.contains("link is-e7765620000 type macvlan")
}

// TestJoinIgnoresRemoteEntries: an entry for another host's endpoint that the
// kernel refuses is no reason to refuse a container here.
func TestJoinIgnoresRemoteEntries(t *testing.T) {
	h := startHost(t)
	h.app()
	h.kernel.Fail(-1, "add neigh 10.1.0.3", errors.New("table overflow"))
	h.heard.say("host2", remote(1, "db", "10.1.0.3", "02:00:00:00:02:03"))
	h.run("web", "app", "10.1.0.2/16")
	h.await("status says so", func() bool { return strings.Contains(h.Status().Error, "table overflow") })
	h.kernel.Heal()
	h.awaitHas("neigh 10.1.0.3")
	h.await("status is well", func() bool { return h.Status().Error == "" })
}

// TestManyAtOnce starts and stops containers concurrently on two networks.
func TestManyAtOnce(t *testing.T) {
	h := startHost(t)
	h.app()
	h.ok(h.create("second", []string{"10.2.0.0/16"}, "attach=bridge"))
	var wait sync.WaitGroup
	for i := range 40 {
		wait.Go(func() {
			id, net := fmt.Sprintf("%02d-container", i), "app"
			if i%2 == 1 {
				net = "second"
			}
			h.run(id, net, fmt.Sprintf("10.%d.0.%d/16", 1+i%2, 2+i))
			if i%4 < 2 {
				h.ends(id)
			}
		})
	}
	wait.Wait()
	if n := strings.Count(h.heard.told(), "10."); n != 20 {
		t.Fatalf("%d endpoints published, want 20: %s", n, h.heard.told())
	}
	if n := strings.Count(h.kernel.String(), "sandbox "); n != 20 {
		t.Fatalf("%d containers have an interface, want 20:\n%s", n, h.kernel)
	}
}

func TestSwarmCalls(t *testing.T) {
	h := startHost(t)
	r, err := h.AllocateNetwork(anyContext, &network.AllocateNetworkRequest{Options: map[string]string{"attach": "bridge"}})
	if err != nil || r.Options["attach"] != "bridge" {
		t.Fatalf("got %+v, %v", r, err)
	}
	_, err = h.AllocateNetwork(anyContext, &network.AllocateNetworkRequest{Options: map[string]string{"encrypt": "wireguard"}})
	h.refused(err, "allocate network: option encrypt=wireguard is not built yet in this version")
	h.ok(h.FreeNetwork(anyContext, &network.FreeNetworkRequest{}))
	h.ok(h.DiscoverNew(anyContext, &network.DiscoveryNotification{}))
	h.ok(h.DiscoverDelete(anyContext, &network.DiscoveryNotification{}))
	h.ok(h.ProgramExternalConnectivity(anyContext, &network.ProgramExternalConnectivityRequest{}))
	h.ok(h.RevokeExternalConnectivity(anyContext, &network.RevokeExternalConnectivityRequest{}))
}
