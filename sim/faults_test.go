package sim

import (
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// crash ends the plugin. Containers go on.
func (b *box) crash() bool {
	if b.run == nil {
		return false
	}
	b.run = nil
	return true
}

// off takes the power; on gives it back, and Docker starts its containers
// again, without their networks so far.
func (b *box) off() bool {
	if !b.on {
		return false
	}
	b.on, b.run = false, nil
	b.containers = slices.Clone(b.containers)
	for i := range b.containers {
		b.containers[i].attached = false
	}
	return true
}

func (b *box) power() bool {
	if b.on || b.gone || !b.installed {
		return false
	}
	b.on = true
	return true
}

// bury takes a machine away for good.
func (b *box) bury() bool {
	if b.gone || !b.installed {
		return false
	}
	b.off()
	b.gone = true
	return true
}

func (b *box) snapshot() bool {
	if !b.installed {
		return false
	}
	i := b.image.clone()
	b.snap = &i
	return true
}

// rollback sets the machine back to its snapshot, or with state only what the
// plugin stored, under running containers.
func (b *box) rollback(state bool) bool {
	if b.snap == nil || b.run != nil || b.on && !state || b.snap.id != b.id {
		return false
	}
	i := b.snap.clone()
	b.snap = nil
	if state {
		i.containers = b.containers
	}
	for k := range i.containers {
		i.containers[k].attached = i.containers[k].attached && state
	}
	b.image, b.older = i, true
	return true
}

// clone copies a machine's disk to a machine that has nothing on it.
func (b *box) clone(to *box) bool {
	if !b.installed || to.installed || to.gone {
		return false
	}
	to.image = b.image.clone()
	for k := range to.containers {
		to.containers[k].attached = false
	}
	to.installed, to.older, to.on = true, true, true
	return true
}

// reset deletes the plugin's state; what it attached is detached.
func (b *box) reset() bool {
	if b.run != nil || !b.on || !b.installed {
		return false
	}
	b.site.install(b)
	return true
}

// part cuts two boxes off from each other, or a box from the log.
func (s *site) part(a, b int, apart bool) bool {
	if a == b || s.cut[a][b] == apart {
		return false
	}
	s.cut[a][b], s.cut[b][a] = apart, apart
	return true
}

// amnesia lets the log lose its newest entries, and go on without knowing it.
func (s *site) amnesia(e event) bool {
	if e.n <= 0 || len(s.past)-e.n < s.founded {
		return false
	}
	s.past = slices.Clone(s.past[:len(s.past)-e.n])
	s.log = s.past[len(s.past)-1]
	s.raft -= uint64(e.n)
	s.torn = true
	return true
}

// rebuild puts the registry together again, from what the hosts in reach know:
// the log is lost.
func (b *box) rebuild() bool {
	if b.run == nil {
		return false
	}
	s := b.site
	base, gen := s.empty, uint64(0)
	var heard []rules.Testimony
	for _, o := range s.boxes {
		if o.run == nil || o != b && !s.reaches(b.at, o.at) || o.disk.forgotten {
			continue
		}
		if newer(o.run.copy, base) {
			base = o.run.copy
		}
		gen = max(gen, o.run.copy.Gen)
		h, ok := o.run.copy.Hosts[o.id]
		if !ok {
			h = cluster.Host{ID: o.id, Name: o.name(), PublicKey: o.key, VTEP: o.vtep, Address: o.address, Machine: o.machine}
		}
		heard = append(heard, rules.Testimony{Host: h, Claims: o.run.m.Claims()})
	}
	if base.Cluster == "" {
		return false
	}
	next, _ := rules.Renew(base, gen+1, heard)
	s.log, s.past, s.raft, s.founded, s.torn = s.empty, nil, 1, 1, true
	if res := s.apply(cluster.Command{Rebuild: &cluster.Rebuild{Registry: next}}); res.Refused != nil {
		s.fail("rebuild: refused: %s", res.Refused.Text)
	}
	return true
}
