package driver

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Tenant is an interface in a sandbox that stands on a device of ours, whether
// or not intent knows it: state that was set back does not.
type Tenant struct {
	kernel.Tenant
	Lease4, Lease6 uint64 // that cover its addresses, 0 if none
}

// Found is one address in a running container.
type Found struct {
	Pool    cluster.PoolKey
	Addr    netip.Addr
	Name    string // of the interface, inside
	Sandbox string // path
}

// Found looks into all sandboxes in reach, and lists the addresses of the
// interfaces that stand on devices of ours, by sandbox. What could be seen is
// listed beside an error.
func (d *Driver) Found(ctx context.Context) ([]Found, error) {
	tenants, err := d.look(ctx)
	v, networks := d.view(), d.store.intent().held()
	var out []Found
	for _, t := range tenants {
		n, _ := v.networkOf(t, networks)
		for _, p := range t.Addrs {
			pool, ok := n.covers(p.Addr())
			if !ok { // nobody knows the network: Docker gives an address its pool's length
				pool = cluster.PoolKey{Prefix: p.Masked()}
			}
			out = append(out, Found{Pool: pool, Addr: p.Addr(), Name: t.Name, Sandbox: t.Sandbox})
		}
	}
	return out, err
}

// look finds out who stands on our devices, and remembers who of them is a
// stranger: no endpoint that intent knows. What is not in reach is not found;
// after an error the strangers of the newest whole look stay, if there was one.
func (d *Driver) look(ctx context.Context) ([]Tenant, error) {
	in := d.store.intent()
	dirs := map[string]bool{}
	for _, e := range in.Endpoints {
		if e.Sandbox != "" {
			dirs[filepath.Dir(e.Sandbox)] = true
		}
	}
	found, err := d.cfg.Kernel.Tenants(ctx, slices.Sorted(maps.Keys(dirs))...)
	now := d.store.intent() // an endpoint may have come, or gone, meanwhile
	v, networks := View{Registry: d.cfg.Ledger.Registry()}, now.held()
	tenants := make([]Tenant, 0, len(found))
	for _, f := range found {
		t := Tenant{Tenant: f}
		n, _ := v.networkOf(t, networks)
		for _, p := range t.Addrs {
			if pool, ok := n.covers(p.Addr()); !ok {
			} else if lease := d.cfg.Addresses.LeaseOf(pool, p.Addr()); p.Addr().Is4() {
				t.Lease4 = cmp.Or(t.Lease4, lease)
			} else {
				t.Lease6 = cmp.Or(t.Lease6, lease)
			}
		}
		tenants = append(tenants, t)
	}
	slices.SortFunc(tenants, func(a, b Tenant) int {
		return cmp.Or(strings.Compare(a.Sandbox, b.Sandbox), strings.Compare(a.Name, b.Name))
	})
	muted := map[string]bool{}
	for _, f := range found {
		if f.Muted {
			muted[identity(f.MAC, f.Link)] = true
		}
	}
	strangers := slices.DeleteFunc(slices.Clone(tenants), func(t Tenant) bool { return in.has(t) || now.has(t) })
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(d.muted, muted)
	if err != nil && d.looked {
		return tenants, err
	}
	if len(strangers) != len(d.strangers) || !d.looked {
		d.agree.wake() // it waits for that, see housed
	}
	d.strangers, d.looked = strangers, err == nil
	return tenants, err
}

// has reports whether a tenant is an endpoint.
func (in *Intent) has(t Tenant) bool {
	for _, e := range in.Endpoints {
		if t.is(e) {
			return true
		}
	}
	return false
}

// is reports whether a tenant is that endpoint.
func (t Tenant) is(e Endpoint) bool { return identity(t.MAC, t.Link) == identity(e.MAC, e.link()) }

// identity tells an interface in a sandbox from all others: its MAC, or where it
// has that of its parent (and the MAC here is zero), the name that it was made with.
func identity(mac cluster.MAC, link string) string {
	if mac.IsZero() {
		return link
	}
	return mac.String()
}

// lan reports a tenant that stands in a LAN.
func (t Tenant) lan() bool {
	return t.vni() == 0 && (t.Kind == kernel.Macvlan || t.Kind == kernel.IPvlan)
}

// direct reports the end of a link by which this host routes for a container.
func (t Tenant) direct() bool {
	return t.Kind == kernel.Veth && strings.HasPrefix(t.Below, "is-p") && (t.Master == "" || strings.HasPrefix(t.Master, "is-g"))
}

// vni returns the network that a tenant's device is named after; 0 when it is
// none of ours.
func (t Tenant) vni() uint32 {
	name, begin := t.Below, "is-v"
	if t.Kind == kernel.Veth {
		name, begin = t.Master, "is-b"
	}
	digits, ok := strings.CutPrefix(name, begin)
	if n, err := strconv.ParseUint(digits, 10, 32); ok && err == nil {
		return uint32(n)
	}
	return 0
}

