package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
)

// What hosts ask each other about addresses.
const (
	recallMethod = "ipam.recall" // give back one address of a pool, or what is not used of it
	claimsMethod = "ipam.claims" // whether a block, or a part of it, is kept
)

type recallRequest struct {
	Pool cluster.PoolKey `json:"pool"`
	Addr netip.Addr      `json:"addr,omitzero"`
}

func (n *node) recalled(ctx context.Context, _ cluster.HostID, req recallRequest) (struct{}, error) {
	return struct{}{}, n.ipam.Recalled(ctx, req.Pool, req.Addr)
}

func (n *node) recall(ctx context.Context, host cluster.HostID, pool cluster.PoolKey, addr netip.Addr) error {
	_, err := callHost[recallRequest, struct{}](ctx, n, host, recallMethod, recallRequest{pool, addr})
	if err != nil {
		return fmt.Errorf("recall addresses of %s: %w", pool, err)
	}
	return nil
}

type claimsReply struct {
	Keeps bool `json:"keeps"`
}

func (n *node) serveClaims(_ context.Context, _ cluster.HostID, claim cluster.Claim) (claimsReply, error) {
	return claimsReply{n.ipam.Keeps(claim)}, nil
}

func (n *node) stillClaims(ctx context.Context, host cluster.HostID, claim cluster.Claim) (bool, error) {
	reply, err := callHost[cluster.Claim, claimsReply](ctx, n, host, claimsMethod, claim)
	return reply.Keeps, err
}

// callHost asks one host, where it is heard or where the registry has it.
func callHost[Req, Resp any](ctx context.Context, n *node, host cluster.HostID, method string, req Req) (Resp, error) {
	r := n.ledger.Registry()
	at := r.Hosts[host].Address
	for _, m := range n.gossip.Members() {
		if m.ID == host && m.Address.IsValid() {
			at = m.Address
		}
	}
	if !at.IsValid() {
		var none Resp
		return none, fmt.Errorf("ask host %s: nobody knows its address", r.HostName(host))
	}
	resp, err := transport.Call[Req, Resp](ctx, n.transport, at, method, req)
	if err != nil {
		return resp, fmt.Errorf("ask host %s: %w", r.HostName(host), err)
	}
	return resp, nil
}

// claimed finds what gossip heard another host claim of a block. What a host
// said that was taken out of the cluster counts no more.
func (n *node) claimed(pool cluster.PoolKey, block netip.Prefix) (cluster.HostID, cluster.Claim, bool) {
	return claimant(n.gossip.Streams(), n.ledger.Registry(), n.id, cluster.Claim{Pool: pool, Block: block})
}

func claimant(heard []cluster.Stream, r *cluster.Registry, self cluster.HostID, granted cluster.Claim) (cluster.HostID, cluster.Claim, bool) {
	for _, s := range heard {
		if s.Owner == self || r.Hosts[s.Owner].Tombstone {
			continue
		}
		for _, rec := range s.Records {
			if rec.Claim.Lease != 0 && rec.Claim.Overlaps(granted) {
				return s.Owner, rec.Claim, true
			}
		}
	}
	return "", cluster.Claim{}, false
}
