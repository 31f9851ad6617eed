package rules_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

var (
	someHosts = []string{"a", "b", "c", "d"}
	somePools = []string{"10.1.0.0/24", "10.1.0.0/28", "10.1.0.64/29", "10.2.0.0/30", "10.3.0.0/31", "10.4.0.1/32", "fd00::/48", "fd01::/64", "fd02::/120", "fd02::/126"}
)

// anyCommand draws commands that collide often. Sessions and request numbers
// are mostly right.
func anyCommand(t *rapid.T, r *cluster.Registry) cluster.Command {
	name := rapid.SampledFrom(someHosts).Draw(t, "host")
	c := cluster.Command{Host: id(name), Session: r.Hosts[id(name)].Session, Request: r.Requests[id(name)].Request + 1}
	switch rapid.IntRange(0, 19).Draw(t, "slip") {
	case 0:
		c.Session = rapid.Uint64Range(0, r.Index+1).Draw(t, "session")
	case 1:
		c.Request = rapid.Uint64Range(0, c.Request+1).Draw(t, "request")
	}
	prefix := netip.MustParsePrefix(rapid.SampledFrom(somePools).Draw(t, "pool"))
	k := cluster.PoolKey{Space: rapid.SampledFrom([]string{"", "", "", "x"}).Draw(t, "space"), Prefix: prefix}
	addr := prefix.Addr()
	for range rapid.IntRange(0, 17).Draw(t, "offset") {
		addr = addr.Next()
	}
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0:
		h := hello(name, rapid.Uint64Range(1, 3).Draw(t, "nonce"))
		if rapid.IntRange(0, 4).Draw(t, "rename") == 0 {
			h.Hello.Name = rapid.SampledFrom(someHosts).Draw(t, "name")
			h.Hello.Address = hello(h.Hello.Name, 0).Hello.Address
		}
		if rapid.IntRange(0, 4).Draw(t, "moved") == 0 {
			h.Hello.Machine = cluster.Machine{ID: rapid.SampledFrom([]string{"", "m1", "m2"}).Draw(t, "machine")}
		}
		h.Hello.Claims = someClaims(t, r)
		if h.Hello.Gen = r.Gen; rapid.IntRange(0, 9).Draw(t, "unprepared") == 0 {
			h.Hello.Gen = rapid.Uint64Range(0, 3).Draw(t, "prepared")
		}
		return h
	case 1, 2:
		c.AttachPool = &cluster.AttachPool{Space: k.Space, Prefix: prefix, Name: rapid.SampledFrom([]string{"", "web"}).Draw(t, "name")}
	case 3:
		c.AttachPool = &cluster.AttachPool{
			Space: k.Space, Name: rapid.SampledFrom([]string{"", "web"}).Draw(t, "name"), V6: prefix.Addr().Is6(),
			From: []netip.Prefix{prefix}, Bits: prefix.Bits() + rapid.IntRange(-1, 4).Draw(t, "bits"), Avoid: []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())},
		}
	case 4:
		c.DetachPool = &cluster.DetachPool{Pool: k}
	case 5:
		c.SetGateway = &cluster.SetGateway{Pool: k}
		if rapid.Bool().Draw(t, "explicit") {
			c.SetGateway.Addr = addr
		}
	case 6:
		c.Reserve = &cluster.Reserve{Pool: k, Addr: addr}
	case 7, 8:
		c.Grant = &cluster.Grant{Pool: k, Want: rapid.SampledFrom([]int{-1, 0, 1, 2, 5, 8, 64, 1 << 40}).Draw(t, "want")}
		if rapid.IntRange(0, 3).Draw(t, "ranged") == 0 {
			c.Grant.Range = netip.PrefixFrom(addr, min(addr.BitLen(), prefix.Bits()+rapid.IntRange(-1, 4).Draw(t, "range")))
		}
	case 9:
		c.GrantExact = &cluster.GrantExact{Pool: k, Addr: addr}
	case 10, 13, 14, 15:
		lease := r.Leases[rapid.SampledFrom(append(slices.Sorted(maps.Keys(r.Leases)), 0)).Draw(t, "lease")]
		c.Release = &cluster.Release{Lease: lease.ID}
		if lease.ID != 0 && rapid.IntRange(0, 3).Draw(t, "right") > 0 {
			c.Host, c.Session, c.Request = lease.Holder, r.Hosts[lease.Holder].Session, r.Requests[lease.Holder].Request+1
		}
		if lease.ID != 0 && rapid.IntRange(0, 3).Draw(t, "carve") > 0 {
			c.Release.Addr = lease.Block.Addr()
			for range rapid.IntRange(0, 8).Draw(t, "offset") {
				c.Release.Addr = c.Release.Addr.Next()
			}
		}
	case 11:
		def := cluster.Definition{
			MTU: rapid.SampledFrom([]int{0, 0, 1400}).Draw(t, "mtu"), VNI: rapid.SampledFrom([]uint32{0, 0, 0, 4097, 7}).Draw(t, "vni"),
			Underlay: rapid.SampledFrom([]string{"", "ipv4", "ipv6"}).Draw(t, "underlay"),
			Mode:     rapid.SampledFrom([]string{"", "vxlan", "macvlan", "ipvlan"}).Draw(t, "mode"),
			Submode:  rapid.SampledFrom([]string{"", "", "bridge", "l2", "l3"}).Draw(t, "submode"),
			VLAN:     rapid.SampledFrom([]string{"", "", "50", "60"}).Draw(t, "vlan"),
		}
		c.AttachNetwork = &cluster.AttachNetwork{Pools: []cluster.PoolKey{k}, Def: def}
		if rapid.Bool().Draw(t, "dual") {
			other := netip.MustParsePrefix(rapid.SampledFrom(somePools).Draw(t, "pool2"))
			c.AttachNetwork.Pools = append(c.AttachNetwork.Pools, cluster.PoolKey{Space: k.Space, Prefix: other})
		}
	case 12:
		c.DetachNetwork = &cluster.DetachNetwork{Network: rapid.Uint32Range(0, r.NextNet).Draw(t, "network")}
	case 16:
		c.Forget = &cluster.Forget{Host: id(rapid.SampledFrom(someHosts).Draw(t, "whom")), Dead: rapid.Bool().Draw(t, "dead")}
	case 17:
		c.Confirm = &cluster.Confirm{}
	case 18:
		c.Leave = &cluster.Leave{}
	case 19:
		if rapid.IntRange(0, 3).Draw(t, "rare") > 0 {
			return cluster.Command{Found: &cluster.Found{Cluster: "c1"}}
		}
		c.Dissolve = &cluster.Dissolve{Into: rapid.SampledFrom([]cluster.ID{"c0", "c1"}).Draw(t, "into")}
	}
	return c
}

