package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-net/isthmus/driver/kernel"
	"github.com/isthmus-net/isthmus/ledger"
)

// retryEvery is how soon a node that could not be opened, or failed, is tried
// again. The socket answers meanwhile, and says why it waits.
const retryEvery = 2 * time.Second

// newServer makes a plugin that has not begun.
func newServer(cfg Config, openKernel func() (kernel.Kernel, error), log logrus.FieldLogger) *server {
	return &server{cfg: cfg, openKernel: openKernel, gate: newGate(), bound: callBound, look: underlayEvery, log: log}
}

// Run is the plugin: the socket first, then one node after the other, until
// ctx ends. refused is what is wrong with the settings, if anything: the
// socket then only says so, because a managed plugin that exits tells its user
// nothing.
func (s *server) Run(ctx context.Context, refused error) error {
	l, err := listen(s.cfg.Socket)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	// The node outlives the socket: calls that have begun still need it.
	nodes, end := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error {
		defer end()
		return s.Serve(ctx, l)
	})
	if refused != nil {
		s.gate.Shut(&refusedSettings{fmt.Errorf("the settings are refused: %w; then disable, set and enable the plugin", refused)})
		return group.Wait()
	}
	group.Go(func() error { return s.runNodes(nodes) })
	return group.Wait()
}

// runNodes opens a node, lets calls through to it, and begins anew when it
// ends, until ctx does.
func (s *server) runNodes(ctx context.Context) error {
	var last string
	for ctx.Err() == nil {
		err := s.runNode(ctx)
		switch {
		case ctx.Err() != nil:
			if err != nil {
				s.log.WithError(err).Warn("stopped, but not in order")
			}
			return nil
		case errors.Is(err, errMoved):
			continue
		case errors.Is(err, ledger.ErrDissolved):
			s.log.Info("the cluster of this host had no networks, and gave way to another")
			continue
		case errors.Is(err, errLeft):
			s.log.Info("this host left its cluster")
			// Whatever the disk says: a host that left does not come back by itself.
			s.gate.Shut(errors.Join(errLeft, wipe(s.cfg.State)))
			<-ctx.Done()
			return nil
		case errors.Is(err, errReset):
			if err = wipe(s.cfg.State); err == nil {
				s.log.Info("reset: this is a new host now")
				continue
			}
		}
		s.gate.Shut(err)
		if err.Error() != last { // once, although it is tried again and again
			last = err.Error()
			s.log.WithError(err).Error("not ready")
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryEvery):
		}
	}
	return nil
}

func (s *server) runNode(ctx context.Context) error {
	k, err := s.openKernel()
	if err != nil {
		return err
	}
	defer closeKernel(k)
	n, err := s.open(ctx, k)
	if err != nil {
		return err
	}
	err = n.Run(ctx)
	s.gate.Shut(errors.New("isthmus is starting again"))
	return errors.Join(err, n.close())
}

// open opens a node, and lets calls through to it.
func (s *server) open(ctx context.Context, k kernel.Kernel) (*node, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if err := os.MkdirAll(s.cfg.State, 0o700); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	last, known := lastUnderlay(s.cfg.State)
	u, err := findUnderlay(ctx, k, s.cfg.Advertise, last.Addr)
	switch {
	case err == nil:
		err = storeUnderlay(s.cfg.State, u)
	case known: // networks and containers of this host need not wait for it
		s.log.WithError(err).Warn("going on with the underlay that was")
		u, err = last, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := openNode(s.cfg, doors{kernel: k, probe: s.probe, dhcp: s.dhcp}, u, s.log)
	if err != nil {
		return nil, err
	}
	n.look = s.look
	s.log.WithFields(logrus.Fields{"host": n.id, "name": s.cfg.Name, "link": u.Name, "address": n.transport.Addr(), "mtu": u.MTU}).Info("ready")
	s.gate.Open(n)
	return n, nil
}

// closeKernel ends a kernel that wants to be ended; the fake does not.
func closeKernel(k kernel.Kernel) {
	if c, ok := k.(interface{ Close() }); ok {
		c.Close()
	}
}
