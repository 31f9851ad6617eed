package driver

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// vxlan carries Ethernet frames between hosts in UDP (RFC 7348). One device
// per network, no learning: what is where comes from the other hosts' records.
// Containers hang on the device as macvlan children, or meet it at a bridge.
var vxlan = Mode{
	Name:     modeVXLAN,
	Plan:     planVXLAN,
	Overhead: vxlanOverhead,
}

const modeVXLAN = "vxlan"

// vxlanOverhead counts the inner Ethernet header (14), VXLAN (8), UDP (8) and
// the outer IP header.
func vxlanOverhead(v View) int {
	if family(v.VTEP) == "ipv4" {
		return 14 + 8 + 8 + 20
	}
	return 14 + 8 + 8 + 40
}

func vxlanDevice(vni uint32) string     { return fmt.Sprintf("is-v%d", vni) }
func announcerDevice(vni uint32) string { return fmt.Sprintf("is-a%d", vni) }
func bridgeDevice(vni uint32) string    { return fmt.Sprintf("is-b%d", vni) }

func planVXLAN(n *segment, v View, d *Desired) {
	device := kernel.Link{
		Name: vxlanDevice(n.Def.VNI), Kind: kernel.VXLAN, MTU: n.MTU,
		VNI: n.Def.VNI, Local: v.VTEP, Port: v.Port, Proxy: n.Def.ARP != "flood", Down: v.Detached != "",
	}
	// The companion is what the host itself speaks from: beside the containers
	// on the device, or below them all.
	companion := kernel.Link{Name: announcerDevice(n.Def.VNI), Kind: kernel.Macvlan, Parent: device.Name, MTU: device.MTU}
	guards := []kernel.Object{
		kernel.Guard{Dev: device.Name, Rule: kernel.DropInput},
		kernel.Guard{Dev: companion.Name, Rule: kernel.DropInput},
	}
	if n.Options.Attach == "bridge" {
		companion = kernel.Link{Name: bridgeDevice(n.Def.VNI), Kind: kernel.Bridge, MTU: device.MTU}
		device.Master = companion.Name
		guards = []kernel.Object{kernel.Guard{Dev: companion.Name, Rule: kernel.AcceptForward}}
		if !n.led() {
			guards = append(guards, kernel.Guard{Dev: companion.Name, Rule: kernel.DropBridgeInput})
		}
	}
	device.MAC, companion.MAC = deriveMAC(v.Host, device.Name), deriveMAC(v.Host, companion.Name)
	if n.led() {
		v.planGateway(n, device, &companion, d)
	}
	d.State.Put(device, companion)
	d.State.Put(guards...)
	d.Devices[device.Name], d.Devices[companion.Name] = n, n

	n.Device, n.Speaker = device.Name, companion.Name

	for _, e := range n.endpoints {
		h := v.attachVXLAN(n.held, e, n.MTU)
		if n.lost[e.ID] {
			h.Link.Down, h.Host.Down = h.Host.Name == "", h.Host.Name != ""
		}
		d.attach(e, handover{Handover: h})
		d.State.Put(h.Link)
		d.Devices[h.Link.Name] = n
		if h.Host.Name != "" {
			d.State.Put(h.Host)
			d.Devices[h.Host.Name] = n
		}
	}
	for _, p := range n.Peers {
		if n.Def.BUM != "none" {
			d.State.Put(kernel.FDB{Dev: device.Name, Dst: p.vtep})
		}
		if p.MAC.IsZero() {
			continue
		}
		d.State.Put(kernel.FDB{Dev: device.Name, MAC: p.MAC, Dst: p.vtep})
		if !device.Proxy {
			continue
		}
		d.State.Put(kernel.Neigh{Dev: device.Name, IP: linkLocal(p.MAC), MAC: p.MAC})
		if p.IPv4.IsValid() {
			d.State.Put(kernel.Neigh{Dev: device.Name, IP: p.IPv4, MAC: p.MAC})
		}
		if p.IPv6.IsValid() {
			d.State.Put(kernel.Neigh{Dev: device.Name, IP: p.IPv6, MAC: p.MAC})
		}
	}
}

// planTunnels guards what all VXLAN devices have in common. The VTEPs are those
// of the hosts that may send.
func planTunnels(vteps map[netip.Addr]bool, v View, d *Desired) {
	end := netip.AddrPortFrom(v.VTEP, v.Port)
	d.State.Put(kernel.Guard{Rule: kernel.NoTrack, Tunnel: end}, kernel.Guard{Rule: kernel.DropStrangers, Tunnel: end})
	for vtep := range vteps {
		d.State.Put(kernel.Guard{Rule: kernel.Admit, Peer: vtep})
	}
}

func (v View) attachVXLAN(n held, e Endpoint, mtu int) kernel.Handover {
	h := kernel.Handover{
		Link: kernel.Link{
			Name: e.link(), Kind: kernel.Macvlan, Standing: kernel.HandedOver,
			Parent: vxlanDevice(n.Def.VNI), MAC: e.MAC, MTU: mtu,
		},
		Sandbox: e.Sandbox, Name: e.Inside, Addrs: e.Addrs(), Routes: v.ledRoutes(n.Network, e),
	}
	if n.Options.Attach == "bridge" {
		h.Link.Kind, h.Link.Parent, h.Link.Peer = kernel.Veth, "", e.hostEnd()
		h.Host = kernel.Link{
			Name: e.hostEnd(), Kind: kernel.Veth, Standing: kernel.Adopted,
			Peer: e.link(), MTU: h.Link.MTU, Master: bridgeDevice(n.Def.VNI),
		}
	}
	return h
}
