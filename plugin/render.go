package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/isthmus-net/isthmus/bgp"
	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/driver"
	"github.com/isthmus-net/isthmus/ledger"
)

// table draws rows under a head; without rows it says so.
func table(w io.Writer, none string, head string, rows [][]string) {
	if len(rows) == 0 {
		fmt.Fprintln(w, none)
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		for i, cell := range r {
			if cell == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

func renderStatus(w io.Writer, s Status) {
	fmt.Fprintf(w, "isthmus %s on %s", s.Version, s.Name)
	if s.Host != "" {
		fmt.Fprintf(w, " (%s)", s.Host.Short())
	}
	fmt.Fprintln(w)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	encrypted := "encrypted"
	if !s.Encrypted {
		encrypted = "NOT encrypted: no key was given"
	}
	if s.Ready {
		id := string(s.Cluster)
		if id == "" {
			id = "none yet"
		}
		line("cluster", "%s, %s", id, encrypted)
		line("underlay", "%s on %s, MTU %d, VXLAN port %d", s.Address, s.Underlay.Link, s.Underlay.MTU, s.VXLANPort)
		if s.Ledger.Founding != "" {
			line("ledger", "%s", s.Ledger.Founding)
		} else {
			line("ledger", "%s", ledgerLine(s.Ledger))
		}
		line("endpoints", "%d on this host", s.Endpoints)
		fmt.Fprintln(w)
		renderMembers(w, s.Members)
		fmt.Fprintln(w)
		renderNetworks(w, s.Networks)
		renderBGP(w, s.BGP)
	}
	fmt.Fprintln(w)
	if len(s.Problems) == 0 {
		fmt.Fprintln(w, "All is well.")
		return
	}
	fmt.Fprintln(w, "PROBLEMS")
	for _, p := range s.Problems {
		fmt.Fprintln(w, "  - "+p.String())
	}
}

// renderBGP lists the sessions, and what is announced in them.
func renderBGP(w io.Writer, s *bgp.Status) {
	if s == nil {
		return
	}
	var rows [][]string
	for _, p := range s.Sessions {
		rows = append(rows, []string{p.Peer, fmt.Sprint(p.AS), string(p.State), sinceText(p.Since), fmt.Sprint(p.Announced), fmt.Sprintf("%d/%d", p.Accepted, p.Received)})
	}
	fmt.Fprintln(w)
	table(w, "No router.", "ROUTER AS STATE SINCE ANNOUNCED ACCEPTED/RECEIVED", rows)
	var blocks []string
	for _, r := range s.Announced {
		blocks = append(blocks, r.Prefix.String())
	}
	if len(blocks) > 0 {
		fmt.Fprintf(w, "Announced by AS %d: %s.\n", s.AS, strings.Join(blocks, ", "))
	}
}

// ledgerLine says who keeps the log, who leads, and whether enough are there.
func ledgerLine(s ledger.Status) string {
	var voters []string
	for _, v := range s.Voters {
		name := v.Name
		if v.Leader {
			name += " (leads)"
		}
		if !v.Healthy {
			name += " (away)"
		}
		voters = append(voters, name)
	}
	what := fmt.Sprintf("%s, index %d", s.Role, s.Index)
	if len(voters) > 0 {
		what += "; voters " + strings.Join(voters, ", ")
	}
	if s.Quorum.Voters > 0 {
		what += fmt.Sprintf("; %d of %d in reach, %d needed", s.Quorum.Reachable, s.Quorum.Voters, s.Quorum.Needed)
	}
	return what
}

func renderMembers(w io.Writer, members []cluster.Member) {
	var rows [][]string
	for _, m := range members {
		rows = append(rows, []string{
			m.Info.Name, m.ID.Short(), string(m.State), sinceText(m.Since), m.Address.String(), number(m.Info.MTU), m.Info.Version,
		})
	}
	table(w, "No member.", "HOST ID STATE SINCE ADDRESS MTU VERSION", rows)
}

// number leaves out what is not known.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func sinceText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func renderNetworks(w io.Writer, networks []driver.NetworkStatus) {
	var rows [][]string
	for _, n := range networks {
		rows = append(rows, []string{
			poolsText(n.Pools), n.Mode, onText(n), n.Attach, fmt.Sprint(n.MTU), n.Gateway,
			strings.Join(n.Hosts, ","), fmt.Sprintf("%d+%d", n.Local, n.Remote), dockerText(n.Docker),
		})
	}
	table(w, "No network.", "NETWORK MODE ON ATTACH MTU GATEWAY HOSTS HERE+ELSEWHERE DOCKER", rows)
}

// onText says what a network stands on here: its VNI, or the parent and the VLAN
// in which that one leads, as far as its name does not say it.
func onText(n driver.NetworkStatus) string {
	switch {
	case n.Mode == "host-gw":
		return "fallback " + n.Fallback
	case n.VNI != 0:
		return fmt.Sprintf("VNI %d", n.VNI)
	case n.VLAN != "" && !strings.HasSuffix(n.Parent, "."+n.VLAN):
		return fmt.Sprintf("%s, VLAN %s", n.Parent, n.VLAN)
	case n.Parent == "":
		return "this host"
	}
	return n.Parent
}

// wayText says how another host's block is reached.
func wayText(w driver.PeerWay) string {
	if w.By == "native" {
		return fmt.Sprintf("native via %s dev %s", w.Via, w.Dev)
	}
	return fmt.Sprintf("by %s, since %s", w.By, w.Why)
}

// renderNetworksWith adds the addresses of this host in them, and what is wrong
// with them.
func renderNetworksWith(w io.Writer, networks []driver.NetworkStatus) {
	renderNetworks(w, networks)
	for _, n := range networks {
		if len(n.Host) > 0 {
			fmt.Fprintf(w, "This host has %s in %s.\n", addrsText(n.Host), poolsText(n.Pools))
		}
	}
	for _, n := range networks {
		for _, way := range n.Ways {
			fmt.Fprintf(w, "%s on %s: %s.\n", way.Block, way.Host, wayText(way))
		}
	}
	for _, n := range networks {
		for _, p := range n.Problems {
			fmt.Fprintln(w, "  - "+p.String())
		}
	}
}

func poolsText(pools []cluster.PoolKey) string {
	var out []string
	for _, p := range pools {
		out = append(out, strings.ReplaceAll(p.String(), " in space ", "@"))
	}
	return strings.Join(out, ",")
}

func addrsText(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, " and ")
}

func dockerText(ids []string) string {
	var out []string
	for _, id := range ids {
		out = append(out, id[:min(12, len(id))])
	}
	return strings.Join(out, ",")
}

func renderEndpoints(w io.Writer, endpoints []driver.EndpointStatus) {
	var rows [][]string
	for _, e := range endpoints {
		var addrs []string
		if e.IPv4.IsValid() {
			addrs = append(addrs, e.IPv4.String())
		}
		if e.IPv6.IsValid() {
			addrs = append(addrs, e.IPv6.String())
		}
		rows = append(rows, []string{
			strings.Join(addrs, ","), e.MAC.String(), e.Host, e.VTEP.String(), e.State, e.Name, e.Network, e.ID[:min(12, len(e.ID))],
		})
	}
	table(w, "No endpoint.", "ADDRESS MAC HOST VTEP STATE NAME NETWORK ENDPOINT", rows)
}

func renderPools(w io.Writer, pools []PoolReport) {
	if len(pools) == 0 {
		fmt.Fprintln(w, "No address pool.")
	}
	for i, p := range pools {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprint(w, poolsText([]cluster.PoolKey{p.Pool}))
		if p.Name != "" {
			fmt.Fprintf(w, ", called %s", p.Name)
		}
		if p.Gateway.IsValid() {
			fmt.Fprintf(w, ", gateway %s", p.Gateway)
		}
		if len(p.Hosts) > 0 {
			fmt.Fprintf(w, ", on %s", strings.Join(p.Hosts, ","))
		}
		fmt.Fprintln(w)
		var rows [][]string
		for _, b := range p.Blocks {
			used, free, state := "", "", "leased"
			if b.Here {
				used, free = fmt.Sprint(b.Used), fmt.Sprint(b.Free)
			}
			if b.Draining {
				state = "returning"
			}
			rows = append(rows, []string{b.Block.String(), b.Host, used, free, state})
		}
		table(w, "No block is leased.", "BLOCK HOST USED FREE STATE", rows)
		if shares := sharesText(p); shares != "" {
			fmt.Fprintf(w, "shares: %s\n", shares)
		}
		if len(p.DHCP) > 0 {
			fmt.Fprintln(w, "from the LAN's DHCP server:")
			renderLeases(w, p.DHCP)
		}
		for _, c := range p.Conflicts {
			fmt.Fprintf(w, "  - %s is in use on the LAN by %s: nobody gets it here\n", c.Addr, c.Holder)
		}
		for _, bad := range append([]string{p.Problem}, p.Alarms...) {
			if bad != "" {
				fmt.Fprintf(w, "  - %s\n", bad)
			}
		}
	}
}

func renderLeases(w io.Writer, leases []LeaseReport) {
	var rows [][]string
	for _, l := range leases {
		expires := sinceText(l.Expires)
		switch {
		case l.Lost:
			expires = "over"
		case expires == "":
			expires = "never"
		}
		router := ""
		if l.Router.IsValid() {
			router = l.Router.String()
		}
		rows = append(rows, []string{l.Addr.String(), l.Name, l.Server.String(), router, expires, l.Problem})
	}
	table(w, "No address.", "ADDRESS NAME SERVER ROUTER EXPIRES PROBLEM", rows)
}

// sharesText says how much of a pool each host has.
func sharesText(p PoolReport) string {
	var out []string
	for _, s := range p.Shares {
		text := fmt.Sprintf("%s %d", s.Name, s.Addresses)
		if p.Size > 0 {
			text += fmt.Sprintf(" (%d %%)", 100*s.Addresses/p.Size)
		}
		if s.Forgotten {
			text += " in quarantine"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func renderForget(w io.Writer, r ForgetReport) {
	fmt.Fprintln(w, "Forgotten.")
	if len(r.Pools) > 0 {
		fmt.Fprintf(w, "Addresses of %s on this host are free again.\n", poolsText(r.Pools))
	}
}

func renderRemove(w io.Writer, r RemoveReport) {
	fmt.Fprintf(w, "Removed %s (%s): it is never let in again. To join, it must be reset there: isthmus reset.\n", r.Name, r.Host.Short())
	if len(r.Freed) > 0 {
		fmt.Fprintf(w, "Free for others: %s.\n", leasesText(r.Freed))
	}
	if len(r.Quarantine) > 0 {
		fmt.Fprintf(w, "Kept from others, since its frames cannot be kept out: %s.\n", leasesText(r.Quarantine))
		fmt.Fprintf(w, "They are free once %s itself says that it stopped, or with --dead if it is off and will not come back.\n", r.Name)
	}
}

func leasesText(leases []cluster.Lease) string {
	var out []string
	for _, l := range leases {
		out = append(out, l.Block.String())
	}
	return strings.Join(out, ", ")
}

func renderLeave(w io.Writer, _ LeaveReport) {
	fmt.Fprintln(w, "Left: this host holds nothing in the cluster any more.")
	fmt.Fprintln(w, "To join again, disable and enable the plugin, or start it again.")
}

// renderRebuilt shows what recover and restore put together.
func renderRebuilt(w io.Writer, r ledger.Report) {
	fmt.Fprintf(w, "Cluster %s goes on from this host, from the copy of %s at index %d, as generation %d.\n", r.Cluster, r.Base, r.Index, r.Gen)
	var rows [][]string
	for _, h := range r.Heard {
		rows = append(rows, []string{h.Name, h.Host.Short(), "heard", fmt.Sprint(h.Index)})
	}
	for _, h := range r.Fenced {
		rows = append(rows, []string{h.Name, h.Host.Short(), "kept out until it returns", ""})
	}
	table(w, "No host.", "HOST ID STATE INDEX", rows)
	for _, c := range r.Refused {
		fmt.Fprintf(w, "  - %s claims %s: %s\n", c.Name, c.Claim.Block, c.Why)
	}
}

func renderReset(w io.Writer, r ResetReport) {
	fmt.Fprintln(w, "Reset: this is a new host now.")
	if len(r.Left) > 0 {
		fmt.Fprintln(w, "The cluster was not told, and keeps what it held for the old one:")
		for _, l := range r.Left {
			fmt.Fprintln(w, "  - "+l)
		}
	}
}
