package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/gossip"
	"github.com/isthmus-net/isthmus/ipam"
	"github.com/isthmus-net/isthmus/lan"
	"github.com/isthmus-net/isthmus/lan/dhcp"
	"github.com/isthmus-net/isthmus/ledger"
	"github.com/isthmus-net/isthmus/transport"
)

// Why a node ends although nobody stopped the plugin; another begins.
var (
	errMoved = errors.New("the underlay address changed")
	errReset = errors.New("this host was reset")
	errLeft  = errors.New("this host left its cluster; to join again, disable and enable the plugin, or start it again")
)

// node is all parts of the plugin, plugged together for one underlay address.
type node struct {
	cfg    Config
	id     cluster.HostID
	kernel kernel.Kernel
	look   time.Duration // how often the underlay is looked at
	log    logrus.FieldLogger

	db        *bbolt.DB
	transport *transport.Transport
	ledger    *ledger.Ledger
	gossip    *gossip.Cluster
	ipam      *ipam.IPAM
	driver    *driver.Driver
	avoid     *avoided
	strangers *neighbours
	leases    lessee
	fabric    *fabric

	end     chan error // why to end
	judging sync.Mutex // of trust, see judge

	mu         sync.Mutex
	below      kernel.Underlay
	belowError error // of the newest look
}

// doors lead from this process to the host's links. All but the kernel may be
// nil: sockets in the host's network namespace.
type doors struct {
	kernel kernel.Kernel
	probe  func(ifname string, groups ...cluster.MAC) (lan.Wire, error)
	dhcp   dhcp.Speaker
}

