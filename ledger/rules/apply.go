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
	return whole(r), nil
}

// whole returns a registry that has all its maps.
func whole(r *cluster.Registry) *cluster.Registry {
	next, empty := *r, New()
	if next.Hosts == nil {
		next.Hosts = empty.Hosts
	}
	if next.Pools == nil {
		next.Pools = empty.Pools
	}
	if next.Networks == nil {
		next.Networks = empty.Networks
	}
	if next.Leases == nil {
		next.Leases = empty.Leases
	}
	if next.Requests == nil {
		next.Requests = empty.Requests
	}
	return &next
}

// Apply does the command that stands at index in the log, and returns the next
// registry and the answer. The registry that was passed in is not changed; the
// two share what did not change. A nil registry is New().
//
// The index is the log's own. All numbers that come of it, in the registry and
// in the answer, are index + Registry.Offset: edit adds it, and nothing else
// does.
func Apply(r *cluster.Registry, c cluster.Command, index uint64) (*cluster.Registry, cluster.Result) {
	if r == nil {
		r = New()
	}
	d := edit(r, index)
	res, remember := d.run(c)
	if res.Refused != nil {
		d = edit(r, index) // nothing of a refused command stays
		res = cluster.Result{Index: res.Index, Refused: res.Refused}
	}
	if res.Index == 0 {
		res.Index = d.Index
	}
	if _, stays := d.Hosts[c.Host]; remember && stays {
		d.requests()[c.Host] = cluster.Answered{Request: c.Request, Result: res}
	}
	return d.Registry, res
}

// run does a command, and says whether its answer is to be remembered.
func (d *draft) run(c cluster.Command) (cluster.Result, bool) {
	if why := Validate(c); why != nil {
		return cluster.Result{Refused: why}, false
	}
	why := d.admit(c)
	last := d.Requests[c.Host]
	switch {
	case c.Rebuild != nil:
		return d.rebuild(c.Rebuild.Registry), false
	case !sessionless(c) && why == nil && c.Request == last.Request:
		return last.Result, false
	case d.Dissolved != "":
		return refused(cluster.Dissolved, "cluster %s was dissolved into cluster %s%s: its hosts join that one", d.Cluster, d.Dissolved, places(d.Members)), false
	case c.Found != nil:
		return d.found(*c.Found), false
	case d.Cluster == "":
		return refused(cluster.Invalid, "this log has no cluster yet: it must be founded first"), false
	case c.Hello != nil:
		return d.hello(c.Host, *c.Hello), false
	case c.Confirm != nil:
		return d.confirm(c.Host, *c.Confirm), false
	case c.Leave != nil && !d.known(c.Host):
		return cluster.Result{}, false
	case why != nil:
		return cluster.Result{Refused: why}, false
	case c.Request < last.Request:
		return refused(cluster.StaleSession, "request %d of host %s came late: request %d was answered before it", c.Request, d.called(c.Host), last.Request), false
	}
	return d.do(c), true
}

// sessionless reports a command that is not part of a session.
func sessionless(c cluster.Command) bool {
	return c.Found != nil || c.Hello != nil || c.Confirm != nil || c.Rebuild != nil
}

// admit checks that the command comes from the newest session of a host that
// is in the cluster.
func (d *draft) admit(c cluster.Command) *cluster.Refusal {
	h, ok := d.Hosts[c.Host]
	switch {
	case !ok:
		return cluster.Refuse(cluster.UnknownHost, "host %s is not registered in cluster %s: it must say hello first", c.Host.Short(), d.Cluster)
	case h.Tombstone:
		return Forgotten(h)
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
	case c.Forget != nil:
		return d.forget(c.Host, *c.Forget)
	case c.Leave != nil:
		return d.leave(c.Host)
	case c.Dissolve != nil:
		return d.dissolve(*c.Dissolve)
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
	at  uint64 // the command's index in the log; Index is its number
	own struct{ hosts, pools, networks, leases, requests bool }
}

// edit begins the registry that follows r with the command at an index of the
// log.
func edit(r *cluster.Registry, index uint64) *draft {
	next := *r
	next.Index = index + next.Offset
	return &draft{Registry: &next, at: index}
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
