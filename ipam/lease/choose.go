package lease

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// CoolDown is how long a freed address is better left alone, so that no host
// still forwards it to where it was. It is a preference: an address that
// cooled too little is used before a start fails.
const CoolDown = 60 * time.Second

// Scope says which addresses of a pool may be handed to an endpoint.
type Scope struct {
	Pool     netip.Prefix
	Within   netip.Prefix // the --ip-range, or the pool itself
	Gateway  netip.Addr   // zero: none
	Reserved []netip.Addr
}

// Usable reports whether an endpoint may have the address at all. Without
// regard to Within: --ip may lie outside the --ip-range.
func (s Scope) Usable(a netip.Addr) bool {
	return s.Pool.Contains(a) && !Edge(s.Pool, a) && a != s.Gateway && !slices.Contains(s.Reserved, a)
}

// Edge reports whether the address names the subnet rather than a host:
// network and broadcast address of IPv4 (but for /31 and /32, RFC 3021), the
// subnet-router anycast address of IPv6 (RFC 4291 2.6.1; but for /127, RFC 6164).
func Edge(pool netip.Prefix, a netip.Addr) bool {
	if pool.Addr().BitLen()-pool.Bits() <= 1 {
		return false
	}
	return a == pool.Masked().Addr() || a.Is4() && a == Last(pool)
}

// Last returns the highest address of a prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Common returns the part that two prefixes share: the longer one, or an
// invalid prefix when they share none.
func Common(a, b netip.Prefix) netip.Prefix {
	switch {
	case !a.Overlaps(b):
		return netip.Prefix{}
	case a.Bits() > b.Bits():
		return a
	}
	return b
}

// each calls yield for every address that both prefixes contain, upwards,
// until yield returns false.
func each(a, b netip.Prefix, yield func(netip.Addr) bool) {
	p := Common(a, b)
	if !p.IsValid() {
		return
	}
	for addr := p.Masked().Addr(); p.Contains(addr); addr = addr.Next() {
		if !yield(addr) {
			return
		}
	}
}

// choose picks an address out of blocks for an endpoint of that name: the one
// that the name had last, else the lowest that nobody had, else the one that
// was freed first.
func choose(s Scope, blocks []Block, taken func(netip.Addr) bool, before map[netip.Addr]Freed, name string) (netip.Addr, bool) {
	var named, fresh, oldest netip.Addr
	for _, b := range blocks {
		each(b.Prefix, s.Within, func(a netip.Addr) bool {
			if taken(a) || !s.Usable(a) || !b.Covers(a) {
				return true
			}
			f, had := before[a]
			switch {
			case !had:
				if !fresh.IsValid() || a.Less(fresh) {
					fresh = a
				}
			case !oldest.IsValid() || f.At.Before(before[oldest].At) || f.At.Equal(before[oldest].At) && a.Less(oldest):
				oldest = a
			}
			if had && name != "" && f.Name == name &&
				(!named.IsValid() || f.At.After(before[named].At) || f.At.Equal(before[named].At) && a.Less(named)) {
				named = a
			}
			return true
		})
	}
	for _, a := range []netip.Addr{named, fresh, oldest} {
		if a.IsValid() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// count returns how many addresses of blocks are free, and how many of those
// have cooled.
func count(s Scope, blocks []Block, taken func(netip.Addr) bool, before map[netip.Addr]Freed, now time.Time) (free, cool int) {
	for _, b := range blocks {
		each(b.Prefix, s.Within, func(a netip.Addr) bool {
			if !taken(a) && s.Usable(a) && b.Covers(a) {
				free++
				if f, had := before[a]; !had || now.Sub(f.At) >= CoolDown {
					cool++
				}
			}
			return true
		})
	}
	return free, cool
}

// Size returns how many addresses of a prefix endpoints can have. A prefix
// too large to matter counts as the largest int.
func (s Scope) Size(p netip.Prefix) int {
	p = Common(p, s.Pool)
	if !p.IsValid() {
		return 0
	}
	host := p.Addr().BitLen() - p.Bits()
	if host > 32 {
		return math.MaxInt
	}
	n := 1 << host
	taken := map[netip.Addr]bool{s.Pool.Masked().Addr(): true, Last(s.Pool): true}
	for _, a := range append(slices.Clone(s.Reserved), s.Gateway) {
		taken[a] = true
	}
	for a := range taken {
		if p.Contains(a) && !s.Usable(a) {
			n--
		}
	}
	return n
}

// LowestOutside returns the lowest address of the pool that is neither an
// edge nor reserved, lies in none of the foreign blocks and is not taken: the
// gateway of a user who named none.
func (s Scope) LowestOutside(foreign []netip.Prefix, taken func(netip.Addr) bool) (netip.Addr, bool) {
	for a := s.Pool.Masked().Addr(); s.Pool.Contains(a); a = a.Next() {
		if k := slices.IndexFunc(foreign, func(b netip.Prefix) bool { return b.Contains(a) }); k >= 0 {
			a = Last(foreign[k])
			continue
		}
		if s.Usable(a) && !taken(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
