package rules

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// number is an address as a 128-bit integer. IPv4 addresses occupy the low 32
// bits.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) addr(width int) netip.Addr {
	if width == 32 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n.lo))))
	}
	b := binary.BigEndian.AppendUint64(nil, n.hi)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, n.lo)))
}

func (n number) compare(m number) int {
	return cmp.Or(cmp.Compare(n.hi, m.hi), cmp.Compare(n.lo, m.lo))
}

// plus reports false when the sum needs more than 128 bits.
func (n number) plus(m number) (number, bool) {
	lo, carry := bits.Add64(n.lo, m.lo, 0)
	hi, carry := bits.Add64(n.hi, m.hi, carry)
	return number{hi, lo}, carry == 0
}

// after and before are the neighbours of n. There is none after the last number;
// before the first one is the last.
func (n number) after() (number, bool) { return n.plus(number{0, 1}) }
func (n number) before() number        { m, _ := n.plus(mask(128)); return m }

// mask returns 2^k - 1, for k from 0 to 128.
func mask(k int) number {
	switch {
	case k >= 128:
		return number{^uint64(0), ^uint64(0)}
	case k >= 64:
		return number{1<<(k-64) - 1, ^uint64(0)}
	default:
		return number{0, 1<<k - 1}
	}
}

// alignUp returns the first multiple of 2^k that is not below n.
func (n number) alignUp(k int) (number, bool) {
	m := mask(k)
	sum, ok := n.plus(m)
	return number{sum.hi &^ m.hi, sum.lo &^ m.lo}, ok
}

// span is a closed interval of addresses.
type span struct{ first, last number }

func spanOf(p netip.Prefix) span {
	first, m := numberOf(p.Masked().Addr()), mask(p.Addr().BitLen()-p.Bits())
	return span{first, number{first.hi | m.hi, first.lo | m.lo}}
}

func (s span) contains(n number) bool {
	return s.first.compare(n) <= 0 && n.compare(s.last) <= 0
}

// within is the part of s inside o; its first address is behind its last when
// there is none.
func (s span) within(o span) span {
	if o.first.compare(s.first) > 0 {
		s.first = o.first
	}
	if o.last.compare(s.last) < 0 {
		s.last = o.last
	}
	return s
}

// disjoint sorts spans and joins those that overlap.
func disjoint(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return a.first.compare(b.first) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.first.compare(out[n-1].last) <= 0 {
			if s.last.compare(out[n-1].last) > 0 {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// firstFree finds the first aligned block of 2^k addresses that begins at or
// after from, lies inside the span and touches none of taken, which is sorted
// and disjoint. It takes one step for each of taken, whatever the sizes are.
func (s span) firstFree(from number, k int, taken []span) (span, bool) {
	if from.compare(s.first) < 0 {
		from = s.first
	}
	at, ok := from.alignUp(k)
	for i := 0; ok; i++ {
		m := mask(k)
		block := span{at, number{at.hi | m.hi, at.lo | m.lo}}
		if block.last.compare(s.last) > 0 {
			return span{}, false
		}
		for i < len(taken) && taken[i].last.compare(block.first) < 0 {
			i++
		}
		if i == len(taken) || taken[i].first.compare(block.last) > 0 {
			return block, true
		}
		if at, ok = taken[i].last.after(); ok {
			at, ok = at.alignUp(k)
		}
	}
	return span{}, false
}

// prefix names an aligned block of 2^k addresses.
func (s span) prefix(width, k int) netip.Prefix {
	return netip.PrefixFrom(s.first.addr(width), width-k)
}
