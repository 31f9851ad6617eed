package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	sweepFirst = 10 * time.Second // after the start: at boot the engine does not answer yet
	sweepEvery = time.Minute
	sweepBound = 5 * time.Second // of one listing
)

// sweeper finds networks that Docker removed while nobody could tell us. It
// works only where the user gave the engine's socket, and never within a
// driver call: at boot the engine answers no request before its containers run.
type sweeper struct {
	list   func(ctx context.Context) (map[string]bool, error) // ids of all networks of the engine
	known  func() []string                                    // ids of the networks that we hold
	forget func(ctx context.Context, id string) error
	log    logrus.FieldLogger

	missing map[string]bool // in the listing before
}

// Run sweeps from time to time. The engine not answering is no error: it may
// be starting or stopping.
func (s *sweeper) Run(ctx context.Context) error {
	wait := sweepFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = sweepEvery
		if err := s.sweep(ctx); err != nil {
			s.log.WithError(err).Warn("sweep did not end")
		}
	}
}

// sweep forgets what two listings in a row did not have. One is not enough: a
// network that is being created is ours before the engine lists it.
func (s *sweeper) sweep(ctx context.Context) error {
	listed, err := s.list(ctx)
	if err != nil {
		return fmt.Errorf("list the engine's networks: %w", err)
	}
	missing := map[string]bool{}
	var errs []error
	for _, id := range s.known() {
		if listed[id] {
			continue
		}
		if !s.missing[id] {
			missing[id] = true
			continue
		}
		s.log.WithField("network", id).Info("Docker has this network no more: forgetting it")
		if err := s.forget(ctx, id); err != nil {
			missing[id] = true
			errs = append(errs, err)
		}
	}
	s.missing = missing
	return errors.Join(errs...)
}

// isSocket tells an engine's socket from the /dev/null that stands for none.
func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// engineNetworks lists the networks of the engine behind a socket.
func engineNetworks(socket string) func(ctx context.Context) (map[string]bool, error) {
	client := http.Client{
		Timeout:   sweepBound,
		Transport: &http.Transport{DialContext: dialUnix(socket), DisableKeepAlives: true},
	}
	return func(ctx context.Context) (map[string]bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/networks", nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the engine answers %s", resp.Status)
		}
		var networks []struct{ ID string }
		if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(&networks); err != nil {
			return nil, err
		}
		ids := map[string]bool{}
		for _, n := range networks {
			ids[n.ID] = true
		}
		return ids, nil
	}
}

func dialUnix(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}
