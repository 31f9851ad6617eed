package ipam

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// coolDown is how long a freed address is better left alone, so that no host
// still forwards it to where it was. It is a preference: an address that
// cooled too little is used before a start fails.
const coolDown = 60 * time.Second

// scope says which addresses of a pool may be handed to an endpoint.
type scope struct {
	pool     netip.Prefix
	within   netip.Prefix // the --ip-range, or the pool itself
	gateway  netip.Addr   // zero: none
	reserved []netip.Addr
}

// freed is the memory of an address that was in use before.
type freed struct {
	At   time.Time `json:"at"`
	Name string    `json:"name,omitempty"` // container that had it
}

// usable reports whether an endpoint may have the address at all. Without
// regard to within: --ip may lie outside the --ip-range.
func (s scope) usable(a netip.Addr) bool {
	return s.pool.Contains(a) && !edge(s.pool, a) && a != s.gateway && !slices.Contains(s.reserved, a)
}

// edge reports whether the address names the subnet rather than a host:
// network and broadcast address of IPv4 (but for /31 and /32, RFC 3021), the
// subnet-router anycast address of IPv6 (RFC 4291 2.6.1; but for /127, RFC 6164).
func edge(pool netip.Prefix, a netip.Addr) bool {
	if pool.Addr().BitLen()-pool.Bits() <= 1 {
		return false
	}
	return a == pool.Masked().Addr() || a.Is4() && a == last(pool)
}

// last returns the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// common returns the part that two prefixes share: the longer one, or an
// invalid prefix when they share none.
func common(a, b netip.Prefix) netip.Prefix {
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
	p := common(a, b)
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
func choose(s scope, blocks []netip.Prefix, taken func(netip.Addr) bool, before map[netip.Addr]freed, name string) (netip.Addr, bool) {
	var named, fresh, oldest netip.Addr
	for _, b := range blocks {
		each(b, s.within, func(a netip.Addr) bool {
			if taken(a) || !s.usable(a) {
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
func count(s scope, blocks []netip.Prefix, taken func(netip.Addr) bool, before map[netip.Addr]freed, now time.Time) (free, cool int) {
	for _, b := range blocks {
		each(b, s.within, func(a netip.Addr) bool {
			if !taken(a) && s.usable(a) {
				free++
				if f, had := before[a]; !had || now.Sub(f.At) >= coolDown {
					cool++
				}
			}
			return true
		})
	}
	return free, cool
}

// size returns how many addresses of a prefix endpoints can have. A prefix
// too large to matter counts as the largest int.
func (s scope) size(p netip.Prefix) int {
	p = common(p, s.pool)
	if !p.IsValid() {
		return 0
	}
	host := p.Addr().BitLen() - p.Bits()
	if host > 32 {
		return math.MaxInt
	}
	n := 1 << host
	taken := map[netip.Addr]bool{s.pool.Masked().Addr(): true, last(s.pool): true}
	for _, a := range append(slices.Clone(s.reserved), s.gateway) {
		taken[a] = true
	}
	for a := range taken {
		if p.Contains(a) && !s.usable(a) {
			n--
		}
	}
	return n
}

// lowestOutside returns the lowest address of the pool that is neither an
// edge nor reserved, lies in none of the foreign blocks and is not taken: the
// gateway of a user who named none.
func (s scope) lowestOutside(foreign []netip.Prefix, taken func(netip.Addr) bool) (netip.Addr, bool) {
	for a := s.pool.Masked().Addr(); s.pool.Contains(a); a = a.Next() {
		if k := slices.IndexFunc(foreign, func(b netip.Prefix) bool { return b.Contains(a) }); k >= 0 {
			a = last(foreign[k])
			continue
		}
		if s.usable(a) && !taken(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}
