package sim

import (
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
	doubted bool
	refused cluster.Code    // why the last Hello failed
	queue   []lease.Message // to be sent one after the other
	out     *attempt
	seq     uint64
	heard   [][]cluster.Claim // by box
	from    []cluster.HostID  // whose they are
}

// step is a decision of the lease machine on its way to the disk.
type step struct {
	lease.Step
	start   *container // that waits for the address
	settles bool       // it is a Reconcile
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
	if st.settles {
		for _, key := range b.site.keys {
			for _, a := range r.m.Pool(key).Uncovered() {
				b.detach(key, a)
			}
		}
	}
	if st.start != nil {
		c := *st.start
		c.attached = r.m.Suspect() == ""
		b.containers = append(slices.Clone(b.containers), c)
		b.site.tally["container"]++
	}
	b.believe()
	return true
}
