package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/ledger"
)

// RemoveRequest names the host to take out of the cluster: its name, its id, or
// the first eight digits of that.
type RemoveRequest struct {
	What string `json:"what"`
	Dead bool   `json:"dead"` // it is off for good: what it had may be used by others at once
}

// RemoveReport says what became of the blocks that the host had.
type RemoveReport struct {
	Host       cluster.HostID  `json:"host"`
	Name       string          `json:"name"`
	Freed      []cluster.Lease `json:"freed"`
	Quarantine []cluster.Lease `json:"quarantine"` // kept until the host confirms, or --dead
}

// LeaveReport is empty: a host that left holds nothing.
type LeaveReport struct{}

// remove takes a host out of the cluster for good.
func (n *node) remove(ctx context.Context, req RemoveRequest) (RemoveReport, error) {
	before := n.ledger.Registry()
	h, err := findHost(before, req.What, req.Dead)
	if err != nil {
		return RemoveReport{}, badRequest{fmt.Errorf("remove host: %w", err)}
	}
	if h.ID == n.id {
		return RemoveReport{}, badRequest{fmt.Errorf("remove host %s: that is this host; use: isthmus leave", h.Name)}
	}
	res, err := n.ledger.Propose(ctx, cluster.Command{Forget: &cluster.Forget{Host: h.ID, Dead: req.Dead}})
	if err != nil {
		return RemoveReport{}, fmt.Errorf("remove host %s: %w", h.Name, err)
	}
	r := RemoveReport{Host: h.ID, Name: h.Name, Freed: []cluster.Lease{}, Quarantine: list(res.Leases)}
	for _, l := range before.Leases {
		kept := slices.ContainsFunc(res.Leases, func(k cluster.Lease) bool { return k.ID == l.ID })
		if l.Holder == h.ID && !kept {
			r.Freed = append(r.Freed, l)
		}
	}
	slices.SortFunc(r.Freed, func(a, b cluster.Lease) int { return a.Block.Addr().Compare(b.Block.Addr()) })
	n.log.WithField("peer", h.Name).WithField("id", h.ID).Warn("host removed from the cluster")
	return r, nil
}

// findHost finds the one host that a person means. One that was removed before
// is meant only if no member is called so. To remove it again does nothing, so any
// of several will do, unless what is kept for them is to be freed.
func findHost(r *cluster.Registry, what string, dead bool) (cluster.Host, error) {
	if what == "" {
		return cluster.Host{}, errors.New("say which, by name or id")
	}
	found := r.HostsCalled(what)
	switch {
	case len(found) == 1, len(found) > 1 && found[0].Tombstone != found[1].Tombstone, len(found) > 1 && found[0].Tombstone && !dead:
		return found[0], nil
	case len(found) > 1:
		return cluster.Host{}, fmt.Errorf("%s may be %s or %s: give the id", what, found[0].ID, found[1].ID)
	}
	var names []string
	for _, h := range r.Hosts {
		if !h.Tombstone {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return cluster.Host{}, fmt.Errorf("there is no host %s; there are %s", what, strings.Join(names, ", "))
}

// leave takes this host out of the cluster in good order: everything goes back,
// and the node ends. Nothing is begun before all that is attached is gone.
func (n *node) leave(ctx context.Context, _ struct{}) (LeaveReport, error) {
	var names []string
	for _, net := range n.driver.Networks() {
		names = append(names, poolsText(net.Pools)+" ("+dockerText(net.Docker)+")")
	}
	switch {
	case n.driver.Status().Endpoints > 0:
		return LeaveReport{}, fmt.Errorf("leave: %d containers of this host are attached: remove them and their networks first", n.driver.Status().Endpoints)
	case len(names) > 0:
		return LeaveReport{}, fmt.Errorf("leave: this host holds the networks %s: remove them first with docker network rm, or isthmus networks forget", strings.Join(names, ", "))
	}
	n.leases.farewell(ctx, n.log)
	if err := n.ipam.Leave(ctx); err != nil {
		return LeaveReport{}, fmt.Errorf("leave: %w", err)
	}
	if err := n.ledger.Leave(ctx); err != nil {
		return LeaveReport{}, fmt.Errorf("leave: %w", err)
	}
	n.fabric.farewell()
	bye, cancel := context.WithTimeout(ctx, goodByeBound)
	defer cancel()
	if err := n.gossip.Leave(bye); err != nil {
		n.log.WithError(err).Warn("not all members heard the good-bye; they will see this host as failed")
	}
	n.stop(errLeft)
	return LeaveReport{}, nil
}

func (n *node) recover(ctx context.Context, _ struct{}) (ledger.Report, error) {
	return n.ledger.Recover(ctx)
}

// maxBackup bounds what restore reads.
const maxBackup = 256 << 20

// addMembership registers what changes who is in the cluster.
func (s *server) addMembership(mux *http.ServeMux) {
	mux.HandleFunc("POST "+apiPath+"node/rm", post(s, 15*time.Second, withNode((*node).remove)))
	mux.HandleFunc("POST "+apiPath+"leave", post(s, 60*time.Second, withNode((*node).leave)))
	mux.HandleFunc("POST "+apiPath+"recover", post(s, 60*time.Second, withNode((*node).recover)))
	mux.HandleFunc("GET "+apiPath+"backup", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.gate.Now()
		var b bytes.Buffer
		if err == nil {
			err = n.ledger.Backup(r.Context(), &b)
		}
		if err != nil {
			encodeError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = b.WriteTo(w)
	})
	mux.HandleFunc("POST "+apiPath+"restore", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 60*time.Second)
		defer cancel()
		n, err := s.gate.Wait(ctx)
		var done ledger.Report
		if err == nil {
			done, err = n.ledger.Restore(ctx, io.LimitReader(r.Body, maxBackup))
		}
		if err != nil {
			s.log.WithError(err).Warn("restore refused")
			encodeError(w, err)
			return
		}
		encodeReport(w, done)
	})
}

// withNode makes a handler of the server out of one of the node.
func withNode[Req, Resp any](fn func(*node, context.Context, Req) (Resp, error)) func(*server, context.Context, Req) (Resp, error) {
	return func(s *server, ctx context.Context, req Req) (Resp, error) {
		n, err := s.gate.Wait(ctx)
		if err != nil {
			var none Resp
			return none, err
		}
		return fn(n, ctx, req)
	}
}
