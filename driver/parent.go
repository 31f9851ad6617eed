package driver

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// ground is what a network in a LAN stands on, on this host.
type ground struct {
	Link  string          // that the containers' interfaces stand on
	Dev   kernel.Device   // as it is, or will be once its VLANs are made
	Base  string          // what those VLANs stand on, or Link itself
	VLANs []kernel.Link   // that isthmus makes, outer before inner
	Heed  []string        // links of others whose changes matter
	Alone []kernel.Object // instead of all that: links of a network that has no parent
	Fault *fault          // why nothing can stand on it now
}

// fault is a reason with its remedy: a refusal when a network is created, and a
// Problem ever after.
type fault struct{ cause, remedy string }

func (f *fault) Error() string { return f.cause + ": " + f.remedy }

func faulty(remedy, cause string, args ...any) *fault {
	return &fault{fmt.Sprintf(cause, args...), remedy}
}

// nameMax is the longest name of a link (IFNAMSIZ less the zero byte).
const nameMax = 15

// checkParent checks the value of a parent option by itself.
func checkParent(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("need the name of an interface; leave the option out, with --internal, for a network of this host alone")
	case len(name) > nameMax:
		return fmt.Errorf("an interface name has at most %d letters: make the VLAN device under a shorter name, and name that", nameMax)
	case strings.ContainsAny(name, "/ \t\n"):
		return fmt.Errorf("need the name of an interface")
	}
	return nil
}

// cutVLAN splits "eth0.50" into what it stands on and its VLAN.
func cutVLAN(name string) (below string, vid int, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 1 {
		return "", 0, false
	}
	n, err := strconv.Atoi(name[i+1:])
	if err != nil || name[i+1] == '0' && n != 0 || name[i+1] == '+' {
		return "", 0, false
	}
	return name[:i], n, true
}

// device finds a link of this host.
func (v View) device(name string) (kernel.Device, bool) {
	i, ok := slices.BinarySearchFunc(v.Links, name, func(d kernel.Device, name string) int { return strings.Compare(d.Name, name) })
	if !ok {
		return kernel.Device{}, false
	}
	return v.Links[i], true
}

// ground finds what a network stands on, and what of that is to be made. It does
// not look at who else stands there.
func (v View) ground(n Network) ground {
	if n.Options.Parent == "" {
		return v.alone(n)
	}
	g := ground{Link: n.Options.Parent}
	// From the innermost VLAN down to a link that is there, and not ours.
	var tags []kernel.Link
	base := n.Options.Parent
	for {
		g.Heed = append(g.Heed, base)
		dev, ok := v.device(base)
		if ok && !dev.Ours {
			g.Dev = dev
			break
		}
		below, vid, tagged := cutVLAN(base)
		switch {
		case ok && dev.Kind != kernel.VLAN:
			g.Fault = faulty("use "+v.suggest(), "parent %s is a link that isthmus made for itself", base)
			return g
		case !tagged && len(tags) == 0:
			g.Fault = faulty("use "+v.suggest()+", and -o parent.HOST= where hosts differ", "parent %s does not exist on this host", base)
			return g
		case !tagged:
			g.Fault = faulty("use a VLAN of "+v.suggest()+", and -o parent.HOST= where hosts differ", "parent %s does not exist on this host, and neither does %s", g.Link, base)
			return g
		case vid < 1 || vid > 4094:
			g.Fault = faulty("a VLAN is a number from 1 to 4094", "parent %s does not exist on this host, and %d is no VLAN that could be made on %s", base, vid, below)
			return g
		}
		tags = append(tags, kernel.Link{Name: base, Kind: kernel.VLAN, Parent: below, VID: uint16(vid)})
		base = below
	}
	slices.Reverse(tags)
	for i := range tags {
		tags[i].MTU, tags[i].Down = g.Dev.MTU, !g.Dev.Up
		if i == 0 {
			tags[i].Proto = n.Options.VLANProtocol
		}
	}
	g.VLANs, g.Base = tags, base
	if len(tags) == 0 {
		return g
	}
	base0 := g.Dev
	if f := v.port(base0, strings.TrimPrefix(g.Link, base0.Name)); f != nil && base0.MasterKind != kernel.Bridge {
		g.Fault = f
	}
	if f := unfit(base0, v); f != nil {
		g.Fault = f
	}
	// What stands on it already, where it exists, is known; the rest follows.
	dev, _ := v.device(g.Link)
	dev.Name, dev.Kind, dev.Parent = g.Link, kernel.VLAN, tags[len(tags)-1].Parent
	dev.VID = tags[len(tags)-1].VID
	dev.MTU, dev.MAC, dev.Up, dev.Carrier = base0.MTU, base0.MAC, base0.Up, base0.Carrier
	dev.Wireless, dev.Driver = base0.Wireless, base0.Driver
	g.Dev = dev
	return g
}

