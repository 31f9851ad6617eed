package main

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// routesMethod asks a host where its routes lead.
const routesMethod = "host.routes"

type routesRequest struct{}

type routesReply struct {
	Routes []netip.Prefix `json:"routes"`
}

const (
	// routesBound is how long the members may take to say where their routes
	// lead: Docker waits for the pool meanwhile.
	routesBound = time.Second
	// routesMost bounds an answer: a host with a full routing table says what
	// it can, and the others need not carry the rest.
	routesMost = 4096
)

// avoided knows what a pool that the cluster picks must not overlap: what the
// routes of every member lead to. A member that is down is remembered by its
// last answer.
type avoided struct {
	own     func(ctx context.Context) ([]netip.Prefix, error)
	members func() []cluster.Member
	ask     func(ctx context.Context, at netip.AddrPort) ([]netip.Prefix, error)
	self    cluster.HostID
	bound   time.Duration
	log     logrus.FieldLogger

	mu    sync.Mutex
	heard map[cluster.HostID][]netip.Prefix
}

// Routes lists them all, sorted, each once. Only this host's own routes must
// be had; members that do not answer in time cost no more than that time.
func (a *avoided) Routes(ctx context.Context) ([]netip.Prefix, error) {
	all, err := a.own(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.bound)
	defer cancel()
	members := a.members()
	var wg sync.WaitGroup
	for _, m := range members {
		if m.ID == a.self || m.State != cluster.Alive || !m.Address.IsValid() {
			continue
		}
		wg.Go(func() {
			routes, err := a.ask(ctx, m.Address)
			if err != nil {
				a.log.WithField("peer", m.Info.Name).WithError(err).Warn("a member does not say where its routes lead: a pool may overlap one of them")
				return
			}
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.heard == nil {
				a.heard = map[cluster.HostID][]netip.Prefix{}
			}
			a.heard[m.ID] = routes
		})
	}
	wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range members {
		all = append(all, a.heard[m.ID]...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all), nil
}

// askRoutes is avoided.ask over the transport.
func askRoutes(t *transport.Transport) func(context.Context, netip.AddrPort) ([]netip.Prefix, error) {
	return func(ctx context.Context, at netip.AddrPort) ([]netip.Prefix, error) {
		reply, err := transport.Call[routesRequest, routesReply](ctx, t, at, routesMethod, routesRequest{})
		return reply.Routes, err
	}
}

// serveRoutes answers for this host.
func (n *node) serveRoutes(ctx context.Context, _ cluster.HostID, _ routesRequest) (routesReply, error) {
	routes, err := n.kernel.Routes(ctx)
	return routesReply{routes[:min(len(routes), routesMost)]}, err
}
