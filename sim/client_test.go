package sim

import (
	"cmp"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ipam/lease"
)

// attempt is the request that waits for its answer.
type attempt struct {
	msg   lease.Message
	hello bool
	seq   uint64
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
		m.kind = "hello"
		m.cmd = cluster.Command{Host: b.id, Hello: &cluster.Hello{
			PublicKey: b.key, Nonce: r.nonce, Name: b.name(), VTEP: b.vtep, Address: b.address, Machine: b.machine, Gen: max(r.m.Standing.Known, 1), Claims: r.m.Claims(),
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
	if !b.included(m.res.Lease.ID) {
		r.m.Abandon(request)
		return
	}
	st, err := r.m.Answered(request, m.res, b.contest(m.res.Lease))
	if err == nil || len(st.Writes) > 0 {
		b.pend(st, nil)
	}
	b.believe()
}

// included waits until the copy includes a lease: the host that is granted one
// uses it from then on. Where the log has lost it, that wait is in vain.
func (b *box) included(id uint64) bool {
	past := b.site.past
	i, _ := slices.BinarySearchFunc(past, id, func(p *cluster.Registry, at uint64) int { return cmp.Compare(p.Index, at) })
	switch {
	case b.run.copy.Index >= id:
		return true
	case i == len(past) || !newer(past[i], b.run.copy):
		return false
	}
	b.learn(past[i])
	return true
}

func (m message) kindOfAnswer() string { return kindOfCommand(m.cmd) }

// greeted takes in the answer to Hello.
func (b *box) greeted(res cluster.Result) {
	r := b.run
	if r.refused = ""; res.Refused != nil {
		r.refused = res.Refused.Code
		if r.refused == cluster.OtherGen {
			b.told(res.Refused.Gen)
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
			if o.run != nil && b.site.reaches(b.at, i) && !o.run.m.Keeps(granted) {
				continue
			}
			b.site.tally["contest"]++
			return &lease.Contest{Host: host, Claim: c}
		}
	}
	return nil
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
	before := r.m.Confirmed
	st, _ := r.m.Reconcile(r.copy, contests)
	if before && len(st.Writes)+len(st.Send)+len(st.Lost) == 0 {
		return false // nothing to do
	}
	r.suspect = ""
	b.pend(st, nil)
	r.steps[len(r.steps)-1].settles = true
	return true
}
