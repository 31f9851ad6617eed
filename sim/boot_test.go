package sim

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// start begins a run.
func (b *box) start() bool {
	s := b.site
	if !b.on || !b.installed || b.run != nil {
		return false
	}
	s.runs++
	stored := b.disk.lease.Clone()
	if s.mutation == "readopt and session" {
		for _, shelf := range stored.Pools {
			for id, block := range shelf.Blocks {
				block.Draining = false
				shelf.Blocks[id] = block
			}
		}
	}
	r := &run{
		number: s.runs, nonce: s.runs, m: lease.Load(b.id, stored), copy: b.disk.copy,
		asked: make([]bool, len(s.boxes)), said: make([]*cluster.Registry, len(s.boxes)), heard: make([][]cluster.Claim, len(s.boxes)), from: make([]cluster.HostID, len(s.boxes)),
	}
	r.m.Request = s.runs * 1000
	b.run = r
	if r.copy == nil {
		r.copy = s.empty
	}
	b.told(r.copy.Gen)
	if s.has("strict") {
		r.suspect = "strict"
	}
	if otherMachine(b.disk.machine, b.machine) && s.mutation != "machine check" {
		r.suspect = "another machine"
	}
	// What runs in containers is the truth about addresses in use.
	for _, c := range b.containers {
		if s.mutation == "adopt and store" {
			break
		}
		if st, ok := r.m.Adopt(c.key, c.addr, "", noon); ok {
			b.write(st)
		}
	}
	b.believe()
	return true
}

// otherMachine compares as far as both are known.
func otherMachine(a, b cluster.Machine) bool {
	differ := func(x, y string) bool { return x != "" && y != "" && x != y }
	return differ(a.ID, b.ID) || differ(a.UUID, b.UUID) || differ(a.MAC, b.MAC)
}

// testify asks another host what it knows of this one.
func (b *box) testify(from *box) bool {
	r, o := b.run, from.run
	if r == nil || o == nil || b == from || r.asked[from.at] || r.m.Confirmed || !b.site.reaches(b.at, from.at) {
		return false
	}
	r.asked[from.at], r.said[from.at] = true, o.copy
	if b.site.mutation == "witness" || b.id == from.id {
		return true
	}
	c := o.copy
	w := cluster.Witness{Cluster: c.Cluster, Gen: c.Gen, Index: c.Index, Host: c.Hosts[b.id]}
	for _, l := range c.Leases {
		if l.Holder == b.id {
			w.Leases = append(w.Leases, l)
		}
	}
	slices.SortFunc(w.Leases, func(a, b cluster.Lease) int { return cmp.Compare(a.ID, b.ID) })
	if cmp.Or(cmp.Compare(w.Gen, r.witness.Gen), cmp.Compare(w.Index, r.witness.Index)) >= 0 {
		r.witness = w
	}
	switch {
	case r.suspect != "":
	case w.Host.Tombstone:
		r.suspect = "forgotten according to another host"
	case w.Host.Session > b.disk.session:
		r.suspect = "another host knows a later run"
	}
	b.believe()
	return true
}

// settle ends the wait for testimony: those in reach have answered.
func (b *box) settle() bool {
	r := b.run
	if r == nil || r.m.Settled {
		return false
	}
	for _, o := range b.site.boxes {
		if o != b && o.run != nil && b.site.reaches(b.at, o.at) && !r.asked[o.at] {
			return false
		}
	}
	if b.older && b.site.mutation != "witness" && !b.evident() {
		return false
	}
	r.m.Boot(cluster.Boot{Settled: true, Suspect: r.suspect, Witness: r.witness})
	b.believe()
	return true
}

// evident is what is asked of the world, not of the rules: that a disk that was
// set back behind the end of a lease does not start where no host that saw that
// end can be asked. Without STRICT_BOOT nothing can be known then.
func (b *box) evident() bool {
	if b.site.has("strict") {
		return true
	}
	for _, m := range b.site.net {
		if m.cmd.Host == b.id && m.cmd.Release != nil && m.run != b.run.number {
			return false
		}
	}
	seen := func(id uint64, a netip.Addr) bool {
		for _, o := range b.site.boxes {
			if said := b.run.said[o.at]; said != nil && o.id != b.id && said.Index >= id {
				if l, ok := said.Leases[id]; !ok || l.Holder != b.id || a.IsValid() && !l.Covers(a) {
					return true
				}
			}
		}
		return false
	}
	for _, shelf := range b.disk.lease.Pools {
		for id, block := range shelf.Blocks {
			l, ok := b.site.log.Leases[id]
			if ok = ok && l.Holder == b.id; block.Draining || !ok && seen(id, netip.Addr{}) {
				continue
			}
			if !ok {
				return false
			}
			for _, a := range l.Without {
				if block.Covers(a) && !seen(id, a) {
					return false
				}
			}
		}
	}
	return true
}

// believe tells the lease machine what the ledger holds of the disk, and the
// driver what both hold of it.
func (b *box) believe() {
	r := b.run
	if r == nil {
		return
	}
	if h, ok := r.copy.Hosts[b.id]; ok && h.Tombstone || r.refused == cluster.Forgotten {
		b.disk.forgotten = true
	}
	r.m.Boot(cluster.Boot{Settled: r.m.Settled, Suspect: r.suspect, Witness: r.witness})
	if r.m.Doubt != "" && !r.doubted {
		r.doubted = true
		b.site.tally["doubt"]++
	}
	apart := r.suspect != "" && !r.m.Confirmed || r.m.Doubt != "" || r.refused == cluster.Clone ||
		b.disk.leaving || b.disk.forgotten && b.site.mutation != "confirm"
	for i := range b.containers {
		c := &b.containers[i]
		switch {
		case apart:
			c.attached = false
		case r.m.Suspect() == "" && !c.attached:
			_, used := r.m.Pool(c.key).Used[c.addr]
			block, ok := r.m.Pool(c.key).Covering(c.addr)
			c.attached = used && ok && !block.Draining || b.site.mutation == "lost"
		}
	}
}

// told takes note of a generation of the registry, before the host can be let in
// by it.
func (b *box) told(gen uint64) {
	if b.site.mutation != "generation" {
		b.write(b.run.m.Rebuilt(b.site.log.Cluster, gen))
	}
}
