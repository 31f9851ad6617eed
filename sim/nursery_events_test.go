package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/isthmus-net/isthmus/ledger/founding"
)

func (n *nursery) draw(rng *rand.Rand) event {
	e := event{op: n.dice.roll(rng), who: rng.IntN(len(n.hosts)), whom: rng.IntN(len(n.hosts))}
	if e.op == "pass" || e.op == "fail" {
		e.n = rng.IntN(1 + len(n.calls))
	}
	return e
}

func (n *nursery) do(e event) bool {
	if e.who >= len(n.hosts) || e.whom >= len(n.hosts) {
		return false
	}
	f := n.hosts[e.who]
	switch e.op {
	case "begin":
		return f.start()
	case "stop-host":
		return f.crash()
	case "want-cluster":
		return f.step(founding.Want{})
	case "sated":
		return f.step(founding.Sated{})
	case "tick":
		return f.m != nil && f.step(founding.Tick{Fresh: n.fresh()})
	case "pass":
		return n.advance(e.n, false)
	case "fail":
		return n.advance(e.n, true)
	case "apart", "together":
		if e.who == e.whom || n.cut[e.who][e.whom] == (e.op == "apart") {
			return false
		}
		n.cut[e.who][e.whom], n.cut[e.whom][e.who] = e.op == "apart", e.op == "apart"
		return true
	case "network":
		return f.network(true)
	case "no-network":
		return f.network(false)
	case "meet":
		return f.meet(n.hosts[e.whom])
	case "learn":
		return f.learn()
	}
	return false
}

func (n *nursery) broken() string {
	if n.wrong != "" {
		return n.wrong
	}
	if len(n.logs) > 1 && !n.many {
		return fmt.Sprintf("two clusters: %s by %s and %s by %s", n.logs[0].log.Cluster, letter(n.logs[0].by), n.logs[1].log.Cluster, letter(n.logs[1].by))
	}
	for _, b := range n.logs {
		if b.log.Dissolved != "" && !b.log.Empty() {
			return fmt.Sprintf("lost networks: cluster %s dissolved with some", b.log.Cluster)
		}
	}
	for _, f := range n.hosts {
		if f.member != "" && n.logOf(f.member) == nil {
			return fmt.Sprintf("no such cluster: %s belongs to %s", letter(f.at), f.member)
		}
	}
	return ""
}

func (n *nursery) String() string {
	var w strings.Builder
	for _, b := range n.logs {
		fmt.Fprintf(&w, "cluster %s, founded by %s, empty %v, dissolved into %q\n", b.log.Cluster, letter(b.by), b.log.Empty(), b.log.Dissolved)
	}
	for _, f := range n.hosts {
		fmt.Fprintf(&w, "%s: JOIN %v, runs %v, cluster %q, promise %+v\n", letter(f.at), f.join, f.m != nil, f.member, f.promise)
		if f.m != nil && f.member == "" {
			text, _ := f.m.Text()
			fmt.Fprintf(&w, "  %s\n", text)
		}
	}
	for _, c := range n.calls {
		fmt.Fprintf(&w, "on its way from %s: %T%+v, answer %+v\n", letter(c.from), c.effect, c.effect, c.back)
	}
	return w.String()
}

// foundingHappenings are the events of a nursery: their fields and weights.
var foundingHappenings = map[string]happening{
	"begin": {fields: "who", weight: 12}, "stop-host": {fields: "who", weight: 4}, "want-cluster": {fields: "who", weight: 12},
	"sated": {fields: "who", weight: 2}, "tick": {fields: "who", weight: 20}, "pass": {fields: "n", weight: 100}, "fail": {fields: "n", weight: 16},
	"apart": {fields: "who whom", weight: 4}, "together": {fields: "who whom", weight: 6},
	"network": {fields: "who", weight: 2}, "no-network": {fields: "who", weight: 2}, "meet": {fields: "who whom", weight: 10}, "learn": {fields: "who", weight: 8},
}

func loadedFounding() dice {
	var d dice
	sum := 0
	for _, op := range sortedKeys(foundingHappenings) {
		sum += foundingHappenings[op].weight
		d.ops, d.until = append(d.ops, op), append(d.until, sum)
	}
	return d
}
