package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ipam"
	"github.com/isthmus-net/isthmus/lan"
)

// neighbourBound is how long a LAN may be asked for one address. Without an answer
// nobody has it: a container start waits for no stranger.
const neighbourBound = time.Second

// neighbours asks the LANs that networks of this host stand in who else has an
// address there.
type neighbours struct {
	prober *lan.Prober
	lan    func(cluster.PoolKey) (driver.LAN, bool)
	ours   func(cluster.PoolKey, netip.Addr) bool   // in use on this host, by one of its containers or itself
	who    func(cluster.PoolKey, netip.Addr) string // the cluster's host that uses it, or ""
	log    logrus.FieldLogger

	mu    sync.Mutex
	asked map[cluster.PoolKey]string // links by which pools were asked for
}

// taken is ipam's Config.Probe.
func (b *neighbours) taken(ctx context.Context, pool cluster.PoolKey, a netip.Addr) (holder string, taken bool) {
	at, ok := b.lan(pool)
	if !ok || b.ours(pool, a) {
		return "", false
	}
	b.mu.Lock()
	b.asked[pool] = at.Link
	b.mu.Unlock()
	mac, taken := b.ask(ctx, at.Link, a)
	switch host := b.who(pool, a); {
	case !taken:
		return "", false
	case mac == at.MAC:
		return "this host itself", true
	case host != "":
		return fmt.Sprintf("a container on %s (%s)", host, mac), true
	}
	return mac.String(), true
}

// holder is the Probe of the DHCP leases: who answers on a link for an address.
func (b *neighbours) holder(ctx context.Context, link string, a netip.Addr) string {
	if mac, taken := b.ask(ctx, link, a); taken {
		return mac.String()
	}
	return ""
}

func (b *neighbours) ask(ctx context.Context, link string, a netip.Addr) (cluster.MAC, bool) {
	ctx, cancel := context.WithTimeout(ctx, neighbourBound)
	defer cancel()
	held, err := b.prober.Probe(ctx, link, a)
	if err != nil {
		b.log.WithFields(logrus.Fields{"interface": link, "address": a.String()}).WithError(err).Warn("nobody could be asked whether an address is free")
	}
	mac, taken := held[a]
	return mac, taken
}

// conflicts is ipam's Config.Conflicts.
func (b *neighbours) conflicts(pool cluster.PoolKey) []netip.Addr {
	at, ok := b.lan(pool)
	if !ok {
		b.forget(pool)
		return nil
	}
	var out []netip.Addr
	for _, c := range b.prober.Conflicts(at.Link) {
		if pool.Prefix.Contains(c.Addr) {
			out = append(out, c.Addr)
		}
	}
	return out
}

// forget ends the probes on a link that no pool has any more.
func (b *neighbours) forget(pool cluster.PoolKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	link, ok := b.asked[pool]
	if !ok {
		return
	}
	delete(b.asked, pool)
	for _, other := range b.asked {
		if other == link {
			return
		}
	}
	b.prober.Forget(link)
}

// conflictProblems says what is in conflict in a pool.
func conflictProblems(p ipam.PoolStatus) []driver.Problem {
	var out []driver.Problem
	for _, c := range p.Conflicts {
		out = append(out, driver.Problem{
			Cause:  fmt.Sprintf("address %s of pool %s is in use on the LAN by %s: no container of this host gets it", c.Addr, p.Pool, c.Holder),
			Remedy: "keep the cluster off it with --ip-range or --aux-address, or free it there",
		})
	}
	return out
}
