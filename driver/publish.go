package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Published is the ports of one endpoint: what Docker asked for, and what it got.
type Published struct {
	Endpoint string           `json:"endpoint"` // Docker's id
	Asked    []portRequest    `json:"asked"`
	Got      []kernel.Publish `json:"got"`
}

// gated reports a network whose containers have a gateway of ours, and so their
// published ports.
func (n Network) gated() bool { return led(n.Def) && !n.Options.Internal }

// ProgramExternalConnectivity publishes the ports of an endpoint that became the
// way out of its container. Where the way out is Docker's own bridge, that does.
// Engines from 29 on may ask again without a word between: what was is replaced.
func (d *Driver) ProgramExternalConnectivity(ctx context.Context, r *network.ProgramExternalConnectivityRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	wants, err := parsePorts(r.Options)
	e, n, unknown := d.endpoint(r.EndpointID)
	if unknown != nil && len(wants) > 0 {
		err = unknown
	}
	if err == nil && !n.gated() {
		return nil
	}
	if err == nil {
		err = d.publish(e, wants)
	}
	if err == nil {
		err = d.Sync(ctx, n.Cluster)
	}
	if err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	return nil
}

// publish holds what an endpoint asks for, and stores it.
func (d *Driver) publish(e Endpoint, wants []portRequest) error {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	got, err := d.ports.hold(e.ID, wants, e.bare(), d.store.intent().Published[e.ID].Got)
	if err != nil {
		return err
	}
	err = d.store.edit(func(in *Intent) error {
		switch _, ok := in.Endpoints[e.ID]; {
		case !ok:
			return fmt.Errorf("endpoint %s was deleted meanwhile", short(e.ID))
		case len(wants) == 0:
			delete(in.Published, e.ID)
		default:
			in.Published[e.ID] = Published{Endpoint: e.ID, Asked: wants, Got: got}
		}
		return nil
	})
	if err != nil {
		d.ports.release(e.ID)
	}
	return err
}

// RevokeExternalConnectivity gives the ports of an endpoint back. Not all engines
// ask for it: Leave does the same.
func (d *Driver) RevokeExternalConnectivity(ctx context.Context, r *network.RevokeExternalConnectivityRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, ok := d.store.intent().Published[r.EndpointID]; !ok {
		return nil
	}
	return d.part(ctx, "revoke ports", r.EndpointID, func(in *Intent, e Endpoint) { delete(in.Published, e.ID) })
}

// keepPorts holds what intent says is published, and no more: of a process before
// this one, and of endpoints that are gone. It returns what could not be had.
func (d *Driver) keepPorts() (problems []Problem) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	in := d.store.intent()
	for _, owner := range d.ports.owners() {
		if _, ok := in.Published[owner]; !ok {
			d.ports.release(owner)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(in.Published)) {
		p, e := in.Published[id], in.Endpoints[id]
		if _, err := d.ports.hold(id, p.Asked, e.bare(), p.Got); err != nil && e.Joined() {
			problems = append(problems, Problem{
				Network: poolNames(in.Networks[e.Network].Pools), Cause: "container of endpoint " + short(id) + " lost a port: " + err.Error(),
				Remedy: "free that port, and restart the container", alarm: true,
			})
		}
	}
	return problems
}

// forgetPorts drops what is published of endpoints that are gone or in no container.
func (in *Intent) forgetPorts() {
	maps.DeleteFunc(in.Published, func(id string, _ Published) bool {
		e, ok := in.Endpoints[id]
		return !ok || e.Sandbox == ""
	})
}

// publishes lists the ports of a network's containers.
func (in *Intent) publishes(s *segment) (out []kernel.Publish) {
	for _, e := range s.endpoints {
		if e.Joined() && !s.lost[e.ID] {
			out = append(out, in.Published[e.ID].Got...)
		}
	}
	return out
}
