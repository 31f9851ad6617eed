package sim

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// What a host does by itself, and what Docker and its operator ask of it.

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// follow brings the copy forward: by one entry, or with n = 1 to the newest.
func (b *box) follow(n int) bool {
	r := b.run
	if r == nil || !b.site.reachesLog(b.at) || r.refused == cluster.Forgotten {
		return false
	}
	next := b.site.log
	if !newer(next, r.copy) {
		return false
	}
	if n == 0 {
		i, _ := slices.BinarySearchFunc(b.site.past, r.copy.Index+1, func(p *cluster.Registry, at uint64) int { return cmp.Compare(p.Index, at) })
		if i < len(b.site.past) && b.site.past[i].Gen == r.copy.Gen {
			next = b.site.past[i]
		}
	}
	b.learn(next)
	return true
}

// learn takes up a newer copy.
func (b *box) learn(next *cluster.Registry) {
	r := b.run
	r.copy = next
	b.told(next.Gen)
	if h := next.Hosts[b.id]; r.session != 0 && h.Session != r.session && next.Index >= r.session {
		r.session = 0
	}
	b.believe()
}

func newer(a, b *cluster.Registry) bool {
	return cmp.Or(cmp.Compare(a.Gen, b.Gen), cmp.Compare(a.Index, b.Index)) > 0
}

// save writes the copy to disk, which the plugin does now and then.
func (b *box) save() bool {
	if b.run == nil || b.disk.copy == b.run.copy {
		return false
	}
	b.disk.copy = b.run.copy
	return true
}

// hear takes in what another host claims, by gossip.
func (b *box) hear(from *box) bool {
	if b.run == nil || from.run == nil || b == from || !b.site.reaches(b.at, from.at) {
		return false
	}
	b.run.heard[from.at], b.run.from[from.at] = from.run.m.Claims(), from.id
	return true
}

func (b *box) works() bool {
	return b.run != nil && !b.disk.forgotten && !b.disk.leaving && len(b.run.steps) < 3
}

// scope is the whole pool.
func (b *box) scope(key cluster.PoolKey) lease.Scope {
	p := b.run.copy.Pools[key]
	return lease.Scope{Pool: key.Prefix, Within: key.Prefix, Gateway: p.Gateway, Reserved: p.Reserved}
}

// startContainer starts one on any free address.
func (b *box) startContainer(pool int) bool {
	if !b.works() || pool >= len(b.site.keys) {
		return false
	}
	key := b.site.keys[pool]
	st, a, err := b.run.m.Allocate(key, b.scope(key), "", true, noon)
	if err != nil {
		return false
	}
	b.handOut(st, container{key: key, addr: a})
	return true
}

// startAt starts one on an address that the user named.
func (b *box) startAt(pool, n int) bool {
	if !b.works() || pool >= len(b.site.keys) {
		return false
	}
	key := b.site.keys[pool]
	a := offset(key, n)
	if !b.scope(key).Usable(a) {
		return false
	}
	st, err := b.run.m.Take(key, a, "", noon)
	if err != nil {
		return false
	}
	b.handOut(st, container{key: key, addr: a})
	return true
}

func (b *box) handOut(st lease.Step, c container) {
	if b.site.mutation == "adopt and store" { // Docker is answered, the disk knows nothing
		b.run.m.Done(st, nil)
		c.attached = true
		b.containers = append(slices.Clone(b.containers), c)
		return
	}
	b.pend(st, &c)
}

