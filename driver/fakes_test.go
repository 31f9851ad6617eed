package driver

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
)

// fakeHeard is a cluster that says what a test wants.
type fakeHeard struct {
	mu        sync.Mutex
	streams   map[cluster.HostID]cluster.Stream
	settled   bool
	published []cluster.Record
	ever      bool
	listeners []chan struct{}
}

func newFakeHeard() *fakeHeard {
	return &fakeHeard{streams: map[cluster.HostID]cluster.Stream{}, settled: true}
}

// say has a host publish records; vtep 192.0.2.N for hostN.
func (f *fakeHeard) say(host string, records ...cluster.Record) {
	s := cluster.Stream{Owner: cluster.HostID(host), Info: cluster.HostInfo{Name: host, MTU: 1500, VTEP: netip.MustParseAddr("192.0.2." + strings.TrimPrefix(host, "host"))}, Records: map[cluster.RecordKey]cluster.Record{}}
	for _, r := range records {
		s.Records[r.Key()] = r
	}
	f.change(func() { f.streams[s.Owner] = s })
}

func (f *fakeHeard) change(edit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit()
	for _, l := range f.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

func (f *fakeHeard) Streams() []cluster.Stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.streams))
}

func (f *fakeHeard) Members() []cluster.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []cluster.Member{{ID: "host1", State: cluster.Alive, Info: cluster.HostInfo{Name: "host1", MTU: 1500, VTEP: netip.MustParseAddr("192.0.2.1")}}}
	for id, s := range f.streams {
		out = append(out, cluster.Member{ID: id, State: cluster.Alive, Info: s.Info})
	}
	return out
}

func (f *fakeHeard) Settled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled
}

func (f *fakeHeard) Publish(r []cluster.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published, f.ever = slices.Clone(r), true
}

func (f *fakeHeard) Subscribe() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := make(chan struct{}, 1)
	f.listeners = append(f.listeners, l)
	return l
}

// told lists the addresses of the published endpoints; a network that is held
// is "net N".
func (f *fakeHeard) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.published {
		if r.Claim.Lease != 0 {
			continue
		}
		if r.Endpoint == (cluster.EndpointID{}) {
			out = append(out, fmt.Sprint("net ", r.Network))
		} else {
			out = append(out, r.IPv4.String())
		}
	}
	return strings.Join(out, ", ")
}

// claims lists the blocks that are published.
func (f *fakeHeard) claims() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.published {
		if r.Claim.Lease != 0 {
			out = append(out, r.Claim.Block.String())
		}
	}
	return strings.Join(out, ", ")
}

func remote(n uint32, id, ip, mac string) cluster.Record {
	m, err := cluster.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	return cluster.Record{Network: n, Endpoint: cluster.EndpointIDOf(id), IPv4: netip.MustParseAddr(ip), MAC: m}
}

// fakeLedger applies commands as the real one does, as far as networks go.
type fakeLedger struct {
	mu          sync.Mutex
	self        cluster.HostID
	reg         *cluster.Registry
	unreachable bool
	asked       int
	listeners   []chan struct{}
}

var errUnreachable = errors.New("ask the cluster: host9 does not answer")

func newFakeLedger(self cluster.HostID) *fakeLedger {
	return &fakeLedger{self: self, reg: &cluster.Registry{Cluster: "c", Pools: map[cluster.PoolKey]cluster.Pool{}, Networks: map[uint32]cluster.Network{}, NextVNI: 4097, NextNet: 1}}
}

func (f *fakeLedger) Registry() *cluster.Registry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reg
}

func (f *fakeLedger) Subscribe() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := make(chan struct{}, 1)
	f.listeners = append(f.listeners, l)
	return l
}

func (f *fakeLedger) cut(unreachable bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unreachable = unreachable
}

func (f *fakeLedger) Propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error) {
	cmd.Host = f.self
	return f.propose(ctx, cmd)
}

// propose is a command of any host.
func (f *fakeLedger) propose(ctx context.Context, cmd cluster.Command) (cluster.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.unreachable || ctx.Err() != nil {
		return cluster.Result{}, errUnreachable
	}
	reg := *f.reg
	reg.Networks, reg.Pools = maps.Clone(reg.Networks), maps.Clone(reg.Pools)
	reg.Index++
	res := cluster.Result{Index: reg.Index}
	holders := func(have []cluster.HostID, add bool) []cluster.HostID {
		out := slices.DeleteFunc(slices.Clone(have), func(h cluster.HostID) bool { return h == cmd.Host })
		if add {
			out = append(out, cmd.Host)
		}
		slices.Sort(out)
		return out
	}
	switch {
	case cmd.AttachPool != nil:
		key := cluster.PoolKey{Space: cmd.AttachPool.Space, Prefix: cmd.AttachPool.Prefix}
		p := reg.Pools[key]
		p.Key, p.Holders = key, holders(p.Holders, true)
		reg.Pools[key] = p
	case cmd.DetachPool != nil:
		p, ok := reg.Pools[cmd.DetachPool.Pool]
		if !ok {
			return res, cluster.Refuse(cluster.UnknownPool, "no such pool")
		}
		if p.Holders = holders(p.Holders, false); len(p.Holders) == 0 {
			delete(reg.Pools, p.Key)
		} else {
			reg.Pools[p.Key] = p
		}
	case cmd.AttachNetwork != nil:
		want := cmd.AttachNetwork.Def
		n, ok := reg.NetworkOf(cmd.AttachNetwork.Pools)
		if ok && contradicts(want, n.Def) {
			return res, cluster.Refuse(cluster.Contradiction, "network %s is %+v", poolNames(n.Pools), n.Def)
		}
		if !ok {
			want = filled(want, cluster.Definition{})
			if want.VNI == 0 && fenced(want.Mode) {
				want.VNI = reg.NextVNI
				reg.NextVNI++
			}
			if want.Underlay == "" && !fenced(want.Mode) {
				want.Underlay = "ipv4"
			}
			n = cluster.Network{ID: reg.NextNet, Pools: cluster.PoolSet(cmd.AttachNetwork.Pools), Def: want, Creator: cmd.Host}
			reg.NextNet++
		}
		n.Holders = holders(n.Holders, true)
		reg.Networks[n.ID], res.Network = n, n
	case cmd.DetachNetwork != nil:
		n, ok := reg.Networks[cmd.DetachNetwork.Network]
		if !ok {
			return res, cluster.Refuse(cluster.UnknownNet, "no such network")
		}
		if n.Holders = holders(n.Holders, false); len(n.Holders) == 0 {
			delete(reg.Networks, n.ID)
		} else {
			reg.Networks[n.ID] = n
		}
	}
	f.reg = &reg
	for _, l := range f.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
	return res, nil
}