// openNode opens all parts over the state in cfg.State. None of them waits for
// another host: what is on disk serves at once.
func openNode(cfg Config, to doors, u kernel.Underlay, log logrus.FieldLogger) (n *node, err error) {
	k := to.kernel
	n = &node{cfg: cfg, kernel: k, log: log, below: u, end: make(chan error, 1)}
	defer func() {
		if err != nil {
			n, err = nil, errors.Join(err, n.discard())
		}
	}()
	key, err := identity(cfg.State)
	if err != nil {
		return n, err
	}
	n.id = cluster.HostIDOf(key.Public().(ed25519.PublicKey))
	n.db, err = bbolt.Open(filepath.Join(cfg.State, "state.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return n, fmt.Errorf("open state in %s: another isthmus uses it; stop that one first", cfg.State)
	}
	if err != nil {
		return n, fmt.Errorf("open state: %w", err)
	}
	part := func(name string) logrus.FieldLogger { return log.WithField("part", name) }

	// The transport asks the ledger for the cluster and who is in it, and the
	// ledger needs the transport to be opened.
	var agreed atomic.Pointer[ledger.Ledger]
	admit := func(id cluster.HostID) error {
		if l := agreed.Load(); l != nil {
			return admitted(l.Registry(), id)
		}
		return nil
	}
	n.transport, err = transport.Listen(transport.Config{
		Address:  netip.AddrPortFrom(u.Addr, cfg.GossipPort),
		Secret:   cfg.Secret,
		Identity: key,
		Cluster: func() cluster.ID {
			if l := agreed.Load(); l != nil {
				return l.ID()
			}
			return ""
		},
		Admit: admit,
		Log:   part("transport"),
	})
	if err != nil {
		return n, err
	}
	n.ledger, err = ledger.Open(ledger.Config{
		Transport: n.transport,
		DB:        n.db,
		Dir:       filepath.Join(cfg.State, "raft"),
		Host:      n.id,
		Self: cluster.Hello{
			PublicKey: key.Public().(ed25519.PublicKey),
			Name:      cfg.Name,
			VTEP:      u.Addr,
			Address:   n.transport.Addr(),
			Machine:   machine(u.MAC),
		},
		Join:  cfg.Join,
		Port:  cfg.GossipPort,
		Force: cfg.FoundForce,

		Strict: cfg.StrictBoot,
		// Both parts are opened below.
		Claims:  func() []cluster.Claim { return n.ipam.Claims() },
		Prepare: n.prepare,
		Log:     part("ledger"),
	})
	if err != nil {
		return n, err
	}
	agreed.Store(n.ledger)
	n.gossip, err = gossip.Open(gossip.Config{
		ID:        n.id,
		Transport: n.transport,
		Cluster:   n.ledger.Cluster,
		Info:      n.info(u),
		Join:      cfg.Join,
		Port:      cfg.GossipPort,
		DB:        n.db,
		Identity:  key,
		Admit:     admit,
		Log:       part("gossip"),
	})
	if err != nil {
		return n, err
	}
	n.ledger.UpdateAddresses(n.heard()) // of earlier runs: those hosts can testify
	n.avoid = &avoided{
		own: k.Routes, members: n.gossip.Members, ask: askRoutes(n.transport), self: n.id, bound: routesBound, log: part("ipam"),
	}
	// Both ask the driver, which needs the ipam to be opened.
	at := func(p cluster.PoolKey) (driver.LAN, bool) { return n.driver.LAN(p) }
	n.strangers = &neighbours{
		prober: lan.New(lan.Config{Open: to.probe, Log: part("lan")}), lan: at, asked: map[cluster.PoolKey]string{},
		ours: func(p cluster.PoolKey, a netip.Addr) bool { return n.driver.Live(p, a) },
		who:  func(p cluster.PoolKey, a netip.Addr) string { return n.driver.WhoHolds(p, a) },
		log:  part("lan"),
	}
	keeper, err := dhcp.NewKeeper(dhcp.Config{Store: dhcp.Bolt{DB: n.db}, Client: to.dhcp, Probe: n.strangers.holder, Log: part("dhcp")})
	if err != nil {
		return n, err
	}
	n.leases = lessee{
		Keeper: keeper, host: n.id, name: cfg.Name, lan: at,
		asks: func(p cluster.PoolKey) bool { return n.ipam.ByDHCP(p) },
		idle: &idle{by: map[cluster.PoolKey][]dhcp.Request{}},
	}
	n.ipam, err = ipam.Open(ipam.Config{
		DB:     n.db,
		Host:   n.id,
		Ledger: n.ledger,
		Routes: n.avoid.Routes,
		Recall: n.recall,

		Claimed:     n.claimed,
		StillClaims: n.stillClaims,
		// The driver needs the ipam to be opened.
		Networked: func(p cluster.PoolKey) bool { return n.driver.Networked(p) },
		Routed:    func(p cluster.PoolKey) bool { return n.driver.Routed(p) },
		Live:      func(p cluster.PoolKey, a netip.Addr) bool { return n.driver.Live(p, a) },
		WhoHolds:  func(p cluster.PoolKey, a netip.Addr) string { return n.driver.WhoHolds(p, a) },
		Probe:     n.strangers.taken,
		Conflicts: n.strangers.conflicts,
		DHCP:      n.leases,
		Log:       part("ipam"),
	})
	if err != nil {
		return n, err
	}
	n.driver, err = driver.Open(driver.Config{
		DB:        n.db,
		Host:      n.id,
		Kernel:    k,
		Ledger:    n.ledger,
		Heard:     n.gossip,
		Addresses: n.ipam,
		Hosts:     n.ipam,
		DHCP:      n.leases,
		VTEP:      u.Addr,
		MTU:       u.MTU,
		Port:      cfg.VXLANPort,
		BGP:       len(cfg.BGP.Peers) > 0,
		Forward:   cfg.Forward,
		Log:       part("driver"),
	})
	if err != nil {
		return n, err
	}
	if n.fabric, err = openFabric(cfg.BGP, n.db, u.Addr, n.id, n.driver, part("bgp")); err != nil {
		return n, err
	}
	n.judge()
	n.adopt(context.Background())
	transport.Handle(n.transport, recallMethod, n.recalled)
	transport.Handle(n.transport, claimsMethod, n.serveClaims)
	transport.Handle(n.transport, routesMethod, n.serveRoutes)
	return n, nil
}

// admitted refuses a host that was taken out of the cluster.
func admitted(r *cluster.Registry, id cluster.HostID) error {
	if h := r.Hosts[id]; h.Tombstone {
		return fmt.Errorf("host %s (%s) was removed from the cluster: run `isthmus reset` on it, then it joins as a new host", h.Name, id.Short())
	}
	return nil
}

// info is what this host says of itself.
func (n *node) info(u kernel.Underlay) cluster.HostInfo {
	return cluster.HostInfo{Name: n.cfg.Name, VTEP: u.Addr, MTU: u.MTU, Version: version}
}

// Run runs all parts until ctx ends, one fails, or the node has to be made
// anew. The kernel's objects stay as they are. The transport ends last, so that
// the others need not tell its end from a failure.
func (n *node) Run(ctx context.Context) error {
	below, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var wire errgroup.Group
	wire.Go(func() error {
		err := n.transport.Run(below)
		if err != nil && below.Err() == nil {
			n.stop(fmt.Errorf("run transport: %w", err))
		}
		return nil
	})
	group, ctx := errgroup.WithContext(ctx)
	for name, run := range map[string]func(context.Context) error{
		"ledger":    n.ledger.Run,
		"gossip":    n.gossip.Run,
		"ipam":      n.ipam.Run,
		"driver":    n.driver.Run,
		"fabric":    n.fabric.Run,
		"underlay":  n.watchUnderlay,
		"prober":    n.prober().Run,
		"sweeper":   n.sweep,
		"addresses": n.feedAddresses,
		"trust":     n.watchTrust,
		"strangers": n.strangers.prober.Run,
		"leases":    n.leases.Run,
		"end": func(ctx context.Context) error {
			select {
			case err := <-n.end:
				return err
			case <-ctx.Done():
				return nil
			}
		},
	} {
		group.Go(func() error {
			if err := run(ctx); err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
				return fmt.Errorf("run %s: %w", name, err)
			}
			return nil
		})
	}
	err := group.Wait()
	cancel()
	return errors.Join(err, wire.Wait())
}

