package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/ledger"
)

// reset resets the node. Where there is none, it clears the host without one:
// what keeps the node from opening may be the state itself.
func (s *server) reset(ctx context.Context, req ResetRequest) (ResetReport, error) {
	if n, _ := s.gate.Now(); n != nil {
		return n.reset(ctx, req)
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	n, reason := s.gate.Now()
	switch {
	case n != nil:
		return n.reset(ctx, req)
	case !req.Force:
		return ResetReport{}, fmt.Errorf("reset: isthmus is not ready, so nobody knows what is attached: --force if nothing is: %w", reason)
	}
	s.log.Warn("resetting this host without its state")
	k, err := s.openKernel()
	if err != nil {
		return ResetReport{}, fmt.Errorf("reset: %w", err)
	}
	defer closeKernel(k)
	return ResetReport{Left: []string{"the host was reset without its state: " + reason.Error()}}, resetWithout(ctx, k, s.cfg.State)
}

// reset makes this host a new one: intent and kernel objects go, what the host
// holds in the cluster is given back as far as the cluster can be reached, and
// the node ends so that its state is wiped.
func (n *node) reset(ctx context.Context, req ResetRequest) (ResetReport, error) {
	if !req.Force {
		if err := n.mayReset(); err != nil {
			return ResetReport{}, err
		}
	}
	n.log.Warn("resetting this host")
	n.leases.farewell(ctx, n.log) // as long as there are links to the LANs
	if err := n.driver.Reset(ctx); err != nil {
		return ResetReport{}, fmt.Errorf("reset: %w", err)
	}
	n.fabric.farewell()
	left := n.giveBack(ctx)
	bye, cancel := context.WithTimeout(ctx, goodByeBound)
	defer cancel()
	if err := n.gossip.Leave(bye); err != nil {
		left = append(left, err.Error())
	}
	n.stop(errReset)
	return ResetReport{Left: left}, nil
}

// mayReset refuses what would hurt: containers that run, and a cluster that
// would lose its only voter.
func (n *node) mayReset() error {
	if c := n.driver.Status().Endpoints; c > 0 {
		return fmt.Errorf("reset: %d containers of this host are attached: stop them, or --force to cut them off", c)
	}
	if st := n.ledger.Status(); st.Role == ledger.Voter && len(st.Voters) == 1 {
		var others []string
		for _, h := range n.ledger.Registry().Hosts {
			if h.ID != n.id && !h.Tombstone && h.Session != 0 {
				others = append(others, h.Name)
			}
		}
		if len(others) > 0 {
			slices.Sort(others)
			return fmt.Errorf("reset: this host is the only voter of a cluster with %s: without it no network can be made there any more; --force if that is meant", strings.Join(others, ", "))
		}
	}
	return nil
}

// How long an unreachable cluster may delay a reset.
const (
	giveBackBound = 5 * time.Second
	goodByeBound  = 3 * time.Second
)

// giveBack releases what the cluster knows this host to hold, and reports what
// it could not.
func (n *node) giveBack(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, giveBackBound)
	defer cancel()
	var left []string
	for _, p := range n.ipam.Status() {
		if err := n.ipam.Forget(ctx, p.Pool); err != nil {
			left = append(left, err.Error())
		}
	}
	// In good order where that is possible. What a container was about to use is
	// not given up so; it is taken back below.
	if err := n.ipam.Leave(ctx); err != nil {
		n.log.WithError(err).Debug("give back the pools")
	}
	for _, c := range append(holdings(n.ledger.Registry(), n.id), cluster.Command{Leave: &cluster.Leave{}}) {
		if _, err := n.ledger.Propose(ctx, c); err != nil {
			left = append(left, err.Error())
			if ctx.Err() != nil || !errors.As(err, new(*cluster.Refusal)) {
				break // nobody answers: more of the same would only take longer
			}
		}
	}
	return left
}

// holdings are the commands that give back all that a host holds.
func holdings(r *cluster.Registry, host cluster.HostID) []cluster.Command {
	var out []cluster.Command
	for _, net := range r.Networks {
		if slices.Contains(net.Holders, host) {
			out = append(out, cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: net.ID}})
		}
	}
	for _, l := range r.Leases {
		if l.Holder == host {
			out = append(out, cluster.Command{Release: &cluster.Release{Lease: l.ID}})
		}
	}
	for key, p := range r.Pools {
		if slices.Contains(p.Holders, host) {
			out = append(out, cluster.Command{DetachPool: &cluster.DetachPool{Pool: key}})
		}
	}
	return out
}

// resetWithout clears a host on which no plugin runs: whatever carries our
// marks in the kernel, and the state directory.
func resetWithout(ctx context.Context, k kernel.Kernel, state string) error {
	have, err := k.Dump(ctx)
	if err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := k.Do(ctx, kernel.Diff(have, kernel.State{}, kernel.Options{})); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return wipe(state)
}