// someClaims are blocks that a host might believe to be its own.
func someClaims(t *rapid.T, r *cluster.Registry) []cluster.Claim {
	var out []cluster.Claim
	for range rapid.IntRange(0, 2).Draw(t, "claims") {
		prefix := netip.MustParsePrefix(rapid.SampledFrom(somePools).Draw(t, "claimed"))
		addr := prefix.Addr()
		for range rapid.IntRange(0, 9).Draw(t, "offset") {
			addr = addr.Next()
		}
		out = append(out, cluster.Claim{
			Lease: rapid.Uint64Range(r.Offset, r.Index+2).Draw(t, "number"), Pool: cluster.PoolKey{Prefix: prefix},
			Block:   netip.PrefixFrom(addr, addr.BitLen()-rapid.IntRange(0, 4).Draw(t, "size")).Masked(),
			Without: rapid.SampledFrom([]uint64{0, 0, 1, 6, 1 << 40}).Draw(t, "without"),
		})
	}
	return out
}

func encode(t *rapid.T, r *cluster.Registry) []byte {
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// step is one command of a log, and the registry after it. A rebuilt registry
// begins a new log.
type step struct {
	index uint64
	cmd   []byte
	state *cluster.Registry
	text  []byte
}

// history draws a log that has been lost and rebuilt a few times.
type history struct {
	t     *rapid.T
	steps []step
}

func (h *history) last() *cluster.Registry { return h.steps[len(h.steps)-1].state }

// apply does a command, tests what every step must keep, and does it again.
func (h *history) apply(c cluster.Command, gap uint64) cluster.Result {
	b, err := json.Marshal(c)
	if err != nil {
		h.t.Fatal(err)
	}
	before, index := rules.New(), gap
	if len(h.steps) > 0 && c.Rebuild == nil {
		before = h.last()
		index = after(before) + gap - 1
	}
	next, res := rules.Apply(before, c, index)
	if err := rules.Check(next); err != nil {
		h.t.Fatalf("after %s: %v", b, err)
	}
	if next.Index != index+next.Offset {
		h.t.Fatalf("after %s: number %d at index %d, offset %d", b, next.Index, index, next.Offset)
	}
	if err := keeps(before, next, c, res); err != nil {
		h.t.Fatalf("%s answered %+v: %v", b, res, err)
	}
	h.repeat(next, c, index+1, res)
	h.steps = append(h.steps, step{index, b, next, encode(h.t, next)})
	return res
}

// repeat does a command again, as when its answer was lost.
func (h *history) repeat(r *cluster.Registry, c cluster.Command, index uint64, res cluster.Result) {
	if a, ok := r.Requests[c.Host]; c.Hello == nil && (!ok || a.Request != c.Request || a.Result.Index != res.Index) {
		return // it was not taken down
	}
	next, again := rules.Apply(r, c, index)
	if c.Hello != nil && res.Refused != nil {
		again.Index = res.Index // a refused Hello is none
	}
	if !reflect.DeepEqual(again, res) {
		h.t.Fatalf("repeated, %+v was answered %+v, at first %+v", c, again, res)
	}
	was := *r
	was.Index = next.Index
	if !bytes.Equal(encode(h.t, next), encode(h.t, &was)) {
		h.t.Fatalf("repeated, %+v was done again", c)
	}
}

// claimsOf is what a host truly holds.
func claimsOf(r *cluster.Registry, host cluster.HostID) []cluster.Claim {
	var out []cluster.Claim
	for _, n := range slices.Sorted(maps.Keys(r.Leases)) {
		if l := r.Leases[n]; l.Holder == host {
			out = append(out, l.Claim())
		}
	}
	return out
}

// lose rebuilds the registry from an older one. The hosts testify to what they
// have now.
func (h *history) lose() {
	base, now := rapid.SampledFrom(h.steps).Draw(h.t, "base").state, h.last()
	if base.Cluster == "" || base.Dissolved != "" {
		return
	}
	var heard []rules.Testimony
	for _, id := range slices.Sorted(maps.Keys(now.Hosts)) {
		if rapid.Bool().Draw(h.t, "heard") {
			heard = append(heard, rules.Testimony{Host: now.Hosts[id], Claims: append(claimsOf(now, id), someClaims(h.t, now)...)})
		}
	}
	was := encode(h.t, base)
	next, _ := rules.Renew(base, now.Gen+1, heard)
	slices.Reverse(heard)
	if again, _ := rules.Renew(base, now.Gen+1, heard); !bytes.Equal(encode(h.t, again), encode(h.t, next)) {
		h.t.Fatal("the same testimony gave another registry")
	}
	if !bytes.Equal(encode(h.t, base), was) {
		h.t.Fatal("the copy was changed")
	}
	if res := h.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: next}}, 2); res.Refused != nil {
		h.t.Fatalf("rebuild: %v", res.Refused)
	}
}

