package driver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Published is the ports that one endpoint got.
type Published struct {
	Endpoint string           `json:"endpoint"` // Docker's id
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
	before := d.store.intent().Published[e.ID]
	got, err := d.ports.hold(e.ID, wants, e.bare(), before.Got)
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
			in.Published[e.ID] = Published{Endpoint: e.ID, Got: got}
		}
		return nil
	})
	if err != nil { // what is stored holds; what of it cannot be had again, the next pass says
		if _, lost := d.ports.hold(e.ID, before.pinned(), e.bare(), nil); lost != nil {
			d.ports.release(e.ID)
		}
	}
	return err
}

// pinned asks for exactly what was got.
func (p Published) pinned() (out []portRequest) {
	for _, g := range p.Got {
		port := g.Host.Port()
		out = append(out, portRequest{Proto: g.Proto, Port: g.To.Port(), Host: g.Host.Addr(), First: port, Last: port})
	}
	return out
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
// this one, and of endpoints that are gone. It returns the endpoints whose ports
// could not be had: what arrives there is for the program that has them now.
func (d *Driver) keepPorts() (lost map[string]bool, problems []Problem) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	in := d.store.intent()
	for _, owner := range d.ports.owners() {
		if _, ok := in.Published[owner]; !ok {
			d.ports.release(owner)
		}
	}
	lost = map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(in.Published)) {
		p, e := in.Published[id], in.Endpoints[id]
		_, err := d.ports.hold(id, p.pinned(), e.bare(), nil)
		if err == nil {
			continue
		}
		lost[id] = true
		if e.Joined() {
			problems = append(problems, Problem{
				Network: poolNames(in.Networks[e.Network].Pools), Cause: "container of endpoint " + short(id) + " lost its ports: " + err.Error(),
				Remedy: "free that port, or restart the container", alarm: true,
			})
		}
	}
	return lost, problems
}

// forgetPorts drops what is published of endpoints that are gone or in no container.
func (in *Intent) forgetPorts() {
	maps.DeleteFunc(in.Published, func(id string, _ Published) bool {
		e, ok := in.Endpoints[id]
		return !ok || e.Sandbox == ""
	})
}

// unpublish is in without the ports of some endpoints.
func (in *Intent) unpublish(lost map[string]bool) *Intent {
	out := *in
	out.Published = maps.Clone(in.Published)
	maps.DeleteFunc(out.Published, func(id string, _ Published) bool { return lost[id] })
	return &out
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
