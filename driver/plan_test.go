package driver

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

var update = flag.Bool("update", false, "write what Plan says into testdata")

// TestPlan runs the scenario files: a cluster in, the rendered plan out. The
// language of the first part is that of scenario.line.
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("find scenarios: %v, %d files", err, len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, v := parseScenario(t, section(archive, "cluster"))
			got := render(Plan(in, v))
			if again := render(Plan(in, v)); again != got {
				t.Fatalf("a second plan differs:\n%s", gocmp.Diff(got, again))
			}
			if *update {
				archive.Files = []txtar.File{archive.Files[0], {Name: "plan", Data: []byte(got)}}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(section(archive, "plan"), got); diff != "" {
				t.Fatalf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func section(a *txtar.Archive, name string) string {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func render(d Desired) string {
	var b bytes.Buffer
	for _, k := range slices.SortedFunc(maps.Keys(d.State), kernel.CompareKeys) {
		fmt.Fprintln(&b, d.State[k])
	}
	for _, h := range d.Handovers {
		fmt.Fprintf(&b, "handover %s below %s sandbox %s name %q addrs %v", h.Link.Name, h.Below(), h.Sandbox, h.Name, h.Addrs)
		for _, r := range h.Routes {
			fmt.Fprintf(&b, " route %s", r.Dst)
			if r.Via.IsValid() {
				fmt.Fprintf(&b, " via %s", r.Via)
			}
		}
		if h.seen {
			b.WriteString(" seen")
		}
		if h.blocked != nil {
			b.WriteString(" blocked")
		}
		fmt.Fprintln(&b)
	}
	for _, s := range d.Segments {
		for _, w := range s.Ways {
			fmt.Fprintf(&b, "way %s to %s by %s", w.Block, w.Host, w.By)
			if w.Why != "" {
				fmt.Fprintf(&b, ": %s", w.Why)
			}
			fmt.Fprintln(&b)
		}
	}
	for _, p := range d.Announced {
		fmt.Fprintln(&b, "announce", p)
	}
	for _, link := range d.Heed {
		fmt.Fprintln(&b, "heed", link)
	}
	for _, link := range slices.Sorted(maps.Keys(d.Left)) {
		fmt.Fprintln(&b, "left", link)
	}
	for _, r := range d.Records {
		if r.Claim.Lease != 0 {
			fmt.Fprintf(&b, "claim %d pool %s block %s\n", r.Claim.Lease, r.Claim.Pool, r.Claim.Block)
			continue
		}
		fmt.Fprintf(&b, "record network %d", r.Network)
		if r.Endpoint != (cluster.EndpointID{}) {
			id := strings.TrimRight(string(r.Endpoint[:]), "\x00")
			if strings.ContainsFunc(id, func(c rune) bool { return c < ' ' || c > '~' }) {
				id = r.Endpoint.String()[:10]
			}
			fmt.Fprintf(&b, " endpoint %s mac %s", id, r.MAC)
		}
		if r.IPv4.IsValid() {
			fmt.Fprintf(&b, " %s lease %d", r.IPv4, r.Lease4)
		}
		if r.IPv6.IsValid() {
			fmt.Fprintf(&b, " %s lease %d", r.IPv6, r.Lease6)
		}
		fmt.Fprintln(&b)
	}
	for _, p := range d.Problems {
		fmt.Fprintln(&b, "problem", p)
	}
	return b.String()
}

// parseScenario reads the lines of a scenario:
//
//	self host1 vtep 192.0.2.1 mtu 1500
//	host host2 vtep 192.0.2.2 mtu 1500 state failed
//	path host2 fits 1400
//	network app pool 10.1.0.0/16 pool fd01::/64 id 1 vni 4097 mtu 0 arp flood bum none attach bridge
//	endpoint web network app ip 10.1.0.2/16 mac 02:00:00:00:01:02 lease 5 sandbox /s/web inside eth0
//	record host2 network 1 endpoint db ip 10.1.0.3 mac 02:00:00:00:02:03 lease 6
//	detached REASON
//	claim 5 pool 10.1.0.0/16 block 10.1.0.0/29
//	stranger eth0 sandbox /s/x below is-p0123456789 master is-b4097 ip 10.1.0.9/16 mac 02:00:00:00:01:09 lease 5
//
// for networks in a LAN
//
//	network lan pool 10.1.0.0/16 id 1 mode macvlan submode private flag private vlan 50 parent eth0.50 gateway 10.1.0.1
//	    source MAC bcqueue 2000 access on host 10.1.0.9 internal yes tag 802.1ad
//	link eth0 kind device mtu 1500 mac 02:00:00:00:00:01 addr 192.0.2.1/24 down yes carrier no master br0 masterkind bridge
//	    parent eth0 vid 50 ours yes loopback yes wireless yes driver ena
//	child eth0 of eth0 kind macvlan mode bridge flag bridge sandbox /s/web ours yes
//	stranger eth0 sandbox /s/x kind ipvlan below eth0 link is-e0123456789 ip 10.1.0.9/16
//
// for networks that this host routes
//
//	network gw pool 10.1.0.0/16 id 1 mode host-gw fallback vxlan vni 4097 gateway 10.1.0.1 host 10.1.0.2 nat off bgp on
//	network app pool 10.3.0.0/16 id 2 vni 4098 attach bridge router host:host2 gateway 10.3.0.1 host 10.3.0.2 route_to 10.1.0.0/16
//	deaf host2
//	published web tcp 0.0.0.0:80 to 10.1.0.3:8080
//	way host2 via 192.0.2.2 dev eth0 native yes routed yes why REASON
//	foreign 10.1.9.0/24 via 192.0.2.9 dev eth0
//
// and what the cluster agreed, as of an index:
//
//	registry 100
//	registered host2 vtep 192.0.2.2 session 9 tombstone yes
//	lease 6 pool 10.1.0.0/16 block 10.1.0.0/29 without 10.1.0.4 holder host2
//	agreed 2 pool 10.2.0.0/16 vni 4098 mode vxlan
func parseScenario(t *testing.T, text string) (*Intent, View) {
	t.Helper()
	in := &Intent{Networks: map[string]Network{}, Endpoints: map[string]Endpoint{}, Published: map[string]Published{}}
	v := View{Port: 8475, Paths: map[cluster.HostID]int{}, Ways: map[cluster.HostID]Way{}, Deaf: map[cluster.HostID]bool{}}
	streams := map[string]*cluster.Stream{}
	reg := &cluster.Registry{Hosts: map[cluster.HostID]cluster.Host{}, Leases: map[uint64]cluster.Lease{}, Networks: map[uint32]cluster.Network{}}
	v.Registry = reg
	for number, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' {
			continue
		}
		kind, name, args := words[0], words[1], map[string][]string{}
		for i := 2; i+1 < len(words); i += 2 {
			args[words[i]] = append(args[words[i]], words[i+1])
		}
		get := func(key string) string { return strings.Join(args[key], " ") }
		num := func(key string) int {
			n, err := strconv.Atoi(cmp.Or(get(key), "0"))
			if err != nil {
				t.Fatalf("line %d: %v", number+1, err)
			}
			return n
		}
		mac := func() cluster.MAC {
			if get("mac") == "" {
				return cluster.MAC{}
			}
			m, err := cluster.ParseMAC(get("mac"))
			if err != nil {
				t.Fatalf("line %d: %v", number+1, err)
			}
			return m
		}
		value := func() uint64 {
			n, err := strconv.ParseUint(name, 10, 64)
			if err != nil {
				t.Fatalf("line %d: %v", number+1, err)
			}
			return n
		}
		var keys []cluster.PoolKey
		for _, p := range args["pool"] {
			keys = append(keys, cluster.PoolKey{Prefix: netip.MustParsePrefix(p)})
		}
		switch kind {
		case "detached":
			v.Detached = strings.Join(words[1:], " ")
		case "claim":
			v.Claims = append(v.Claims, cluster.Claim{Lease: value(), Pool: keys[0], Block: netip.MustParsePrefix(get("block"))})
		case "stranger":
			s := Tenant{Lease4: uint64(num("lease")), Lease6: uint64(num("lease6"))}
			s.Name, s.Sandbox, s.Below, s.Master, s.MAC, s.Kind = name, get("sandbox"), get("below"), get("master"), mac(), kernel.Macvlan
			s.Kind, s.Link = kernel.Kind(cmp.Or(get("kind"), "macvlan")), get("link")
			if s.Master != "" {
				s.Kind = kernel.Veth
			}
			for _, a := range args["ip"] {
				s.Addrs = append(s.Addrs, netip.MustParsePrefix(a))
			}
			v.Strangers = append(v.Strangers, s)
		case "registry":
			reg.Index = value()
		case "registered":
			reg.Hosts[cluster.HostID(name)] = cluster.Host{ID: cluster.HostID(name), Name: name, VTEP: netip.MustParseAddr(get("vtep")), Session: uint64(num("session")), Tombstone: get("tombstone") != ""}
		case "lease":
			l := cluster.Lease{ID: value(), Pool: keys[0], Block: netip.MustParsePrefix(get("block")), Holder: cluster.HostID(get("holder"))}
			for _, a := range args["without"] {
				l.Without = append(l.Without, netip.MustParseAddr(a))
			}
			reg.Leases[l.ID] = l
		case "agreed":
			id := uint32(value())
			reg.Networks[id] = cluster.Network{ID: id, Pools: keys, Def: cluster.Definition{Mode: cmp.Or(get("mode"), "vxlan"), VNI: uint32(num("vni")), Submode: get("submode"), Gateway: get("router"), RouteTo: get("route_to")}}
		case "link":
			dev := kernel.Device{
				Name: name, Kind: kernel.Kind(cmp.Or(get("kind"), "device")), MTU: num("mtu"), MAC: mac(), Loopback: get("loopback") != "",
				Up: get("down") == "", Carrier: get("carrier") != "no", Parent: get("parent"), Master: get("master"), MasterKind: kernel.Kind(get("masterkind")),
				VID: uint16(num("vid")), Ours: get("ours") != "", Wireless: get("wireless") != "", Driver: get("driver"),
			}
			for _, a := range args["addr"] {
				dev.Addrs = append(dev.Addrs, netip.MustParsePrefix(a))
			}
			v.Links = append(v.Links, dev)
		case "child":
			i := slices.IndexFunc(v.Links, func(d kernel.Device) bool { return d.Name == get("of") })
			v.Links[i].Children = append(v.Links[i].Children, kernel.Child{Name: name, Kind: kernel.Kind(get("kind")), Mode: get("mode"), Flag: get("flag"), Sandbox: get("sandbox"), Ours: get("ours") != ""})
		case "self", "host":
			info := cluster.HostInfo{Name: name, MTU: num("mtu")}
			if get("vtep") != "" {
				info.VTEP = netip.MustParseAddr(get("vtep"))
			}
			v.Members = append(v.Members, cluster.Member{ID: cluster.HostID(name), State: cluster.MemberState(cmp.Or(get("state"), "alive")), Info: info})
			if kind == "self" {
				v.Host, v.VTEP, v.MTU = cluster.HostID(name), info.VTEP, info.MTU
				continue
			}
			streams[name] = &cluster.Stream{Owner: cluster.HostID(name), Info: info, Records: map[cluster.RecordKey]cluster.Record{}}
		case "way":
			w := Way{Dev: get("dev"), Native: get("native") != "", Routed: get("routed") != "", Why: get("why")}
			if get("via") != "" {
				w.Via = netip.MustParseAddr(get("via"))
			}
			v.Ways[cluster.HostID(name)] = w
		case "deaf":
			v.Deaf[cluster.HostID(name)] = true
		case "foreign":
			v.Foreign = append(v.Foreign, kernel.Foreign{Dst: netip.MustParsePrefix(name), Via: netip.MustParseAddr(get("via")), Dev: get("dev"), Protocol: "static"})
		case "published":
			in.Published[name] = Published{Endpoint: name, Got: []kernel.Publish{{Proto: words[2], Host: netip.MustParseAddrPort(words[3]), To: netip.MustParseAddrPort(words[5])}}}
		case "path":
			v.Paths[cluster.HostID(name)] = num("fits")
		case "network":
			n := Network{ID: name, Cluster: uint32(num("id")), Def: cluster.Definition{Mode: cmp.Or(get("mode"), "vxlan"), VNI: uint32(num("vni")), MTU: num("mtu"), ARP: get("arp"), BUM: get("bum"), Submode: get("submode"), Flag: get("flag"), VLAN: get("vlan"), Fallback: get("fallback"), Gateway: get("router"), RouteTo: get("route_to")}}
			n.Options = Options{
				Gateway: n.Def.Gateway, RouteTo: n.Def.RouteTo, Mode: n.Def.Mode, Attach: get("attach"), Parent: get("parent"), VLANProtocol: get("tag"), Source: get("source"),
				BCQueue: num("bcqueue"), HostAccess: get("access") == "on", Internal: get("internal") != "",
				NoNAT: get("nat") == "off", BGP: get("bgp") == "on",
			}
			for _, a := range args["gateway"] {
				n.Gateways = append(n.Gateways, netip.MustParseAddr(a))
			}
			for _, a := range args["host"] {
				n.HostAddrs = append(n.HostAddrs, netip.MustParseAddr(a))
			}
			n.Pools = keys
			in.Networks[name] = n
		case "endpoint":
			e := Endpoint{ID: name, Network: get("network"), MAC: mac(), Sandbox: get("sandbox"), Inside: get("inside"), Gone: get("gone") != "", Lease4: uint64(num("lease")), Lease6: uint64(num("lease6"))}
			for _, a := range args["ip"] {
				if p := netip.MustParsePrefix(a); p.Addr().Is4() {
					e.IPv4 = p
				} else {
					e.IPv6 = p
				}
			}
			in.Endpoints[name] = e
		case "record":
			r := cluster.Record{Network: uint32(num("network")), Lease4: uint64(num("lease")), Lease6: uint64(num("lease6"))}
			if get("endpoint") != "" {
				r.Endpoint, r.MAC = cluster.EndpointIDOf(get("endpoint")), mac()
			}
			for _, a := range args["ip"] {
				if ip := netip.MustParseAddr(a); ip.Is4() {
					r.IPv4 = ip
				} else {
					r.IPv6 = ip
				}
			}
			streams[name].Records[r.Key()] = r
		default:
			t.Fatalf("line %d: unknown word %q", number+1, kind)
		}
	}
	slices.SortFunc(v.Links, func(a, b kernel.Device) int { return strings.Compare(a.Name, b.Name) })
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		v.Streams = append(v.Streams, *streams[name])
	}
	return in, v
}

// TestPlanProperties: whatever the records say, no own address or MAC is ever
// programmed as remote, each address has one neighbour whose MAC leads to the
// host that the neighbour came from, nothing leads to a host that is not admitted,
// no address to a host while another leases it, and the order of streams does
// not matter.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ip := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte{10, 1, 0, rapid.Byte().Draw(t, "ip") % 8})
		})
		mac := rapid.Custom(func(t *rapid.T) cluster.MAC { return cluster.MAC{2, 5: rapid.Byte().Draw(t, "mac") % 8} })
		in := &Intent{Networks: map[string]Network{"n": {ID: "n", Cluster: 1, Pools: []cluster.PoolKey{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}}, Def: cluster.Definition{Mode: "vxlan", VNI: 9}}}, Endpoints: map[string]Endpoint{}}
		for i := range rapid.IntRange(0, 3).Draw(t, "own") {
			id := fmt.Sprint("own", i)
			in.Endpoints[id] = Endpoint{ID: id, Network: "n", MAC: mac.Draw(t, "own mac"), IPv4: netip.PrefixFrom(ip.Draw(t, "own ip"), 24), Sandbox: rapid.SampledFrom([]string{"", "/s/x"}).Draw(t, "sandbox")}
		}
		v := View{Host: "self", VTEP: netip.MustParseAddr("192.0.2.100"), Port: 8475, MTU: 1500}
		for i := range rapid.IntRange(0, 4).Draw(t, "hosts") {
			s := cluster.Stream{Owner: cluster.HostID(fmt.Sprint("h", i)), Info: cluster.HostInfo{VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}, Records: map[cluster.RecordKey]cluster.Record{}}
			for j := range rapid.IntRange(0, 4).Draw(t, "records") {
				r := cluster.Record{Network: uint32(rapid.IntRange(1, 2).Draw(t, "network")), Endpoint: cluster.EndpointIDOf(fmt.Sprint("e", i, j)), MAC: mac.Draw(t, "remote mac"), IPv4: ip.Draw(t, "remote ip"), Lease4: rapid.Uint64Range(0, 3).Draw(t, "lease")}
				s.Records[r.Key()] = r
			}
			v.Streams = append(v.Streams, s)
		}
		reg := &cluster.Registry{Index: rapid.Uint64Range(1, 4).Draw(t, "index"), Hosts: map[cluster.HostID]cluster.Host{}, Leases: map[uint64]cluster.Lease{}}
		for i := range rapid.IntRange(0, 3).Draw(t, "registered") {
			id := cluster.HostID(fmt.Sprint("h", i))
			reg.Hosts[id] = cluster.Host{ID: id, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), Session: rapid.Uint64Range(0, 1).Draw(t, "session"), Tombstone: rapid.Bool().Draw(t, "tombstone")}
		}
		for i := range rapid.Uint64Range(0, 3).Draw(t, "leases") {
			block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(2 * i)}), 31)
			reg.Leases[i] = cluster.Lease{ID: i, Pool: in.Networks["n"].Pools[0], Block: block, Holder: cluster.HostID(fmt.Sprint("h", rapid.IntRange(0, 4).Draw(t, "holder")))}
		}
		v.Registry = reg
		d := Plan(in, v)
		byVTEP := map[netip.Addr]cluster.HostID{}
		for _, s := range v.Streams {
			byVTEP[s.Info.VTEP] = s.Owner
		}
		own := map[string]bool{}
		for _, e := range in.Endpoints {
			own[e.MAC.String()], own[e.IPv4.Addr().String()] = true, true
		}
		for k, o := range d.State {
			switch o := o.(type) {
			case kernel.FDB:
				if own[o.MAC.String()] {
					t.Fatalf("own MAC is remote: %s", o)
				}
				if h, known := reg.Hosts[byVTEP[o.Dst]]; known && (h.Tombstone || h.Session == 0) {
					t.Fatalf("%s leads to %+v", o, h)
				}
				if _, ok := d.State[kernel.Guard{Rule: kernel.Admit, Peer: o.Dst}.Key()]; !ok {
					t.Fatalf("%s leads where nothing may come from", o)
				}
			case kernel.Guard:
				for _, h := range reg.Hosts {
					if o.Peer == h.VTEP && (h.Tombstone || h.Session == 0) {
						t.Fatalf("%s is %+v", o, h)
					}
				}
			case kernel.Neigh:
				if own[o.IP.String()] {
					t.Fatalf("own address is remote: %s", o)
				}
				f, ok := d.State[kernel.FDB{Dev: k.Dev, MAC: o.MAC}.Key()].(kernel.FDB)
				if !ok {
					t.Fatalf("neighbour leads nowhere: %s", o)
				}
				if o.IP.IsLinkLocalUnicast() {
					continue
				}
				for _, l := range reg.Leases {
					for _, r := range v.Streams[slices.IndexFunc(v.Streams, func(s cluster.Stream) bool { return s.Info.VTEP == f.Dst })].Records {
						if r.Network == 1 && r.IPv4 == o.IP && l.Covers(o.IP) && l.Holder != byVTEP[f.Dst] && r.Lease4 <= reg.Index && r.MAC == o.MAC && soleClaim(v, f.Dst, o) {
							t.Fatalf("%s leads to %s, which does not lease it", o, byVTEP[f.Dst])
						}
					}
				}
				for _, s := range v.Streams {
					for _, r := range s.Records {
						if r.Network == 1 && r.IPv4 == o.IP && r.MAC == o.MAC && s.Info.VTEP == f.Dst {
							ok = false
						}
					}
				}
				if ok {
					t.Fatalf("%s and %s come from no single host", o, f)
				}
			}
		}
		shuffled := v
		shuffled.Streams = slices.Clone(v.Streams)
		rand.Shuffle(len(shuffled.Streams), func(i, j int) {
			shuffled.Streams[i], shuffled.Streams[j] = shuffled.Streams[j], shuffled.Streams[i]
		})
		if diff := gocmp.Diff(render(d), render(Plan(in, shuffled))); diff != "" {
			t.Fatalf("the order of streams matters:\n%s", diff)
		}
	})
}

