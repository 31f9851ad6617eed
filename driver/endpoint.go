package driver

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// CreateEndpoint stores the endpoint. It fills in a MAC where Docker has none,
// and no other field: Docker takes a field that it set itself for an error.
func (d *Driver) CreateEndpoint(ctx context.Context, r *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	e, given, err := d.parseEndpoint(r)
	if err == nil {
		err = d.attachable(ctx)
	}
	if err == nil {
		err = d.entitled(d.store.intent().Networks[e.Network], e)
	}
	if err != nil {
		return nil, fmt.Errorf("create endpoint: %w", err)
	}
	err = d.store.edit(func(in *Intent) error {
		n, ok := in.Networks[e.Network]
		if !ok {
			return fmt.Errorf("network %s is not known to this plugin, whose state was lost: remove the network and create it again", short(e.Network))
		}
		if n.anonymous() {
			if given {
				if err := d.view().checkMAC(n, e.MAC); err != nil {
					return err
				}
			}
			e.MAC = cluster.MAC{}
		}
		if old, ok := in.Endpoints[e.ID]; ok {
			if old.IPv4 != e.IPv4 || old.IPv6 != e.IPv6 || given && old.MAC != e.MAC {
				return fmt.Errorf("endpoint %s exists already with other addresses", short(e.ID))
			}
			e = old
			return nil
		}
		e = d.offered(n, e, given)
		if err := d.admit(in, n, e); err != nil {
			return err
		}
		e = d.leased(n, e)
		in.Endpoints[e.ID] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("create endpoint: %w", err)
	}
	// The loop drops what other hosts once said about the address; Join waits.
	d.loop.wake()
	response := &network.CreateEndpointResponse{Interface: &network.EndpointInterface{}}
	if !given && !e.MAC.IsZero() {
		response.Interface.MacAddress = e.MAC.String()
	}
	return response, nil
}

// parseEndpoint turns a request into an Endpoint, and reports whether Docker
// gave it a MAC.
func (d *Driver) parseEndpoint(r *network.CreateEndpointRequest) (e Endpoint, given bool, err error) {
	e = Endpoint{ID: r.EndpointID, Network: r.NetworkID}
	if e.ID == "" || r.Interface == nil {
		return e, false, fmt.Errorf("no endpoint id or no interface")
	}
	for _, a := range []struct {
		text string
		to   *netip.Prefix
	}{{r.Interface.Address, &e.IPv4}, {r.Interface.AddressIPv6, &e.IPv6}} {
		if a.text == "" {
			continue
		}
		if *a.to, err = netip.ParsePrefix(a.text); err != nil {
			return e, false, fmt.Errorf("parse address: %w", err)
		}
	}
	if !e.IPv4.IsValid() && !e.IPv6.IsValid() {
		return e, false, fmt.Errorf("it has no address")
	}
	given = r.Interface.MacAddress != ""
	if given {
		if e.MAC, err = cluster.ParseMAC(r.Interface.MacAddress); err != nil {
			return e, given, err
		}
		if e.MAC[0]&1 != 0 || e.MAC.IsZero() {
			return e, given, fmt.Errorf("MAC address %s is not one of a single host: choose another --mac-address", e.MAC)
		}
	} else {
		rand.Read(e.MAC[:])
		e.MAC = localMAC(e.MAC)
	}
	for _, key := range slices.Sorted(maps.Keys(r.Options)) {
		switch {
		case key == ifnameKey:
			if e.Ifname, err = ifname(fmt.Sprint(r.Options[key])); err != nil {
				return e, given, err
			}
		case !strings.HasPrefix(key, "com.docker."):
			return e, given, fmt.Errorf("endpoint option %s is unknown: isthmus has no endpoint options, but for Docker's own", key)
		}
	}
	return e, given, nil
}

var ifnames = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,11}$`)

// ifname takes the name that a user asked for. Docker appends a number, from 0
// for each beginning, so a number at the end is left to it.
func ifname(name string) (string, error) {
	begin := strings.TrimRight(name, "0123456789")
	if !ifnames.MatchString(begin) || strings.HasPrefix(begin, "is-") {
		return "", fmt.Errorf("interface name %q: need a letter and at most 11 letters, digits, dots, dashes or underscores, and a number", name)
	}
	return begin, nil
}

// admit refuses an endpoint that the network has no place for.
func (d *Driver) admit(in *Intent, n Network, e Endpoint) error {
	for _, a := range e.Addrs() {
		if _, ok := n.covers(a.Addr()); !ok {
			return fmt.Errorf("address %s is outside of the network's subnets (%s)", a.Addr(), poolNames(n.Pools))
		}
	}
	same := func(a, b cluster.MAC) bool { return a == b && !a.IsZero() }
	for id, other := range in.Endpoints {
		if in.Networks[other.Network].Cluster != n.Cluster {
			continue
		}
		hers := func(a netip.Prefix) bool {
			return slices.ContainsFunc(other.Addrs(), func(b netip.Prefix) bool { return a.Addr() == b.Addr() })
		}
		i := slices.IndexFunc(e.Addrs(), hers)
		switch {
		case i < 0 && !same(other.MAC, e.MAC):
		case other.Gone, i >= 0 && !other.Joined():
			delete(in.Endpoints, id) // Docker forgot it: the address was given out anew
		case i >= 0:
			return fmt.Errorf("address %s is in use by another container of this host (endpoint %s)", e.Addrs()[i].Addr(), short(id))
		default:
			return fmt.Errorf("MAC address %s is in use by another container of this host (endpoint %s): choose another --mac-address", e.MAC, short(id))
		}
	}
	if err := solitary(in, n, e); err != nil {
		return err
	}
	if n.Options.Foreign {
		for _, a := range e.Addrs() {
			pool, _ := n.covers(a.Addr())
			if host := d.remoteHolder(pool, a.Addr()); host != "" {
				return fmt.Errorf("address %s is in use by a container on %s: give each host an --ip-range of its own, or use --ipam-driver %s", a.Addr(), host, d.cfg.Name)
			}
		}
	}
	return nil
}

// leased fills in the leases that cover the endpoint's addresses.
func (d *Driver) leased(n Network, e Endpoint) Endpoint {
	if n.Options.Foreign {
		return e
	}
	for _, a := range e.Addrs() {
		if pool, ok := n.covers(a.Addr()); ok {
			lease := d.cfg.Addresses.LeaseOf(pool, a.Addr())
			if a == e.IPv4 {
				e.Lease4 = lease
			} else {
				e.Lease6 = lease
			}
		}
	}
	return e
}

// Join makes the interface that Docker will take, and answers when the other
// hosts have been told of it.
func (d *Driver) Join(ctx context.Context, r *network.JoinRequest) (*network.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	e, n, err := d.endpoint(r.EndpointID)
	if err == nil && r.SandboxKey == "" {
		err = fmt.Errorf("no sandbox")
	}
	if err == nil {
		err = d.attachable(ctx)
	}
	if err == nil {
		err = d.entitled(n, e)
	}
	if err == nil {
		err = d.join(ctx, e, n, r.SandboxKey)
	}
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	answer := &network.JoinResponse{
		InterfaceName:         network.InterfaceName{SrcName: e.link(), DstPrefix: cmp.Or(e.Ifname, "eth")},
		DisableGatewayService: n.Options.Internal || n.Options.Gateway == "none",
	}
	if led(n.Def) {
		answer.DisableGatewayService = n.Options.Internal
		for _, r := range d.view().ledRoutes(n, e) {
			switch {
			case !r.Via.IsValid():
				answer.StaticRoutes = append(answer.StaticRoutes, &network.StaticRoute{Destination: r.Dst.String(), RouteType: connected})
			case r.Dst.Bits() > 0:
				answer.StaticRoutes = append(answer.StaticRoutes, &network.StaticRoute{Destination: r.Dst.String(), RouteType: nextHop, NextHop: r.Via.String()})
			case r.Via.Is4():
				answer.Gateway = r.Via.String()
			default:
				answer.GatewayIPv6 = r.Via.String()
			}
		}
		return answer, nil
	}
	if !fenced(n.Def.Mode) {
		answer.DisableGatewayService = n.Options.Internal || n.routed()
		for _, r := range n.routes(e) {
			switch {
			case !r.Via.IsValid():
				answer.StaticRoutes = append(answer.StaticRoutes, &network.StaticRoute{Destination: r.Dst.String(), RouteType: connected})
			case r.Via.Is4():
				answer.Gateway = r.Via.String()
			default:
				answer.GatewayIPv6 = r.Via.String()
			}
		}
	}
	return answer, nil
}

// Types of routes (libnetwork/types): by a router, or to the interface itself.
const (
	nextHop   = 0
	connected = 1
)

func (d *Driver) join(ctx context.Context, e Endpoint, n Network, sandbox string) error {
	if e.Sandbox != sandbox || !d.taken(ctx, e) {
		if err := d.hand(ctx, e.ID); err != nil {
			// What it stands on may have been deleted just now.
			if sync := d.Sync(ctx, n.Cluster); sync != nil {
				return sync
			}
			if err := d.hand(ctx, e.ID); err != nil {
				return err
			}
		}
	}
	inSandbox := func(sandbox string) error {
		return d.store.edit(func(in *Intent) error {
			now, ok := in.Endpoints[e.ID]
			if !ok {
				return fmt.Errorf("endpoint %s was deleted meanwhile", short(e.ID))
			}
			if now.Sandbox != sandbox {
				now.Sandbox, now.Inside, now.Gone = sandbox, "", false
				in.Endpoints[e.ID] = now
			}
			return nil
		})
	}
	if err := inSandbox(sandbox); err != nil {
		return err
	}
	if err := d.Sync(ctx, n.Cluster); err != nil {
		if undo := inSandbox(""); undo != nil {
			d.log.WithError(undo).Warn("undo a join")
		}
		d.loop.wake()
		return err
	}
	return nil
}

// endpoint finds an endpoint and its network.
func (d *Driver) endpoint(id string) (Endpoint, Network, error) {
	in := d.store.intent()
	e, ok := in.Endpoints[id]
	if !ok {
		return e, Network{}, fmt.Errorf("endpoint %s is not known to this plugin: start the container again", short(id))
	}
	return e, in.Networks[e.Network], nil
}

// taken reports whether Docker has the interface in the sandbox already, as
// when it repeats a call.
func (d *Driver) taken(ctx context.Context, e Endpoint) bool {
	name, err := d.cfg.Kernel.Observe(ctx, kernel.Handover{Sandbox: e.Sandbox, Link: kernel.Link{Name: e.link(), MAC: e.MAC}})
	return err == nil && name != ""
}

// hand makes an endpoint's interface in the host's namespace while no pass is
// under way, see loop.kernel.
func (d *Driver) hand(ctx context.Context, id string) error {
	if err := d.loop.lock(ctx); err != nil {
		return err
	}
	defer d.loop.unlock()
	in := d.store.intent().around(id)
	if n := in.Networks[in.Endpoints[id].Network]; n.Def.Mode == "ipvlan" {
		// A link of another mode than the parent's would change all that are there.
		if err := d.lookAtLinks(ctx, time.Second); err != nil {
			return err
		}
	}
	v := d.view()
	if n := in.Networks[in.Endpoints[id].Network]; n.Def.Submode != "source" {
		v.Streams = nil // who else is there does not matter, and may be many
	}
	h, ok := Plan(in, v).ends[id]
	switch {
	case !ok:
		return fmt.Errorf("endpoint %s was deleted meanwhile", short(id))
	case h.blocked != nil:
		return h.blocked
	}
	return d.cfg.Kernel.Hand(ctx, h.Handover)
}

// Leave takes the endpoint out of its container. Docker moves the interface
// back afterwards; DeleteEndpoint removes it.
func (d *Driver) Leave(ctx context.Context, r *network.LeaveRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return d.part(ctx, "leave", r.EndpointID, func(in *Intent, e Endpoint) {
		e.Sandbox, e.Inside, e.Gone = "", "", false
		in.Endpoints[e.ID] = e
	})
}

// DeleteEndpoint forgets the endpoint and removes its interface. One that is
// not known is gone already.
func (d *Driver) DeleteEndpoint(ctx context.Context, r *network.DeleteEndpointRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return d.part(ctx, "delete endpoint", r.EndpointID, func(in *Intent, e Endpoint) {
		delete(in.Endpoints, e.ID)
	})
}

// part edits an endpoint that goes away, and waits until no pass works on it.
func (d *Driver) part(ctx context.Context, verb, id string, change func(in *Intent, e Endpoint)) error {
	var network uint32
	err := d.store.edit(func(in *Intent) error {
		e, ok := in.Endpoints[id]
		if ok {
			network = in.Networks[e.Network].Cluster
			change(in, e)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	if network == 0 {
		return nil
	}
	if err := d.Sync(ctx, network); err != nil {
		// Docker goes on whatever is answered, and so does the loop.
		d.log.WithError(err).WithField("endpoint", short(id)).Warn(verb + "; trying again in the background")
	}
	return nil
}

// EndpointOperInfo tells what docker network inspect may show.
func (d *Driver) EndpointOperInfo(_ context.Context, r *network.InfoRequest) (*network.InfoResponse, error) {
	info := &network.InfoResponse{Value: map[string]string{}}
	if e, n, err := d.endpoint(r.EndpointID); err == nil {
		info.Value["mac"] = e.MAC.String()
		if fenced(n.Def.Mode) {
			info.Value["vni"] = fmt.Sprint(n.Def.VNI)
		} else {
			info.Value["parent"] = n.Options.Parent
		}
	}
	return info, nil
}
