package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ipam"
	"github.com/isthmus-net/isthmus/lan/dhcp"
)

const (
	// linkBound is how long an address may wait for the link to its LAN: a VLAN
	// device that was made for the network a moment ago.
	linkBound = 2 * time.Second
	linkEvery = 20 * time.Millisecond
	// farewellBound is how long the servers may be told that all addresses of
	// this host are free.
	farewellBound = 3 * time.Second
)

// lessee has addresses of the LANs' own servers, for ipam and driver.
type lessee struct {
	*dhcp.Keeper
	host cluster.HostID
	name string // of the host
	lan  func(cluster.PoolKey) (driver.LAN, bool)
	asks func(cluster.PoolKey) bool // a network of this host asked for a server's addresses
	idle *idle
}

// idle are the identities of which the engine did not tell whose they are, and
// that gave their address back: a container that restarts takes up its own, as
// long as no other one stops or starts meanwhile. Nobody takes one up twice.
type idle struct {
	mu sync.Mutex
	by map[cluster.PoolKey][]dhcp.Request // the newest last
}

const idleMost = 64 // of a pool

func (i *idle) put(pool cluster.PoolKey, r dhcp.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := append(i.by[pool], r)
	i.by[pool] = list[max(0, len(list)-idleMost):]
}

func (i *idle) take(pool cluster.PoolKey) (r dhcp.Request, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if list := i.by[pool]; len(list) > 0 {
		r, ok = list[len(list)-1], true
		i.by[pool] = list[:len(list)-1]
	}
	return r, ok
}

// groupOf names a pool to the Keeper.
func groupOf(pool cluster.PoolKey) string {
	text, _ := pool.MarshalText() // never fails
	return string(text)
}

// Obtain is ipam.DHCP's. The client identifier follows from this host, the pool
// and the container's name, so that the same container gets the same address
// again; where the engine tells no name, from the address that the user asked
// for with --ip; else it is an idle or a new one. A MAC, where the engine tells one, is the
// identity that it would be for a machine.
func (l lessee) Obtain(ctx context.Context, pool cluster.PoolKey, e ipam.Endpoint) (netip.Addr, error) {
	at, err := l.await(ctx, pool)
	if err != nil {
		return netip.Addr{}, err
	}
	r, err := l.request(pool, e, at)
	if err != nil {
		return netip.Addr{}, err
	}
	lease, err := l.Keeper.Obtain(ctx, groupOf(pool), r)
	if err != nil {
		return netip.Addr{}, err
	}
	return lease.Prefix.Addr(), nil
}

func (l lessee) request(pool cluster.PoolKey, e ipam.Endpoint, at driver.LAN) (dhcp.Request, error) {
	who := e.Name
	switch {
	case who != "":
	case e.Want.IsValid():
		who = asked(e.Want)
	default:
		who = "once " + rand.Text()
	}
	r := dhcp.Request{Interface: at.Link, ClientID: l.identity(pool, who), Hostname: e.Name, Addr: e.Want}
	if e.Name == "" && !e.Want.IsValid() && e.MAC == "" {
		if former, ok := l.idle.take(pool); ok {
			r.ClientID, r.Addr = former.ClientID, former.Addr
		}
	}
	if e.Name == ipam.HostName {
		r.Hostname = l.name
	}
	r.MAC = dhcp.MACOf(r.ClientID)
	if e.MAC != "" {
		mac, err := cluster.ParseMAC(e.MAC)
		if err != nil {
			return r, err
		}
		r.MAC, r.ClientID = mac, dhcp.MACIdentity(mac)
	}
	if at.Shared {
		r.MAC = cluster.MAC{}
	}
	return r, nil
}

func (l lessee) identity(pool cluster.PoolKey, who string) []byte {
	return dhcp.Identity(string(l.host), groupOf(pool), who)
}

// asked names whoever the user gave an address with --ip. No container is called
// so.
func asked(a netip.Addr) string { return "at " + a.String() }

// await waits for the link to a pool's LAN.
func (l lessee) await(ctx context.Context, pool cluster.PoolKey) (driver.LAN, error) {
	ctx, cancel := context.WithTimeout(ctx, linkBound)
	defer cancel()
	tick := time.NewTicker(linkEvery)
	defer tick.Stop()
	for {
		if at, ok := l.lan(pool); ok {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return driver.LAN{}, errors.New("the parent of its network leads to no LAN now, so no DHCP server can be asked: see isthmus status")
		case <-tick.C:
		}
	}
}

// Held is ipam.DHCP's.
func (l lessee) Held() map[cluster.PoolKey][]netip.Addr {
	out := map[cluster.PoolKey][]netip.Addr{}
	for _, s := range l.Status() {
		var pool cluster.PoolKey
		if pool.UnmarshalText([]byte(s.Key.Group)) == nil {
			out[pool] = append(out[pool], s.Key.Addr)
		}
	}
	return out
}

