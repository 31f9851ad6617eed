// Package kerneltest holds Fake, a kernel.Kernel in memory that behaves as
// Linux does where that matters: what dies with what, what is refused, what a
// change flushes. It prints itself, so that tests compare text.
package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver/kernel"
)

// Fake is a Kernel in memory. All methods are safe for concurrent use.
type Fake struct {
	mu        sync.Mutex
	state     kernel.State
	handed    map[string]kernel.Handover    // by link name: what Take shall configure
	sandboxes map[string]map[string]*Inside // by path and interface name
	faults    []fault
	log       []string
	announced []kernel.Announcement
	underlay  kernel.Underlay
	routes    []netip.Prefix
	devices   map[string]kernel.Device // of others
	indexes   map[string]int           // of links, by name
	newest    int
	lodged    int
	heeded    []string
	lacks     []kernel.Kind
	watchers  map[chan<- struct{}]bool
	hops      map[netip.Addr]kernel.Hop
	deaf      map[netip.Addr]bool // who answers no probe
	foreign   []kernel.Foreign
}

// Inside is an interface inside a sandbox.
type Inside struct {
	Link   kernel.Link // as it was called on the host
	Addrs  []netip.Prefix
	Routes []kernel.Route
}

type fault struct {
	left  int
	match string
	err   error
}

var _ kernel.Kernel = (*Fake)(nil)

// New returns an empty kernel whose underlay is eth0, 192.0.2.1, MTU 1500.
func New() *Fake {
	return &Fake{
		devices: map[string]kernel.Device{"eth0": {
			Name: "eth0", Kind: "device", MTU: 1500, MAC: cluster.MAC{2, 0, 0, 0, 0, 1}, Up: true, Carrier: true,
			Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")},
		}},
		state:     kernel.State{},
		handed:    map[string]kernel.Handover{},
		indexes:   map[string]int{},
		sandboxes: map[string]map[string]*Inside{},
		underlay:  kernel.Underlay{Name: "eth0", MTU: 1500, Addr: netip.MustParseAddr("192.0.2.1"), MAC: "02:00:00:00:00:01"},
		watchers:  map[chan<- struct{}]bool{},
		hops:      map[netip.Addr]kernel.Hop{},
		deaf:      map[netip.Addr]bool{},
	}
}

// String prints everything, one object a line, sorted: the host's objects, then
// the interfaces inside sandboxes.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(f.state), kernel.CompareKeys) {
		fmt.Fprintln(&b, f.state[k])
	}
	for _, path := range slices.Sorted(maps.Keys(f.sandboxes)) {
		for _, name := range slices.Sorted(maps.Keys(f.sandboxes[path])) {
			in := f.sandboxes[path][name]
			fmt.Fprintf(&b, "sandbox %s %s: %s", path, name, in.Link)
			for _, a := range in.Addrs {
				fmt.Fprintf(&b, " inet %s", a)
			}
			for _, r := range in.Routes {
				fmt.Fprintf(&b, " route %s", r.Dst)
				if r.Via.IsValid() {
					fmt.Fprintf(&b, " via %s", r.Via)
				}
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}

// Tenants implements kernel.Kernel; all sandboxes are in reach.
func (f *Fake) Tenants(ctx context.Context, _ ...string) ([]kernel.Tenant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "tenants"); err != nil {
		return nil, err
	}
	var out []kernel.Tenant
	for _, path := range slices.Sorted(maps.Keys(f.sandboxes)) {
		for _, name := range slices.Sorted(maps.Keys(f.sandboxes[path])) {
			in := f.sandboxes[path][name]
			t := kernel.Tenant{Sandbox: path, Name: name, MAC: in.Link.MAC, Addrs: in.Addrs, Kind: in.Link.Kind, Below: in.Link.Parent, Muted: in.Link.Down}
			if t.MAC.IsZero() {
				t.Link = in.Link.Name
			}
			if t.Kind == kernel.Veth {
				t.Below = in.Link.Peer
				host, _ := f.link(t.Below)
				t.Master = host.Master
			}
			out = append(out, t)
		}
	}
	return out, nil
}

func (f *Fake) Dump(ctx context.Context) (kernel.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "dump"); err != nil {
		return nil, err
	}
	return maps.Clone(f.state), nil
}

