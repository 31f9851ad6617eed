package rules

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/isthmus-net/isthmus/cluster"
)

// First values of a founded cluster. The numbers below FirstVNI are left to
// users who choose their own.
const (
	FirstVNI = 4096
	MaxVNI   = 1<<24 - 1
)

// New returns the registry before the first command.
func New() *cluster.Registry {
	return &cluster.Registry{
		Hosts:    map[cluster.HostID]cluster.Host{},
		Pools:    map[cluster.PoolKey]cluster.Pool{},
		Networks: map[uint32]cluster.Network{},
		Leases:   map[uint64]cluster.Lease{},
		Requests: map[cluster.HostID]cluster.Answered{},
	}
}

// Decode reads a registry that was written as JSON.
func Decode(b []byte) (*cluster.Registry, error) {
	r := New()
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("decode registry: %w", err)
	}
	return r, nil
}

// Apply does the command that stands at index in the log, and returns the next
// registry and the answer. The registry that was passed in is not changed; the
// two share what did not change. A nil registry is New().
func Apply(r *cluster.Registry, c cluster.Command, index uint64) (*cluster.Registry, cluster.Result) {
	if r == nil {
		r = New()
	}
	refuse := func(why *cluster.Refusal) (*cluster.Registry, cluster.Result) {
		return edit(r, index).Registry, cluster.Result{Index: index, Refused: why}
	}
	if why := Validate(c); why != nil {
		return refuse(why)
	}
	if c.Found != nil {
		d := edit(r, index)
		if why := d.found(*c.Found); why != nil {
			return refuse(why)
		}
		return d.Registry, cluster.Result{Index: index}
	}
	if r.Cluster == "" {
		return refuse(cluster.Refuse(cluster.Invalid, "this log has no cluster yet: it must be founded first"))
	}
	if c.Hello != nil {
		d := edit(r, index)
		session, why := d.hello(c.Host, *c.Hello)
		if why != nil {
			return refuse(why)
		}
		return d.Registry, cluster.Result{Index: session, Leases: leasesOfHost(d.Registry, c.Host)}
	}
	if why := admit(r, c); why != nil {
		return refuse(why)
	}
	if last := r.Requests[c.Host]; c.Request == last.Request {
		return edit(r, index).Registry, last.Result
	} else if c.Request < last.Request {
		return refuse(cluster.Refuse(cluster.StaleSession,
			"request %d of host %s came late: request %d was answered before it", c.Request, r.HostName(c.Host), last.Request))
	}
	d := edit(r, index)
	res := d.do(c)
	if res.Refused != nil {
		d = edit(r, index)
		res = cluster.Result{Refused: res.Refused}
	}
	res.Index = index
	d.requests()[c.Host] = cluster.Answered{Request: c.Request, Result: res}
	return d.Registry, res
}

// admit checks that the command comes from the newest session of a host that
// is in the cluster.
func admit(r *cluster.Registry, c cluster.Command) *cluster.Refusal {
	h, ok := r.Hosts[c.Host]
	switch {
	case !ok:
		return cluster.Refuse(cluster.UnknownHost, "host %s is not registered in cluster %s: it must say hello first", c.Host.Short(), r.Cluster)
	case h.Tombstone:
		return forgotten(h)
	case c.Session == 0 || c.Session != h.Session:
		return cluster.Refuse(cluster.StaleSession, "session %d of host %s is over: its newest one is %d", c.Session, h.Name, h.Session)
	}
	return nil
}

func (d *draft) do(c cluster.Command) cluster.Result {
	switch {
	case c.AttachPool != nil:
		return d.attachPool(c.Host, *c.AttachPool)
	case c.DetachPool != nil:
		return d.detachPool(c.Host, *c.DetachPool)
	case c.SetGateway != nil:
		return d.setGateway(c.Host, *c.SetGateway)
	case c.Reserve != nil:
		return d.reserve(c.Host, *c.Reserve)
	case c.Grant != nil:
		return d.grant(c.Host, *c.Grant)
	case c.GrantExact != nil:
		return d.grantExact(c.Host, *c.GrantExact)
	case c.Release != nil:
		return d.release(c.Host, *c.Release)
	case c.AttachNetwork != nil:
		return d.attachNetwork(c.Host, *c.AttachNetwork)
	case c.DetachNetwork != nil:
		return d.detachNetwork(c.Host, *c.DetachNetwork)
	}
	return refused(cluster.Invalid, "the command is empty or unknown to this version: upgrade isthmus on all hosts")
}

func refused(code cluster.Code, format string, args ...any) cluster.Result {
	return cluster.Result{Refused: cluster.Refuse(code, format, args...)}
}

// draft is a registry under change. Its maps are shared with the registry that
// it came from until one of the methods below is asked for a map to write to.
type draft struct {
	*cluster.Registry
	own struct{ hosts, pools, networks, leases, requests bool }
}

func edit(r *cluster.Registry, index uint64) *draft {
	next := *r
	next.Index = index
	return &draft{Registry: &next}
}

func writable[K comparable, V any](m *map[K]V, own *bool) map[K]V {
	if !*own {
		*m, *own = maps.Clone(*m), true
	}
	return *m
}

func (d *draft) hosts() map[cluster.HostID]cluster.Host { return writable(&d.Hosts, &d.own.hosts) }
func (d *draft) pools() map[cluster.PoolKey]cluster.Pool {
	return writable(&d.Pools, &d.own.pools)
}
func (d *draft) networks() map[uint32]cluster.Network {
	return writable(&d.Networks, &d.own.networks)
}
func (d *draft) leases() map[uint64]cluster.Lease { return writable(&d.Leases, &d.own.leases) }
func (d *draft) requests() map[cluster.HostID]cluster.Answered {
	return writable(&d.Requests, &d.own.requests)
}
