package sim

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// broken looks after every step whether the invariants hold.
func (s *site) broken() string {
	if s.wrong != "" {
		return s.wrong
	}
	if s.checked != s.log {
		s.checked = s.log
		if err := rules.Check(s.log); err != nil {
			return "I1, I2, I5: " + err.Error()
		}
	}
	if why := s.duplicate(); why != "" {
		return why
	}
	if s.mutation == "" {
		for _, b := range s.boxes {
			if why := s.rightful(b); why != "" {
				return why
			}
		}
	}
	return ""
}

type place struct {
	key  cluster.PoolKey
	addr netip.Addr
}

// duplicate finds one address that two endpoints use which others hear (I6).
func (s *site) duplicate() string {
	var seen [16]place
	var where [16]int
	n := 0
	for _, b := range s.boxes {
		for _, c := range b.containers {
			if !c.attached || !b.on || !s.heeded(b, c.key) {
				continue
			}
			p := place{c.key, c.addr}
			for i := range n {
				if seen[i] == p {
					return fmt.Sprintf("I6: %s is used on %s and on %s", c.addr, letter(where[i]), letter(b.at))
				}
			}
			if n < len(seen) {
				seen[n], where[n] = p, b.at
				n++
			}
		}
	}
	return ""
}

// heeded reports whether what a box sends into a network reaches others.
// Where the VTEP fences, the hosts that the registry does not admit are not
// heard; on a plain LAN every machine is.
func (s *site) heeded(b *box, key cluster.PoolKey) bool {
	if s.ground(key).mode != "vxlan" {
		return true
	}
	h, ok := s.log.Hosts[b.id]
	return ok && !h.Tombstone && (h.Session != 0 || s.mutation == "rebuild fence")
}

// rightful checks I3 on a box whose disk is its own and the newest: what it
// keeps as active is its lease, and what it uses lies in that.
func (s *site) rightful(b *box) string {
	if !b.installed || b.older || s.torn || b.gone {
		return ""
	}
	if h, ok := s.log.Hosts[b.id]; ok && h.Tombstone {
		return ""
	}
	for key, shelf := range b.disk.lease.Pools {
		for id, block := range shelf.Blocks {
			l, ok := s.log.Leases[id]
			switch {
			case block.Draining:
			case !ok || l.Holder != b.id || l.Pool != key || l.Block != block.Prefix:
				return fmt.Sprintf("I3: %s keeps block %s of lease %d, which the registry has as %+v", letter(b.at), block.Prefix, id, l)
			default:
				for _, a := range l.Without {
					if block.Covers(a) {
						return fmt.Sprintf("I3: %s keeps %s of lease %d, which it gave back", letter(b.at), a, id)
					}
				}
			}
		}
	}
next:
	for _, c := range b.containers {
		if !c.attached {
			continue
		}
		if shelf, ok := b.disk.lease.Pools[c.key]; ok {
			for _, block := range shelf.Blocks {
				if !block.Draining && block.Covers(c.addr) {
					continue next
				}
			}
		}
		return fmt.Sprintf("I3: %s uses %s outside of its blocks", letter(b.at), c.addr)
	}
	return ""
}

// String is all of the state, in a fixed order.
func (s *site) String() string {
	var w strings.Builder
	r := s.log
	fmt.Fprintf(&w, "registry: gen %d index %d offset %d\n", r.Gen, r.Index, r.Offset)
	for _, id := range sortedKeys(r.Hosts) {
		h := r.Hosts[id]
		fmt.Fprintf(&w, "  host %s (%s): session %d nonce %d gen %d", h.Name, id.Short(), h.Session, h.Nonce, h.Gen)
		if h.Tombstone {
			fmt.Fprint(&w, " forgotten")
		}
		fmt.Fprintln(&w)
	}
	for _, id := range sortedKeys(r.Leases) {
		l := r.Leases[id]
		fmt.Fprintf(&w, "  lease %d: %s of %s without %v\n", id, l.Block, r.HostName(l.Holder), l.Without)
	}
	for _, b := range s.boxes {
		if !b.installed {
			continue
		}
		fmt.Fprintf(&w, "%s: identity %s, on %v, gone %v, older disk %v, stored session %d, forgotten %v\n", letter(b.at), b.id.Short(), b.on, b.gone, b.older, b.disk.session, b.disk.forgotten)
		if b.disk.copy != nil {
			fmt.Fprintf(&w, "  stored copy: gen %d index %d\n", b.disk.copy.Gen, b.disk.copy.Index)
		}
		for _, key := range s.keys {
			shelf, ok := b.disk.lease.Pools[key]
			if !ok {
				continue
			}
			for _, id := range sortedKeys(shelf.Blocks) {
				k := shelf.Blocks[id]
				fmt.Fprintf(&w, "  block %d: %s draining %v exact %v holes %v\n", id, k.Prefix, k.Draining, k.Exact, k.Holes)
			}
			for _, a := range sortedAddrs(shelf.Used) {
				fmt.Fprintf(&w, "  used %s\n", a)
			}
		}
		for _, c := range b.containers {
			fmt.Fprintf(&w, "  container %s attached %v\n", c.addr, c.attached)
		}
		if r := b.run; r != nil {
			fmt.Fprintf(&w, "  run %d: session %d, copy gen %d index %d, suspect %q, refused %q, steps %d, queue %d\n",
				r.number, r.session, r.copy.Gen, r.copy.Index, cmp.Or(r.m.Suspect(), r.suspect), r.refused, len(r.steps), len(r.queue))
			for _, id := range sortedKeys(r.m.Outstanding) {
				fmt.Fprintf(&w, "  waits for %s %d\n", kindOfCommand(r.m.Outstanding[id]), id)
			}
		}
	}
	for _, m := range s.net {
		fmt.Fprintf(&w, "on its way: %s of %s run %d session %d request %d index %d\n", m.kind, letter(m.box), m.run, m.cmd.Session, m.cmd.Request, m.res.Index)
	}
	return w.String()
}

func sortedAddrs[V any](m map[netip.Addr]V) []netip.Addr {
	return slices.SortedFunc(maps.Keys(m), netip.Addr.Compare)
}
