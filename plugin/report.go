package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-net/isthmus/bgp"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ipam"
	"github.com/isthmus-net/isthmus/ledger"
)

// apiPath is where the plugin's own API begins. The command line is its only
// user; what it answers is what --json prints.
const apiPath = "/isthmus/v1/"

// Status is this host on one screen.
type Status struct {
	Version   string                 `json:"version"`
	Ready     bool                   `json:"ready"`
	Host      cluster.HostID         `json:"host,omitempty"`
	Name      string                 `json:"name"`
	Cluster   cluster.ID             `json:"cluster,omitempty"`
	Encrypted bool                   `json:"encrypted"`
	Underlay  UnderlayReport         `json:"underlay"`
	Address   netip.AddrPort         `json:"address,omitzero"` // where other hosts reach this one
	VXLANPort uint16                 `json:"vxlanPort"`
	Docker    bool                   `json:"docker"` // the engine's socket was given
	Ledger    ledger.Status          `json:"ledger"`
	Members   []cluster.Member       `json:"members"`
	Networks  []driver.NetworkStatus `json:"networks"`
	Endpoints int                    `json:"endpoints"` // of this host
	BGP       *bgp.Status            `json:"bgp,omitempty"`
	Problems  []driver.Problem       `json:"problems"`
}

// UnderlayReport is what the tunnels stand on.
type UnderlayReport struct {
	Link string     `json:"link"`
	Addr netip.Addr `json:"addr"`
	MTU  int        `json:"mtu"`
}

// PoolReport is one address pool of the cluster, and who owns which block.
type PoolReport struct {
	Pool     cluster.PoolKey `json:"pool"`
	Name     string          `json:"name,omitempty"`
	Gateway  netip.Addr      `json:"gateway,omitzero"`
	Reserved []netip.Addr    `json:"reserved,omitempty"`
	Hosts    []string        `json:"hosts"`
	Blocks   []BlockReport   `json:"blocks"`
	Used     []ipam.Use      `json:"used"`   // on this host
	Size     int             `json:"size"`   // addresses that endpoints can have
	Shares   []ipam.Share    `json:"shares"` // of each host
	Problem  string          `json:"problem,omitempty"`
	Alarms   []string        `json:"alarms,omitempty"`

	Conflicts []ipam.Conflict `json:"conflicts,omitempty"` // addresses that something else on the LAN answers for
	DHCP      []LeaseReport   `json:"dhcp,omitempty"`      // addresses that this host has of the LAN's own server
}

// BlockReport is one leased block. Only its holder knows what is used in it.
type BlockReport struct {
	Block    netip.Prefix   `json:"block"`
	Lease    uint64         `json:"lease"`
	Holder   cluster.HostID `json:"holder"`
	Host     string         `json:"host"`
	Here     bool           `json:"here,omitempty"`
	Used     int            `json:"used"`
	Free     int            `json:"free"`
	Draining bool           `json:"draining,omitempty"`
}

// ForgetRequest names a network: a Docker network id or its beginning, a VNI
// or a pool.
type ForgetRequest struct {
	What string `json:"what"`
}

// ForgetReport says what went with it.
type ForgetReport struct {
	Pools []cluster.PoolKey `json:"pools"`
}

// ResetRequest asks to make this host a new one.
type ResetRequest struct {
	Force bool `json:"force"` // although containers are attached
}

// ResetReport says what could not be given back to the cluster.
type ResetReport struct {
	Left []string `json:"left,omitempty"`
}

// addReports registers the plugin's own API.
func (s *server) addReports(mux *http.ServeMux) {
	get := func(name string, fn func(n *node) any) {
		mux.HandleFunc("GET "+apiPath+name, func(w http.ResponseWriter, r *http.Request) {
			n, err := s.gate.Now()
			if err != nil {
				encodeError(w, fmt.Errorf("isthmus is not ready: %w", err))
				return
			}
			encodeReport(w, fn(n))
		})
	}
	mux.HandleFunc("GET "+apiPath+"status", func(w http.ResponseWriter, r *http.Request) {
		n, err := s.gate.Now()
		if err != nil {
			encodeReport(w, s.statusWithout(err))
			return
		}
		encodeReport(w, n.status())
	})
	get("members", func(n *node) any { return n.members() })
	get("networks", func(n *node) any { return list(n.driver.Networks()) })
	get("endpoints", func(n *node) any { return list(n.driver.Endpoints()) })
	get("ipam", func(n *node) any { return n.poolReports() })
	mux.HandleFunc("POST "+apiPath+"networks/forget", post(s, 30*time.Second, withNode((*node).forget)))
	mux.HandleFunc("POST "+apiPath+"reset", post(s, 60*time.Second, (*server).reset))
	s.addMembership(mux)
}