// endpoint makes of a tenant what intent would know of it. A veth's name has
// the beginning of the endpoint's id; a macvlan has lost it.
func (t Tenant) endpoint(network string) Endpoint {
	id, ok := strings.CutPrefix(t.Below, "is-p")
	if t.MAC.IsZero() {
		id, ok = strings.CutPrefix(t.Link, "is-e")
	} else if t.Kind != kernel.Veth {
		ok = false
	}
	if !ok {
		sum := sha256.Sum256([]byte("isthmus tenant\x00" + t.MAC.String() + t.Link))
		id = hex.EncodeToString(sum[:5])
	}
	e := Endpoint{
		ID: (id + strings.Repeat("0", 32))[:32], Network: network, MAC: t.MAC,
		Lease4: t.Lease4, Lease6: t.Lease6, Sandbox: t.Sandbox, Inside: t.Name, found: true,
	}
	for _, p := range t.Addrs {
		if p.Addr().Is4() && !e.IPv4.IsValid() {
			e.IPv4 = p
		} else if p.Addr().Is6() && !e.IPv6.IsValid() {
			e.IPv6 = p
		}
	}
	return e
}

// networkOf finds the network of a tenant: among those held, or as the cluster
// knows it. held reports the former.
func (v View) networkOf(t Tenant, networks []held) (n Network, held bool) {
	vni := t.vni()
	switch {
	case t.lan():
		return v.lanOf(t, networks)
	case t.direct():
		return v.directOf(t, networks)
	case vni == 0:
		return Network{}, false
	}
	for _, h := range networks {
		if h.Def.VNI == vni {
			return h.Network, true
		}
	}
	if v.Registry != nil {
		for _, agreed := range v.Registry.Networks {
			if agreed.Def.VNI == vni {
				attach := map[kernel.Kind]string{kernel.Veth: "bridge"}[t.Kind]
				n := Network{Pools: agreed.Pools, Cluster: agreed.ID, Def: agreed.Def, Options: Options{Mode: agreed.Def.Mode, Attach: cmp.Or(attach, "macvlan")}}
				n.Gateways = v.gateways(n)
				return n, false
			}
		}
	}
	return Network{}, false
}

// directOf does the same for a tenant that this host routes for, by its addresses.
func (v View) directOf(t Tenant, networks []held) (n Network, held bool) {
	fits := func(n Network) bool {
		return direct(n.Def.Mode) && (t.Master == "") == (n.Def.Mode == modeRouted) && slices.ContainsFunc(t.Addrs, func(p netip.Prefix) bool {
			_, ok := n.covers(p.Addr())
			return ok
		})
	}
	for _, h := range networks {
		if fits(h.Network) {
			return h.Network, true
		}
	}
	if v.Registry != nil {
		for _, id := range slices.Sorted(maps.Keys(v.Registry.Networks)) {
			agreed := v.Registry.Networks[id]
			n := Network{Pools: agreed.Pools, Cluster: id, Def: agreed.Def, Options: Options{Mode: agreed.Def.Mode}}
			if fits(n) {
				n.Gateways = v.gateways(n)
				return n, false
			}
		}
	}
	return Network{}, false
}

// gateways lists those that the cluster agreed on, of a network that hosts route for.
func (v View) gateways(n Network) (out []netip.Addr) {
	for _, p := range n.Pools {
		if g := v.Registry.Pools[p].Gateway; g.IsValid() && led(n.Def) {
			out = append(out, g)
		}
	}
	return out
}

// lanOf does the same for a tenant in a LAN, whose link says nothing of its
// network: its addresses do, and what it stands on.
func (v View) lanOf(t Tenant, networks []held) (n Network, held bool) {
	fits := func(n Network) bool {
		return stations[n.Def.Mode] == t.Kind && slices.ContainsFunc(t.Addrs, func(p netip.Prefix) bool {
			_, ok := n.covers(p.Addr())
			return ok
		})
	}
	isolated := func(pools []cluster.PoolKey) bool {
		name, _ := isolatedDevice(pools)
		return name == t.Below
	}
	found := -1
	for i, h := range networks {
		if fits(h.Network) && (found < 0 || h.Options.Parent == t.Below || isolated(h.Pools)) {
			found = i
		}
	}
	if found >= 0 {
		return networks[found].Network, true
	}
	if v.Registry == nil {
		return Network{}, false
	}
	for _, id := range slices.Sorted(maps.Keys(v.Registry.Networks)) {
		agreed := v.Registry.Networks[id]
		n := Network{Pools: agreed.Pools, Cluster: id, Def: agreed.Def, Options: Options{Mode: agreed.Def.Mode, Parent: t.Below}}
		if !fits(n) {
			continue
		}
		if isolated(n.Pools) {
			dev, _ := v.device(t.Below)
			n.Options.Parent, n.Options.Internal, n.Options.Attach = "", true, string(dev.Kind)
		}
		return n, false
	}
	return Network{}, false
}

