package driver

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// AddressSpace is the address space that isthmus' own IPAM answers; a network
// whose pools carry another one gets its addresses from a foreign IPAM driver.
const AddressSpace = "isthmus"

// Ledger is what the cluster agreed. All methods are safe for concurrent use.
type Ledger interface {
	// Propose asks for one change. It blocks until ctx ends or for 5 s; a
	// refusal is an error that is a *cluster.Refusal.
	Propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error)
	// Registry returns the newest local copy, never nil, not to be changed.
	Registry() *cluster.Registry
	// Subscribe returns a new one-slot channel, signalled when Registry changed.
	Subscribe() <-chan struct{}
}

// Heard is what the cluster says of itself. No method blocks.
type Heard interface {
	// Streams returns the other hosts' records, those of failed hosts too.
	Streams() []cluster.Stream
	// Members returns all hosts, this one included.
	Members() []cluster.Member
	// Settled reports whether absence from Streams means absence.
	Settled() bool
	// Publish replaces this host's own records.
	Publish([]cluster.Record)
	// Subscribe returns a new one-slot channel, signalled on any change.
	Subscribe() <-chan struct{}
}

// Addresses is the part of address management that networks need.
type Addresses interface {
	// Prepare leases this host's first block of each pool.
	Prepare(ctx context.Context, pools []cluster.PoolKey) error
	// LeaseOf names the lease that covers an address of this host, 0 if none.
	LeaseOf(cluster.PoolKey, netip.Addr) uint64
	// Holds reports whether this host's Docker requested the pool from us.
	Holds(cluster.PoolKey) bool
	// Claims lists the blocks that this host keeps as its own.
	Claims() []cluster.Claim
	// Lost lists the addresses in use here that this host has no right to, with
	// the name of the container, where it is known.
	Lost() map[cluster.PoolKey]map[netip.Addr]string
	// Subscribe returns a new one-slot channel, signalled when Claims, Lost, or
	// what LeaseOf answers, changed.
	Subscribe() <-chan struct{}
}

// HostAddresses hands out addresses of the cluster for the host itself, as for a
// container. They stay the host's until they are given back, or until Live says
// that nobody has them.
type HostAddresses interface {
	HostAddress(ctx context.Context, pool cluster.PoolKey) (netip.Addr, error)
	// ReleaseHostAddress gives one back; what is not the host's is gone already.
	ReleaseHostAddress(ctx context.Context, pool cluster.PoolKey, addr netip.Addr) error
}

// Config is what a Driver needs. All fields but Hosts, DHCP, Name and MTU are
// required.
type Config struct {
	DB        *bbolt.DB
	Host      cluster.HostID
	Kernel    kernel.Kernel
	Ledger    Ledger
	Heard     Heard
	Addresses Addresses
	Hosts     HostAddresses // nil: host_access=on is refused
	DHCP      DHCP          // nil: no pool has its addresses from a LAN's server
	VTEP      netip.Addr    // this host's address on the underlay
	MTU       int           // of the underlay link, in bytes; 0: as Heard says of this host
	Port      uint16        // UDP port of VXLAN
	BGP       bool          // there are routers to tell of bgp=on networks
	Forward   bool          // uplinks shall forward what they receive, where that is for containers
	Name      string        // by which users call the plugin, "isthmus:latest" if empty
	Log       logrus.FieldLogger
}

func (c Config) check() error {
	switch {
	case c.DB == nil || c.Kernel == nil || c.Ledger == nil || c.Heard == nil || c.Addresses == nil || c.Log == nil:
		return fmt.Errorf("open driver: incomplete configuration")
	case c.Host == "":
		return fmt.Errorf("open driver: no host identity")
	case !c.VTEP.IsValid():
		return fmt.Errorf("open driver: no underlay address")
	case c.Port == 0:
		return fmt.Errorf("open driver: no VXLAN port")
	}
	return nil
}

// Driver answers NetworkDriver calls. All methods are safe for concurrent use.
type Driver struct {
	cfg   Config
	log   logrus.FieldLogger
	pace  pace
	store *store
	loop  *loop
	agree *agreement
	ports ports
	// publishing is held from the holding of ports until that is stored, so that
	// keepPorts does not take what is new for what is left over.
	publishing sync.Mutex

	mu          sync.Mutex
	vtep        netip.Addr
	mtu         int
	paths       map[cluster.HostID]int
	detached    string          // why this host's endpoints are cut off
	attached    chan struct{}   // closed when that changes
	muted       map[string]bool // interfaces that may be cut off in their sandboxes, see lost.go
	strangers   []Tenant        // of the newest look into the sandboxes
	looked      bool            // there was a whole one
	leaving     bool            // Reset: nothing is left alone
	devices     []kernel.Device // of this host, of the newest look at them
	ways        map[cluster.HostID]Way
	foreign     []kernel.Foreign
	deaf        map[cluster.HostID]bool
	announced   []netip.Prefix              // of the newest pass
	passed      bool                        // there was one
	announcedBy netip.Addr                  // next hop of announced
	told        chan struct{}               // one slot, see Announced
	nextHops    map[netip.Prefix]netip.Addr // by destination, as routers say: see Import
	imported    []kernel.FIB                // those of them that this host has a way to
	lodgers     lodgers                     // of the newest look for them
}

