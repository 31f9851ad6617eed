//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// A record is what the kernels of all hosts change, each change with its time
// on the one clock that they share, and when a host had no CPU.
type record struct{ changes, idle map[*lab.Host]*session }

// newRecord begins to listen on every host.
func newRecord(t *testing.T, s *site) record {
	t.Helper()
	r := record{map[*lab.Host]*session{}, map[*lab.Host]*session{}}
	for _, h := range s.Hosts() {
		// Others want the CPU too, and a change counts from when it was read.
		r.changes[h] = begin(t, h, "nice", "-n", "-20", "box", "record")
		r.idle[h] = begin(t, h, "box", "idle")
	}
	return r
}

func (r record) end() {
	for _, all := range []map[*lab.Host]*session{r.changes, r.idle} {
		for _, s := range all {
			s.cancel()
			<-s.done
			s.cmd.Wait() // ends as it was killed
		}
	}
}

// A stall is a time in which a process of a host wanted to run and could not.
type stall struct{ from, to time.Time }

// stalls returns those of each two hosts, in the order of their begin.
func (r record) stalls() (map[[2]*lab.Host][]stall, error) {
	one := map[*lab.Host][]stall{}
	for h := range r.idle {
		lines, err := r.idle[h].lines()
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			var c struct{ At, Late int64 }
			if err := decode(line, &c); err != nil {
				return nil, err
			}
			one[h] = append(one[h], stall{time.Unix(0, c.At-c.Late), time.Unix(0, c.At)})
		}
	}
	two := map[[2]*lab.Host][]stall{}
	for a := range one {
		for b := range one {
			both := slices.Concat(one[a], one[b])
			slices.SortFunc(both, func(a, b stall) int { return a.from.Compare(b.from) })
			two[[2]*lab.Host{a, b}] = both
		}
	}
	return two, nil
}

// during returns for how long, between two times, there was any of the stalls,
// which are in the order of their begin.
func during(all []stall, from, to time.Time) (sum time.Duration) {
	for _, s := range all {
		if s.from.Before(from) {
			s.from = from
		}
		if s.to.After(to) {
			s.to = to
		}
		if s.to.After(s.from) {
			sum += s.to.Sub(s.from)
			from = s.to // what lies before is counted
		}
	}
	return sum
}

// entry is a forwarding entry: who, and behind which host.
type entry struct {
	mac string
	dst netip.Addr
}

// first returns when each interface of ours and each forwarding entry was first
// seen on a host.
func (r record) first(h *lab.Host) (links map[string]time.Time, entries map[entry]time.Time, err error) {
	lines, err := r.changes[h].lines()
	if err != nil {
		return nil, nil, err
	}
	links, entries = map[string]time.Time{}, map[entry]time.Time{}
	for _, line := range lines {
		var c struct {
			At              int64
			What, MAC, Name string
			Gone            bool
			Dst             netip.Addr
		}
		if err := decode(line, &c); err != nil {
			return nil, nil, err
		}
		at := time.Unix(0, c.At)
		switch {
		case c.Gone:
		case c.What == "link" && strings.HasPrefix(c.Name, "is-"):
			if _, again := links[c.MAC]; !again {
				links[c.MAC] = at
			}
		case c.What == "fdb":
			if _, again := entries[entry{c.MAC, c.Dst}]; !again {
				entries[entry{c.MAC, c.Dst}] = at
			}
		}
	}
	return links, entries, nil
}

// A lag is how long another host had no entry for a container, and for how much
// of that one of the two hosts got no CPU.
type lag struct {
	box    *box
	on     *lab.Host
	took   time.Duration
	waited time.Duration
}

// lags returns those of every container on every other host, shortest first, or
// says what was not seen yet: once from when its interface was made, which is
// the first that Join does, and once from when Docker knew that Join was done,
// which joined has by container id.
func (r record) lags(boxes []*box, joined map[string]time.Time) (made, done []lag, err error) {
	links := map[*lab.Host]map[string]time.Time{}
	entries := map[*lab.Host]map[entry]time.Time{}
	for h := range r.changes {
		if links[h], entries[h], err = r.first(h); err != nil {
			return nil, nil, err
		}
	}
	stalls, err := r.stalls()
	if err != nil {
		return nil, nil, err
	}
	for _, b := range boxes {
		begin, seen := links[b.host][b.mac]
		end, told := joined[b.id]
		if !seen || !told {
			return nil, nil, fmt.Errorf("%s never had an interface with the address %s of %s, or no word of its Join", b.host.Name, b.mac, b.name)
		}
		for h := range r.changes {
			if h == b.host {
				continue
			}
			at, ok := entries[h][entry{b.mac, b.host.IP()}]
			if !ok {
				return nil, nil, fmt.Errorf("%s never had an entry for %s of %s", h.Name, b.mac, b.name)
			}
			either := stalls[[2]*lab.Host{b.host, h}]
			since := func(from time.Time) lag {
				return lag{b, h, at.Sub(from), during(either, from, at)}
			}
			made, done = append(made, since(begin)), append(done, since(end))
		}
	}
	shorter := func(a, b lag) int { return cmp.Compare(a.took, b.took) }
	slices.SortFunc(made, shorter)
	slices.SortFunc(done, shorter)
	return made, done, nil
}

// distribution prints the percentiles of sorted lags, each with what of it was
// waiting for a CPU.
func distribution(all []lag) string {
	var b strings.Builder
	for _, p := range []int{0, 50, 90, 99, 100} {
		l := all[(len(all)-1)*p/100]
		fmt.Fprintf(&b, " p%d %s (%s)", p, l.took.Round(time.Millisecond), l.waited.Round(time.Millisecond))
	}
	return b.String()
}
