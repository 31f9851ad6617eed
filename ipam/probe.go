package ipam

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/cluster"
)

// The cluster keeps its own addresses distinct. In a pool whose networks stand
// in a LAN it shares the subnet with strangers, who ask nobody: they are
// looked for, by Config.Probe, before an endpoint gets an address. One that
// something answers for is pinned, so that no endpoint gets it, until
// Config.Conflicts does not list it any more.

// Conflict is an address of a pool that something outside of the cluster
// answers for.
type Conflict struct {
	Addr   netip.Addr `json:"addr"`
	Holder string     `json:"holder"` // as Config.Probe names it
}

// probeTries is how many addresses in a row may be answered for.
const probeTries = 8

// unheld hands out an address that nothing on the LAN answers for. take takes
// one, as often as needed unless it must be the asked one.
func (i *IPAM) unheld(ctx context.Context, p *pool, asked netip.Addr, take func() (netip.Prefix, error)) (netip.Prefix, error) {
	if i.cfg.Probe == nil {
		return take()
	}
	if asked.IsValid() {
		i.yielded(p, asked) // it may be free now, and is asked for again below
	}
	for try := 1; ; try++ {
		answer, err := take()
		if err != nil {
			return answer, err
		}
		a := answer.Addr()
		key := i.poolOf(p.key, a)
		holder, taken := i.cfg.Probe(ctx, key, a)
		if !taken {
			return answer, nil
		}
		i.mu.Lock()
		q := i.pool(key)
		i.conflict(q, a, holder)
		i.mu.Unlock()
		i.cfg.Log.WithFields(map[string]any{"pool": key.String(), "address": a.String(), "holder": holder}).Warn("address is not handed out: something on the LAN answers for it")
		if err := i.free(q, a); err != nil {
			return netip.Prefix{}, err
		}
		switch {
		case asked.IsValid():
			return netip.Prefix{}, fmt.Errorf("address %s of subnet %s is in use on the LAN by %s; choose another one, or free it there", a, key, holder)
		case try == probeTries:
			return netip.Prefix{}, fmt.Errorf("%d addresses of subnet %s in a row are in use on the LAN, the last one, %s, by %s: keep the cluster to what others leave free, with --ip-range or --aux-address; if one machine answers for all addresses, switch off its proxy ARP",
				try, key, a, holder)
		}
	}
}

// conflict pins an address that is answered for. The caller holds i.mu.
func (i *IPAM) conflict(p *pool, a netip.Addr, holder string) {
	if p.conflicts == nil {
		p.conflicts = map[netip.Addr]string{}
	}
	p.conflicts[a] = holder
	p.Pinned[a] = true
}

// yielded unpins an address that was answered for.
func (i *IPAM) yielded(p *pool, a netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := p.conflicts[a]; ok {
		delete(p.conflicts, a)
		delete(p.Pinned, a)
	}
}

// yield unpins what is answered for no more.
func (i *IPAM) yield() {
	if i.cfg.Conflicts == nil {
		return
	}
	i.mu.Lock()
	pinned := map[cluster.PoolKey][]netip.Addr{}
	for key, p := range i.pools {
		if len(p.conflicts) > 0 {
			pinned[key] = slices.Collect(maps.Keys(p.conflicts))
		}
	}
	i.mu.Unlock()
	for key, addrs := range pinned {
		still := i.cfg.Conflicts(key)
		for _, a := range addrs {
			if !slices.Contains(still, a) {
				i.mu.Lock()
				p := i.pool(key)
				i.mu.Unlock()
				i.yielded(p, a)
			}
		}
	}
}

// strangers lists the conflicts of a pool, sorted. The caller holds i.mu.
func (p *pool) strangers() []Conflict {
	var out []Conflict
	for _, a := range slices.SortedFunc(maps.Keys(p.conflicts), netip.Addr.Compare) {
		out = append(out, Conflict{a, p.conflicts[a]})
	}
	return out
}