// post makes the handler of a request that changes something.
func post[Req, Resp any](s *server, bound time.Duration, fn func(*server, context.Context, Req) (Resp, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), bound)
		defer cancel()
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		var req *Req
		if err == nil {
			req, err = decode[Req](body)
		}
		var resp Resp
		if err == nil {
			resp, err = fn(s, ctx, *req)
		}
		if err != nil {
			s.log.WithField("request", r.URL.Path).WithError(err).Warn("request refused")
			encodeError(w, err)
			return
		}
		encodeReport(w, resp)
	}
}

func encodeReport(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// list makes JSON say [] and not null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// statusWithout is what can be said while there is no node.
func (s *server) statusWithout(reason error) Status {
	return Status{
		Version: version, Name: s.cfg.Name, Encrypted: len(s.cfg.Secret) > 0, VXLANPort: s.cfg.VXLANPort,
		Members: []cluster.Member{}, Networks: []driver.NetworkStatus{},
		Problems: []driver.Problem{{Cause: "isthmus is not ready: " + reason.Error()}},
	}
}

func (n *node) status() Status {
	u := n.underlay()
	st := Status{
		Version:   version,
		Ready:     true,
		Host:      n.id,
		Name:      n.cfg.Name,
		Cluster:   n.ledger.ID(),
		Encrypted: len(n.cfg.Secret) > 0,
		Underlay:  UnderlayReport{Link: u.Name, Addr: u.Addr, MTU: u.MTU},
		Address:   n.transport.Addr(),
		VXLANPort: n.cfg.VXLANPort,
		Docker:    isSocket(n.cfg.DockerSocket),
		Ledger:    n.ledger.Status(),
		Members:   n.members(),
		Networks:  list(n.driver.Networks()),
		Endpoints: n.driver.Status().Endpoints,
		BGP:       n.fabric.status(),
	}
	st.Problems = n.problems(st)
	return st
}

// members lists who is alive, or was. Before there is a cluster, membership
// knows this host alone; then those of JOIN that answer wait with it.
func (n *node) members() []cluster.Member {
	out := n.gossip.Members()
	for _, w := range n.ledger.Status().Waiting {
		if !w.Self && w.Error == "" && w.Address.IsValid() {
			out = append(out, cluster.Member{Address: w.Address, State: cluster.Waiting, Info: cluster.HostInfo{Name: cmp.Or(w.Name, w.Entry)}})
		}
	}
	return out
}

// problems gathers what a person should know of, from all parts.
func (n *node) problems(st Status) []driver.Problem {
	out := []driver.Problem{}
	add := func(cause, remedy string) { out = append(out, driver.Problem{Cause: cause, Remedy: remedy}) }
	for _, w := range n.cfg.Warnings {
		add(w, "")
	}
	if err := n.underlayProblem(); err != nil {
		add(err.Error(), "")
	}
	if st.Ledger.Error != "" {
		add(st.Ledger.Error, "")
	}
	for _, r := range n.transport.Refusals() {
		who := "refused " + r.Peer.Addr().String()
		if r.Outgoing {
			who = "was refused by " + r.Peer.String()
		}
		add(fmt.Sprintf("%s, last %s: %s", who, r.Time.Format(time.TimeOnly), r.Reason), "")
	}
	for _, former := range formerSelves(n.ledger.Registry(), n.id) {
		add(former.cause, former.remedy)
	}
	for _, m := range st.Members {
		if m.State == cluster.Failed {
			add(fmt.Sprintf("host %s (%s) does not answer since %s", m.Info.Name, m.Address, m.Since.Format(time.DateTime)),
				"its containers' records are kept until it returns")
		}
	}
	if ds := n.driver.Status(); true {
		if ds.Error != "" {
			add("the kernel is not as it should be: "+ds.Error, "tried again by itself")
		}
		out = append(out, ds.Problems...)
	}
	out = append(out, n.fabric.problems()...)
	for _, net := range st.Networks {
		for _, p := range net.Problems {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	for _, p := range n.ipam.Status() {
		if p.Problem != "" {
			add("pool "+p.Pool.String()+": "+p.Problem, "")
		}
		for _, alarm := range p.Alarms {
			add("pool "+p.Pool.String()+": "+alarm, "")
		}
		out = append(out, conflictProblems(p)...)
	}
	return append(out, dhcpProblems(n.dhcpReports())...)
}

// note is a cause with its remedy.
type note struct{ cause, remedy string }

// formerSelves finds what this host held before it was installed anew without
// its state. Its containers might still have run then, so it is not given up
// without being told.
func formerSelves(r *cluster.Registry, self cluster.HostID) []note {
	var out []note
	for _, h := range r.Hosts {
		if h.Replaced != self || h.Tombstone {
			continue
		}
		blocks := 0
		for _, l := range r.Leases {
			if l.Holder == h.ID {
				blocks++
			}
		}
		out = append(out, note{
			fmt.Sprintf("this host was installed anew; its former self, %s, still holds %d address blocks", h.Name, blocks),
			"if none of its containers runs any more: isthmus node rm " + h.Name,
		})
	}
	slices.SortFunc(out, func(a, b note) int { return cmp.Compare(a.cause, b.cause) })
	return out
}

// poolReports joins what the cluster agreed with what this host uses.
func (n *node) poolReports() []PoolReport {
	out := joinPools(n.ledger.Registry(), n.ipam.Status(), n.id)
	for _, l := range n.dhcpReports() {
		if i := slices.IndexFunc(out, func(p PoolReport) bool { return p.Pool.String() == l.Pool }); i >= 0 {
			out[i].DHCP = append(out[i].DHCP, l)
		}
	}
	return out
}

func (n *node) dhcpReports() []LeaseReport { return dhcpReports(n.leases.Status(), n.ipam.Used) }

func joinPools(r *cluster.Registry, here []ipam.PoolStatus, self cluster.HostID) []PoolReport {
	own := map[cluster.PoolKey]ipam.PoolStatus{}
	keys := []cluster.PoolKey{}
	for _, p := range here {
		own[p.Pool] = p
		keys = append(keys, p.Pool)
	}
	for key := range r.Pools {
		keys = append(keys, key)
	}
	out := []PoolReport{}
	for _, key := range cluster.PoolSet(keys) {
		pool, mine := r.Pools[key], own[key]
		p := PoolReport{
			Pool: key, Name: pool.Name, Gateway: pool.Gateway, Reserved: pool.Reserved,
			Hosts: []string{}, Blocks: []BlockReport{}, Used: list(mine.Used), Problem: mine.Problem,
			Size: mine.Size, Shares: list(mine.Shares), Alarms: mine.Alarms, Conflicts: mine.Conflicts,
		}
		for _, h := range pool.Holders {
			p.Hosts = append(p.Hosts, r.HostName(h))
		}
		for _, l := range r.LeasesOf(key, "") {
			b := BlockReport{Block: l.Block, Lease: l.ID, Holder: l.Holder, Host: r.HostName(l.Holder), Here: l.Holder == self}
			if i := slices.IndexFunc(mine.Blocks, func(s ipam.BlockStatus) bool { return s.Lease == l.ID }); i >= 0 {
				b.Used, b.Free, b.Draining = mine.Blocks[i].Used, mine.Blocks[i].Free, mine.Blocks[i].Draining
			}
			p.Blocks = append(p.Blocks, b)
		}
		out = append(out, p)
	}
	return out
}

// forget drops a network that Docker no longer knows, and its addresses, or what
// is kept for the return of one that Docker removed.
func (n *node) forget(ctx context.Context, req ForgetRequest) (ForgetReport, error) {
	if req.What == "" {
		return ForgetReport{}, badRequest{errors.New("forget network: say which, by Docker network id, VNI or subnet")}
	}
	pools, err := n.driver.Forget(ctx, req.What)
	if errors.Is(err, driver.ErrNoNetwork) {
		pools = keptWith(n.ipam.Parked(), n.ledger.Registry(), func(p cluster.PoolKey) bool { return p.String() == req.What || p.Prefix.String() == req.What })
		if len(pools) > 0 {
			err = nil
		}
	}
	if err != nil {
		return ForgetReport{}, err
	}
	var errs []error
	for _, p := range pools {
		errs = append(errs, n.ipam.Forget(ctx, p))
	}
	return ForgetReport{Pools: list(pools)}, errors.Join(errs...)
}

// keptWith lists the pools, of those that are kept for the return of a removed
// network, that match, and the others of their networks.
func keptWith(kept []cluster.PoolKey, r *cluster.Registry, match func(cluster.PoolKey) bool) []cluster.PoolKey {
	found := slices.DeleteFunc(slices.Clone(kept), func(p cluster.PoolKey) bool { return !match(p) })
	all := slices.Clone(found)
	for _, net := range r.Networks {
		if !slices.ContainsFunc(net.Pools, func(p cluster.PoolKey) bool { return slices.Contains(found, p) }) {
			continue
		}
		for _, p := range net.Pools {
			if slices.Contains(kept, p) {
				all = append(all, p)
			}
		}
	}
	return cluster.PoolSet(all)
}
