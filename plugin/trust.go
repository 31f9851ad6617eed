package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger"
)

// watchTrust cuts this host's containers off from the others while the cluster
// refuses the host, or while there is doubt about its disk, and lets them in
// again afterwards.
func (n *node) watchTrust(ctx context.Context) error {
	agreed, addresses := n.ledger.Subscribe(), n.ipam.Subscribe()
	confirmed := false
	for {
		st := n.judge()
		if st.Refused == cluster.Forgotten && !confirmed {
			confirmed = n.confirm(ctx)
		}
		again := make(<-chan time.Time)
		if st.Refused == cluster.Forgotten && !confirmed {
			again = time.After(confirmEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-agreed:
		case <-addresses:
		case <-again:
		}
	}
}

// judge has this host's containers cut off, or let in, as things are.
func (n *node) judge() ledger.Status {
	n.judging.Lock() // who judges last knows most
	defer n.judging.Unlock()
	st := n.ledger.Status()
	n.driver.SetDetached(detachedBy(st, n.ledger.Boot(), n.ipam.Suspect(), n.ipam.Barred()))
	return st
}

// prepare gets this host ready for a registry that was rebuilt: from now on, over
// restarts, it uses nothing until that registry has confirmed its blocks. It
// must be done before the host is let in there, because others may have been
// granted what a lost log had leased to it.
func (n *node) prepare(ctx context.Context, gen uint64) error {
	if err := n.ipam.Rebuilt(n.ledger.ID(), gen); err != nil {
		return err
	}
	if n.ipam.Barred() == "" {
		return nil // it has nothing to let go of, or was confirmed before
	}
	n.judge()
	if err := n.driver.Sync(ctx, 0); err != nil {
		return fmt.Errorf("cut this host's containers off: %w", err)
	}
	return nil
}

// confirmEvery is how often a removed host tries to say that it stopped.
const confirmEvery = 10 * time.Second

// detachedBy says why this host's containers must not be heard by others, ""
// for no reason. In the moment after a start in which the others are asked,
// what runs goes on: a plugin that restarts must not stop it. What the own disk
// bars (barred) waits for nobody.
func detachedBy(st ledger.Status, boot cluster.Boot, suspect, barred string) string {
	switch {
	case st.Refused == cluster.Forgotten, st.Refused == cluster.Clone:
		return st.Error
	case barred != "":
		return barred
	case boot.Settled:
		return suspect
	}
	return ""
}

// confirm tells the cluster that took this host out that nothing here is heard
// any more: what was kept for it is free. The ledger stores before that it was
// taken out.
func (n *node) confirm(ctx context.Context) bool {
	if err := n.driver.Sync(ctx, 0); err != nil {
		n.log.WithError(err).Debug("cannot confirm yet that this host's containers are cut off")
		return false
	}
	if _, err := n.ledger.Propose(ctx, cluster.Command{Confirm: &cluster.Confirm{}}); err != nil {
		n.log.WithError(err).Debug("cannot confirm yet that this host's containers are cut off")
		return false
	}
	n.log.Info("confirmed that this host's containers are cut off: what it held is free for others")
	return true
}

// foundTime bounds the look into the sandboxes at the start.
const foundTime = 3 * time.Second

// adopt takes addresses of running containers as used that the stored state,
// which may have been set back, does not know.
func (n *node) adopt(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, foundTime)
	defer cancel()
	found, err := n.driver.Found(ctx)
	if err != nil {
		n.log.WithError(err).Warn("cannot look into all containers: addresses that the stored state lost stay unknown")
	}
	for _, f := range found {
		// Addresses of a network with another IPAM are not ours to count.
		if n.driver.Networked(f.Pool) && !n.ipam.Holds(f.Pool) {
			continue
		}
		log := n.log.WithFields(logrus.Fields{"pool": f.Pool.String(), "addr": f.Addr, "sandbox": f.Sandbox})
		if err := n.ipam.Adopt(f.Pool, f.Addr, ""); err != nil {
			log.WithError(err).Warn("an address in a running container cannot be taken as used")
		}
	}
}
