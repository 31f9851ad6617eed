package driver

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// noWait is for questions to the kernel that it answers from memory.
var noWait = context.Background()

// ways keeps View.Ways: where the other hosts are, and whether what is sent there
// without a tunnel arrives. It belongs to one goroutine.
type ways struct {
	d        *Driver
	verdicts map[cluster.HostID]verdict
	foreign  time.Time // of the newest look at the routes of others
}

func newWays(d *Driver) *ways { return &ways{d: d, verdicts: map[cluster.HostID]verdict{}} }

// run looks, asks and judges again and again, as long as there are networks that
// need it.
func (w *ways) run(ctx context.Context) error {
	return every(ctx, w.d.pace.probe, func(ctx context.Context) {
		w.look(ctx)
		w.ask(ctx)
	})
}

// every does something again and again until ctx ends.
func every(ctx context.Context, interval time.Duration, do func(context.Context)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			do(ctx)
		}
	}
}

// look finds the next hop to every host, and the routes of others.
func (w *ways) look(ctx context.Context) {
	d := w.d
	if !d.store.intent().direct() {
		w.publish(nil, nil)
		return
	}
	v := d.view()
	found, now := map[cluster.HostID]Way{}, time.Now()
	var have kernel.State
	for _, host := range v.others() {
		way := d.hopTo(ctx, v.vtepOf(host))
		j, known := w.verdicts[host]
		if !known && way.Via.IsValid() {
			if have == nil {
				have, _ = d.cfg.Kernel.Dump(ctx) // without one, there is no verdict yet
			}
			j = seed(have, way.Via)
		}
		if j.via != way.Via {
			j = verdict{via: way.Via}
		}
		w.verdicts[host] = j
		way.Native = j.native
		if !j.native && way.Why == "" {
			way.Why = fmt.Sprintf("what is sent to its containers by %s does not arrive, or is not asked for yet", way.Via)
			if j.known {
				way.Why = fmt.Sprintf("an ICMP echo to its own address in the network is not answered by way of %s", way.Via)
			}
		}
		found[host] = way
	}
	maps.DeleteFunc(w.verdicts, func(host cluster.HostID, _ verdict) bool { _, ok := found[host]; return !ok })
	d.mu.Lock()
	foreign := d.foreign
	d.mu.Unlock()
	if now.Sub(w.foreign) >= d.pace.audit {
		if list, err := d.cfg.Kernel.Foreigns(ctx); err == nil {
			foreign, w.foreign = list, now
		}
	}
	w.publish(found, foreign)
}

// hopTo finds the next hop to a VTEP.
func (d *Driver) hopTo(ctx context.Context, vtep netip.Addr) Way {
	if !vtep.IsValid() {
		return Way{Why: "it does not say its underlay address"}
	}
	hop, err := d.cfg.Kernel.Hop(ctx, vtep)
	switch {
	case err != nil:
		return Way{Why: err.Error()}
	case hop.Via.IsValid():
		return Way{Via: hop.Via, Dev: hop.Dev, Routed: true}
	}
	return Way{Via: vtep, Dev: hop.Dev}
}

// publish lets the plan see what was found, and has it made if it is new.
func (w *ways) publish(found map[cluster.HostID]Way, foreign []kernel.Foreign) {
	d := w.d
	d.mu.Lock()
	same := maps.Equal(d.ways, found) && slices.Equal(d.foreign, foreign)
	d.ways, d.foreign = found, foreign
	d.mu.Unlock()
	if !same {
		d.loop.wake()
	}
}

// ask sends one probe to each host that lives, from this host's own address in a
// network to that one's.
func (w *ways) ask(ctx context.Context) {
	d := w.d
	v := d.world()
	if len(v.Ways) == 0 {
		return
	}
	plan := Plan(d.store.intent(), v)
	var probes []kernel.Probe
	var hosts []cluster.HostID
	asked := map[cluster.HostID]bool{}
	for _, s := range plan.Segments {
		if !s.direct() {
			continue
		}
		for _, at := range slices.SortedFunc(maps.Keys(s.routerAddrs()), func(a, b station) int { return slices.Compare([]byte(a.host), []byte(b.host)) }) {
			router := s.routerAddrs()[at]
			way := v.Ways[at.host]
			r, routed := plan.State[kernel.FIB{Dst: netip.PrefixFrom(router, router.BitLen())}.Key()].(kernel.FIB)
			own := s.ownOf(router)
			if asked[at.host] || !routed || r.Via != way.Via || !own.IsValid() || v.state(at.host) != cluster.Alive {
				continue
			}
			asked[at.host] = true
			probes, hosts = append(probes, kernel.Probe{Src: own, Dst: router}), append(hosts, at.host)
		}
	}
	if len(probes) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.pace.probe*8/10)
	defer cancel()
	answered, err := d.cfg.Kernel.Echo(ctx, probes)
	if err != nil {
		d.log.WithError(err).Warn("other hosts cannot be asked whether they are reached directly")
		return
	}
	for i, host := range hosts {
		w.verdicts[host] = w.verdicts[host].judge(v.Ways[host].Via, answered[i])
	}
}

// others lists the hosts that leases may be of, but this one.
func (v View) others() []cluster.HostID {
	set := map[cluster.HostID]bool{}
	for _, m := range v.Members {
		set[m.ID] = m.State != cluster.Left
	}
	if v.Registry != nil {
		for id, h := range v.Registry.Hosts {
			set[id] = set[id] || !h.Tombstone
		}
	}
	delete(set, v.Host)
	maps.DeleteFunc(set, func(_ cluster.HostID, in bool) bool { return !in })
	return slices.Sorted(maps.Keys(set))
}

// conflicts reports routes of others to what this host leads elsewhere. They are
// never touched, and usually win.
func (v View) conflicts(s *segment, d *Desired) {
	for _, f := range v.Foreign {
		for _, p := range s.Pools {
			if f.Dst.Overlaps(p.Prefix) && f.Dst.Bits() >= p.Prefix.Bits() {
				d.Problems = append(d.Problems, Problem{
					Network: poolNames(s.Pools), Cause: fmt.Sprintf("conflict: somebody else routes %s on this host", f),
					Remedy: "delete that route, or use another subnet", alarm: true,
				})
			}
		}
	}
}
