package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// timeout bounds one netlink exchange. The kernel answers from memory; more
// than this means that it does not answer at all.
const timeout = 5 * time.Second

// Sandboxes is Docker's usual directory of sandboxes.
const Sandboxes = "/var/run/docker/netns"

// Config is what Open needs.
type Config struct {
	Log       logrus.FieldLogger
	Sandboxes string // directory of sandboxes; empty: Docker's usual one
}

// Linux is the real Kernel: the network namespace in which Open was called,
// whatever the threads do later that call its methods.
//
// All its changes and dumps are under one lock: a dump never shows half of a
// Do, and no two writers race for a name.
type Linux struct {
	log  logrus.FieldLogger
	dir  string // of sandboxes
	ns   netns.NsHandle
	h    *netlink.Handle
	raw  map[int]*nl.SocketHandle
	send int // AF_PACKET socket of Announce; bound to no protocol, it receives nothing

	mu      sync.Mutex
	heeded  atomic.Pointer[map[string]bool]
	granted map[Guard]bool // AcceptForward guards that needed no rule, see accept.go
	warned  map[Guard]bool // of iptables-legacy
}

var _ Kernel = (*Linux)(nil)

// Open connects to the kernel of the calling thread's network namespace. It
// needs CAP_NET_ADMIN and CAP_NET_RAW, and CAP_SYS_ADMIN for sandboxes.
func Open(c Config) (*Linux, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	k := &Linux{log: c.Log, dir: cmp.Or(c.Sandboxes, Sandboxes), ns: netns.None(), send: -1, granted: map[Guard]bool{}, warned: map[Guard]bool{}, raw: map[int]*nl.SocketHandle{}}
	if err := k.open(); err != nil {
		k.Close()
		return nil, fmt.Errorf("open kernel: %w", err)
	}
	return k, nil
}

func (k *Linux) open() (err error) {
	if k.ns, err = netns.Get(); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	if k.h, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_GENERIC); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	if err = k.h.SetSocketTimeout(timeout); err != nil {
		return fmt.Errorf("set netlink timeout: %w", err)
	}
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	for _, family := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER, unix.NETLINK_GENERIC} {
		s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), family)
		if err != nil {
			return fmt.Errorf("open netlink family %d: %w", family, err)
		}
		k.raw[family] = &nl.SocketHandle{Socket: s}
		_ = s.SetSendTimeout(&tv)
		_ = s.SetReceiveTimeout(&tv)
		// The kernel's own words are the best cause to name.
		_ = s.SetExtAck(true)
	}
	if k.send, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	return nil
}

// Close releases the sockets. It changes nothing in the kernel.
func (k *Linux) Close() {
	if k.h != nil {
		k.h.Close()
	}
	for _, s := range k.raw {
		s.Close()
	}
	if k.send >= 0 {
		_ = unix.Close(k.send)
	}
	if k.ns.IsOpen() {
		_ = k.ns.Close()
	}
}

// Dump implements Kernel: one dump of all links, one of all forwarding entries,
// one of each family's neighbours and of its routes of our protocol, one of the
// addresses, and our tables.
func (k *Linux) Dump(ctx context.Context) (State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	state := State{}
	links, err := k.dumpLinks(ctx, state)
	if err == nil && len(links.tunnels) > 0 {
		err = k.dumpEntries(ctx, state, links.tunnels)
	}
	if err == nil && len(links.addressed) > 0 {
		err = k.dumpAddrs(ctx, state, links.addressed)
	}
	if err == nil {
		err = k.dumpRoutes(ctx, state, links.all)
	}
	if err == nil {
		err = k.dumpGuards(state)
	}
	if err != nil {
		return nil, fmt.Errorf("dump kernel: %w", err)
	}
	return state, nil
}