func (f *Fake) Do(ctx context.Context, ops []kernel.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, op := range ops {
		err := f.fails(ctx, op.String())
		if err == nil {
			err = f.do(op)
		}
		f.note(op.String(), err)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", op.Action, op.Object.Key(), err))
		}
	}
	return errors.Join(errs...)
}

func (f *Fake) Hand(ctx context.Context, h kernel.Handover) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := "hand " + h.Link.Name
	err := f.fails(ctx, text)
	if err == nil {
		err = f.hand(h)
	}
	f.note(text, err)
	return err
}

func (f *Fake) Mend(ctx context.Context, h kernel.Handover) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := "mend " + h.Link.Name
	err := f.fails(ctx, text)
	made := false
	if err == nil {
		made, err = f.mend(h)
	}
	if made || err != nil {
		f.note(text, err)
	}
	return made, err
}

func (f *Fake) Mute(ctx context.Context, h kernel.Handover) (bool, error) {
	return f.setMuted(ctx, "mute", h, true)
}

func (f *Fake) Unmute(ctx context.Context, h kernel.Handover) (bool, error) {
	return f.setMuted(ctx, "unmute", h, false)
}

func (f *Fake) setMuted(ctx context.Context, verb string, h kernel.Handover, muted bool) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	text := verb + " " + h.Link.Name
	if err := f.fails(ctx, text); err != nil {
		return false, err
	}
	inside := f.sandboxes[h.Sandbox]
	if inside == nil {
		return false, kernel.ErrNoSandbox
	}
	in := inside[f.find(h)]
	if in == nil || in.Link.Down == muted {
		return false, nil
	}
	in.Link.Down, in.Routes = muted, nil // the routes of a link that goes down go
	if !muted {
		in.Routes = h.Routes
	}
	f.note(text, nil)
	return true, nil
}

func (f *Fake) Observe(ctx context.Context, h kernel.Handover) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails(ctx, "observe "+h.Sandbox); err != nil {
		return "", err
	}
	if f.sandboxes[h.Sandbox] == nil {
		return "", kernel.ErrNoSandbox
	}
	return f.find(h), nil
}

func (f *Fake) Announce(ctx context.Context, list []kernel.Announcement) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range list {
		if err := f.fails(ctx, "announce "+a.IP.String()); err != nil {
			return err
		}
		_, ours := f.link(a.Dev)
		if _, others := f.devices[a.Dev]; !ours && !others {
			return fmt.Errorf("announce from %s: no such link", a.Dev)
		}
		f.announced = append(f.announced, a)
	}
	return nil
}

func (f *Fake) Underlay(ctx context.Context, to netip.Addr) (kernel.Underlay, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.underlay, f.fails(ctx, "underlay "+to.String())
}

func (f *Fake) Routes(ctx context.Context) ([]netip.Prefix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.routes), f.fails(ctx, "routes")
}

// Makes implements kernel.Kernel.
func (f *Fake) Makes(_ context.Context, kind kernel.Kind) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !slices.Contains(f.lacks, kind), nil
}

// Watch signals once at the start and after every change.
func (f *Fake) Watch(ctx context.Context, changed chan<- struct{}) error {
	f.mu.Lock()
	f.watchers[changed] = true
	f.wake()
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	delete(f.watchers, changed)
	f.mu.Unlock()
	return nil
}

// fails returns the fault that applies to a call, if any.
func (f *Fake) fails(ctx context.Context, text string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range f.faults {
		if c := &f.faults[i]; c.left != 0 && strings.Contains(text, c.match) {
			c.left--
			return c.err
		}
	}
	return nil
}

func (f *Fake) note(text string, err error) {
	if err != nil {
		text += " # " + err.Error()
	}
	f.log = append(f.log, text)
	f.wake()
}

func (f *Fake) wake() {
	for c := range f.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
