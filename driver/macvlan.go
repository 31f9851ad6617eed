package driver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// macvlan gives each container a MAC of its own in the LAN of the parent.
var macvlan = Mode{Name: "macvlan", Plan: planLAN, Overhead: none}

func none(View) int { return 0 }

// sources lists the MACs whose frames an endpoint takes in mode source: those of
// all other endpoints that the cluster knows in the network, and those asked for.
func (s *segment) sources(e Endpoint) string {
	macs, _ := parseMACs(s.Options.Source) // checked when it was created
	for _, other := range s.endpoints {
		if other.ID != e.ID && !other.MAC.IsZero() {
			macs = append(macs, other.MAC)
		}
	}
	for _, p := range s.Peers {
		if !p.MAC.IsZero() {
			macs = append(macs, p.MAC)
		}
	}
	return kernel.JoinMACs(macs)
}

// parseMACs reads a list of MACs, separated by commas.
func parseMACs(list string) ([]cluster.MAC, error) {
	if list == "" {
		return nil, nil
	}
	var out []cluster.MAC
	for _, text := range strings.Split(list, ",") {
		m, err := cluster.ParseMAC(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if m[0]&1 != 0 || m.IsZero() {
			return nil, fmt.Errorf("%s is not the MAC address of a single host", m)
		}
		out = append(out, m)
	}
	return out, nil
}

// solitary refuses a second container where the parent admits one.
func solitary(in *Intent, n Network, e Endpoint) error {
	if !tenureOf(n.Def).alone() || fenced(n.Def.Mode) {
		return nil
	}
	var others []string
	for id, other := range in.Endpoints {
		if id != e.ID && in.Networks[other.Network].Cluster == n.Cluster {
			others = append(others, id)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return fmt.Errorf("macvlan_mode=passthru admits one container on parent %s, and endpoint %s is there: stop that one first, or use another mode", n.Options.Parent, short(slices.Min(others)))
}

// checkMAC refuses a MAC that the user chose where the parent's counts.
func (v View) checkMAC(n Network, asked cluster.MAC) error {
	kin := tenureOf(n.Def)
	switch {
	case kin.kind == kernel.IPvlan:
		return fmt.Errorf("MAC address %s: all containers of an ipvlan network have the MAC address of its parent %s: leave --mac-address out, or use mode macvlan", asked, n.Options.Parent)
	case v.ground(n).Dev.MAC != asked:
		return fmt.Errorf("MAC address %s: macvlan_mode=passthru gives the container the MAC address of parent %s (%s): leave --mac-address out", asked, n.Options.Parent, v.ground(n).Dev.MAC)
	}
	return nil
}