// alone makes a network of this host alone, which has no parent: a link that
// leads nowhere.
func (v View) alone(n Network) ground {
	name, end := isolatedDevice(n.Pools)
	dummy := kernel.Link{Name: name, Kind: kernel.Dummy, MAC: deriveMAC(v.Host, name), MTU: cmp.Or(n.Def.MTU, 1500)}
	g := ground{Link: name, Dev: kernel.Device{Name: name, Kind: kernel.Dummy, MTU: dummy.MTU, MAC: dummy.MAC, Up: true, Carrier: true, Ours: true}}
	if dev, ok := v.device(name); ok {
		g.Dev.Children, g.Dev.Index = dev.Children, dev.Index
	}
	if n.Options.Attach != "veth" {
		g.Alone = []kernel.Object{dummy}
		return g
	}
	dummy.Kind, dummy.Peer = kernel.Veth, end
	other := dummy
	other.Name, other.Peer, other.MAC = end, name, deriveMAC(v.Host, end)
	// What leaves by the first end arrives at the other one, which is the host's.
	g.Alone = []kernel.Object{dummy, other, kernel.Guard{Dev: end, Rule: kernel.DropInput}}
	return g
}

// vlan names the VLAN that a network is in, as far as this host tags it.
func (v View) vlan(g ground) string {
	var ids []string
	for _, l := range g.VLANs {
		ids = append(ids, fmt.Sprint(l.VID))
	}
	name := g.Link
	if len(g.VLANs) > 0 {
		name = g.VLANs[0].Parent
	}
	for range 8 { // VLANs on VLANs; no more than the kernel stacks
		dev, ok := v.device(name)
		if !ok || dev.Kind != kernel.VLAN {
			break
		}
		ids = slices.Insert(ids, 0, fmt.Sprint(dev.VID))
		name = dev.Parent
	}
	return strings.Join(ids, ".")
}

// suggest names the links of this host that containers can stand on.
func (v View) suggest() string {
	var names []string
	for _, d := range v.Links {
		if !d.Ours && unfit(d, v) == nil && d.Master == "" && !strings.HasPrefix(d.Name, "veth") && d.Kind != kernel.Bridge && d.Kind != kernel.Dummy {
			names = append(names, d.Name)
		}
	}
	switch len(names) {
	case 0:
		return "an Ethernet interface of this host"
	case 1:
		return names[0]
	}
	return "one of " + strings.Join(names, ", ")
}

// port explains that a link is the port of another one, which gets its frames.
// tail is the VLAN above it, if any.
func (v View) port(dev kernel.Device, tail string) *fault {
	if dev.Master == "" || dev.MasterKind == "vrf" {
		return nil
	}
	return faulty(fmt.Sprintf("use -o parent=%s%s", dev.Master, tail), "parent %s is a port of %s %s, which takes all its frames", dev.Name, cmp.Or(string(dev.MasterKind), "link"), dev.Master)
}

