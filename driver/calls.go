package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Docker waits for ever, and shows the user nothing meanwhile. So each call is
// bounded; undoing it may take undoTime more.
const (
	callTime = 8500 * time.Millisecond
	undoTime = time.Second
)

// Keys of Docker's own options.
const (
	genericKey  = dockerPrefix + "generic"
	internalKey = dockerPrefix + "internal"
	ifnameKey   = dockerPrefix + "endpoint.ifname"
)

// CreateNetwork stores the network and makes what it needs in the kernel. When
// the local copy of the registry has it already, no other host is asked.
func (d *Driver) CreateNetwork(ctx context.Context, r *network.CreateNetworkRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	n, err := d.parseNetwork(r)
	if err == nil {
		n.Options.Attach, err = d.attach(ctx, n.Options)
	}
	if err != nil {
		return fmt.Errorf("create network: %w", err)
	}
	if old, ok := d.store.intent().Networks[n.ID]; ok {
		if !slices.Equal(old.Pools, n.Pools) || old.Options != n.Options {
			return fmt.Errorf("create network: %s exists already with other subnets or options: remove it first", short(n.ID))
		}
		if err := d.Sync(ctx, old.Cluster); err != nil {
			return err
		}
		if _, err := d.accommodate(ctx, old); err != nil {
			return fmt.Errorf("create network: %w", err)
		}
		return nil
	}
	if err := d.createNetwork(ctx, n); err != nil {
		return fmt.Errorf("create network: %w", err)
	}
	return nil
}

