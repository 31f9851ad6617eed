package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger/founding"
	"github.com/isthmus-net/isthmus/ledger/rules"
)

// nursery is a set of hosts that look for a cluster, over a network that
// delays, orders anew and loses.
type nursery struct {
	hosts    []*founder
	cut      [][]bool
	calls    []*call
	logs     []*birth // in the order in which they were founded
	ids      int
	mutation string
	many     bool // more than one cluster is as it should be
	wrong    string
	dice     dice
}

// founder is one host of a nursery.
type founder struct {
	n    *nursery
	at   int
	join []string
	id   cluster.HostID
	m    *founding.Machine // nil while it does not run
	run  int

	// On its disk.
	member  cluster.ID
	promise founding.Promise
	wrote   cluster.ID // the log that it founded
	known   []netip.AddrPort
}

// birth is the log of a cluster that was founded.
type birth struct {
	by  int
	log *cluster.Registry
}

// call is a question on its way, its answer on its way back, or what a host
// does by itself.
type call struct {
	from, run int
	effect    any            // founding.Effect, or dissolve
	back      founding.Event // nil before it was answered
	asked     bool           // and the answer waits
}

func (n *nursery) address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 7950)
}

func newNursery(joins [][]int, mutation string) *nursery {
	n := &nursery{mutation: mutation, dice: loadedFounding()}
	for i, join := range joins {
		f := &founder{n: n, at: i, id: cluster.HostID("host-" + letter(i))}
		for _, j := range join {
			f.join = append(f.join, letter(j))
		}
		n.hosts = append(n.hosts, f)
	}
	n.cut = make([][]bool, len(joins))
	for i := range n.cut {
		n.cut[i] = make([]bool, len(joins))
	}
	return n
}

// place finds a host by its entry in JOIN, or by its address.
func (n *nursery) place(peer string) int {
	for i := range n.hosts {
		if peer == letter(i) || peer == n.address(i).String() {
			return i
		}
	}
	return -1
}

func (n *nursery) logOf(id cluster.ID) *birth {
	i := slices.IndexFunc(n.logs, func(b *birth) bool { return b.log.Cluster == id })
	if i < 0 {
		return nil
	}
	return n.logs[i]
}

func (n *nursery) fresh() cluster.ID {
	n.ids++
	// Ids are drawn at random: which of two is the lower one is open.
	return cluster.ID(fmt.Sprintf("%016x", uint64(n.ids)*0x9e3779b97f4a7c15))
}

func (f *founder) start() bool {
	if f.m != nil {
		return false
	}
	f.run++
	if f.wrote != "" && f.member == "" { // the log tells which cluster it is
		f.member, f.promise = f.wrote, founding.Promise{}
	}
	f.m = founding.New(founding.Config{Host: f.id, Join: f.join, Known: f.known, Promise: f.promise})
	return true
}

func (f *founder) crash() bool {
	if f.m == nil {
		return false
	}
	f.m = nil
	return true
}

func (f *founder) step(e founding.Event) bool {
	if f.m == nil || f.member != "" {
		return false
	}
	for _, effect := range f.m.Step(e) {
		f.do(effect)
	}
	return true
}

func (f *founder) do(effect any) {
	n := f.n
	switch e := effect.(type) {
	case founding.Keep:
		if n.mutation != "promise" {
			f.promise = e.Promise
		}
	case founding.Reply:
		*e.Token.(*bool) = e.OK
	default:
		if len(n.calls) < 24 {
			n.calls = append(n.calls, &call{from: f.at, run: f.run, effect: effect})
		} else {
			n.end(&call{from: f.at, run: f.run, effect: effect}, "too busy")
		}
	}
}

// answer is what a host says of itself.
func (f *founder) answer() founding.Answer {
	a := founding.Answer{Host: f.id, Name: letter(f.at), Cluster: f.member, Promise: f.promise}
	if f.member != "" {
		a.Empty = f.n.logOf(f.member).log.Empty()
	} else {
		a.Founds = f.m.Founds()
	}
	return a
}