// discard closes what openNode opened of a node that will not run.
func (n *node) discard() error {
	var err error
	if n.transport != nil {
		// A run that is over from the start gives the port back.
		over, cancel := context.WithCancel(context.Background())
		cancel()
		err = n.transport.Run(over)
	}
	return errors.Join(err, n.close())
}

// close gives back what no part's Run does.
func (n *node) close() error {
	if n.db == nil {
		return nil
	}
	if err := n.db.Close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// stop ends the node, for a reason.
func (n *node) stop(reason error) {
	select {
	case n.end <- reason:
	default:
	}
}

func (n *node) prober() *prober {
	return &prober{
		wire:    n.transport,
		self:    n.id,
		members: n.gossip.Members,
		wake:    n.gossip.Subscribe(),
		mtu:     func() int { return n.underlay().MTU },
		report:  n.driver.PathMTU,
		log:     n.log.WithField("part", "prober"),
	}
}

// sweep runs the sweeper, where the user gave the engine's socket.
func (n *node) sweep(ctx context.Context) error {
	if !isSocket(n.cfg.DockerSocket) {
		<-ctx.Done()
		return nil
	}
	s := sweeper{
		list: engineNetworks(n.cfg.DockerSocket),
		known: func() []string {
			var ids []string
			for _, net := range n.driver.Networks() {
				ids = append(ids, net.Docker...)
			}
			return ids
		},
		forget: func(ctx context.Context, id string) error {
			_, err := n.forget(ctx, ForgetRequest{What: id})
			return err
		},
		log: n.log.WithField("part", "sweeper"),
	}
	return s.Run(ctx)
}

// feedAddresses tells the ledger where gossip hears the hosts: a voter that
// moved is found again.
func (n *node) feedAddresses(ctx context.Context) error {
	changed := n.gossip.Subscribe()
	for {
		n.ledger.UpdateAddresses(n.heard())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// heard is where gossip has the other hosts, those of its address book too.
func (n *node) heard() map[cluster.HostID]netip.AddrPort {
	out := map[cluster.HostID]netip.AddrPort{}
	for _, m := range n.gossip.Members() {
		if m.ID != n.id && m.Address.IsValid() {
			out[m.ID] = m.Address
		}
	}
	return out
}

// wipe deletes all state: the host that starts next is a new one. The
// directory itself may be a mount, and stays.
func wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete state: %w", err)
	}
	return nil
}
