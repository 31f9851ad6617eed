package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// pair is one direction between two hosts, "1>2" in text.
type pair struct{ from, to int }

func (p pair) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d>%d", p.from, p.to), nil }

func (p *pair) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "%d>%d", &p.from, &p.to)
	return err
}

func (p pair) compare(q pair) int {
	if p.from != q.from {
		return p.from - q.from
	}
	return p.to - q.to
}

// links is what the switch does to frames. The switch is told the whole of it at
// each change, so that no order of calls leaves anything behind.
type links struct {
	Loss map[pair]int `json:"loss,omitempty"` // percent of frames dropped; 100 is a cut
	MTU  map[pair]int `json:"mtu,omitempty"`  // IP packets longer than this are dropped
}

// ruleset renders the links for nft(8).
func (s links) ruleset() string {
	var b strings.Builder
	b.WriteString("table bridge lab\ndelete table bridge lab\ntable bridge lab {\n\tchain forward {\n\t\ttype filter hook forward priority 0\n")
	match := func(p pair) string { return fmt.Sprintf("iifname \"host%d\" oifname \"host%d\"", p.from, p.to) }
	for _, p := range slices.SortedFunc(maps.Keys(s.Loss), pair.compare) {
		if percent := s.Loss[p]; percent == 100 {
			fmt.Fprintf(&b, "\t\t%s drop\n", match(p))
		} else {
			fmt.Fprintf(&b, "\t\t%s numgen random mod 100 < %d drop\n", match(p), percent)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(s.MTU), pair.compare) {
		fmt.Fprintf(&b, "\t\t%s meta length > %d drop\n", match(p), s.MTU[p])
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// change edits the links, tells the switch, and notes them for other processes.
func (l *Lab) change(edit func(*links)) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.state.Links
	if s.Loss == nil {
		s.Loss = map[pair]int{}
	}
	if s.MTU == nil {
		s.MTU = map[pair]int{}
	}
	edit(s)
	cmd := l.sw.tool(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(s.ruleset())
	if _, err := l.sw.run(cmd, cmd.Args); err != nil {
		return err
	}
	return l.state.write()
}

// Cut drops all frames between two hosts, both ways. Both still reach the
// others and the switch.
func (l *Lab) Cut(a, b int) error { return l.Loss(a, b, 100) }

// CutOneWay drops all frames that from sends to to.
func (l *Lab) CutOneWay(from, to int) error {
	return l.change(func(s *links) { s.Loss[pair{from, to}] = 100 })
}

// Isolate cuts a host off from every other.
func (l *Lab) Isolate(host int) error {
	return l.change(func(s *links) {
		for _, h := range l.hosts {
			if h.Index != host {
				s.Loss[pair{host, h.Index}], s.Loss[pair{h.Index, host}] = 100, 100
			}
		}
	})
}

// Loss drops that many percent of the frames between two hosts, at random, both
// ways. It replaces what was said of the two before; 0 ends it.
func (l *Lab) Loss(a, b, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("set loss: %d is no percentage", percent)
	}
	return l.change(func(s *links) {
		for _, p := range []pair{{a, b}, {b, a}} {
			if percent == 0 {
				delete(s.Loss, p)
			} else {
				s.Loss[p] = percent
			}
		}
	})
}

// PathMTU makes the path between two hosts narrower than their links say: the
// switch drops IP packets longer than bytes, without a word. Offloads are
// switched off on both hosts' links, as they would carry long packets past it;
// they come on again at the host's next boot.
func (l *Lab) PathMTU(a, b, bytes int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, i := range []int{a, b} {
		h := l.Host(i)
		args := []string{"ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off"}
		if _, err := h.run(h.tool(ctx, args...), args); err != nil {
			return err
		}
	}
	return l.change(func(s *links) { s.MTU[pair{a, b}], s.MTU[pair{b, a}] = bytes, bytes })
}

// HostDown takes the carrier off a host's link, as pulling its cable would.
func (l *Lab) HostDown(host int) error { return l.setPort(host, "down") }

// HostUp puts the cable back.
func (l *Lab) HostUp(host int) error { return l.setPort(host, "up") }

func (l *Lab) setPort(host int, state string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := l.sw.ip(ctx, "link", "set", l.Host(host).Name, state)
	return err
}

// Delay holds each frame to a host back for d, in the switch. It fails where
// the kernel has no netem.
func (l *Lab) Delay(host int, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	args := []string{"tc", "qdisc", "replace", "dev", l.Host(host).Name, "root", "netem", "delay", fmt.Sprintf("%dus", d.Microseconds())}
	if _, err := l.sw.run(l.sw.tool(ctx, args...), args); err != nil {
		return fmt.Errorf("delay %s: the kernel must have netem (CONFIG_NET_SCH_NETEM): %w", l.Host(host).Name, err)
	}
	return nil
}

// AddLink gives a host one more interface in the LAN, up and without addresses,
// by which it does not tell of its others. It is gone when the host boots.
func (l *Lab) AddLink(ctx context.Context, host int, dev string) error {
	h := l.Host(host)
	if err := l.connect(ctx, h.node, h.Name+"-"+dev, dev, ""); err != nil {
		return fmt.Errorf("add link %s to %s: %w", dev, h.Name, err)
	}
	if err := h.setSysctl(ctx, "net.ipv4.conf."+dev+".arp_ignore", "1"); err != nil {
		return err
	}
	return h.batch(ctx, "link set "+dev+" up")
}

// Hairpin makes the switch return frames to the host that they came from, when
// their receiver is there, as a switch for VEPA does (reflective relay), or ends
// that. It is a setting of the host's ports that Heal leaves alone and the host's
// next boot ends.
func (l *Lab) Hairpin(ctx context.Context, host int, on bool) error {
	h, state := l.Host(host), "off"
	if on {
		state = "on"
	}
	ports, err := l.portsOf(ctx, h.Name)
	if err != nil {
		return fmt.Errorf("set hairpin of %s: %w", h.Name, err)
	}
	var lines []string
	for _, port := range ports {
		lines = append(lines, fmt.Sprintf("link set %s type bridge_slave hairpin %s", port, state))
	}
	return l.sw.batch(ctx, lines...)
}

// Heal undoes cuts, losses, narrow paths, delays and pulled cables. MTUs set by
// Host.SetMTU, links and hairpins stay, and hosts that are powered off are left
// alone.
func (l *Lab) Heal() error {
	if err := l.change(func(s *links) { clear(s.Loss); clear(s.MTU) }); err != nil {
		return err
	}
	for _, h := range l.hosts {
		if !h.pid().alive() {
			continue
		}
		if err := l.HostUp(h.Index); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		// There is none to remove unless Delay was called.
		l.sw.tool(ctx, "tc", "qdisc", "del", "dev", h.Name, "root").Run()
		cancel()
	}
	return nil
}