// unfit explains that no container can ever stand on a link.
func unfit(dev kernel.Device, v View) *fault {
	switch {
	case dev.Loopback:
		return faulty("use an Ethernet interface", "parent %s is the loopback interface, which leads to no LAN", dev.Name)
	case dev.MAC.IsZero():
		return faulty("use an Ethernet interface", "parent %s is no Ethernet interface", dev.Name)
	case (dev.Kind == kernel.Macvlan || dev.Kind == kernel.IPvlan) && dev.Parent != "":
		return faulty("use -o parent="+dev.Parent, "parent %s stands on another parent itself, as its %s link", dev.Name, dev.Kind)
	}
	return nil
}

// tenure is what a network makes of its parent.
type tenure struct {
	kind       kernel.Kind
	mode, flag string
}

func (d tenure) String() string {
	text := fmt.Sprintf("%s in mode %s", d.kind, d.mode)
	if d.flag != "" && d.flag != "bridge" {
		text += ", flag " + d.flag
	}
	return text
}

// tenure returns what a network of a LAN makes of its parent, with defaults.
func tenureOf(def cluster.Definition) tenure {
	if def.Mode == "ipvlan" {
		return tenure{kernel.IPvlan, cmp.Or(def.Submode, "l2"), cmp.Or(def.Flag, "bridge")}
	}
	return tenure{kernel.Macvlan, cmp.Or(def.Submode, "bridge"), ""}
}

func (d tenure) alone() bool { return d.mode == "passthru" }

// shares explains why a network cannot stand on its ground as that is now. before
// lists the networks that were there first. fresh says that nothing of the network
// is there yet, so that every link on the parent is another's.
func (v View) shares(n Network, g ground, before []held, fresh bool) *fault {
	if g.Fault != nil {
		return g.Fault
	}
	if len(g.Alone) > 0 {
		return nil
	}
	want, dev := tenureOf(n.Def), g.Dev
	if f := unfit(dev, v); f != nil {
		return f
	}
	if f := v.port(dev, ""); f != nil {
		return f
	}
	elsewhere := "use another parent, or a VLAN of it, such as -o parent=" + dev.Name + ".50"
	// conflict compares with what somebody else makes of the parent.
	conflict := func(have tenure, who string) *fault {
		switch {
		case have.kind != want.kind:
			return faulty(elsewhere, "parent %s serves %s for %s, and cannot serve %s at the same time", dev.Name, have.kind, who, want.kind)
		case have.alone():
			return faulty(elsewhere, "parent %s serves %s alone, in macvlan_mode=passthru", dev.Name, who)
		case want.alone():
			return faulty(elsewhere, "macvlan_mode=passthru admits one interface on its parent, and %s serves %s already", dev.Name, who)
		case want.kind == kernel.IPvlan && have != want:
			words := "-o ipvlan_mode=" + have.mode
			if have.flag != "bridge" || want.flag != "bridge" {
				words += " -o ipvlan_flag=" + have.flag
			}
			return faulty("use "+words+", or another parent", "parent %s serves %s for %s, and a parent has one mode: %s would change it there", dev.Name, have, who, want)
		}
		return nil
	}
	for _, other := range before {
		if other.Cluster == n.Cluster && slices.Equal(other.Pools, n.Pools) || fenced(other.Def.Mode) {
			continue
		}
		og := v.ground(other.Network)
		if og.Link != g.Link {
			if l := retagged(g, og); l != "" {
				return faulty("use the same -o vlan_protocol", "VLAN device %s is of the other protocol in network %s", l, poolNames(other.Pools))
			}
			continue
		}
		if f := conflict(tenureOf(other.Def), "network "+poolNames(other.Pools)); f != nil {
			return f
		}
		if l := retagged(g, og); l != "" {
			return faulty("use the same -o vlan_protocol", "VLAN device %s is of the other protocol in network %s", l, poolNames(other.Pools))
		}
	}
	for _, c := range dev.Children {
		have := tenure{c.Kind, c.Mode, c.Flag}
		if !fresh && c.Ours && have.kind == want.kind {
			continue
		}
		if f := conflict(have, holderOf(c)); f != nil {
			return f
		}
	}
	if want.kind == kernel.Macvlan && !want.alone() {
		return filtered(dev, true)
	}
	if want.alone() {
		for _, p := range dev.Addrs {
			if p.Addr() == v.VTEP {
				return faulty("use an interface that the container may have for itself", "macvlan_mode=passthru takes all frames of parent %s, by which this host talks to the others (%s)", dev.Name, v.VTEP)
			}
		}
	}
	return nil
}

