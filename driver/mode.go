package driver

import (
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Mode is how one kind of network reaches its peers. Its functions are pure.
type Mode struct {
	Name string
	// Plan adds what the network needs in the kernel to d: its links, how its
	// endpoints meet them (Desired.attach), and says which links of s lead to the
	// other hosts and speak for this one.
	Plan func(s *segment, v View, d *Desired)
	// Overhead is what encapsulation takes from the underlay's MTU, in bytes.
	Overhead func(v View) int
}

// modes lists what can be built, the default first.
var modes = []Mode{vxlan, macvlan, ipvlan, hostGW, routes}

// stations lists the modes whose networks stand in a LAN, with the kind of the
// containers' interfaces.
var stations = map[string]kernel.Kind{"macvlan": kernel.Macvlan, "ipvlan": kernel.IPvlan}

// fenced reports a network that stands in no LAN, so that nothing of strangers, and
// of hosts that the cluster forgot, is led to its containers.
func fenced(mode string) bool { return stations[mode] == "" }

// direct reports a network whose packets this host routes, without frames between
// hosts, as direct.go has it.
func direct(mode string) bool { return mode == modeHostGW || mode == modeRouted }

// led reports a network whose containers have hosts of the cluster for their
// gateways: then this host's firewall, ports and routes are theirs.
func led(def cluster.Definition) bool { return direct(def.Mode) || ours(def.Gateway) }

// tunnels reports a network whose hosts may need VXLAN tunnels between their VTEPs.
func tunnels(def cluster.Definition) bool {
	return def.Mode == modeVXLAN || def.Fallback == modeVXLAN
}

// modeOf finds a mode; every stored network has one, since parsing refuses
// other names.
func modeOf(name string) Mode {
	for _, m := range modes {
		if m.Name == name {
			return m
		}
	}
	return modes[0]
}

func built(name string) bool {
	for _, m := range modes {
		if m.Name == name {
			return true
		}
	}
	return false
}

func modeNames() string {
	names := make([]string, 0, len(modes))
	for _, m := range modes {
		names = append(names, m.Name)
	}
	return strings.Join(names, ", ")
}
