package sim

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// box is a machine. What is installed on it may be copied to another one.
type box struct {
	site    *site
	at      int
	machine cluster.Machine
	vtep    netip.Addr
	address netip.AddrPort

	image
	installed bool
	on        bool   // has power
	gone      bool   // for ever
	older     bool   // its disk was set back, or comes from another machine
	snap      *image // of the machine at some time
	run       *run   // of the plugin; nil while it does not run
}

// image is what a snapshot of a machine holds.
type image struct {
	identity
	disk       disk
	containers []container
}

func (i image) clone() image {
	i.disk.lease = i.disk.lease.Clone()
	i.containers = slices.Clone(i.containers)
	return i
}

// disk is what the plugin stores.
type disk struct {
	lease     lease.Disk
	session   uint64            // of the newest Hello that was answered
	machine   cluster.Machine   // that said it
	copy      *cluster.Registry // written now and then
	gen, held uint64            // see run; 0 as well as 1: no registry was rebuilt
	forgotten bool              // this identity has no right to anything any more
	leaving   bool              // it has given everything back
}

// claims lists the active blocks.
func (d disk) claims() []cluster.Claim {
	stored := d.lease.Clone()
	return lease.Load("", stored).Claims()
}

// container is one of Docker's, and outlives the plugin.
type container struct {
	key      cluster.PoolKey
	addr     netip.Addr
	attached bool // its endpoint takes part in the network
}

// run is one life of the plugin: what a crash loses.
type run struct {
	number  uint64
	nonce   uint64
	m       *lease.Machine
	steps   []step // decided, not on disk yet
	copy    *cluster.Registry
	asked   []bool              // boxes that testified
	said    []*cluster.Registry // the copies that they did it from
	witness cluster.Witness
	suspect string
	session uint64
	gen     uint64 // of the registry that it is ready to be held against
	doubted bool
	held    uint64          // of the registry that it was held against last
	refused cluster.Code    // why the last Hello failed
	queue   []lease.Message // to be sent one after the other
	out     *attempt
	seq     uint64
	heard   [][]cluster.Claim // by box
	from    []cluster.HostID  // whose they are
}

// attempt is the request that waits for its answer.
type attempt struct {
	msg   lease.Message
	hello bool
	seq   uint64
}

// step is a decision of the lease machine on its way to the disk.
type step struct {
	lease.Step
	start *container // that waits for the address
	held  uint64     // of a Reconcile: the generation of the registry
}

// The lease machine's clock: it decides nothing here.
var noon = time.Unix(0, 0)

// install makes a new host of the box.
func (s *site) install(b *box) {
	s.births++
	b.image = image{identity: identityOf(fmt.Sprint("host ", s.births))}
	s.born = append(s.born, b.id)
	b.installed, b.older = true, false
}

func (b *box) name() string { return "host-" + letter(b.at) }

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
	r.held = max(1, b.disk.held)
	r.gen = max(r.held, r.copy.Gen, b.disk.gen)
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
		case apart || !b.confirmed(c.key, c.addr):
			c.attached = false
		case r.m.Suspect() == "" && !c.attached:
			_, used := r.m.Pool(c.key).Used[c.addr]
			block, ok := r.m.Pool(c.key).Covering(c.addr)
			c.attached = used && ok && !block.Draining || b.site.mutation == "lost"
		}
	}
}

// confirmed reports whether the host may use an address although the registry
// was rebuilt since it was held against one.
func (b *box) confirmed(key cluster.PoolKey, a netip.Addr) bool {
	r := b.run
	if r.gen <= r.held || b.site.mutation == "generation" {
		return true
	}
	if r.copy.Gen == r.gen {
		for _, l := range r.copy.Leases {
			if l.Holder == b.id && l.Pool == key && l.Covers(a) {
				return true
			}
		}
	}
	return false
}

// pend takes up a decision of the lease machine.
func (b *box) pend(st lease.Step, start *container) {
	if len(st.Send) > 0 && b.site.early(st.Send[0]) {
		for _, c := range st.Send {
			b.ask(c)
		}
		st.Send = nil
	}
	b.run.steps = append(b.run.steps, step{Step: st, start: start})
}

// write does one decision: disk, then machine, then the network and Docker.
func (b *box) write(st lease.Step) {
	b.disk.lease.Apply(st.Writes)
	b.run.m.Done(st, nil)
	for _, c := range st.Send {
		b.ask(c)
	}
	for _, a := range st.Lost {
		b.detach(a.Pool, a.Addr)
	}
}

