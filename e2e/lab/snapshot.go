package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Snapshot lists all that the host's kernel holds for networking: links,
// addresses, routes of all tables, rules, permanent neighbours and forwarding
// entries, the nftables ruleset (iptables' included), and sysctls of forwarding
// and of devices that outlive a network. One object a line, sorted; without
// counters, indices and all else that changes by itself, so that two snapshots
// differ only in what was made or removed between them.
func (h *Host) Snapshot(ctx context.Context) ([]string, error) {
	var lines []string
	for _, read := range []func(context.Context) ([]string, error){
		h.linkLines, h.addrLines, h.routeLines, h.ruleLines, h.neighLines, h.fdbLines, h.nftLines, h.sysctlLines,
	} {
		part, err := read(ctx)
		if err != nil {
			return nil, fmt.Errorf("take snapshot: %w", err)
		}
		lines = append(lines, part...)
	}
	slices.Sort(lines)
	return lines, nil
}

// Difference renders what was removed ("- ") and added ("+ ") between two
// snapshots, and is empty when they are equal.
func Difference(before, after []string) string {
	count := map[string]int{}
	for _, line := range before {
		count[line]--
	}
	for _, line := range after {
		count[line]++
	}
	var changed []string
	for line, n := range count {
		for range max(n, -n) {
			changed = append(changed, map[bool]string{true: "+ ", false: "- "}[n > 0]+line)
		}
	}
	slices.SortFunc(changed, func(a, b string) int { return cmp.Or(cmp.Compare(a[2:], b[2:]), cmp.Compare(a, b)) })
	return strings.Join(changed, "\n")
}

// show runs a command that prints a JSON list, and renders each element.
func show[T any](ctx context.Context, n *node, render func(T) []string, args ...string) ([]string, error) {
	out, err := n.run(n.tool(ctx, args...), args)
	if err != nil {
		return nil, err
	}
	if out == "" {
		return nil, nil
	}
	var list []T
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	var lines []string
	for _, element := range list {
		lines = append(lines, render(element)...)
	}
	return lines, nil
}

// line joins the words that are not empty.
func line(words ...string) []string {
	return []string{strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")}
}

// field renders a named value that may be absent.
func field(name string, value any) string {
	if s := fmt.Sprint(value); s != "" && s != "0" && s != "<nil>" {
		return name + " " + s
	}
	return ""
}

type linkJSON struct {
	Ifname, Address, Master, Link string
	Flags                         []string
	MTU                           int
	Linkinfo                      struct {
		Kind string         `json:"info_kind"`
		Data map[string]any `json:"info_data"`
	}
}

func (h *Host) linkLines(ctx context.Context) ([]string, error) {
	return show(ctx, h.node, func(l linkJSON) []string {
		up := ""
		if slices.Contains(l.Flags, "UP") {
			up = "up"
		}
		return line("link", l.Ifname, l.Linkinfo.Kind, field("address", l.Address), field("mtu", l.MTU),
			field("master", l.Master), field("on", l.Link), field("id", l.Linkinfo.Data["id"]), up)
	}, "ip", "-j", "-d", "link", "show")
}

type addrJSON struct {
	Ifname string
	Addrs  []struct {
		Local     string
		Prefixlen int
		Scope     string
	} `json:"addr_info"`
}

func (h *Host) addrLines(ctx context.Context) ([]string, error) {
	return show(ctx, h.node, func(a addrJSON) []string {
		var lines []string
		for _, addr := range a.Addrs {
			if addr.Local != "" {
				lines = append(lines, fmt.Sprintf("address %s %s/%d %s", a.Ifname, addr.Local, addr.Prefixlen, addr.Scope))
			}
		}
		return lines
	}, "ip", "-j", "address", "show")
}

type routeJSON struct {
	Type, Dst, Gateway, Dev, Protocol, Table, Scope, Prefsrc string
	Metric                                                   int
	Nexthops                                                 []struct{ Gateway, Dev string }
}

func (h *Host) routeLines(ctx context.Context) ([]string, error) {
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		part, err := show(ctx, h.node, func(r routeJSON) []string {
			hops := ""
			if len(r.Nexthops) > 0 {
				hops = fmt.Sprint(r.Nexthops)
			}
			return line("route", r.Type, r.Dst, field("via", r.Gateway), field("dev", r.Dev), hops, field("table", r.Table),
				field("proto", r.Protocol), field("scope", r.Scope), field("src", r.Prefsrc), field("metric", r.Metric))
		}, "ip", "-j", family, "route", "show", "table", "all")
		if err != nil {
			return nil, err
		}
		lines = append(lines, part...)
	}
	return lines, nil
}