// soleClaim reports whether the neighbour can stem from one record only.
func soleClaim(v View, vtep netip.Addr, o kernel.Neigh) bool {
	n := 0
	for _, s := range v.Streams {
		for _, r := range s.Records {
			if s.Info.VTEP == vtep && r.Network == 1 && r.IPv4 == o.IP && r.MAC == o.MAC {
				n++
			}
		}
	}
	return n == 1
}

// BenchmarkPlanDiff is one pass without the kernel: one network with 10,000
// remote endpoints, in place already (still) or all new (fresh).
func BenchmarkPlanDiff(b *testing.B) {
	in, v := large(1, 10_000)
	want := Plan(in, v).State
	for name, have := range map[string]kernel.State{"still": want, "fresh": {}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ops := kernel.Diff(have, Plan(in, v).State, kernel.Options{})
				if name == "still" && len(ops) > 0 {
					b.Fatalf("%d operations for nothing", len(ops))
				}
			}
		})
	}
}

// BenchmarkPlan100Networks is a plan of 100 networks and 10,000 records.
func BenchmarkPlan100Networks(b *testing.B) {
	in, v := large(100, 100)
	b.ReportAllocs()
	for b.Loop() {
		Plan(in, v)
	}
}

// large makes networks with records of remote endpoints on 20 hosts in each,
// and 10 endpoints of this host.
func large(networks, records int) (*Intent, View) {
	in := &Intent{Networks: map[string]Network{}, Endpoints: map[string]Endpoint{}}
	v := View{Host: "self", VTEP: netip.MustParseAddr("192.0.2.100"), Port: 8475, MTU: 1500}
	v.Registry = &cluster.Registry{Index: 1 << 32, Leases: map[uint64]cluster.Lease{}}
	for h := range 20 {
		s := cluster.Stream{Owner: cluster.HostID(fmt.Sprint("h", h)), Info: cluster.HostInfo{VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(h)})}, Records: map[cluster.RecordKey]cluster.Record{}}
		v.Members = append(v.Members, cluster.Member{ID: s.Owner, State: cluster.Alive, Info: s.Info})
		v.Streams = append(v.Streams, s)
	}
	for n := range networks {
		id := fmt.Sprint("n", n)
		in.Networks[id] = Network{ID: id, Cluster: uint32(n + 1), Def: cluster.Definition{Mode: "vxlan", VNI: uint32(4097 + n)}, Pools: []cluster.PoolKey{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)}}}
		for i := range 10 {
			e := Endpoint{ID: fmt.Sprint("own", n, ".", i), Network: id, MAC: cluster.MAC{2, 1, byte(n), 5: byte(i)}, IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 255, byte(i)}), 16), Sandbox: "/s"}
			in.Endpoints[e.ID] = e
		}
		for i := 0; i < records; i += 8 {
			block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), byte(i >> 8), byte(i)}), 29)
			l := cluster.Lease{ID: uint64(n<<16 + i + 1), Pool: in.Networks[id].Pools[0], Block: block, Holder: cluster.HostID(fmt.Sprint("h", i/8%20))}
			v.Registry.Leases[l.ID] = l
		}
		for i := range records {
			r := cluster.Record{Network: uint32(n + 1), Endpoint: cluster.EndpointIDOf(fmt.Sprint("remote", n, ".", i)), MAC: cluster.MAC{2, 2, byte(n), 4: byte(i >> 8), 5: byte(i)}, IPv4: netip.AddrFrom4([4]byte{10, byte(n), byte(i >> 8), byte(i)})}
			r.Lease4 = uint64(n<<16 + i&^7 + 1)
			v.Streams[i/8%20].Records[r.Key()] = r
		}
	}
	return in, v
}