func (b *box) detach(key cluster.PoolKey, a netip.Addr) {
	if b.site.mutation == "lost" {
		return
	}
	b.site.tally["lost"]++
	b.containers = slices.DeleteFunc(slices.Clone(b.containers), func(c container) bool { return c.key == key && c.addr == a })
}

// flush brings the oldest decision to disk.
func (b *box) flush() bool {
	r := b.run
	if r == nil || len(r.steps) == 0 {
		return false
	}
	st := r.steps[0]
	r.steps = r.steps[1:]
	b.write(st.Step)
	if st.held != 0 {
		for _, key := range b.site.keys {
			for _, a := range r.m.Pool(key).Uncovered() {
				b.detach(key, a)
			}
		}
		r.held = max(r.held, st.held)
		b.disk.held = r.held
	}
	if st.start != nil {
		c := *st.start
		c.attached = b.confirmed(c.key, c.addr)
		b.containers = append(slices.Clone(b.containers), c)
		b.site.tally["container"]++
	}
	b.believe()
	return true
}

// ask queues a command. The queue is short: what does not fit is given up.
func (b *box) ask(c cluster.Command) {
	m := b.run.m.Ask(c)
	if len(b.run.queue) >= 3 {
		b.run.m.Abandon(m.Request)
		return
	}
	b.run.queue = append(b.run.queue, m)
}

// hello opens a session.
func (b *box) hello() bool {
	r := b.run
	if r == nil || r.session != 0 || r.out != nil || b.disk.forgotten {
		return false
	}
	r.seq++
	b.disk.gen = max(b.disk.gen, r.gen)
	r.out = &attempt{hello: true, seq: r.seq}
	b.transmit()
	return true
}

// speak sends the next command of the queue.
func (b *box) speak() bool {
	r := b.run
	if r == nil || r.session == 0 || r.out != nil || len(r.queue) == 0 {
		return false
	}
	r.seq++
	r.out = &attempt{msg: r.queue[0], seq: r.seq}
	r.queue = r.queue[1:]
	b.transmit()
	return true
}

func (b *box) transmit() {
	r := b.run
	m := message{box: b.at, run: r.number, seq: r.out.seq}
	if r.out.hello {
		m.kind, m.gen = "hello", r.gen
		m.cmd = cluster.Command{Host: b.id, Hello: &cluster.Hello{
			PublicKey: b.key, Nonce: r.nonce, Name: b.name(), VTEP: b.vtep, Address: b.address, Machine: b.machine, Claims: r.m.Claims(),
		}}
	} else {
		m.cmd = r.out.msg.Command
		m.cmd.Host, m.cmd.Session, m.cmd.Request = b.id, r.session, r.out.msg.Request
		m.kind = kindOfCommand(m.cmd)
	}
	b.site.send(m)
}

func kindOfCommand(c cluster.Command) string {
	switch {
	case c.Hello != nil:
		return "hello"
	case c.Grant != nil:
		return "grant"
	case c.GrantExact != nil:
		return "exact"
	case c.Release != nil && c.Release.Addr.IsValid():
		return "carve"
	case c.Release != nil:
		return "release"
	case c.Forget != nil:
		return "forget"
	case c.Confirm != nil:
		return "confirm"
	case c.Leave != nil:
		return "leave"
	}
	return "other"
}

// retry says the same again.
func (b *box) retry() bool {
	if b.run == nil || b.run.out == nil {
		return false
	}
	b.transmit()
	return true
}

// giveUp stops waiting for an answer.
func (b *box) giveUp() bool {
	r := b.run
	if r == nil || r.out == nil {
		return false
	}
	if !r.out.hello {
		r.m.Abandon(r.out.msg.Request)
	}
	r.out = nil
	return true
}

