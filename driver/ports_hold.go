package driver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// ports holds the host's ports that are published: each by a socket that is bound
// and never read, so that no other program gets the port, and none loses it
// without a word. The kernel releases them when the process ends, however it does;
// the next one holds them again by what it stored.
//
// It is safe for concurrent use. The zero value holds nothing.
type ports struct {
	mu   sync.Mutex
	held map[string][]heldPort // by owner
}

// heldPort is a port with the socket that holds it.
type heldPort struct {
	kernel.Publish
	socket socket
}

// hold makes exactly what wants asks for the ports of owner, whose container has
// the addresses addrs, one of a family at most: all of it, or nothing changes. It
// returns what to publish, sorted, of which a caller that survives a restart gives
// the old ones as before, to get the same ports again.
//
// A port of all addresses is one of each family that both container and host have.
func (p *ports) hold(owner string, wants []portRequest, addrs []netip.Addr, before []kernel.Publish) ([]kernel.Publish, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.held[owner]
	var fresh, all []heldPort
	for _, w := range wants {
		got, err := p.find(owner, w, addrs, before, all)
		for _, h := range got {
			all = append(all, h)
			if !slices.ContainsFunc(old, func(o heldPort) bool { return o.socket == h.socket && h.socket != nil }) {
				fresh = append(fresh, h)
			}
		}
		if err != nil {
			release(fresh)
			return nil, fmt.Errorf("publish %s: %w", w, err)
		}
	}
	for _, o := range old {
		if !slices.ContainsFunc(all, func(h heldPort) bool { return h.socket == o.socket }) {
			release([]heldPort{o})
		}
	}
	if p.held == nil {
		p.held = map[string][]heldPort{}
	}
	p.held[owner] = all
	if len(all) == 0 {
		delete(p.held, owner)
	}
	out := make([]kernel.Publish, 0, len(all))
	for _, h := range all {
		out = append(out, h.Publish)
	}
	slices.SortFunc(out, func(a, b kernel.Publish) int { return kernel.CompareKeys(a.Key(), b.Key()) })
	return out, nil
}

// release gives up all ports of owner; it may have none.
func (p *ports) release(owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	release(p.held[owner])
	delete(p.held, owner)
}

func release(list []heldPort) {
	for _, h := range list {
		if h.socket != nil {
			h.socket.Close()
		}
	}
}

// owners lists who holds ports, sorted.
func (p *ports) owners() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return sortedOwners(p.held)
}

// find holds the port, or the pair of ports, of one request. mine are those of the
// same owner that others of its requests got.
func (p *ports) find(owner string, w portRequest, addrs []netip.Addr, before []kernel.Publish, mine []heldPort) ([]heldPort, error) {
	ends, err := ends(w, addrs)
	if err != nil {
		return nil, err
	}
	var first error
	for _, port := range w.candidates(ends, before) {
		got, err := p.take(owner, w.Proto, port, ends, mine)
		if err == nil {
			return got, nil
		}
		if first == nil {
			first = err
		}
	}
	if w.First != w.Last {
		return nil, fmt.Errorf("no port of the range is free; of the first: %w", first)
	}
	return nil, first
}

// ends pairs the host's addresses that a request is for with the container's.
func ends(w portRequest, addrs []netip.Addr) (out []kernel.Publish, err error) {
	for _, a := range addrs {
		host := w.Host
		switch {
		case !host.IsValid() && a.Is4():
			host = netip.IPv4Unspecified()
		case !host.IsValid():
			host = netip.IPv6Unspecified()
		case host.Is4() != a.Is4():
			continue
		}
		out = append(out, kernel.Publish{Proto: w.Proto, Host: netip.AddrPortFrom(host, 0), To: netip.AddrPortFrom(a, w.Port)})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the container has no %s address in this network", family(w.Host))
	}
	return out, nil
}

// candidates are the ports to try in turn. Zero is one of the kernel's choice,
// which may be taken in the other family: then another one is tried.
func (w portRequest) candidates(ends, before []kernel.Publish) (out []uint16) {
	for _, b := range before {
		port := b.Host.Port()
		fits := w.First == 0 || w.First <= port && port <= w.Last
		if fits && b.Proto == w.Proto && slices.ContainsFunc(ends, func(e kernel.Publish) bool { return e.Host.Addr() == b.Host.Addr() && e.To.Port() == b.To.Port() }) {
			out = append(out, port)
		}
	}
	if w.First == 0 {
		return append(out, make([]uint16, 20)...)
	}
	for port := int(w.First); port <= int(w.Last); port++ {
		if !slices.Contains(out, uint16(port)) {
			out = append(out, uint16(port))
		}
	}
	return out
}

// take holds one port at all ends. IPv6 that the host does not have is left out,
// unless its address was asked for.
func (p *ports) take(owner, proto string, port uint16, ends []kernel.Publish, mine []heldPort) (out []heldPort, err error) {
	defer func() {
		if err != nil {
			release(slices.DeleteFunc(out, func(h heldPort) bool { return p.owns(owner, h.socket) }))
			out = nil
		}
	}()
	for _, e := range ends {
		e.Host = netip.AddrPortFrom(e.Host.Addr(), port)
		s, err := p.socketFor(owner, e, mine)
		if errors.Is(err, errNoFamily) && e.Host.Addr().IsUnspecified() && len(ends) > 1 {
			continue
		}
		if err != nil {
			return out, err
		}
		if port == 0 {
			port = s.port()
			e.Host = netip.AddrPortFrom(e.Host.Addr(), port)
		}
		out = append(out, heldPort{e, s})
	}
	return out, nil
}

func (p *ports) owns(owner string, s socket) bool {
	return slices.ContainsFunc(p.held[owner], func(h heldPort) bool { return h.socket == s })
}

// socketFor returns the socket that holds the port of e: the owner's own, if it
// has it already.
func (p *ports) socketFor(owner string, e kernel.Publish, mine []heldPort) (socket, error) {
	for _, h := range mine {
		if overlaps(h.Publish, e) {
			return nil, fmt.Errorf("%s is published twice, for ports %d and %d", e.Host, h.To.Port(), e.To.Port())
		}
	}
	for _, name := range sortedOwners(p.held) {
		for _, h := range p.held[name] {
			switch {
			case name == owner && h.Proto == e.Proto && h.Host == e.Host:
				return h.socket, nil
			case name != owner && overlaps(h.Publish, e):
				return nil, fmt.Errorf("%s is taken: it is published for container endpoint %s on %s: choose another host port, or stop that container", e.Host, name, h.To.Addr())
			}
		}
	}
	s, err := bind(e.Proto, e.Host)
	if errors.Is(err, errTaken) {
		return nil, fmt.Errorf("%s is taken: %s: choose another host port, or stop that program", e.Host, whoHolds(e.Proto, e.Host))
	}
	return s, err
}

// overlaps reports whether two ports cannot both be held.
func overlaps(a, b kernel.Publish) bool {
	return a.Proto == b.Proto && a.Host.Port() == b.Host.Port() && a.Host.Port() != 0 && a.Host.Addr().Is4() == b.Host.Addr().Is4() &&
		(a.Host.Addr() == b.Host.Addr() || a.Host.Addr().IsUnspecified() || b.Host.Addr().IsUnspecified())
}