func (h *Host) ruleLines(ctx context.Context) ([]string, error) {
	var lines []string
	for _, family := range []string{"-4", "-6"} {
		args := []string{"ip", family, "rule", "show"}
		out, err := h.run(h.tool(ctx, args...), args)
		if err != nil {
			return nil, err
		}
		for rule := range strings.Lines(out) {
			lines = append(lines, "rule "+family+" "+strings.Join(strings.Fields(rule), " "))
		}
	}
	return lines, nil
}

type neighJSON struct {
	Dst, Dev, Lladdr string
	State            []string
	Proxy            any
}

func (h *Host) neighLines(ctx context.Context) ([]string, error) {
	return show(ctx, h.node, func(n neighJSON) []string {
		return line("neighbour", n.Dev, n.Dst, n.Lladdr)
	}, "ip", "-j", "neighbour", "show", "nud", "permanent")
}

type fdbJSON struct {
	MAC, Ifname, Master, Dst, State string
	Flags                           []string
	Vlan                            int
}

func (h *Host) fdbLines(ctx context.Context) ([]string, error) {
	return show(ctx, h.node, func(f fdbJSON) []string {
		if f.State != "permanent" && f.State != "static" {
			return nil // learned
		}
		return line("fdb", f.Ifname, f.MAC, field("dst", f.Dst), field("master", f.Master), field("vlan", f.Vlan), f.State)
	}, "bridge", "-j", "fdb", "show")
}

func (h *Host) nftLines(ctx context.Context) ([]string, error) {
	args := []string{"nft", "-s", "list", "ruleset"}
	out, err := h.run(h.tool(ctx, args...), args)
	return flattenRuleset(out), err
}

// flattenRuleset names table and chain on each line, since lines are sorted.
func flattenRuleset(ruleset string) []string {
	var lines, scope []string
	for text := range strings.Lines(ruleset) {
		text = strings.TrimSpace(text)
		switch {
		case text == "":
		case text == "}":
			scope = scope[:max(0, len(scope)-1)]
		case strings.HasSuffix(text, " {") && (strings.HasPrefix(text, "table ") || len(scope) == 1):
			scope = append(scope, strings.TrimSuffix(text, " {"))
			lines = append(lines, "nft "+strings.Join(scope, " "))
		default:
			lines = append(lines, "nft "+strings.Join(scope, " ")+": "+text)
		}
	}
	return lines
}

// sysctlLines leaves out devices that Docker makes and removes. It reads the files:
// newer versions of sysctl fail on what nobody may read, such as stable_secret.
func (h *Host) sysctlLines(ctx context.Context) ([]string, error) {
	files := []string{"net/ipv4/ip_forward", "net/bridge/*", "net/core/*"}
	for _, family := range []string{"ipv4", "ipv6"} {
		for _, kind := range []string{"conf", "neigh"} {
			for _, dev := range []string{"all", "default", "eth0", "lo"} {
				files = append(files, "net/"+family+"/"+kind+"/"+dev+"/*")
			}
		}
	}
	args := []string{"sh", "-c", "cd /proc/sys && { grep -s '' " + strings.Join(files, " ") + " || [ $? = 2 ]; }"}
	out, err := h.run(h.tool(ctx, args...), args)
	if err != nil {
		return nil, err
	}
	var lines []string
	for setting := range strings.Lines(out) {
		name, value, ok := strings.Cut(strings.TrimSpace(setting), ":")
		if !ok {
			return nil, fmt.Errorf("read sysctls of %s: no value in %q", h.Name, setting)
		}
		lines = append(lines, "sysctl "+strings.ReplaceAll(name, "/", ".")+" = "+value)
	}
	if len(lines) == 0 { // grep ends with the same status for one that it cannot read
		return nil, fmt.Errorf("read sysctls of %s: there is none", h.Name)
	}
	return lines, nil
}
