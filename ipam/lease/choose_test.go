package lease

import (
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// offset returns the nth address of a prefix.
func offset(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// drawScope draws a small pool of either family, with blocks that partition
// a part of it.
func drawScope(t *rapid.T) (Scope, []Block) {
	base := rapid.SampledFrom([]string{"10.9.8.0", "fd00:1::"}).Draw(t, "base")
	host := rapid.IntRange(0, 6).Draw(t, "host bits")
	pool := netip.PrefixFrom(addr(base), addr(base).BitLen()-host)
	s := Scope{Pool: pool, Within: pool}
	if host > 0 && rapid.Bool().Draw(t, "range") {
		sub := rapid.IntRange(0, host-1).Draw(t, "range bits")
		s.Within = netip.PrefixFrom(offset(pool, rapid.IntRange(0, 1<<host-1).Draw(t, "range at")), pool.Addr().BitLen()-sub).Masked()
	}
	some := func(label string) netip.Addr { return offset(pool, rapid.IntRange(0, 1<<host-1).Draw(t, label)) }
	if rapid.Bool().Draw(t, "has gateway") {
		s.Gateway = some("gateway")
	}
	for range rapid.IntRange(0, 3).Draw(t, "reserved") {
		s.Reserved = append(s.Reserved, some("reserve"))
	}
	blockBits := rapid.IntRange(0, host).Draw(t, "block bits")
	var blocks []Block
	for at := 0; at < 1<<host; at += 1 << blockBits {
		if rapid.Bool().Draw(t, "leased") {
			b := Block{Lease: uint64(at + 1), Prefix: netip.PrefixFrom(offset(pool, at), pool.Addr().BitLen()-blockBits)}
			if rapid.Bool().Draw(t, "carved") {
				b = b.with(offset(b.Prefix, rapid.IntRange(0, 1<<blockBits-1).Draw(t, "hole")))
			}
			blocks = append(blocks, b)
		}
	}
	return s, blocks
}

func TestChooseTakesWhatIsFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, blocks := drawScope(t)
		now := time.Unix(1e9, 0)
		used := map[netip.Addr]bool{}
		before := map[netip.Addr]Freed{}
		names := rapid.SampledFrom([]string{"", "web", "db"})
		for a := s.Pool.Addr(); s.Pool.Contains(a); a = a.Next() {
			if rapid.Bool().Draw(t, "used") {
				used[a] = true
			} else if rapid.Bool().Draw(t, "had") {
				before[a] = Freed{At: now.Add(-time.Duration(rapid.IntRange(0, 100).Draw(t, "age")) * time.Second), Name: names.Draw(t, "had by")}
			}
		}
		taken := func(a netip.Addr) bool { return used[a] }
		var fit []netip.Addr
		for _, b := range blocks {
			for a := range b.addrs() {
				if !used[a] && s.Within.Contains(a) && s.Usable(a) {
					fit = append(fit, a)
				}
			}
		}
		name := names.Draw(t, "name")
		got, ok := choose(s, blocks, taken, before, name)
		if ok != (len(fit) > 0) {
			t.Fatalf("choose found %v, %v; candidates %v", got, ok, fit)
		}
		free, cool := count(s, blocks, taken, before, now)
		if free != len(fit) || cool > free {
			t.Fatalf("count says %d free, %d cool; candidates %v", free, cool, fit)
		}
		shuffled := slices.Clone(blocks)
		slices.Reverse(shuffled)
		if again, _ := choose(s, shuffled, taken, before, name); again != got {
			t.Fatalf("chose %s, and %s from the same blocks in another order", got, again)
		}
		if !ok {
			return
		}
		if !slices.Contains(fit, got) {
			t.Fatalf("chose %s, which is not among %v", got, fit)
		}
		gotBefore, had := before[got]
		for _, a := range fit {
			f, aHad := before[a]
			if name != "" && aHad && f.Name == name && !(had && gotBefore.Name == name) {
				t.Fatalf("chose %s although %s had %s", got, name, a)
			}
			if had && gotBefore.Name == name && name != "" {
				continue
			}
			if had && !aHad {
				t.Fatalf("chose %s, used before, although nobody had %s", got, a)
			}
			if had && f.At.Before(gotBefore.At) {
				t.Fatalf("chose %s, freed at %s, although %s was freed at %s", got, gotBefore.At, a, f.At)
			}
		}
	})
}

func TestSizeCountsWhatEndpointsCanHave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, _ := drawScope(t)
		want := 0
		each(s.Pool, s.Within, func(a netip.Addr) bool {
			if s.Usable(a) {
				want++
			}
			return true
		})
		if got := s.Size(s.Within); got != want {
			t.Fatalf("Size(%s) = %d, counted %d", s.Within, got, want)
		}
	})
	if n := (Scope{Pool: prefix("fd00::/64")}).Size(prefix("fd00::/64")); n != math.MaxInt {
		t.Errorf("size of a /64 = %d", n)
	}
}

func TestLowestOutsideAvoidsForeignBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, blocks := drawScope(t)
		var foreign []netip.Prefix
		for _, b := range blocks {
			foreign = append(foreign, b.Prefix)
		}
		var want netip.Addr
		for a := s.Pool.Addr(); s.Pool.Contains(a); a = a.Next() {
			if s.Usable(a) && !slices.ContainsFunc(foreign, func(b netip.Prefix) bool { return b.Contains(a) }) {
				want = a
				break
			}
		}
		got, ok := s.LowestOutside(foreign, func(netip.Addr) bool { return false })
		if got != want || ok != want.IsValid() {
			t.Fatalf("LowestOutside = %v, want %v", got, want)
		}
	})
}

func TestEdge(t *testing.T) {
	for _, c := range []struct {
		pool, addr string
		want       bool
	}{
		{"10.0.0.0/24", "10.0.0.0", true},
		{"10.0.0.0/24", "10.0.0.255", true},
		{"10.0.0.0/24", "10.0.0.1", false},
		{"10.0.0.0/31", "10.0.0.0", false},
		{"10.0.0.0/31", "10.0.0.1", false},
		{"10.0.0.7/32", "10.0.0.7", false},
		{"255.255.255.0/24", "255.255.255.255", true},
		{"fd00::/64", "fd00::", true},
		{"fd00::/64", "fd00::ffff:ffff:ffff:ffff", false},
		{"fd00::/127", "fd00::", false},
	} {
		if got := Edge(prefix(c.pool), addr(c.addr)); got != c.want {
			t.Errorf("Edge(%s, %s) = %v", c.pool, c.addr, got)
		}
	}
}

func TestLast(t *testing.T) {
	for p, want := range map[string]string{
		"10.0.0.0/8": "10.255.255.255", "10.0.0.8/29": "10.0.0.15", "10.0.0.1/32": "10.0.0.1", "0.0.0.0/0": "255.255.255.255",
		"fd00::/64": "fd00::ffff:ffff:ffff:ffff", "fd00::1/128": "fd00::1",
	} {
		if got := Last(prefix(p)); got != addr(want) {
			t.Errorf("Last(%s) = %s, want %s", p, got, want)
		}
	}
}