func (d *Driver) createNetwork(ctx context.Context, n Network) error {
	if err := d.store.intent().contradiction(n); err != nil {
		return err
	}
	if n.Options.BGP && !d.cfg.BGP {
		return errors.New("option bgp=on: no router is named: set BGP_PEERS and BGP_AS of the plugin on this host")
	}
	if !n.Options.Foreign {
		for _, pool := range n.Pools {
			if !d.cfg.Addresses.Holds(pool) {
				return fmt.Errorf("pool %s was not handed out by isthmus: pass the same NAME to --ipam-opt space=NAME and -o space=NAME, or neither", pool)
			}
		}
	}
	asked := d.definition(n.Options)
	check := d.checkMTU
	if led(asked) {
		check = d.checkLed
	}
	if !fenced(n.Options.Mode) {
		site, err := d.survey(ctx, n)
		if err != nil {
			return err
		}
		asked.VLAN = site.vlan(site.ground(n))
		check = site.check
	}
	expected := d.expected(n, asked)
	if err := check(n, expected, ""); err != nil {
		return err
	}
	if err := d.servable(n, expected); err != nil {
		return err
	}
	done := d.agree.create(n.Pools)
	defer done()
	n, err := d.storeNetwork(ctx, n, asked, check)
	if err == nil {
		err = d.Sync(ctx, n.Cluster)
	}
	if err == nil {
		n, err = d.accommodate(ctx, n)
	}
	if err == nil {
		return nil
	}
	// Undo by the same path; the cluster hears of it in the background.
	if undo := d.dropNetwork(n); undo != nil {
		d.log.WithError(undo).Error("undo the creation of a network")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if undo := d.Sync(ctx, n.Cluster); undo != nil {
		d.log.WithError(undo).Warn("undo the creation of a network; trying again in the background")
	}
	d.releaseHost(ctx, n.Pools, n.HostAddrs)
	return err
}

// storeNetwork has the network agreed and its addresses prepared, and stores it.
// check says whether this host can have it as it was agreed.
func (d *Driver) storeNetwork(ctx context.Context, n Network, asked cluster.Definition, check func(n Network, def cluster.Definition, by string) error) (Network, error) {
	agreed, err := d.agreeOn(ctx, n, asked)
	if err != nil {
		return n, err
	}
	n.Cluster, n.Def = agreed.ID, agreed.Def
	creator := d.cfg.Ledger.Registry().HostName(agreed.Creator)
	if err := mismatch(n, asked, creator); err != nil {
		return n, err
	}
	if err := check(n, n.Def, creator); err != nil {
		return n, err
	}
	if !n.Options.Foreign {
		if err := d.cfg.Addresses.Prepare(ctx, n.Pools); err != nil {
			return n, err
		}
	}
	return n, d.store.edit(func(in *Intent) error {
		for _, pool := range n.Pools {
			delete(in.Parting, pool)
		}
		in.Networks[n.ID] = n
		return in.contradiction(n)
	})
}

// agreeOn has the network agreed; the local copy of the registry will do where
// it leaves no question. A network that nobody holds any more defines nothing:
// what it once was is of use only where that is what is asked for again.
func (d *Driver) agreeOn(ctx context.Context, n Network, asked cluster.Definition) (cluster.Network, error) {
	agreed, known := d.cfg.Ledger.Registry().NetworkOf(n.Pools)
	others := slices.ContainsFunc(agreed.Holders, func(h cluster.HostID) bool { return h != d.cfg.Host })
	switch {
	case !known:
	case others || d.store.intent().uses(agreed.Pools):
		if !contradicts(asked, agreed.Def) {
			return agreed, nil
		}
	case filled(asked, agreed.Def) == agreed.Def:
		return agreed, nil
	case len(agreed.Holders) > 0:
		// The cluster was not told yet that this host removed it.
		if err := d.agree.detach(ctx, cluster.Command{DetachNetwork: &cluster.DetachNetwork{Network: agreed.ID}}); err != nil {
			return agreed, fmt.Errorf("redefine network %s: %w", poolNames(n.Pools), err)
		}
	}
	if !others && !fenced(asked.Mode) {
		asked = filled(asked, cluster.Definition{Encrypt: asked.Encrypt})
	}
	return d.agree.attach(ctx, n, asked)
}

// parseNetwork turns a request into a Network that is not agreed yet.
func (d *Driver) parseNetwork(r *network.CreateNetworkRequest) (Network, error) {
	n := Network{ID: r.NetworkID}
	if n.ID == "" {
		return n, fmt.Errorf("no network id")
	}
	texts := map[string]string{}
	switch generic := r.Options[genericKey].(type) {
	case map[string]any:
		for k, v := range generic {
			texts[k] = fmt.Sprint(v)
		}
	case map[string]string:
		texts = generic
	}
	var err error
	if n.Options, err = ParseOptions(texts, d.view().name(d.cfg.Host)); err != nil {
		return n, err
	}
	n.Options.Internal, _ = r.Options[internalKey].(bool)
	for _, data := range slices.Concat(r.IPv4Data, r.IPv6Data) {
		prefix, err := netip.ParsePrefix(data.Pool)
		switch {
		case err != nil:
			return n, fmt.Errorf("parse pool: %w", err)
		case prefix.Bits() == 0:
			return n, fmt.Errorf("the network has no subnet: add --ipam-driver %s", d.cfg.Name)
		case data.AddressSpace == AddressSpace && n.Options.Foreign:
			return n, fmt.Errorf("option ipam=foreign: the addresses come from isthmus: drop the option, or choose another --ipam-driver")
		case data.AddressSpace != AddressSpace && !n.Options.Foreign:
			return n, fmt.Errorf("addresses of %s come from another IPAM driver, which does not know what other hosts use: add --ipam-driver %s (or -o ipam=foreign, and see to it that no two hosts use one address)", prefix, d.cfg.Name)
		}
		n.Pools = append(n.Pools, cluster.PoolKey{Space: n.Options.Space, Prefix: prefix.Masked()})
		if text, _, _ := strings.Cut(data.Gateway, "/"); text != "" && (!fenced(n.Options.Mode) || led(d.definition(n.Options))) {
			gateway, err := netip.ParseAddr(text)
			if err != nil {
				return n, fmt.Errorf("parse gateway: %w", err)
			}
			if gateway != prefix.Masked().Addr() { // that of the subnet itself: none
				n.Gateways = append(n.Gateways, gateway)
			}
		}
	}
	if len(n.Pools) == 0 {
		return n, fmt.Errorf("the network has no subnet: add --ipam-driver %s", d.cfg.Name)
	}
	n.Pools = cluster.PoolSet(n.Pools)
	slices.SortFunc(n.Gateways, netip.Addr.Compare)
	return n, nil
}

// attach resolves how containers meet the VXLAN device: as macvlan, the faster
// way, unless the user or the kernel says otherwise. Without a parent in a LAN it
// says what takes its place.
func (d *Driver) attach(ctx context.Context, o Options) (string, error) {
	asked := o.Attach
	switch {
	case asked == "bridge", direct(o.Mode), !fenced(o.Mode) && o.Parent != "":
		return asked, nil
	case ours(o.Gateway):
		return "bridge", nil
	case !fenced(o.Mode):
		able, err := d.cfg.Kernel.Makes(ctx, kernel.Dummy)
		return string(map[bool]kernel.Kind{true: kernel.Dummy, false: kernel.Veth}[able]), err
	}
	able, err := d.cfg.Kernel.Makes(ctx, kernel.Macvlan)
	switch {
	case err != nil:
		return "", err
	case able:
		return "macvlan", nil
	case asked == "macvlan":
		return "", errors.New("option attach=macvlan: this host's kernel has no macvlan: load the module macvlan, or use -o attach=bridge")
	}
	return "bridge", nil
}

// definition is what the options ask the whole cluster to agree on.
func (d *Driver) definition(o Options) cluster.Definition {
	v := d.view()
	if !fenced(o.Mode) {
		return cluster.Definition{
			Mode: o.Mode, MTU: cmp.Or(o.MTU, o.Underlay), Encrypt: "off",
			Submode: cmp.Or(o.MacvlanMode, o.IPvlanMode), Flag: o.IPvlanFlag,
		}
	}
	if direct(o.Mode) {
		return cluster.Definition{Mode: o.Mode, MTU: cmp.Or(o.MTU, o.Underlay), Encrypt: "off", Fallback: o.Fallback, RouteTo: o.RouteTo}
	}
	def := cluster.Definition{
		Mode: o.Mode, VNI: o.VNI, MTU: o.MTU, ARP: o.ARP, BUM: o.BUM, Encrypt: "off", Underlay: family(v.VTEP), Gateway: gatewayDocker, RouteTo: o.RouteTo,
	}
	if ours(o.Gateway) {
		def.Gateway = o.Gateway
	}
	if o.Underlay != 0 && o.MTU == 0 {
		def.MTU = o.Underlay - modeOf(o.Mode).Overhead(v)
	}
	return def
}

// checkMTU refuses a definition whose packets the underlay cannot carry, or
// that are too small for IPv6 (RFC 8200, section 5). by names who defined it,
// empty for the user who asks now.
func (d *Driver) checkMTU(n Network, def cluster.Definition, by string) error {
	v := d.view()
	fits, over := v.inside(def.Mode), modeOf(def.Mode).Overhead(v)
	mtu := cmp.Or(def.MTU, fits)
	who, remedy := "", fmt.Sprintf("use -o mtu=%d or less, or leave it out", fits)
	if by != "" {
		who, remedy = by+" created the network with ", fmt.Sprintf("remove it on all hosts and create it with -o mtu=%d or less", fits)
	}
	if mtu > fits {
		return fmt.Errorf("%smtu=%d needs packets of %d bytes, but the underlay carries %d: %s", who, mtu, mtu+over, v.underlay(), remedy)
	}
	v6 := slices.ContainsFunc(n.Pools, func(p cluster.PoolKey) bool { return p.Prefix.Addr().Is6() })
	if v6 && mtu < 1280 {
		return fmt.Errorf("%smtu=%d is too small for IPv6, which needs 1280: use -o mtu=1280 or more, or no IPv6 subnet", who, mtu)
	}
	return nil
}

// dropNetwork removes a network and its endpoints from intent; with its last
// use on this host, the cluster will be told.
func (d *Driver) dropNetwork(n Network) error {
	defer d.agree.wake()
	return d.store.edit(func(in *Intent) error {
		delete(in.Networks, n.ID)
		for id, e := range in.Endpoints {
			if e.Network == n.ID {
				delete(in.Endpoints, id)
			}
		}
		for _, pool := range n.Pools {
			if n.Options.Foreign && !in.networked(pool) {
				in.Parting[pool] = pool
			}
		}
		return nil
	})
}

// DeleteNetwork forgets the network; with the last one on its pools, all that
// it had in the kernel goes. One that is not known is gone already.
func (d *Driver) DeleteNetwork(ctx context.Context, r *network.DeleteNetworkRequest) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	n, ok := d.store.intent().Networks[r.NetworkID]
	if !ok {
		return nil
	}
	if err := d.dropNetwork(n); err != nil {
		return fmt.Errorf("delete network: %w", err)
	}
	if err := d.Sync(ctx, n.Cluster); err != nil {
		return fmt.Errorf("delete network: %w", err)
	}
	d.releaseHost(ctx, n.Pools, n.HostAddrs)
	return nil
}

// AllocateNetwork is asked on a Swarm manager; the options go on to the hosts.
func (d *Driver) AllocateNetwork(_ context.Context, r *network.AllocateNetworkRequest) (*network.AllocateNetworkResponse, error) {
	if _, err := ParseOptions(r.Options, ""); err != nil {
		return nil, fmt.Errorf("allocate network: %w", err)
	}
	return &network.AllocateNetworkResponse{Options: r.Options}, nil
}

// FreeNetwork has nothing to free: AllocateNetwork allocated nothing.
func (d *Driver) FreeNetwork(context.Context, *network.FreeNetworkRequest) error { return nil }

// DiscoverNew and DiscoverDelete tell of Swarm's nodes; membership is our own.
func (d *Driver) DiscoverNew(context.Context, *network.DiscoveryNotification) error { return nil }

// DiscoverDelete does nothing, see DiscoverNew.
func (d *Driver) DiscoverDelete(context.Context, *network.DiscoveryNotification) error { return nil }