// adopt adds to the networks what was found in sandboxes and intent does not
// know: as endpoints of a network that this host or the cluster knows. The links
// of others are left alone. All go with their sandbox.
func (v View) adopt(networks []held, d *Desired) []held {
	known := func(t Tenant) bool { // it was stored since the look
		return slices.ContainsFunc(networks, func(n held) bool { return slices.ContainsFunc(n.endpoints, t.is) })
	}
	networks = slices.Clone(networks)
	for _, t := range v.Strangers {
		vni := t.vni()
		if vni == 0 && !t.lan() && !t.direct() || known(t) {
			continue
		}
		n, ours := v.networkOf(t, networks)
		var addrs []string
		for _, a := range t.Addrs {
			addrs = append(addrs, a.Addr().String())
		}
		d.Problems = append(d.Problems, Problem{
			Network: poolNames(n.Pools),
			Cause:   fmt.Sprintf("interface %s (%s) of the container in sandbox %s is not known to this plugin, whose state was lost or set back: it is left alone", t.Name, strings.Join(addrs, ", "), t.Sandbox),
			Remedy:  "restart the container",
			alarm:   true,
		})
		switch {
		case n.Cluster == 0 && t.lan():
			for link, ok := t.Below, true; ok && !d.Left[link]; {
				var dev kernel.Device
				d.Left[link] = true
				dev, ok = v.device(link)
				link = dev.Parent
			}
			continue
		case n.Cluster == 0:
			for _, link := range []string{t.Below, t.Master, vxlanDevice(vni), announcerDevice(vni), bridgeDevice(vni)} {
				d.Left[link] = true
			}
			continue
		case !ours:
			networks = append(networks, held{Network: n, docker: []string{}})
		}
		i := slices.IndexFunc(networks, func(h held) bool { return h.Cluster == n.Cluster })
		networks[i].endpoints = append(slices.Clip(networks[i].endpoints), t.endpoint(n.ID))
	}
	delete(d.Left, "")
	slices.SortStableFunc(networks, func(a, b held) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return networks
}

// housed reports whether a stranger is in a network, or may be.
func (d *Driver) housed(network uint32) bool {
	d.mu.Lock()
	leaving, looked, strangers := d.leaving, d.looked, d.strangers
	d.mu.Unlock()
	if leaving || !looked {
		return !leaving
	}
	v, networks := View{Registry: d.cfg.Ledger.Registry()}, d.store.intent().held()
	return slices.ContainsFunc(strangers, func(t Tenant) bool {
		n, _ := v.networkOf(t, networks)
		return n.Cluster == network
	})
}

// houses reports whether a stranger has the address.
func (d *Driver) houses(pool cluster.PoolKey, addr netip.Addr) bool {
	d.mu.Lock()
	strangers := d.strangers
	if d.leaving {
		strangers = nil
	}
	d.mu.Unlock()
	if len(strangers) == 0 {
		return false
	}
	v, networks := View{Registry: d.cfg.Ledger.Registry()}, d.store.intent().held()
	for _, t := range strangers {
		if !slices.ContainsFunc(t.Addrs, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			continue
		}
		if n, _ := v.networkOf(t, networks); n.Cluster == 0 || slices.Contains(n.Pools, pool) {
			return true
		}
	}
	return false
}

// lookAgain finds out who stands on our devices, when it is time to.
func (l *loop) lookAgain(ctx context.Context, now time.Time) {
	d := l.d
	d.mu.Lock()
	again := d.pace.sandbox
	if len(d.strangers) > 0 || !d.looked {
		again = min(again, d.pace.audit)
	}
	due := !d.looked && l.looked.IsZero() || now.Sub(l.looked) >= again
	d.mu.Unlock()
	if !due {
		return
	}
	l.looked = now
	if _, err := d.look(ctx); err != nil && ctx.Err() == nil {
		if l.unseen != err.Error() {
			d.log.WithError(err).Warn("cannot look into all sandboxes: containers that this plugin does not know may be missed")
		}
		l.unseen = err.Error()
	} else {
		l.unseen = ""
	}
}

// leave says what stays although nobody wants it: what is below strangers in
// networks that nobody knows, and all links until there was a first look.
func (l *loop) leave(want Desired) func(kernel.Object) kernel.Object {
	d := l.d
	d.mu.Lock()
	blind, leaving, detached := !d.looked, d.leaving, d.detached != ""
	d.mu.Unlock()
	if leaving || !blind && len(want.Left) == 0 {
		return nil
	}
	return func(o kernel.Object) kernel.Object {
		if r, ok := o.(kernel.FIB); ok && want.Left[r.Dev] {
			return o
		}
		if dev := o.Key().Dev; dev == "" || !blind && !want.Left[dev] {
			return nil
		}
		switch o := o.(type) {
		case kernel.Link:
			if o.Kind == kernel.VXLAN {
				o.Down = detached
			}
			return o
		case kernel.Guard:
			o.Broken = false
			return o
		case kernel.FDB:
			if want.Refused[o.Dst] {
				return nil
			}
		case kernel.Neigh:
			if detached { // the kernel drops them with the device
				return nil
			}
		}
		return o
	}
}