// register puts a host into the registry.
func (f *fakeLedger) register(h cluster.Host) {
	f.agree(func(reg *cluster.Registry) {
		reg.Hosts = maps.Clone(reg.Hosts)
		if reg.Hosts == nil {
			reg.Hosts = map[cluster.HostID]cluster.Host{}
		}
		reg.Hosts[h.ID] = h
	})
}

// lease makes leases all there are, as of an index.
func (f *fakeLedger) lease(index uint64, leases ...cluster.Lease) {
	f.agree(func(reg *cluster.Registry) {
		reg.Index, reg.Leases = index, map[uint64]cluster.Lease{}
		for _, l := range leases {
			reg.Leases[l.ID] = l
		}
	})
}

// agree changes the registry.
func (f *fakeLedger) agree(edit func(*cluster.Registry)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reg := *f.reg
	edit(&reg)
	f.reg = &reg
	for _, l := range f.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

// holds reports whether the registry says that host1 holds any network or pool.
func (f *fakeLedger) holds() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.reg.Networks {
		if slices.Contains(n.Holders, f.self) {
			return true
		}
	}
	for _, p := range f.reg.Pools {
		if slices.Contains(p.Holders, f.self) {
			return true
		}
	}
	return false
}

func (f *fakeLedger) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// fakeAddresses leases every address, but those of pools that are not ours.
type fakeAddresses struct {
	mu        sync.Mutex
	foreign   map[cluster.PoolKey]bool
	spaces    []string // that are ours, beside the usual one
	err       error
	claims    []cluster.Claim
	lost      map[cluster.PoolKey]map[netip.Addr]string
	listeners []chan struct{}
	asked     func() // happens when a pass asks for claims, which is after it took its view
}

func (f *fakeAddresses) Lost() map[cluster.PoolKey]map[netip.Addr]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// lose says which address of a pool this host has no right to; "" for none.
func (f *fakeAddresses) lose(pool, ip, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = nil
	if ip != "" {
		f.lost = map[cluster.PoolKey]map[netip.Addr]string{pools(pool)[0]: {netip.MustParseAddr(ip): name}}
	}
	for _, l := range f.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

func (f *fakeAddresses) Claims() []cluster.Claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked != nil {
		f.asked()
	}
	return f.claims
}

// claim says which blocks this host keeps.
func (f *fakeAddresses) claim(claims ...cluster.Claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims = claims
	for _, l := range f.listeners {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

func (f *fakeAddresses) Subscribe() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := make(chan struct{}, 1)
	f.listeners = append(f.listeners, l)
	return l
}

func (f *fakeAddresses) Prepare(context.Context, []cluster.PoolKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeAddresses) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeAddresses) LeaseOf(p cluster.PoolKey, a netip.Addr) uint64 {
	if _, lost := f.Lost()[p][a]; lost {
		return 0
	}
	return 7
}

func (f *fakeAddresses) Holds(p cluster.PoolKey) bool {
	return (p.Space == "" || slices.Contains(f.spaces, p.Space)) && !f.foreign[p]
}

// fakeHosts gives the host the ninth address of a pool.
type fakeHosts struct {
	mu    sync.Mutex
	err   error
	ask   func(cluster.PoolKey) // called before an answer
	given map[netip.Addr]bool
	asked int
}

func (f *fakeHosts) HostAddress(_ context.Context, p cluster.PoolKey) (netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.ask != nil {
		f.ask(p)
	}
	if f.err != nil {
		return netip.Addr{}, f.err
	}
	a := p.Prefix.Addr().Next().Next().Next().Next().Next().Next().Next().Next().Next()
	f.given[a] = true
	return a, nil
}

func (f *fakeHosts) ReleaseHostAddress(_ context.Context, _ cluster.PoolKey, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	delete(f.given, a)
	return nil
}

// held counts the addresses that the host has.
func (f *fakeHosts) held() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.given)
}

func (f *fakeHosts) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}
