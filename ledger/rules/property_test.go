package rules_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

var (
	someHosts = []string{"a", "b", "c"}
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
	switch rapid.IntRange(0, 12).Draw(t, "kind") {
	case 0:
		h := hello(name, rapid.Uint64Range(1, 3).Draw(t, "nonce"))
		if rapid.IntRange(0, 4).Draw(t, "rename") == 0 {
			h.Hello.Name = rapid.SampledFrom(someHosts).Draw(t, "name")
			h.Hello.Address = hello(h.Hello.Name, 0).Hello.Address
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
	case 10:
		var ids []uint64
		for i := range r.Index + 1 {
			if _, ok := r.Leases[i]; ok {
				ids = append(ids, i)
			}
		}
		c.Release = &cluster.Release{Lease: rapid.SampledFrom(append(ids, 0)).Draw(t, "lease")}
	case 11:
		def := cluster.Definition{
			MTU: rapid.SampledFrom([]int{0, 0, 1400}).Draw(t, "mtu"), VNI: rapid.SampledFrom([]uint32{0, 0, 0, 4097, 7}).Draw(t, "vni"),
			Underlay: rapid.SampledFrom([]string{"", "ipv4", "ipv6"}).Draw(t, "underlay"),
		}
		c.AttachNetwork = &cluster.AttachNetwork{Pools: []cluster.PoolKey{k}, Def: def}
		if rapid.Bool().Draw(t, "dual") {
			other := netip.MustParsePrefix(rapid.SampledFrom(somePools).Draw(t, "pool2"))
			c.AttachNetwork.Pools = append(c.AttachNetwork.Pools, cluster.PoolKey{Space: k.Space, Prefix: other})
		}
	case 12:
		c.DetachNetwork = &cluster.DetachNetwork{Network: rapid.Uint32Range(0, r.NextNet).Draw(t, "network")}
	}
	return c
}

func encode(t *rapid.T, r *cluster.Registry) []byte {
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The rules under random logs: every registry is sound, none is changed after
// it was handed out, a replay from the start or from a snapshot gives the same
// bytes, and each kind of command answers as its documentation says.
func TestRandomLogs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, _ := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
		type step struct {
			cmd   []byte
			state *cluster.Registry
			text  []byte
		}
		var steps []step
		for _, name := range someHosts {
			c := hello(name, 1)
			r, _ = rules.Apply(r, c, r.Index+1)
			b, _ := json.Marshal(c)
			steps = append(steps, step{b, r, encode(t, r)})
		}
		for range rapid.IntRange(1, 60).Draw(t, "length") {
			c := anyCommand(t, r)
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			next, res := rules.Apply(r, c, r.Index+uint64(rapid.IntRange(1, 3).Draw(t, "gap")))
			if err := rules.Check(next); err != nil {
				t.Fatalf("after %s: %v", b, err)
			}
			if err := keeps(r, next, c, res); err != nil {
				t.Fatalf("%s answered %+v: %v", b, res, err)
			}
			r = next
			steps = append(steps, step{b, r, encode(t, r)})
		}

		again, _ := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: "c1"}}, 1)
		snapshot := rapid.IntRange(0, len(steps)-1).Draw(t, "snapshot")
		for i, s := range steps {
			if !bytes.Equal(encode(t, s.state), s.text) {
				t.Fatalf("the registry after %s was changed later", s.cmd)
			}
			var c cluster.Command
			if err := json.Unmarshal(s.cmd, &c); err != nil {
				t.Fatalf("decode %s: %v", s.cmd, err)
			}
			again, _ = rules.Apply(again, c, s.state.Index)
			if i == snapshot {
				var err error
				if again, err = rules.Decode(encode(t, again)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(encode(t, again), s.text) {
				t.Fatalf("the replay differs after %s", s.cmd)
			}
		}
	})
}

// keeps tests one step against the words of cluster/command.go.
func keeps(before, after *cluster.Registry, c cluster.Command, res cluster.Result) error {
	if res.Refused != nil {
		if res.Refused.Text == "" || res.Refused.Code == "" {
			return fmt.Errorf("a refusal without words")
		}
		if len(after.Leases) != len(before.Leases) || len(after.Pools) != len(before.Pools) || len(after.Networks) != len(before.Networks) {
			return fmt.Errorf("a refused command changed something")
		}
		if res.Refused.Code == cluster.Full && c.Grant != nil {
			return really(before, c.Grant)
		}
		return nil
	}
	if before.Requests[c.Host].Request == c.Request {
		return nil
	}
	switch {
	case c.Grant != nil:
		l := res.Lease
		p := before.Pools[l.Pool]
		if c.Grant.Range.IsValid() && !(c.Grant.Range.Contains(l.Block.Addr()) && l.Block.Bits() >= c.Grant.Range.Bits()) {
			return fmt.Errorf("block %s outside range", l.Block)
		}
		bits := l.Pool.Prefix.Addr().BitLen() - l.Pool.Prefix.Bits()
		size := 1 << (l.Block.Addr().BitLen() - l.Block.Bits())
		if bits < 20 && size > max(1, 1<<bits/(2*max(1, len(p.Holders)))) {
			return fmt.Errorf("block %s of %d addresses is more than the host's share", l.Block, size)
		}
		if c.Grant.Want > 0 && size >= 2*c.Grant.Want {
			return fmt.Errorf("block %s is larger than was wanted", l.Block)
		}
		if size > 1 || endpoint(p, l.Block.Addr()) {
			return nil
		}
		return fmt.Errorf("block %s is good for nothing", l.Block)
	case c.GrantExact != nil:
		if !res.Lease.Block.Contains(c.GrantExact.Addr) || res.Lease.Holder != c.Host {
			return fmt.Errorf("wrong lease")
		}
	case c.Release != nil:
		if _, ok := after.Leases[c.Release.Lease]; ok {
			return fmt.Errorf("still leased")
		}
	case c.AttachNetwork != nil && c.AttachNetwork.Def.MTU != 0:
		if res.Network.Def.MTU != c.AttachNetwork.Def.MTU {
			return fmt.Errorf("a contradiction was accepted")
		}
	}
	return nil
}

// endpoint reports whether an address may be given to one, written another way
// than in the rules.
func endpoint(p cluster.Pool, a netip.Addr) bool {
	if a == p.Gateway {
		return false
	}
	for _, b := range p.Reserved {
		if a == b {
			return false
		}
	}
	if a.Is4() && p.Key.Prefix.Bits() < 31 && (!p.Key.Prefix.Contains(a.Prev()) || !p.Key.Prefix.Contains(a.Next())) {
		return false
	}
	return a.Is4() || p.Key.Prefix.Bits() >= 127 || p.Key.Prefix.Contains(a.Prev())
}

// really verifies, address by address, that a range without a free address has
// none.
func really(r *cluster.Registry, c *cluster.Grant) error {
	p := r.Pools[c.Pool]
	in := c.Pool.Prefix
	if c.Range.IsValid() {
		in = c.Range.Masked()
	}
	leases := r.LeasesOf(c.Pool, "")
next:
	for a, n := in.Addr(), 0; in.Contains(a) && n < 1<<12; a, n = a.Next(), n+1 {
		for _, l := range leases {
			if l.Block.Contains(a) {
				continue next
			}
		}
		if endpoint(p, a) {
			return fmt.Errorf("%s is free", a)
		}
	}
	return nil
}
