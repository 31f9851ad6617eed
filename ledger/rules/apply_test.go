package rules_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// log drives the rules by hand: it numbers requests and checks every step.
type log struct {
	t        *testing.T
	r        *cluster.Registry
	sessions map[string]uint64
	requests map[string]uint64
}

func newLog(t *testing.T, hosts ...string) *log {
	l := &log{t: t, r: rules.New(), sessions: map[string]uint64{}, requests: map[string]uint64{}}
	l.apply(cluster.Command{Found: &cluster.Found{Cluster: "c1"}})
	for _, name := range hosts {
		l.hello(name)
	}
	return l
}

// drawn are the keys that were made before: making one takes long.
var drawn sync.Map

func key(name string) ed25519.PublicKey {
	if k, ok := drawn.Load(name); ok {
		return k.(ed25519.PublicKey)
	}
	seed := sha256.Sum256([]byte(name))
	k := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	drawn.Store(name, k)
	return k
}

func id(name string) cluster.HostID { return cluster.HostIDOf(key(name)) }

func hello(name string, nonce uint64) cluster.Command {
	n := netip.AddrFrom4([4]byte{192, 0, 2, key(name)[0]})
	return cluster.Command{Host: id(name), Hello: &cluster.Hello{PublicKey: key(name), Nonce: nonce, Name: name, VTEP: n, Address: netip.AddrPortFrom(n, 7950)}}
}

// after is the index in the log of what follows a registry.
func after(r *cluster.Registry) uint64 { return r.Index - r.Offset + 1 }

func (l *log) apply(c cluster.Command) cluster.Result {
	l.t.Helper()
	before, _ := json.Marshal(l.r)
	next, res := rules.Apply(l.r, c, after(l.r))
	if after, _ := json.Marshal(l.r); string(after) != string(before) {
		l.t.Fatalf("command %+v changed the registry it was given", c)
	}
	if err := rules.Check(next); err != nil {
		l.t.Fatal(err)
	}
	l.r = next
	return res
}

func (l *log) hello(name string) {
	l.t.Helper()
	l.requests[name]++
	c := hello(name, l.requests[name])
	c.Hello.Gen = l.r.Gen
	res := l.apply(c)
	if res.Refused != nil {
		l.t.Fatal(res.Refused)
	}
	l.sessions[name] = res.Index
}

func (l *log) do(name string, c cluster.Command) cluster.Result {
	l.t.Helper()
	l.requests[name]++
	c.Host, c.Session, c.Request = id(name), l.sessions[name], l.requests[name]
	return l.apply(c)
}

func (l *log) must(name string, c cluster.Command) cluster.Result {
	l.t.Helper()
	res := l.do(name, c)
	if res.Refused != nil {
		l.t.Fatalf("%s was refused: %v", name, res.Refused)
	}
	return res
}

func (l *log) refused(name string, c cluster.Command, code cluster.Code, words ...string) *cluster.Refusal {
	l.t.Helper()
	res := l.do(name, c)
	if res.Refused == nil || res.Refused.Code != code {
		l.t.Fatalf("%s: got %+v, want a refusal with code %s", name, res, code)
	}
	for _, w := range words {
		if !strings.Contains(res.Refused.Text, w) {
			l.t.Errorf("%q does not say %q", res.Refused.Text, w)
		}
	}
	return res.Refused
}

func pool(s string) cluster.PoolKey { return cluster.PoolKey{Prefix: netip.MustParsePrefix(s)} }

func attach(s string) cluster.Command {
	return cluster.Command{AttachPool: &cluster.AttachPool{Prefix: netip.MustParsePrefix(s)}}
}

func detach(s string) cluster.Command {
	return cluster.Command{DetachPool: &cluster.DetachPool{Pool: pool(s)}}
}

func grant(s string, want int) cluster.Command {
	return cluster.Command{Grant: &cluster.Grant{Pool: pool(s), Want: want}}
}

func exact(s, addr string) cluster.Command {
	return cluster.Command{GrantExact: &cluster.GrantExact{Pool: pool(s), Addr: netip.MustParseAddr(addr)}}
}

func gateway(s, addr string) cluster.Command {
	c := cluster.SetGateway{Pool: pool(s)}
	if addr != "" {
		c.Addr = netip.MustParseAddr(addr)
	}
	return cluster.Command{SetGateway: &c}
}

func reserve(s, addr string) cluster.Command {
	return cluster.Command{Reserve: &cluster.Reserve{Pool: pool(s), Addr: netip.MustParseAddr(addr)}}
}

func release(lease uint64) cluster.Command {
	return cluster.Command{Release: &cluster.Release{Lease: lease}}
}

func network(def cluster.Definition, pools ...string) cluster.Command {
	c := cluster.AttachNetwork{Def: def}
	for _, p := range pools {
		c.Pools = append(c.Pools, pool(p))
	}
	return cluster.Command{AttachNetwork: &c}
}

