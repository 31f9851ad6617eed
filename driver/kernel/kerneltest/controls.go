package kerneltest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-net/isthmus/driver/kernel"
)

// This file is what a test does to the host, and asks of it; fake.go is what isthmus does.

// Fail makes the next n calls whose text contains match fail with err. The
// text of an operation is its Op.String; the others are "dump", "hand LINK",
// "mend LINK", "mute LINK", "unmute LINK", "observe SANDBOX", "tenants", "links", "lodgers", "announce ADDRESS", "underlay
// ADDRESS" and "routes". n below zero: until Heal.
func (f *Fake) Fail(n int, match string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, fault{n, match, err})
}

// Heal ends all faults.
func (f *Fake) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Log lists what changed the kernel through its interface, in order; what
// failed ends in " # " and the error.
func (f *Fake) Log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// ResetLog empties the log and the list of announcements.
func (f *Fake) ResetLog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log, f.announced = nil, nil
}

// Announced lists all announcements.
func (f *Fake) Announced() []kernel.Announcement {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.announced)
}

// SetUnderlay and SetRoutes say what Underlay and Routes answer.
func (f *Fake) SetUnderlay(u kernel.Underlay) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.underlay = u
	f.wake()
}

func (f *Fake) SetRoutes(routes ...netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes = routes
}

// Lack makes the kernel one without some kinds of links.
func (f *Fake) Lack(kinds ...kernel.Kind) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lacks = kinds
}

// Delete does what somebody does by hand: the object goes, and with it what
// the kernel takes along.
func (f *Fake) Delete(keys ...kernel.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		f.remove(k)
	}
	f.wake()
}

// Put does what somebody does by hand: the object appears, or changes.
func (f *Fake) Put(objects ...kernel.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Put(objects...)
	f.wake()
}

// SetDown does what somebody does by hand: a link goes down, and its
// neighbours, permanent ones too, are flushed.
func (f *Fake) SetDown(link string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.link(link); ok {
		l.Down = true
		f.state.Put(l)
		f.flushNeigh(link)
		f.flushDown(link)
		f.carry(link, true)
		f.wake()
	}
}

// Take does what Docker does after Join: it moves link into the sandbox (made
// if need be), calls it newname there, and gives it the addresses and routes
// of its handover.
func (f *Fake) Take(link, sandbox, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.link(link)
	if !ok {
		return fmt.Errorf("take %s: no such link", link)
	}
	f.sandbox(sandbox)
	if f.sandboxes[sandbox][newname] != nil {
		return fmt.Errorf("take %s: %s exists in sandbox %s", link, newname, sandbox)
	}
	h := f.handed[link]
	delete(f.state, l.Key())
	l.Down = false
	f.sandboxes[sandbox][newname] = &Inside{Link: l, Addrs: h.Addrs, Routes: h.Routes}
	f.wake()
	return nil
}

// GiveBack does what Docker does at Leave: the interface returns to the host,
// down, under the name that it was handed over with.
func (f *Fake) GiveBack(sandbox, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.sandboxes[sandbox][name]
	if in == nil {
		return fmt.Errorf("give back %s: not in sandbox %s", name, sandbox)
	}
	delete(f.sandboxes[sandbox], name)
	in.Link.Down = true
	f.state.Put(in.Link)
	f.wake()
	return nil
}

// AddSandbox makes an empty sandbox; RemoveSandbox deletes one with all in it.
func (f *Fake) AddSandbox(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sandbox(path)
}

func (f *Fake) RemoveSandbox(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, in := range f.sandboxes[path] {
		if in.Link.Kind == kernel.Veth {
			f.remove(kernel.Link{Name: in.Link.Peer}.Key())
		}
	}
	delete(f.sandboxes, path)
	f.wake()
}

// Interface returns what is inside a sandbox under a name.
func (f *Fake) Interface(sandbox, name string) (Inside, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if in := f.sandboxes[sandbox][name]; in != nil {
		return *in, true
	}
	return Inside{}, false
}