// serve does the question of a call at the host that it is for, and reports
// false when that one does not run.
func (n *nursery) serve(c *call) bool {
	ask := func(peer string) *founder {
		if i := n.place(peer); i >= 0 && n.hosts[i].m != nil && !n.cut[c.from][i] {
			return n.hosts[i]
		}
		return nil
	}
	asker := n.hosts[c.from]
	switch e := c.effect.(type) {
	case founding.Ask:
		to := ask(e.Peer)
		if to == nil {
			return false
		}
		if asker.member != "" {
			to.step(founding.Heard{At: n.address(c.from)})
		}
		c.back = founding.Answered{Peer: e.Peer, At: n.address(to.at), Self: to.at == c.from, Answer: to.answer()}
	case founding.Record:
		to := ask(e.Peer)
		if to == nil {
			return false
		}
		var ok bool
		to.step(founding.Asked{Promise: founding.Promise{Cluster: e.Cluster, Founder: asker.id, Name: letter(c.from), At: n.address(c.from)}, Force: e.Force, Token: &ok})
		c.back = founding.Recorded{Peer: e.Peer, Cluster: e.Cluster, OK: ok, Answer: to.answer()}
	case founding.Persuade:
		to := ask(e.Peer)
		if to == nil {
			return false
		}
		if to.member == "" { // it answers once it has a cluster
			again := c.asked
			c.asked = true
			return !again && to.step(founding.Want{})
		}
		c.back = founding.Persuaded{Peer: e.Peer, Answer: to.answer()}
	case dissolve:
		if b := n.logOf(e.own); b.log.Dissolved == "" {
			b.propose(cluster.Command{Dissolve: &cluster.Dissolve{Into: e.into, At: []netip.AddrPort{e.at}}})
		}
	case founding.Found:
		log, res := rules.Apply(nil, cluster.Command{Found: &cluster.Found{Cluster: e.Cluster}}, 1)
		if res.Refused != nil {
			n.wrong = "founding: " + res.Refused.Text
		}
		n.logs = append(n.logs, &birth{c.from, log})
		asker.wrote, asker.member, asker.promise = e.Cluster, e.Cluster, founding.Promise{}
	case founding.Enter:
		for _, peer := range e.Peers {
			if to := ask(peer); to != nil && to.member == e.Cluster {
				asker.member, asker.promise = e.Cluster, founding.Promise{}
				return true
			}
		}
		return false
	}
	return true
}

// end is the failure of a call.
func (n *nursery) end(c *call, why string) {
	switch e := c.effect.(type) {
	case founding.Ask:
		c.back = founding.Answered{Peer: e.Peer, Self: n.place(e.Peer) == c.from, Err: why}
	case founding.Record:
		c.back = founding.Recorded{Peer: e.Peer, Cluster: e.Cluster, Err: why}
		if n.mutation == "majority" { // silence is taken for consent
			c.back = founding.Recorded{Peer: e.Peer, Cluster: e.Cluster, OK: true, Answer: founding.Answer{Host: cluster.HostID("host-" + e.Peer)}}
		}
	case founding.Persuade:
		c.back = founding.Persuaded{Peer: e.Peer, Err: why}
	case founding.Found:
		c.back = founding.Founded{Err: why}
	case founding.Enter:
		c.back = founding.Entered{Err: why}
	case dissolve:
		return
	}
	n.calls = append(n.calls, c)
}

// advance takes the i-th call on: to the host that it is for, or back. With
// lost it fails instead.
func (n *nursery) advance(i int, lost bool) bool {
	if i >= len(n.calls) {
		return false
	}
	c := n.calls[i]
	f := n.hosts[c.from]
	drop := func() { n.calls = slices.Delete(slices.Clone(n.calls), i, i+1) }
	switch {
	case f.m == nil || f.run != c.run || (f.member != "") != isDissolve(c.effect):
		drop() // nobody waits for it
	case c.back != nil:
		drop()
		f.step(c.back)
	case lost:
		drop()
		n.end(c, "no answer")
	case !n.serve(c):
		return false
	case c.back == nil && !c.asked:
		drop()
	}
	return true
}

// creator is a host that makes and removes networks.
var creator = identityOf("creator")