func leaveNet(n uint32) cluster.Command {
	return cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: n}}
}

func TestNothingBeforeFounding(t *testing.T) {
	r, res := rules.Apply(nil, hello("a", 1), 1)
	if res.Refused == nil || r.Index != 1 || len(r.Hosts) != 0 {
		t.Errorf("hello in an unfounded log: %+v", res)
	}
	l := newLog(t)
	if res := l.apply(cluster.Command{Found: &cluster.Found{Cluster: "c1"}}); res.Refused != nil {
		t.Errorf("the same founding again: %v", res.Refused)
	}
	if res := l.apply(cluster.Command{Found: &cluster.Found{Cluster: "c2"}}); res.Refused == nil || l.r.Cluster != "c1" {
		t.Errorf("another founding: %+v", res)
	}
}

func TestHello(t *testing.T) {
	l := newLog(t, "a")
	first := l.r.Hosts[id("a")].Session

	again := l.apply(hello("a", 1))
	if again.Index != first || l.r.Hosts[id("a")].Session != first {
		t.Errorf("the same nonce opened session %d, want %d", again.Index, first)
	}
	lease := l.must("a", attach("10.1.0.0/16")).Pool
	block := l.must("a", grant("10.1.0.0/16", 8)).Lease
	next := l.apply(hello("a", 99))
	if next.Index != l.r.Index || l.r.Hosts[id("a")].Session != l.r.Index {
		t.Errorf("a new nonce did not open a session: %+v", next)
	}
	if !slices.EqualFunc(next.Leases, []cluster.Lease{block}, cluster.Lease.Equal) {
		t.Errorf("hello lists the leases %v, want %v in %v", next.Leases, block, lease.Key)
	}
	l.refused("a", grant("10.1.0.0/16", 8), cluster.StaleSession, "session")

	l.hello("b")
	forged := hello("b", 5)
	forged.Host = id("a")
	if res := l.apply(forged); res.Refused == nil || res.Refused.Code != cluster.Invalid {
		t.Errorf("a hello under another's id: %+v", res)
	}
	thief := hello("c", 1)
	thief.Hello.Name = "b"
	if res := l.apply(thief); res.Refused == nil || res.Refused.Code != cluster.NameTaken || !strings.Contains(res.Refused.Text, "NODE_NAME") {
		t.Errorf("a name taken by another: %+v", res)
	}
	if res := l.do("nobody", attach("10.2.0.0/16")); res.Refused == nil || res.Refused.Code != cluster.UnknownHost {
		t.Errorf("a command without hello: %+v", res)
	}
}

func TestRequestsAreDoneOnce(t *testing.T) {
	l := newLog(t, "a")
	l.must("a", attach("10.1.0.0/16"))
	c := grant("10.1.0.0/16", 8)
	c.Host, c.Session, c.Request = id("a"), l.sessions["a"], 100
	first := l.apply(c)
	again := l.apply(c)
	if !first.Lease.Equal(again.Lease) || first.Index != again.Index || len(l.r.Leases) != 1 {
		t.Errorf("repeated: %+v, first %+v", again, first)
	}
	c.Request = 99
	if res := l.apply(c); res.Refused == nil || res.Refused.Code != cluster.StaleSession || len(l.r.Leases) != 1 {
		t.Errorf("late: %+v", res)
	}
	c = exact("10.1.0.0/16", "10.9.9.9")
	c.Host, c.Session, c.Request = id("a"), l.sessions["a"], 101
	if no, again := l.apply(c), l.apply(c); no.Refused == nil || again.Refused == nil || no.Refused.Text != again.Refused.Text {
		t.Errorf("a refusal is not repeated: %+v %+v", no, again)
	}
}

func TestANewSessionCountsFromOne(t *testing.T) {
	l := newLog(t, "a")
	l.requests["a"] = 500
	l.must("a", attach("10.1.0.0/16"))
	l.hello("a")
	l.requests["a"] = 0
	l.must("a", grant("10.1.0.0/16", 8))
}