// retagged names a VLAN device that two networks want with different protocols.
func retagged(a, b ground) string {
	for _, x := range a.VLANs {
		for _, y := range b.VLANs {
			if x.Name == y.Name && strings.TrimPrefix(x.Proto, "802.1q") != strings.TrimPrefix(y.Proto, "802.1q") {
				return x.Name
			}
		}
	}
	return ""
}

// holderOf names what stands on a parent, for people.
func holderOf(c kernel.Child) string {
	if c.Sandbox != "" {
		return fmt.Sprintf("a container (interface %s in %s)", c.Name, c.Sandbox)
	}
	return "link " + c.Name + " of this host"
}

// filters knows the drivers of virtual machines' interfaces behind which a
// switch drops frames of MACs that it did not assign: all of them, or those of
// a switch that was not told otherwise.
var filters = []struct {
	driver, where string
	always        bool
}{
	{"ena", "Amazon's cloud", true},
	{"gve", "Google's cloud", true},
	{"hv_netvsc", "Hyper-V or Azure", false},
	{"vmxnet3", "VMware", false},
}

// filtered explains that frames of the containers' own MACs do not arrive: for
// certain, or else unless somebody allowed them.
func filtered(dev kernel.Device, certain bool) *fault {
	const remedy = "use -o mode=ipvlan, whose containers have the MAC of the host, or mode vxlan"
	if certain && dev.Wireless {
		return faulty(remedy, "parent %s is wireless, and an access point takes the frames of one MAC from each station", dev.Name)
	}
	for _, f := range filters {
		switch {
		case f.driver != dev.Driver || f.always != certain:
		case certain:
			return faulty(remedy+", which needs no addresses of the cloud's network", "parent %s is an interface of %s (driver %s), which drops the frames of all MACs that it did not assign", dev.Name, f.where, f.driver)
		default:
			return faulty("allow promiscuous mode, forged transmits and MAC changes there, or "+remedy, "parent %s is an interface of %s (driver %s): its switch drops the frames of the containers' MACs, unless that was allowed", dev.Name, f.where, f.driver)
		}
	}
	return nil
}

// ailments lists what makes a network in a LAN work less than it should.
func (g ground) ailments(n Network) []*fault {
	var out []*fault
	dev, want := g.Dev, tenureOf(n.Def)
	if len(g.Alone) > 0 || dev.Name == "" {
		return nil
	}
	switch {
	case !dev.Up:
		out = append(out, faulty("ip link set "+g.Base+" up", "parent %s is down: its containers are cut off", g.Base))
	case !dev.Carrier:
		out = append(out, faulty("look at its cable and switch port", "parent %s has no carrier: its containers reach nobody outside of this host", g.Base))
	}
	if n.Def.MTU > dev.MTU && dev.MTU > 0 {
		out = append(out, faulty("raise that of "+g.Base+", or create the network with -o mtu="+fmt.Sprint(dev.MTU), "parent %s carries %d bytes, so its MTU is not %d", dev.Name, dev.MTU, n.Def.MTU))
	}
	if want.kind == kernel.Macvlan && !want.alone() {
		if f := filtered(dev, false); f != nil {
			out = append(out, f)
		}
	}
	return out
}
