package rules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

const (
	// numberGap is how many numbers a rebuilt registry leaves out: more than
	// the lost end of a log can have given to leases and sessions.
	numberGap = 1 << 20
	// cursorGap is how far the cursor of a pool moves on, as a power of two,
	// so that what was granted in that end is the last to be granted again.
	cursorGap = 12
	// maxNumber bounds the numbers that are believed.
	maxNumber = 1 << 53
)

// Testimony is what one host says when a registry is put together again.
type Testimony struct {
	Host   cluster.Host // as it is registered in the copy of its own, or describes itself
	Claims []cluster.Claim
}

// Unproven is a claim that Renew gave to nobody: its host is to drop it.
type Unproven struct {
	Host  cluster.HostID
	Claim cluster.Claim
	Why   string
}

// Renew puts a registry together again for Rebuild: base, the highest copy that
// was found, which is not changed, and what the hosts in reach testify. Its Gen
// is gen, no host has a session, and numbers go on above all that were seen. It
// is a pure function, like Apply.
//
// A claim whose number is above base.Index was granted in the end of the log
// that was lost. It goes before leases of lower numbers: the log had ended
// them, or taken those addresses out of them, when it granted this one. Other
// claims that base does not know had ended before; they are leased again if
// they overlap nothing. A lease of base that its holder does not claim stays.
func Renew(base *cluster.Registry, gen uint64, heard []Testimony) (*cluster.Registry, []Unproven) {
	d := edit(whole(base), 0)
	d.Gen, d.Index, d.Requests = gen, base.Index, New().Requests
	for _, h := range hostsByID(base) {
		h.Session = 0
		d.hosts()[h.ID] = h
	}
	for _, key := range poolsByKey(base) {
		p := d.Pools[key]
		p.Cursor = moved(p)
		d.pools()[key] = p
	}
	claims := d.hear(heard)
	for _, c := range claims {
		if c.Claim.Lease <= maxNumber {
			d.Index = max(d.Index, c.Claim.Lease)
		}
	}
	var out []Unproven
	for _, c := range claims {
		if c.Why = d.prove(c.Host, c.Claim, base.Index); c.Why != "" {
			out = append(out, c)
		}
	}
	for _, key := range poolsByKey(d.Registry) {
		d.sweep(key)
	}
	d.Offset = d.Index + numberGap
	return d.Registry, out
}

// hear enters the hosts that base does not know, and lists the claims, the
// newest first.
func (d *draft) hear(heard []Testimony) []Unproven {
	var out []Unproven
	for _, t := range slices.SortedFunc(slices.Values(heard), func(a, b Testimony) int { return cmp.Compare(a.Host.ID, b.Host.ID) }) {
		h := t.Host
		if !d.known(h.ID) && cluster.HostIDOf(h.PublicKey) == h.ID {
			h.Session, h.Gen = 0, 0
			for slices.ContainsFunc(hostsByID(d.Registry), func(o cluster.Host) bool { return o.Name == h.Name && !o.Tombstone }) {
				h.Name += "-" + h.ID.Short()
			}
			d.hosts()[h.ID] = h
		}
		for _, c := range t.Claims {
			out = append(out, Unproven{Host: h.ID, Claim: c})
		}
	}
	slices.SortStableFunc(out, func(a, b Unproven) int { return cmp.Compare(b.Claim.Lease, a.Claim.Lease) })
	return out
}

// prove leases to a host what it claims, or says why not.
func (d *draft) prove(host cluster.HostID, c cluster.Claim, known uint64) string {
	h, ok := d.Hosts[host]
	switch {
	case !ok:
		return "that host is not known, and did not show its key"
	case h.Tombstone:
		return fmt.Sprintf("host %s was removed from the cluster", h.Name)
	case c.Lease > maxNumber:
		return fmt.Sprintf("no lease has the number %d", c.Lease)
	}
	l := cluster.Lease{ID: c.Lease, Pool: c.Pool, Block: c.Block, Holder: host, Without: c.Given()}
	if same := d.Leases[l.ID]; same.Holder == host && same.Pool == l.Pool && same.Block == l.Block {
		// What either side knows to be given back is not the host's.
		if less := without(same, l.Without...); !less.Equal(same) {
			d.keep(less)
		}
		return ""
	}
	if why := d.unfit(l); why != "" {
		return why
	}
	own := pieces(l)
	var older []cluster.Lease
	for _, o := range d.LeasesOf(l.Pool, "") {
		switch {
		case !touch(own, pieces(o)):
		case l.ID <= known || o.ID > l.ID:
			return fmt.Sprintf("host %s has the block %s", d.called(o.Holder), o.Block)
		default:
			older = append(older, o)
		}
	}
	for _, o := range older {
		var out []netip.Addr
		for a := o.Block.Addr(); o.Block.Contains(a); a = a.Next() {
			if l.Covers(a) {
				out = append(out, a)
			}
		}
		d.keep(without(o, out...))
	}
	d.lease(l)
	return ""
}

// moved is the cursor of a pool, further on.
func moved(p cluster.Pool) netip.Addr {
	whole, width := spanOf(p.Key.Prefix), p.Key.Prefix.Addr().BitLen()
	at := whole.first
	if p.Cursor.IsValid() {
		at = numberOf(p.Cursor)
	}
	size := width - p.Key.Prefix.Bits()
	if size == 0 {
		return p.Cursor
	}
	to, ok := at.plus(number{0, 1 << min(size-1, cursorGap)})
	if ok && whole.contains(to) {
		return to.addr(width)
	}
	// Around the end: half of the pool or less is gone over, so the sum of the
	// low bits is where it begins again.
	m := mask(size)
	return number{whole.first.hi | to.hi&m.hi, whole.first.lo | to.lo&m.lo}.addr(width)
}
