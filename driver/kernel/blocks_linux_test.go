//go:build kernel

package kernel_test

import (
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// blocks are the routes to a thousand blocks of others, by one next hop.
func blocks(via string) kernel.State {
	want := kernel.State{}
	first := netip.MustParseAddr("10.40.0.0").As4()
	for i := range uint32(1000) {
		b := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(first[:])+8*i)
		want.Put(kernel.FIB{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), 29), Via: addr(via), Dev: "eth0", Src: addr("192.0.2.1")})
	}
	return want
}

// BenchmarkLinuxBlocks is what a host with a thousand blocks of others does: when
// they are all new, when one or all of them are reached by another way, and when
// nothing changed.
//
//	go test -tags kernel -run '^$' -bench Blocks ./driver/kernel
func BenchmarkLinuxBlocks(b *testing.B) {
	s := newSpace(b)
	s.sh("ip link add eth0 type veth peer name sw; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip link set sw up")
	k := s.open()
	pass := func(want kernel.State) int {
		ops := kernel.Diff(mustDump(b, k), want, kernel.Options{})
		if err := k.Do(context.Background(), ops); err != nil {
			b.Fatal(err)
		}
		return len(ops)
	}
	expect := func(got, want int) {
		if got != want {
			b.Fatalf("%d operations, want %d", got, want)
		}
	}
	ways := []kernel.State{blocks("192.0.2.2"), blocks("192.0.2.3")}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			pass(kernel.State{})
			b.StartTimer()
			expect(pass(ways[0]), 1000)
		}
	})
	b.Run("all-switch", func(b *testing.B) {
		pass(ways[0])
		for i := 1; b.Loop(); i++ {
			expect(pass(ways[i%2]), 1000)
		}
	})
	b.Run("one-switches", func(b *testing.B) {
		pass(ways[0])
		one := maps.Clone(ways[0])
		one.Put(ways[1][kernel.FIB{Dst: netip.MustParsePrefix("10.40.0.0/29")}.Key()])
		for i := 1; b.Loop(); i++ {
			expect(pass([]kernel.State{ways[0], one}[i%2]), 1)
		}
	})
	b.Run("still", func(b *testing.B) {
		pass(ways[0])
		for b.Loop() {
			expect(pass(ways[0]), 0)
		}
	})
	apply(b, k, kernel.State{})
}
