package rules_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// Check sees each thing that must not be, and names it.
func TestCheckSees(t *testing.T) {
	l, leases := two(t)
	l.hello("c")
	l.must("b", forget("a", false))
	l.must("b", reserve("10.1.0.0/24", "10.1.0.100"))
	l.must("b", gateway("10.1.0.0/24", "10.1.0.101"))
	l.must("b", carve(leases["b vxlan"].ID, leases["b vxlan"].Block.Addr().Next().String()))
	vxlan, macvlan := pool("10.1.0.0/24"), pool("10.2.0.0/24")
	kept, quarantined := leases["b vxlan"].ID, leases["a macvlan"].ID

	host := func(name string, change func(h *cluster.Host)) func(*cluster.Registry) {
		return func(r *cluster.Registry) { h := r.Hosts[id(name)]; change(&h); r.Hosts[id(name)] = h }
	}
	pools := func(key cluster.PoolKey, change func(p *cluster.Pool)) func(*cluster.Registry) {
		return func(r *cluster.Registry) { p := r.Pools[key]; change(&p); r.Pools[key] = p }
	}
	lease := func(n uint64, change func(l *cluster.Lease)) func(*cluster.Registry) {
		return func(r *cluster.Registry) { l := r.Leases[n]; change(&l); r.Leases[n] = l }
	}
	net := func(key cluster.PoolKey, change func(n *cluster.Network)) func(*cluster.Registry) {
		return func(r *cluster.Registry) {
			n, _ := r.NetworkOf([]cluster.PoolKey{key})
			change(&n)
			r.Networks[n.ID] = n
		}
	}
	addr := netip.MustParseAddr
	for _, tc := range []struct {
		words  string
		change func(r *cluster.Registry)
	}{
		{"no cluster was founded", func(r *cluster.Registry) { r.Cluster = "" }},
		{"generation 0", func(r *cluster.Registry) { r.Gen = 0 }},
		{"offset 7", func(r *cluster.Registry) { r.Offset = 7 }},
		{"next VNI is 7", func(r *cluster.Registry) { r.NextVNI = 7 }},
		{"next network 0", func(r *cluster.Registry) { r.NextNet = 0 }},
		{"dissolved into c0 with 2 pools", func(r *cluster.Registry) { r.Dissolved = "c0" }},

		{"is filed as", host("b", func(h *cluster.Host) { h.PublicKey = key("c") })},
		{"generation 2, after 1", host("b", func(h *cluster.Host) { h.Gen = 2 })},
		{"of generation 0, not after", host("b", func(h *cluster.Host) { h.Gen = 0 })},
		{"has session 1000", host("b", func(h *cluster.Host) { h.Session = 1000 })},
		{"share session", host("b", func(h *cluster.Host) { h.Session = l.r.Hosts[id("c")].Session })},
		{"was replaced by", host("b", func(h *cluster.Host) { h.Replaced = id("c") })},
		{"is forgotten and has session", host("a", func(h *cluster.Host) { h.Session, h.Gen = 2, 1 })},
		{"share the name c", host("b", func(h *cluster.Host) { h.Name = "c" })},
		{"has answers, but no session", func(r *cluster.Registry) { r.Requests[id("a")] = cluster.Answered{} }},
		{"has answers, but no session", func(r *cluster.Registry) { r.Requests["x"] = cluster.Answered{} }},
		{"outside of its session", func(r *cluster.Registry) { r.Requests[id("b")] = cluster.Answered{Request: 1} }},

		{"is filed as 10.1.0.0/24", pools(vxlan, func(p *cluster.Pool) { p.Key.Space = "x" })},
		{"cannot be", func(r *cluster.Registry) {
			r.Pools[pool("127.0.0.0/8")] = cluster.Pool{Key: pool("127.0.0.0/8"), Holders: []cluster.HostID{id("b")}}
		}},
		{"share the name web", func(r *cluster.Registry) {
			pools(vxlan, func(p *cluster.Pool) { p.Name = "web" })(r)
			pools(macvlan, func(p *cluster.Pool) { p.Name = "web" })(r)
		}},
		{"pools 10.0.0.0/8 and 10.1.0.0/24 overlap", func(r *cluster.Registry) {
			r.Pools[pool("10.0.0.0/8")] = cluster.Pool{Key: pool("10.0.0.0/8"), Holders: []cluster.HostID{id("b")}}
		}},
		{"gateway 10.9.0.1 outside", pools(vxlan, func(p *cluster.Pool) { p.Gateway = addr("10.9.0.1") })},
		{"cursor 10.9.0.1 outside", pools(vxlan, func(p *cluster.Pool) { p.Cursor = addr("10.9.0.1") })},
		{"reserved addresses unsorted", pools(vxlan, func(p *cluster.Pool) { p.Reserved = []netip.Addr{addr("10.1.0.9"), addr("10.1.0.9")} })},
		{"reserved 10.1.0.101", pools(vxlan, func(p *cluster.Pool) { p.Reserved = []netip.Addr{addr("10.1.0.101")} })},
		{"holders out of order", pools(vxlan, func(p *cluster.Pool) { p.Holders = []cluster.HostID{id("b"), id("b")} })},
		{"unknown or forgotten", pools(vxlan, func(p *cluster.Pool) { p.Holders = []cluster.HostID{id("a")} })},
		{"kept for nobody", func(r *cluster.Registry) { r.Pools[pool("10.3.0.0/24")] = cluster.Pool{Key: pool("10.3.0.0/24")} }},

		{"is filed as", lease(kept, func(l *cluster.Lease) { l.ID++ })},
		{"at index", func(r *cluster.Registry) {
			r.Leases[1000] = cluster.Lease{ID: 1000, Pool: vxlan, Block: netip.MustParsePrefix("10.1.0.128/32"), Holder: id("b")}
		}},
		{"unknown host", lease(kept, func(l *cluster.Lease) { l.Holder = "x" })},
		{"in quarantine for no network", func(r *cluster.Registry) {
			n, _ := r.NetworkOf([]cluster.PoolKey{macvlan})
			delete(r.Networks, n.ID)
		}},
		{"unknown pool", lease(kept, func(l *cluster.Lease) { l.Pool = pool("10.9.0.0/24") })},
		{"not aligned", lease(kept, func(l *cluster.Lease) { l.Block = netip.MustParsePrefix("10.9.0.0/29") })},
		{"not aligned", lease(kept, func(l *cluster.Lease) { l.Block = netip.MustParsePrefix("10.1.0.129/29") })},
		{"larger than 64", lease(kept, func(l *cluster.Lease) { l.Block = netip.MustParsePrefix("10.1.0.128/25") })},
		{"not aligned", lease(kept, func(l *cluster.Lease) { l.Block = netip.Prefix{} })},
		{"unsorted, or outside", lease(kept, func(l *cluster.Lease) { l.Without = []netip.Addr{addr("10.1.0.200")} })},
		{"nothing is left", lease(quarantined, func(l *cluster.Lease) {
			l.Without = nil
			for a := l.Block.Addr(); l.Block.Contains(a); a = a.Next() {
				l.Without = append(l.Without, a)
			}
		})},
		{"overlap", func(r *cluster.Registry) {
			r.Leases[1] = cluster.Lease{ID: 1, Pool: vxlan, Block: netip.PrefixFrom(r.Leases[kept].Block.Addr(), 32), Holder: id("c")}
		}},

		{"network", net(vxlan, func(n *cluster.Network) { n.ID = 0 })},
		{"pools out of order", net(vxlan, func(n *cluster.Network) { n.Pools = nil })},
		{"unknown pool", net(vxlan, func(n *cluster.Network) { n.Pools = []cluster.PoolKey{pool("10.9.0.0/24")} })},
		{"share pool", net(vxlan, func(n *cluster.Network) { n.Pools = []cluster.PoolKey{macvlan} })},
		{"not fully defined", net(vxlan, func(n *cluster.Network) { n.Def.Mode = "" })},
		{"has VNI 0", net(vxlan, func(n *cluster.Network) { n.Def.VNI = 0 })},
		{"share VNI", func(r *cluster.Registry) {
			n, _ := r.NetworkOf([]cluster.PoolKey{vxlan})
			net(macvlan, func(m *cluster.Network) { m.Def.VNI = n.Def.VNI })(r)
		}},
		{"unknown or forgotten", net(vxlan, func(n *cluster.Network) { n.Holders = []cluster.HostID{id("a")} })},
		{"kept for nobody", func(r *cluster.Registry) {
			r.Networks[9] = cluster.Network{ID: 9, Pools: []cluster.PoolKey{pool("10.3.0.0/24")}}
		}},
	} {
		r, err := rules.Decode([]byte(text(t, l.r)))
		if err != nil {
			t.Fatal(err)
		}
		if err := rules.Check(r); err != nil {
			t.Fatal(err)
		}
		tc.change(r)
		first := rules.Check(r)
		if first == nil || !strings.Contains(first.Error(), tc.words) {
			t.Errorf("%s: %v", tc.words, first)
			continue
		}
		for range 5 {
			if again := rules.Check(r); again == nil || again.Error() != first.Error() {
				t.Errorf("%s: %v, and then %v", tc.words, first, again)
			}
		}
	}
	// An address that was carved out is nobody's, so it can be another's.
	r, _ := rules.Decode([]byte(text(t, l.r)))
	r.Leases[1] = cluster.Lease{ID: 1, Pool: vxlan, Block: netip.PrefixFrom(r.Leases[kept].Without[0], 32), Holder: id("c")}
	if err := rules.Check(r); err != nil {
		t.Error(err)
	}
}