func TestNetworks(t *testing.T) {
	l := newLog(t, "a", "b")
	for _, h := range []string{"a", "b"} {
		for _, p := range []string{"10.1.0.0/16", "fd01::/64", "10.2.0.0/16"} {
			l.must(h, attach(p))
		}
	}
	l.refused("a", network(cluster.Definition{}, "10.9.0.0/16"), cluster.UnknownPool)
	n := l.must("a", network(cluster.Definition{MTU: 1400}, "fd01::/64", "10.1.0.0/16")).Network
	want := cluster.Definition{Mode: "vxlan", VNI: 4096, MTU: 1400, ARP: "suppress", BUM: "replicate", Encrypt: "off", Underlay: "ipv4", Gateway: "docker"}
	if n.Def != want || n.ID != 1 || n.Creator != id("a") {
		t.Errorf("network %+v", n)
	}
	same := l.must("b", network(cluster.Definition{Mode: "vxlan", ARP: "suppress", VNI: 4096}, "10.1.0.0/16", "fd01::/64")).Network
	if same.ID != n.ID || len(same.Holders) != 2 {
		t.Errorf("joined %+v", same)
	}
	why := l.refused("b", network(cluster.Definition{MTU: 1300, BUM: "none"}, "10.1.0.0/16", "fd01::/64"), cluster.Contradiction,
		"mtu=1400 bum=replicate", "mtu=1300 bum=none", "created on a", "-o mtu, -o bum")
	if len(why.Holders) != 2 {
		t.Errorf("holders %v", why.Holders)
	}
	l.refused("b", network(cluster.Definition{Underlay: "ipv6"}, "10.1.0.0/16", "fd01::/64"), cluster.Contradiction, "IPv4", "IPv6", "ADVERTISE")
	l.refused("b", network(cluster.Definition{}, "10.1.0.0/16"), cluster.Overlap, "10.1.0.0/16, fd01::/64", "created on a")
	l.refused("b", network(cluster.Definition{VNI: 4096}, "10.2.0.0/16"), cluster.Contradiction, "VNI 4096", "10.1.0.0/16", "-o vni")
	l.refused("b", network(cluster.Definition{VNI: 1 << 24}, "10.2.0.0/16"), cluster.Invalid, "VNI")
	if m := l.must("b", network(cluster.Definition{}, "10.2.0.0/16")).Network; m.Def.VNI != 4097 || m.ID != 2 || m.Def.MTU != 0 {
		t.Errorf("second network %+v", m)
	}
	l.refused("b", network(cluster.Definition{MTU: 1300}, "10.2.0.0/16"), cluster.Contradiction, "mtu=computed")
}

// TestLANNetworks: the hosts of a network in a LAN agree about what it is, and
// one that does not say gets what it is.
func TestLANNetworks(t *testing.T) {
	l := newLog(t, "a", "b")
	for _, h := range []string{"a", "b"} {
		for _, p := range []string{"10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"} {
			l.must(h, attach(p))
		}
	}
	n := l.must("a", network(cluster.Definition{Mode: "macvlan", Underlay: "ipv4"}, "10.1.0.0/16")).Network
	if want := (cluster.Definition{Mode: "macvlan", Encrypt: "off", Submode: "bridge"}); n.Def != want {
		t.Errorf("network %+v", n)
	}
	l.must("b", network(cluster.Definition{Mode: "macvlan", VLAN: "50", Underlay: "ipv6"}, "10.1.0.0/16"))
	l.refused("b", network(cluster.Definition{Mode: "macvlan", Submode: "private"}, "10.1.0.0/16"), cluster.Contradiction,
		"on 10.1.0.0/16 was created on a with macvlan_mode=bridge, and this one asks for macvlan_mode=private: leave -o macvlan_mode out, or use the same")
	l.refused("b", network(cluster.Definition{Mode: "ipvlan", Submode: "l3"}, "10.1.0.0/16"), cluster.Contradiction, "with mode=macvlan, and this one asks for mode=ipvlan:")

	n = l.must("a", network(cluster.Definition{Mode: "ipvlan", VLAN: "50.7"}, "10.2.0.0/16")).Network
	if want := (cluster.Definition{Mode: "ipvlan", Encrypt: "off", Submode: "l2", Flag: "bridge", VLAN: "50.7"}); n.Def != want {
		t.Errorf("network %+v", n)
	}
	l.must("b", network(cluster.Definition{Mode: "ipvlan"}, "10.2.0.0/16"))
	l.refused("b", network(cluster.Definition{Mode: "ipvlan", Submode: "l3", Flag: "vepa"}, "10.2.0.0/16"), cluster.Contradiction,
		"ipvlan_mode=l2 ipvlan_flag=bridge, and this one asks for ipvlan_mode=l3 ipvlan_flag=vepa")
	why := l.refused("b", network(cluster.Definition{Mode: "ipvlan", VLAN: "60"}, "10.2.0.0/16"), cluster.Contradiction,
		"is in VLAN 50.7, and the parent on host b in VLAN 60: use a parent in VLAN 50.7 here")
	if !slices.Equal(why.Holders, []cluster.HostID{id("a"), id("b")}) {
		t.Errorf("holders %v", why.Holders)
	}

	n = l.must("a", network(cluster.Definition{Mode: "ipvlan", Submode: "l3s", Flag: "private"}, "10.3.0.0/16")).Network
	if joined := l.must("b", network(cluster.Definition{Mode: "ipvlan"}, "10.3.0.0/16")).Network; joined.Def != n.Def {
		t.Errorf("joined %+v", joined)
	}
}