// Release is ipam.DHCP's.
func (l lessee) Release(ctx context.Context, pool cluster.PoolKey, a netip.Addr) error {
	key := dhcp.Key{Group: groupOf(pool), Addr: a}
	lease, ok := l.Keeper.Lease(key)
	err := l.Keeper.Release(ctx, key)
	if ok && err == nil && lease.Hostname == "" && !bytes.Equal(lease.ClientID, l.identity(pool, asked(a))) {
		r := lease.Request
		r.Addr = a
		l.idle.put(pool, r)
	}
	return err
}

// Decline is ipam.DHCP's.
func (l lessee) Decline(ctx context.Context, pool cluster.PoolKey, a netip.Addr, why string) error {
	return l.Keeper.Decline(ctx, dhcp.Key{Group: groupOf(pool), Addr: a}, why)
}

// Serves is driver.DHCP's.
func (l lessee) Serves(pool cluster.PoolKey) bool { return l.asks(pool) }

// Terms is driver.DHCP's.
func (l lessee) Terms(pool cluster.PoolKey, a netip.Addr) (driver.Terms, bool) {
	lease, ok := l.Keeper.Lease(dhcp.Key{Group: groupOf(pool), Addr: a})
	return driver.Terms{Router: lease.Router, MTU: lease.MTU, MAC: lease.MAC}, ok
}

// Bears is driver.DHCP's.
func (l lessee) Bears(pool cluster.PoolKey, a netip.Addr, mac cluster.MAC) {
	l.Keeper.Bear(dhcp.Key{Group: groupOf(pool), Addr: a}, mac)
}

// farewell gives all addresses back: this host has no use of them any more.
func (l lessee) farewell(ctx context.Context, log logrus.FieldLogger) {
	ctx, cancel := context.WithTimeout(ctx, farewellBound)
	defer cancel()
	for _, s := range l.Status() {
		if err := l.Keeper.Release(ctx, s.Key); err != nil {
			log.WithField("address", s.Key.Addr.String()).WithError(err).Warn("address is not given back to the DHCP server")
		}
	}
}

// LeaseReport is an address that this host has of a LAN's own server.
type LeaseReport struct {
	Pool    string     `json:"pool"`
	Addr    netip.Addr `json:"addr"`
	Name    string     `json:"name,omitempty"` // container, where the engine tells it
	Server  netip.Addr `json:"server"`
	Router  netip.Addr `json:"router,omitzero"`
	MTU     int        `json:"mtu,omitempty"`
	Expires time.Time  `json:"expires,omitzero"` // zero: never
	Lost    bool       `json:"lost,omitempty"`   // the server may give it to others
	Problem string     `json:"problem,omitempty"`
}

// dhcpReports lists the leases by pool and address, with who uses them.
func dhcpReports(leases []dhcp.Status, used func(cluster.PoolKey) []ipam.Use) []LeaseReport {
	var out []LeaseReport
	for _, s := range leases {
		r := LeaseReport{
			Pool: s.Key.Group, Addr: s.Key.Addr, Server: s.Lease.Server, Router: s.Lease.Router, MTU: s.Lease.MTU,
			Expires: s.Lease.Expires, Lost: s.Lost, Problem: s.Problem,
		}
		var pool cluster.PoolKey
		if pool.UnmarshalText([]byte(s.Key.Group)) == nil {
			r.Pool = pool.String()
			for _, u := range used(pool) {
				if u.Addr == s.Key.Addr {
					r.Name = u.Name
				}
			}
		}
		out = append(out, r)
	}
	return out
}

// dhcpProblems says what is wrong with the leases.
func dhcpProblems(leases []LeaseReport) []driver.Problem {
	var out []driver.Problem
	for _, l := range leases {
		who := "container " + l.Name
		switch l.Name {
		case "":
			who = "a container"
		case ipam.HostName:
			who = l.Name
		}
		p := driver.Problem{Cause: fmt.Sprintf("address %s of pool %s, which %s has from DHCP server %s, ", l.Addr, l.Pool, who, l.Server)}
		switch {
		case l.Lost:
			p.Cause += "belongs to the server again: " + cmp.Or(l.Problem, "its time is over")
			p.Remedy = "restart " + who + ", which gets another address then; isthmus goes on asking for this one"
			if l.Name == ipam.HostName {
				p.Remedy = "remove the network here and create it again; isthmus goes on asking for this one"
			}
		case l.Problem != "":
			p.Cause += "is not renewed: " + l.Problem
			p.Remedy = "look at the server; the address is good until " + sinceText(l.Expires)
			if l.Expires.IsZero() {
				p.Remedy = "look at the server"
			}
		default:
			continue
		}
		out = append(out, p)
	}
	return out
}
