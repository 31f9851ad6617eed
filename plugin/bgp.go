package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"

	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/bgp"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
)

// fabric tells the routers of the network which blocks this host leases, and takes
// from them what the user lets in.
type fabric struct {
	speaker  *bgp.Speaker // nil: no router is named
	driver   *driver.Driver
	imported chan []bgp.Route // one slot: the newest set
	log      logrus.FieldLogger
}

var bgpBucket, bootKey = []byte("plugin.bgp"), []byte("boot")

// openFabric makes the speaker, if there are routers. A process that announced since
// this host booted left routes that still work: the routers are told so.
func openFabric(c bgp.Config, db *bbolt.DB, vtep netip.Addr, id cluster.HostID, d *driver.Driver, log logrus.FieldLogger) (*fabric, error) {
	f := &fabric{driver: d, imported: make(chan []bgp.Route, 1), log: log}
	if len(c.Peers) == 0 {
		return f, nil
	}
	if !c.RouterID.IsValid() {
		if c.RouterID = vtep.Unmap(); !c.RouterID.Is4() {
			c.RouterID = netip.AddrFrom4([4]byte([]byte(id)[:4])) // a number that routers have of no other host
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bgpBucket)
		if err != nil {
			return err
		}
		c.Restarting = bytes.Equal(b.Get(bootKey), boot)
		return b.Put(bootKey, boot)
	})
	if err != nil {
		return nil, fmt.Errorf("store the boot id: %w", err)
	}
	c.Imported = func(routes []bgp.Route) { // one goroutine calls it
		select {
		case <-f.imported: // nobody took the set before
		default:
		}
		f.imported <- routes
	}
	f.speaker, err = bgp.New(c, log)
	return f, err
}

// Run speaks until ctx ends, without a farewell: routers keep the routes for the
// process that follows.
func (f *fabric) Run(ctx context.Context) error {
	if f.speaker == nil {
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.speaker.Run(ctx) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-f.driver.Told():
				f.announce()
			case routes := <-f.imported:
				set := map[netip.Prefix]netip.Addr{}
				for _, r := range routes {
					set[r.Prefix] = r.NextHop
				}
				f.driver.Import(set)
			}
		}
	})
	return g.Wait()
}

func (f *fabric) announce() {
	blocks, via, known := f.driver.Announced()
	if !known {
		return
	}
	routes := make([]bgp.Route, 0, len(blocks))
	for _, p := range blocks {
		routes = append(routes, bgp.Route{Prefix: p, NextHop: via})
	}
	if err := f.speaker.Announce(routes); err != nil {
		f.log.WithError(err).Error("announce this host's blocks")
	}
}

// farewell has all routers forget this host at once.
func (f *fabric) farewell() {
	if f.speaker != nil {
		f.speaker.Withdraw()
	}
}

// status is nil without routers.
func (f *fabric) status() *bgp.Status {
	if f.speaker == nil {
		return nil
	}
	s := f.speaker.Status()
	return &s
}

// problems names the sessions that are not there.
func (f *fabric) problems() (out []driver.Problem) {
	s := f.status()
	if s == nil {
		return nil
	}
	for _, peer := range s.Sessions {
		if peer.Problem != "" {
			out = append(out, driver.Problem{Cause: "BGP session with " + peer.Peer + ": " + peer.Problem})
		}
	}
	if s.LeftOut > 0 {
		out = append(out, driver.Problem{Cause: fmt.Sprintf("%d routes of BGP routers were left out", s.LeftOut), Remedy: "raise BGP_IMPORT_MAX, or narrow BGP_IMPORT"})
	}
	return out
}