// Do implements Kernel. After a link failed, what stands on it is not tried:
// one error instead of thousands. A VXLAN device or bridge whose drop guard
// failed is not brought up.
func (k *Linux) Do(ctx context.Context, ops []Op) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	lame := map[string]int{} // links that failed, and how many operations were skipped for it
	index := map[string]int{}
	for i := 0; i < len(ops); i++ {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%d operations not tried: %w", len(ops)-i, err))
			break
		}
		op := ops[i]
		key := op.Object.Key()
		if on, ok := standsOn(op.Object, lame); ok && op.Action != Remove {
			lame[on]++
			continue
		}
		var err error
		switch o := op.Object.(type) {
		case Guard, Pool, Passage, Source, Publish, Gateway, Uplink:
			// A run of what is in our tables is one transaction.
			n := i + 1
			for n < len(ops) && inTables(ops[n].Object) {
				n++
			}
			tables, others := k.guard(ops[i:n])
			if others != nil {
				errs = append(errs, others)
			}
			if tables != nil {
				errs = append(errs, tables)
				for _, op := range ops[i:n] {
					if g, ok := op.Object.(Guard); ok && g.Dev != "" && g.Rule != AcceptForward && op.Action != Remove {
						lame[g.Dev] = 0
					}
				}
			}
			i = n - 1
		case Link:
			delete(index, o.Name)
			if err = k.link(op.Action, o); err != nil {
				lame[o.Name] = 0
			}
		case Addr:
			err = k.addr(op, o)
		case FIB:
			err = k.route(op, o)
		case FDB, Neigh:
			if _, ok := index[key.Dev]; !ok {
				index[key.Dev], err = k.tunnelIndex(key.Dev)
			}
			if at := index[key.Dev]; err == nil && at != 0 {
				err = k.entry(op, at)
			} else if err == nil && op.Action != Remove {
				err = errNoLink
			}
			if n, ok := o.(Neigh); ok && n.IP.Is6() && errors.Is(err, unix.EINVAL) {
				if err = k.enableIPv6(n.Dev); err == nil {
					err = k.entry(op, index[key.Dev])
				}
				if err != nil {
					lame[n.Dev+ofIPv6] = 0
				}
			}
			if errors.Is(err, errNoLink) {
				lame[key.Dev] = 0
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", op.Action, key, err))
		}
	}
	for _, dev := range sortedKeys(lame) {
		if lame[dev] > 0 {
			errs = append(errs, fmt.Errorf("%s: skipped %d operations that depend on it", dev, lame[dev]))
		}
	}
	return errors.Join(errs...)
}

// inTables reports whether o is in our tables of nftables.
func inTables(o Object) bool {
	_, guard := o.(Guard)
	return guard || routes(o)
}

// ofIPv6 marks, behind a link's name, that its IPv6 failed.
const ofIPv6 = " (IPv6)"

// standsOn returns the failed thing that o depends on, if there is one.
func standsOn(o Object, lame map[string]int) (string, bool) {
	dev := o.Key().Dev
	switch o := o.(type) {
	case FIB:
		dev = o.Dev
	case Link:
		if _, ok := lame[o.Parent]; ok {
			dev = o.Parent
		}
	}
	if _, ok := lame[dev]; ok {
		return dev, true
	}
	if n, ok := o.(Neigh); ok && n.IP.Is6() {
		_, ok = lame[dev+ofIPv6]
		return dev + ofIPv6, ok
	}
	return "", false
}

// enableIPv6 switches IPv6 on for one of our own links: without it the kernel
// takes no IPv6 neighbours there, and many servers have it off for all links.
// The host still takes no part: it has no address on the link, and what comes
// in is dropped.
func (k *Linux) enableIPv6(dev string) error {
	l, err := k.h.LinkByName(dev)
	if err != nil {
		return err
	}
	if mtu := l.Attrs().MTU; mtu < 1280 {
		return fmt.Errorf("the MTU of %s is %d, and IPv6 needs 1280: raise it, or use no IPv6 addresses in this network", dev, mtu)
	}
	return inside(int(k.ns), func() error { return allowIPv6(dev) })
}

var errNoLink = errors.New("no such link of ours")

// retry repeats a netlink dump that the kernel says is inconsistent, because
// something changed meanwhile, or that a signal interrupted.
func retry[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	for n := 0; ; n++ {
		v, err := fn()
		again := errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR)
		if !again || n == 50 || ctx.Err() != nil {
			return v, err
		}
	}
}

// inside runs fn in a network namespace, on a thread that is thrown away
// afterwards: there is no way back that could fail.
func inside(ns int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot be thrown away, and /proc/self is its view.
			done <- inside(ns, fn)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
