package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// SetHop says by which router, and which link, an address is reached. Without a
// word, what lies in a subnet of a link that is up is on-link there.
func (f *Fake) SetHop(to netip.Addr, h kernel.Hop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hops[to] = h
	f.wake()
}

// SetDeaf says that an address answers no probe, or does again.
func (f *Fake) SetDeaf(to netip.Addr, deaf bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf[to] = deaf
}

// SetForeign says what Foreigns answers.
func (f *Fake) SetForeign(routes ...kernel.Foreign) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.foreign = routes
}

// Hop implements kernel.Kernel.
func (f *Fake) Hop(ctx context.Context, to netip.Addr) (kernel.Hop, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "hop "+to.String()); err != nil {
		return kernel.Hop{}, err
	}
	if h, ok := f.hops[to]; ok {
		return h, nil
	}
	if dev, src := f.neighbour(to); dev != "" {
		return kernel.Hop{Dev: dev, Src: src}, nil
	}
	return kernel.Hop{}, fmt.Errorf("find the way to %s: network is unreachable", to)
}

// neighbour finds the link in whose subnet an address lies.
func (f *Fake) neighbour(to netip.Addr) (dev string, src netip.Addr) {
	for name, d := range f.devices {
		for _, p := range d.Addrs {
			if d.Up && p.Contains(to) && p.Addr() != to {
				return name, p.Addr()
			}
		}
	}
	return "", netip.Addr{}
}

// Echo implements kernel.Kernel: whoever is not deaf answers, if there is a route
// to him alone and the source is this host's, or if he is in the subnet of the source.
func (f *Fake) Echo(ctx context.Context, probes []kernel.Probe) ([]bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "echo"); err != nil {
		return nil, err
	}
	out := make([]bool, len(probes))
	for i, p := range probes {
		_, routed := f.state[kernel.FIB{Dst: netip.PrefixFrom(p.Dst, p.Dst.BitLen())}.Key()]
		_, src := f.neighbour(p.Dst)
		out[i] = (routed && f.local(p.Src) || src == p.Src) && !f.deaf[p.Dst]
	}
	return out, nil
}

// Foreigns implements kernel.Kernel.
func (f *Fake) Foreigns(ctx context.Context) ([]kernel.Foreign, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.foreign), f.fails(ctx, "foreign routes")
}
