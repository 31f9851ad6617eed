package driver

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/isthmus-net/isthmus/cluster"
)

// admits reports whether the frames and records of a host are taken. The
// cluster's word decides: a host that it forgot is not, nor one that was not
// heard since the registry was rebuilt, which must confirm its addresses first.
// A host that the local copy does not know is a new one.
func (v View) admits(host cluster.HostID) bool {
	h, known := v.registered(host)
	return !known || !h.Tombstone && h.Session != 0
}

func (v View) registered(host cluster.HostID) (cluster.Host, bool) {
	if v.Registry == nil {
		return cluster.Host{}, false
	}
	h, ok := v.Registry.Hosts[host]
	return h, ok
}

// vteps lists the other hosts' VTEPs of our family: where the registry knows
// the hosts, and where they are heard, which may be newer. Refused are those of
// hosts that are not admitted, unless an admitted one has the same by now.
func (v View) vteps() (admitted, refused map[netip.Addr]bool) {
	admitted, refused = map[netip.Addr]bool{}, map[netip.Addr]bool{}
	put := func(host cluster.HostID, vtep netip.Addr) {
		vtep = vtep.Unmap()
		switch {
		case host == v.Host || !vtep.IsValid() || vtep == v.VTEP || family(vtep) != family(v.VTEP):
		case v.admits(host):
			admitted[vtep] = true
		default:
			refused[vtep] = true
		}
	}
	if v.Registry != nil {
		for id, h := range v.Registry.Hosts {
			put(id, h.VTEP)
		}
	}
	for _, m := range v.Members {
		if _, known := v.registered(m.ID); known || m.State != cluster.Left {
			put(m.ID, m.Info.VTEP)
		}
	}
	for _, s := range v.Streams {
		put(s.Owner, s.Info.VTEP)
	}
	for vtep := range admitted {
		delete(refused, vtep)
	}
	return admitted, refused
}

// fenced explains why a host that still speaks is not listened to. Only
// tunnels can keep its containers out.
func (v View) fenced(host cluster.HostID, tunnel bool) Problem {
	become := "they are cut off"
	if !tunnel {
		become = "they stay in the LAN"
	}
	if h, _ := v.registered(host); h.Tombstone {
		return Problem{Cause: fmt.Sprintf("host %s was removed from the cluster and still runs containers: %s", v.name(host), become), Remedy: "run isthmus reset on it"}
	}
	return Problem{Cause: fmt.Sprintf("host %s has not confirmed its addresses since the cluster's registry was rebuilt: its containers%s", v.name(host), strings.TrimPrefix(become, "they")), Remedy: "look at its status"}
}