// Open reads the stored intent. Nothing is done before Run.
func Open(cfg Config) (*Driver, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "isthmus:latest"
	}
	s, err := openStore(cfg.DB)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log, pace: defaultPace, store: s,
		vtep: cfg.VTEP.Unmap(), mtu: cfg.MTU, paths: map[cluster.HostID]int{}, attached: make(chan struct{}), told: make(chan struct{}, 1), muted: map[string]bool{},
	}
	d.loop = newLoop(d)
	d.agree = newAgreement(d)
	return d, nil
}

// Run keeps the kernel, the records and the cluster's registry as they should
// be until ctx ends. What is in the kernel then stays there and forwards on.
func (d *Driver) Run(ctx context.Context) error {
	w := newWays(d)
	w.look(ctx) // before the first pass, which takes away what nobody plans
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.run(ctx) })
	g.Go(func() error { return newHearing(d).run(ctx) })
	g.Go(func() error { return d.loop.run(ctx) })
	g.Go(func() error { return d.loop.watch(ctx) })
	g.Go(func() error { return d.agree.run(ctx) })
	return g.Wait()
}

// pace is how often things are done; tests hurry.
type pace struct {
	probe    time.Duration   // between two of one host
	audit    time.Duration   // between looks at the kernel that nothing asked for
	sandbox  time.Duration   // between looks into all sandboxes
	unseen   time.Duration   // between looks for an interface that Docker is taking
	forget   time.Duration   // after which an endpoint without a container is Docker's oversight
	attach   time.Duration   // for which a call waits until this host's endpoints are let in
	retry    time.Duration   // after the first failed pass; doubles up to audit
	announce []time.Duration // when to announce a changed address, after the change
}

// An entry of a container's neighbour table that changed within the last
// second does not change again (neigh/default/locktime), so one announcement
// is not enough.
var defaultPace = pace{
	probe:    time.Second,
	audit:    10 * time.Second,
	sandbox:  time.Minute,
	unseen:   200 * time.Millisecond,
	forget:   time.Minute,
	attach:   1500 * time.Millisecond,
	retry:    250 * time.Millisecond,
	announce: []time.Duration{0, 1200 * time.Millisecond, 3 * time.Second},
}

// view gathers what Plan must know of the world.
func (d *Driver) view() View {
	d.mu.Lock()
	defer d.mu.Unlock()
	strangers := d.strangers
	if d.leaving {
		strangers = nil
	}
	return View{
		Host: d.cfg.Host, VTEP: d.vtep, Port: d.cfg.Port, MTU: d.mtu, Forward: d.cfg.Forward,
		Members: d.cfg.Heard.Members(), Streams: d.cfg.Heard.Streams(), Registry: d.cfg.Ledger.Registry(), Paths: maps.Clone(d.paths),
		Detached: d.detached, Strangers: strangers, Links: d.devices,
		Ways: d.ways, Foreign: d.foreign, Imported: d.imported, Deaf: d.deaf,
	}
}

// SetUnderlay tells of a new own address or MTU of the underlay. An address of
// another family is not taken: all devices, and with them the containers'
// interfaces, would have to be made anew.
func (d *Driver) SetUnderlay(addr netip.Addr, mtu int) error {
	d.mu.Lock()
	if addr = addr.Unmap(); addr.IsValid() && family(addr) != family(d.vtep) {
		defer d.mu.Unlock()
		return fmt.Errorf("change underlay address: %s is %s and %s is %s: restart the plugin to change the family", d.vtep, family(d.vtep), addr, family(addr))
	}
	if addr.IsValid() {
		d.vtep = addr
	}
	d.mtu = mtu
	d.mu.Unlock()
	d.loop.wake()
	return nil
}

// PathMTU tells what a probe found: the largest IP packet, in bytes, that the
// path to the host carries whole; 0 when it carries what the links promise.
// It is reported as a problem; the plan does not change.
func (d *Driver) PathMTU(host cluster.HostID, fits int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fits > 0 {
		d.paths[host] = fits
	} else {
		delete(d.paths, host)
	}
}