// answered takes in an answer, whoever it is for.
func (b *box) answered(m message) {
	r := b.run
	if r == nil {
		return
	}
	request := m.cmd.Request
	if m.run != r.number || r.out == nil || m.seq != r.out.seq {
		if m.cmd.Hello != nil {
			return
		}
		// Nobody waits for it. The lease machine must see that by itself.
		if b.site.mutation == "stale answer" {
			for _, id := range sortedKeys(r.m.Outstanding) {
				if kindOfCommand(r.m.Outstanding[id]) == m.kindOfAnswer() {
					request = id
				}
			}
		}
		if b.site.mutation == "stale answer" {
			clear(r.m.Returned)
		}
		st, _ := r.m.Answered(request, m.res, nil)
		b.pend(st, nil)
		return
	}
	out := r.out
	r.out = nil
	if out.hello {
		b.greeted(m.res)
		return
	}
	if why := m.res.Refused; why != nil && (why.Code == cluster.StaleSession || why.Code == cluster.UnknownHost) {
		r.session = 0
		r.queue = slices.Concat([]lease.Message{out.msg}, r.queue)
		return
	}
	if why := m.res.Refused; why != nil && why.Code == cluster.Forgotten {
		r.refused = cluster.Forgotten
	}
	if out.msg.Command.Leave != nil && m.res.Refused == nil {
		b.wipe()
		return
	}
	st, err := r.m.Answered(request, m.res, b.contest(m.res.Lease))
	if err == nil || len(st.Writes) > 0 {
		b.pend(st, nil)
	}
	b.believe()
}

func (m message) kindOfAnswer() string { return kindOfCommand(m.cmd) }

// otherGen is the code of a Hello to a registry that was rebuilt since.
const otherGen cluster.Code = "other-generation"

// greeted takes in the answer to Hello.
func (b *box) greeted(res cluster.Result) {
	r := b.run
	if r.refused = ""; res.Refused != nil {
		r.refused = res.Refused.Code
		if r.refused == otherGen {
			r.gen = max(r.gen, res.Index)
		}
	} else {
		r.session = res.Index
		b.disk.session, b.disk.machine = max(b.disk.session, res.Index), b.machine
	}
	b.believe()
}

// contest finds another host that claims what this one was granted (rule H7):
// whose claim was heard, and who says so again when asked, or does not answer.
func (b *box) contest(l cluster.Lease) *lease.Contest {
	if l.ID == 0 || b.site.mutation == "claims" {
		return nil
	}
	if b.site.has("gossip") {
		for _, o := range b.site.boxes {
			if b != o && o.run == nil {
				b.run.heard[o.at], b.run.from[o.at] = o.disk.claims(), o.id
			} else if b != o {
				b.run.heard[o.at], b.run.from[o.at] = o.run.m.Claims(), o.id
				for _, st := range o.run.steps {
					for _, block := range st.Taken {
						b.run.heard[o.at] = append(b.run.heard[o.at], block.Claim())
					}
				}
			}
		}
	}
	granted := l.Claim()
	for i, claims := range b.run.heard {
		host := b.run.from[i]
		if host == b.id || b.run.copy.Hosts[host].Tombstone {
			continue // a host that the copy does not know yet counts
		}
		for _, c := range claims {
			if !c.Overlaps(granted) {
				continue
			}
			o := b.site.boxes[i]
			if o.run != nil && b.site.reaches(b.at, i) && !o.keeps(granted) {
				continue
			}
			b.site.tally["contest"]++
			return &lease.Contest{Host: host, Claim: c}
		}
	}
	return nil
}

// keeps is what a host answers to another one that was granted a block.
func (b *box) keeps(granted cluster.Claim) bool {
	for _, st := range b.run.steps {
		for _, block := range st.Taken {
			if block.Claim().Overlaps(granted) {
				return true
			}
		}
	}
	return b.run.m.Keeps(granted)
}

// fresh reports whether the copy includes the Hello of this run.
func (b *box) fresh() bool {
	return b.run != nil && b.run.session != 0 && b.run.copy.Hosts[b.id].Session == b.run.session
}

// reconcile holds the disk against a fresh copy.
func (b *box) reconcile() bool {
	if !b.fresh() || b.disk.leaving {
		return false
	}
	r := b.run
	contests := map[uint64]lease.Contest{}
	for _, l := range r.m.Unknown(r.copy) {
		if c := b.contest(l); c != nil {
			contests[l.ID] = *c
		}
	}
	before := r.m.Confirmed && r.held == r.copy.Gen
	st, _ := r.m.Reconcile(r.copy, contests)
	if before && len(st.Writes)+len(st.Send)+len(st.Lost) == 0 {
		return false // nothing to do
	}
	r.suspect = ""
	b.pend(st, nil)
	r.steps[len(r.steps)-1].held = r.copy.Gen
	return true
}