func TestNetworkLivesWithItsLeases(t *testing.T) {
	l := newLog(t, "a", "b")
	l.must("a", attach("10.1.0.0/16"))
	lease := l.must("a", grant("10.1.0.0/16", 8)).Lease
	n := l.must("a", network(cluster.Definition{MTU: 1400}, "10.1.0.0/16")).Network
	l.must("a", leaveNet(n.ID))
	l.must("a", detach("10.1.0.0/16"))

	// Nobody holds it: it keeps its identity, but defines nothing.
	l.must("b", attach("10.1.0.0/16"))
	again := l.must("b", network(cluster.Definition{MTU: 1300}, "10.1.0.0/16")).Network
	if again.ID != n.ID || again.Def.VNI != n.Def.VNI || again.Def.MTU != 1300 || again.Creator != id("b") {
		t.Errorf("network %+v", again)
	}
	l.must("b", leaveNet(n.ID))
	l.must("b", detach("10.1.0.0/16"))
	l.must("a", release(lease.ID))
	if len(l.r.Networks)+len(l.r.Pools)+len(l.r.Leases) != 0 {
		t.Errorf("left over: %+v %+v", l.r.Networks, l.r.Pools)
	}
	l.must("b", leaveNet(n.ID))

	// A freed VNI is the last to be used again.
	l.must("b", attach("10.2.0.0/16"))
	if m := l.must("b", network(cluster.Definition{}, "10.2.0.0/16")).Network; m.Def.VNI != n.Def.VNI+1 || m.ID != n.ID+1 {
		t.Errorf("next network %+v", m)
	}
}

func TestVNIWraps(t *testing.T) {
	l := newLog(t, "a")
	for i := range 3 {
		l.must("a", attach(fmt.Sprintf("10.%d.0.0/16", i)))
	}
	l.must("a", network(cluster.Definition{}, "10.0.0.0/16"))
	r := *l.r
	r.NextVNI = rules.MaxVNI
	l.r = &r
	for i, want := range []uint32{rules.MaxVNI, rules.FirstVNI + 1} {
		if got := l.must("a", network(cluster.Definition{}, fmt.Sprintf("10.%d.0.0/16", i+1))).Network.Def.VNI; got != want {
			t.Errorf("VNI %d, want %d", got, want)
		}
	}
}

func TestNonsenseIsRefused(t *testing.T) {
	l := newLog(t, "a")
	for name, c := range map[string]cluster.Command{
		"empty":            {},
		"two orders":       {Release: &cluster.Release{}, Grant: &cluster.Grant{Pool: pool("10.1.0.0/16")}},
		"no pool":          {Grant: &cluster.Grant{}},
		"no prefix":        {AttachPool: &cluster.AttachPool{}},
		"no bits":          {AttachPool: &cluster.AttachPool{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		"wrong family":     {AttachPool: &cluster.AttachPool{V6: true, Bits: 64, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		"default route":    attach("0.0.0.0/0"),
		"loopback":         attach("127.0.0.0/8"),
		"multicast":        attach("224.1.0.0/16"),
		"link-local":       attach("fe80::/64"),
		"mapped":           {AttachPool: &cluster.AttachPool{Prefix: netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)}},
		"space":            {AttachPool: &cluster.AttachPool{Space: "a|b", Prefix: netip.MustParsePrefix("10.1.0.0/16")}},
		"no address":       {GrantExact: &cluster.GrantExact{Pool: pool("10.1.0.0/16")}},
		"no pools":         {AttachNetwork: &cluster.AttachNetwork{}},
		"this network":     attach("0.1.0.0/24"),
		"half of all":      attach("128.0.0.0/1"),
		"too much":         attach("fc00::/6"),
		"IPv4 inside":      attach("::10.1.0.0/120"),
		"forget nobody":    {Forget: &cluster.Forget{}},
		"into nothing":     {Dissolve: &cluster.Dissolve{}},
		"rebuilt nothing":  {Rebuild: &cluster.Rebuild{}},
		"two spaces":       {AttachNetwork: &cluster.AttachNetwork{Pools: []cluster.PoolKey{pool("10.1.0.0/16"), {Space: "x", Prefix: netip.MustParsePrefix("fd00::/64")}}}},
		"founded nameless": {Found: &cluster.Found{}},
	} {
		res := l.do("a", c)
		if name == "no prefix" {
			if res.Refused == nil || res.Refused.Code != cluster.Full {
				t.Errorf("%s: %+v", name, res)
			}
			continue
		}
		if res.Refused == nil || res.Refused.Code != cluster.Invalid || res.Refused.Text == "" {
			t.Errorf("%s: %+v", name, res)
		}
	}
}
