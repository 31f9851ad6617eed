package driver

import (
	"context"
	"maps"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// hearing keeps View.Deaf: which of the hosts that are the gateway of a network do
// not answer any more. The cluster itself notices a dead host after 5 to 11 s; this
// does within 4. It belongs to one goroutine.
type hearing struct {
	d        *Driver
	verdicts map[cluster.HostID]verdict
	answered map[cluster.HostID]bool // ever: who never did may be forbidden to
}

func newHearing(d *Driver) *hearing {
	return &hearing{d: d, verdicts: map[cluster.HostID]verdict{}, answered: map[cluster.HostID]bool{}}
}

// run asks again and again, as long as there are networks that need it.
func (h *hearing) run(ctx context.Context) error { return every(ctx, h.d.pace.probe, h.ask) }

// ask sends a probe from VTEP to VTEP to each host that is a gateway, or should be.
func (h *hearing) ask(ctx context.Context) {
	d := h.d
	var hosts []cluster.HostID
	var probes []kernel.Probe
	if in := d.store.intent(); in.central() {
		v := d.world()
		for _, host := range routers(Plan(in, v), v) {
			if vtep := v.vtepOf(host); vtep.IsValid() && v.VTEP.IsValid() && host != v.Host {
				hosts, probes = append(hosts, host), append(probes, kernel.Probe{Src: v.VTEP, Dst: vtep})
			}
		}
	}
	deaf := map[cluster.HostID]bool{}
	if len(probes) > 0 {
		ctx, cancel := context.WithTimeout(ctx, d.pace.probe*8/10)
		defer cancel()
		answers, err := d.cfg.Kernel.Echo(ctx, probes)
		if err != nil {
			d.log.WithError(err).Warn("hosts that are gateways cannot be asked whether they live")
			return
		}
		for i, host := range hosts {
			h.answered[host] = h.answered[host] || answers[i]
			j := h.verdicts[host].judge(probes[i].Dst, answers[i])
			h.verdicts[host] = j
			if j.known && !j.native && h.answered[host] {
				deaf[host] = true
			}
		}
	}
	asked := func(host cluster.HostID) bool { return slices.Contains(hosts, host) }
	maps.DeleteFunc(h.verdicts, func(host cluster.HostID, _ verdict) bool { return !asked(host) })
	maps.DeleteFunc(h.answered, func(host cluster.HostID, _ bool) bool { return !asked(host) })
	d.mu.Lock()
	same := maps.Equal(d.deaf, deaf)
	d.deaf = deaf
	d.mu.Unlock()
	if !same {
		d.loop.wake()
	}
}

// routers lists the hosts that are the gateway of a network for all, and those that
// should be.
func routers(p Desired, v View) []cluster.HostID {
	set := map[cluster.HostID]bool{}
	for _, s := range p.Segments {
		name := central(s.Def)
		if name == "" {
			continue
		}
		set[s.Router] = true
		for _, peer := range s.Peers {
			if v.name(peer.host) == name {
				set[peer.host] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}