// The rules under random logs: every registry is sound, none is changed after
// it was handed out, a replay from the start or from a snapshot gives the same
// bytes, a repeated command is answered as before, and each kind of command
// answers as its documentation says.
func TestRandomLogs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{t: t}
		h.apply(cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
		for _, name := range someHosts {
			h.apply(hello(name, 1), 1)
		}
		for range rapid.IntRange(1, 60).Draw(t, "length") {
			if rapid.IntRange(0, 30).Draw(t, "lost") == 0 {
				h.lose()
				continue
			}
			h.apply(anyCommand(t, h.last()), rapid.Uint64Range(1, 3).Draw(t, "gap"))
		}

		again := rules.New()
		snapshot := rapid.IntRange(0, len(h.steps)-1).Draw(t, "snapshot")
		for i, s := range h.steps {
			if !bytes.Equal(encode(t, s.state), s.text) {
				t.Fatalf("the registry after %s was changed later", s.cmd)
			}
			var c cluster.Command
			if err := json.Unmarshal(s.cmd, &c); err != nil {
				t.Fatalf("decode %s: %v", s.cmd, err)
			}
			if c.Rebuild != nil {
				again = nil
			}
			again, _ = rules.Apply(again, c, s.index)
			if i == snapshot {
				var err error
				if again, err = rules.Decode(encode(t, again)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(encode(t, again), s.text) {
				t.Fatalf("the replay differs after %s", s.cmd)
			}
			decoded, err := rules.Decode(s.text)
			if err != nil || !reflect.DeepEqual(decoded, again) {
				t.Fatalf("decoded, the registry is %+v (%v), not %+v", decoded, err, again)
			}
		}
	})
}

// However much of the end of a log is lost: when all hosts testify to what they
// hold, each holds it in the rebuilt registry, and nothing but that is leased
// anew. The exception is a pool in the way of which stands one that the
// lost end had dropped.
func TestTruthfulClaimsSurvive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{t: t}
		h.apply(cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
		for _, name := range someHosts {
			h.apply(hello(name, 1), 1)
		}
		for range rapid.IntRange(5, 60).Draw(t, "length") {
			h.apply(anyCommand(t, h.last()), 1)
		}
		base, now := rapid.SampledFrom(h.steps).Draw(t, "base").state, h.last()
		var heard []rules.Testimony
		for _, id := range slices.Sorted(maps.Keys(now.Hosts)) {
			if !now.Hosts[id].Tombstone {
				heard = append(heard, rules.Testimony{Host: now.Hosts[id], Claims: claimsOf(now, id)})
			}
		}
		next, no := rules.Renew(base, 2, heard)
		lost := map[uint64]bool{}
		for _, u := range no {
			if lost[u.Claim.Lease] = true; !strings.Contains(u.Why, "is not known, and overlaps") {
				t.Fatalf("refused %+v", u)
			}
		}
		for n, l := range now.Leases {
			got, kept := next.Leases[n]
			if now.Hosts[l.Holder].Tombstone || lost[n] {
				continue
			}
			if !kept || !got.Equal(l) {
				t.Fatalf("lease %+v became %+v", l, got)
			}
		}
		for n := range next.Leases {
			if _, was := base.Leases[n]; !was && now.Leases[n].ID == 0 {
				t.Fatalf("lease %d came from nowhere", n)
			}
		}
	})
}