// propose puts a command into the log of a cluster.
func (b *birth) propose(c cluster.Command) bool {
	apply := func(c cluster.Command) cluster.Result {
		next, res := rules.Apply(b.log, c, b.log.Index+1)
		b.log = next
		return res
	}
	if _, known := b.log.Hosts[creator.id]; !known {
		apply(cluster.Command{Host: creator.id, Hello: &cluster.Hello{
			PublicKey: creator.key, Nonce: 1, Name: "creator", VTEP: netip.MustParseAddr("192.0.2.99"), Address: netip.MustParseAddrPort("192.0.2.99:7950"),
		}})
	}
	c.Host, c.Session, c.Request = creator.id, b.log.Hosts[creator.id].Session, b.log.Index+1
	return apply(c).Refused == nil
}

var somePool = cluster.PoolKey{Prefix: netip.MustParsePrefix("10.0.0.0/24")}

// network makes a network in the cluster of a host, or removes it.
func (f *founder) network(there bool) bool {
	if f.m == nil || f.member == "" {
		return false
	}
	b := f.n.logOf(f.member)
	if b.log.Empty() != there || b.log.Dissolved != "" {
		return false
	}
	if there {
		return b.propose(cluster.Command{AttachPool: &cluster.AttachPool{Prefix: somePool.Prefix}})
	}
	return b.propose(cluster.Command{DetachPool: &cluster.DetachPool{Pool: somePool}})
}

func isDissolve(effect any) bool { _, is := effect.(dissolve); return is }

// dissolve is the proposal of a host that judged a cluster that it met: on its
// way to the log, while either cluster may change.
type dissolve struct {
	own, into cluster.ID
	at        netip.AddrPort
}

func (f *founder) meet(o *founder) bool {
	n := f.n
	if f.m == nil || o.m == nil || n.cut[f.at][o.at] || f.member == "" || o.member == "" || f.member == o.member || len(n.calls) >= 24 {
		return false
	}
	own, other := n.logOf(f.member).log, n.logOf(o.member).log
	verdict := founding.Meet(f.member, own.Empty(), o.member, other.Empty())
	back := founding.Meet(o.member, other.Empty(), f.member, own.Empty())
	switch fits := map[founding.Verdict]founding.Verdict{founding.Stay: founding.Dissolve, founding.Dissolve: founding.Stay, founding.Apart: founding.Apart}; {
	case fits[verdict] != back:
		n.wrong = fmt.Sprintf("meeting: one cluster is to %s, the other to %s", verdict, back)
	case verdict == founding.Dissolve && !own.Empty():
		n.wrong = "meeting: a cluster with networks is to dissolve"
	}
	if verdict != founding.Dissolve {
		return true
	}
	n.calls = append(n.calls, &call{from: f.at, run: f.run, effect: dissolve{f.member, o.member, n.address(o.at)}})
	return true
}

// learn lets a host find out that its cluster dissolved.
func (f *founder) learn() bool {
	if f.m == nil || f.member == "" {
		return false
	}
	b := f.n.logOf(f.member)
	if b.log.Dissolved == "" {
		return false
	}
	f.member, f.wrote, f.promise, f.known = "", "", founding.Promise{}, b.log.Members
	f.m = nil
	return f.start()
}

// quiet ends all trouble and lets the hosts come to rest. At most one cluster
// without networks is left then, and none beside one that has some.
func (n *nursery) quiet() string {
	for i := range n.cut {
		clear(n.cut[i])
	}
	for range 60 {
		for _, f := range n.hosts {
			f.start()
			f.learn()
			f.step(founding.Want{})
			f.step(founding.Tick{Fresh: n.fresh()})
			for _, o := range n.hosts {
				f.meet(o)
			}
		}
		for i := 0; i < len(n.calls); {
			if !n.advance(i, false) && !n.advance(i, true) {
				i++
			}
		}
		if n.wrong != "" {
			return n.wrong
		}
	}
	empty, full := map[cluster.ID]bool{}, map[cluster.ID]bool{}
	for _, f := range n.hosts {
		switch {
		case f.member == "":
			return fmt.Sprintf("quiet: %s comes to no cluster\n%s", letter(f.at), n)
		case n.logOf(f.member).log.Empty():
			empty[f.member] = true
		default:
			full[f.member] = true
		}
	}
	if len(empty) > 1 || len(empty) > 0 && len(full) > 0 {
		return fmt.Sprintf("quiet: clusters %v without networks beside %v with some\n%s", sortedKeys(empty), sortedKeys(full), n)
	}
	return ""
}