func offset(key cluster.PoolKey, n int) netip.Addr {
	a := key.Prefix.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// stop ends the n-th container, and then Docker gives its address back, if the
// plugin runs.
func (b *box) stop(n int) bool {
	if n >= len(b.containers) {
		return false
	}
	c := b.containers[n]
	b.containers = slices.Delete(slices.Clone(b.containers), n, n+1)
	if b.run != nil {
		if st, ok := b.run.m.Free(c.key, c.addr, noon); ok {
			b.pend(st, nil)
		}
	}
	return true
}

// sweep frees an address that no container has.
func (b *box) sweep() bool {
	if !b.works() {
		return false
	}
	for _, key := range b.site.keys {
		p := b.run.m.Pool(key)
		used := slices.SortedFunc(maps.Keys(p.Used), netip.Addr.Compare)
		for _, a := range used {
			if slices.ContainsFunc(b.containers, func(c container) bool { return c.key == key && c.addr == a }) || b.starting(key, a) {
				continue
			}
			if st, ok := b.run.m.Free(key, a, noon); ok {
				b.pend(st, nil)
				return true
			}
		}
	}
	return false
}

func (b *box) starting(key cluster.PoolKey, a netip.Addr) bool {
	return slices.ContainsFunc(b.run.steps, func(st step) bool { return st.start != nil && st.start.key == key && st.start.addr == a })
}

// grow asks for a block of that many addresses.
func (b *box) grow(pool, want int) bool {
	if !b.works() || pool >= len(b.site.keys) || len(b.run.queue) > 1 {
		return false
	}
	b.ask(cluster.Command{Grant: &cluster.Grant{Pool: b.site.keys[pool], Want: want}})
	return true
}

// want asks for one address that the user named.
func (b *box) want(pool, n int) bool {
	if !b.works() || pool >= len(b.site.keys) || len(b.run.queue) > 1 {
		return false
	}
	key := b.site.keys[pool]
	b.ask(cluster.Command{GrantExact: &cluster.GrantExact{Pool: key, Addr: offset(key, n)}})
	return true
}

// drain begins to give the n-th block back.
func (b *box) drain(n int) bool {
	if !b.works() {
		return false
	}
	for _, key := range b.site.keys {
		for _, block := range b.run.m.Pool(key).Sorted() {
			if n--; n < 0 {
				st, err := b.run.m.Drain(key, block.Lease)
				if err != nil || len(st.Writes) == 0 {
					return false
				}
				b.pend(st, nil)
				return true
			}
		}
	}
	return false
}

// carve gives one address back that another host asked for.
func (b *box) carve(pool, n int) bool {
	if !b.works() || pool >= len(b.site.keys) {
		return false
	}
	key := b.site.keys[pool]
	st, err := b.run.m.Carve(key, b.scope(key), offset(key, n))
	if err != nil || len(st.Writes) == 0 {
		return false
	}
	b.pend(st, nil)
	return true
}

// remind sends again what is given back, and not known to have arrived.
func (b *box) remind() bool {
	if !b.works() || len(b.run.queue) > 0 || b.run.out != nil {
		return false
	}
	for _, key := range b.site.keys {
		if todo := b.run.m.Releases(key); len(todo) > 0 {
			b.ask(todo[0])
			return true
		}
	}
	return false
}

// forget takes the n-th identity out of the cluster, at the word of an
// operator on this host, who may know that it is dead.
func (b *box) forget(n int, dead bool) bool {
	if !b.works() || n >= len(b.site.born) || len(b.run.queue) > 1 {
		return false
	}
	id := b.site.born[n]
	if id == b.id {
		return false
	}
	if dead { // that is what the operator says, so it is so
		for _, o := range b.site.boxes {
			if o.id == id && o.installed && !o.gone {
				return false
			}
		}
	}
	b.ask(cluster.Command{Forget: &cluster.Forget{Host: id, Dead: dead}})
	return true
}

// confirm says that nothing of a forgotten host uses an address any more.
func (b *box) confirm() bool {
	r := b.run
	if r == nil || !b.disk.forgotten {
		return false
	}
	if b.disk.machine != b.machine && b.site.mutation != "clone confirms" {
		return false // it cannot speak for the machine that it was copied from
	}
	if slices.ContainsFunc(b.containers, func(c container) bool { return c.attached }) && b.site.mutation != "confirm" {
		return false
	}
	b.site.send(message{kind: "confirm", box: b.at, run: r.number, cmd: cluster.Command{Host: b.id, Session: r.session, Request: r.m.Request + 1, Confirm: &cluster.Confirm{}}})
	return true
}

// leave takes the host out, once it has given everything back. That it leaves
// is stored first: it takes up nothing any more, whether the answer comes or not.
func (b *box) leave() bool {
	r := b.run
	if r == nil || len(r.queue) > 0 || len(r.steps) > 0 || r.out != nil || r.session == 0 || b.disk.forgotten {
		return false
	}
	if !b.disk.leaving {
		if len(b.containers) > 0 || !b.fresh() || len(r.m.Unknown(r.copy)) > 0 || len(r.m.Outstanding) > 0 {
			return false
		}
		for _, p := range r.m.Pools {
			if len(p.Blocks)+len(p.Used) > 0 {
				return false
			}
		}
		b.disk.leaving = true
	}
	b.ask(cluster.Command{Leave: &cluster.Leave{}})
	return true
}

// wipe deletes the state; the next start is that of a new host.
func (b *box) wipe() {
	b.run = nil
	b.site.install(b)
}
