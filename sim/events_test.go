package sim

import (
	"math/rand/v2"
	"slices"
)

// happening is a kind of event: its fields, how likely it is, which fault it
// belongs to ("" for daily life), and what it does.
type happening struct {
	fields string
	weight int
	fault  string
	do     func(s *site, e event) bool
}

// on makes an event of something that a box does.
func on(do func(*box) bool) func(*site, event) bool {
	return func(s *site, e event) bool { return do(s.boxes[e.who]) }
}

func onN(do func(*box, int) bool) func(*site, event) bool {
	return func(s *site, e event) bool { return do(s.boxes[e.who], e.n) }
}

func on2(do func(*box, *box) bool) func(*site, event) bool {
	return func(s *site, e event) bool { return do(s.boxes[e.who], s.boxes[e.whom]) }
}

// The pools are told apart by the op: run and run2.
var happenings = map[string]happening{
	// The plugin and its ledger.
	"start":     {"who", 20, "", on((*box).start)},
	"ask":       {"who whom", 14, "", on2((*box).testify)},
	"settle":    {"who", 14, "", on((*box).settle)},
	"hello":     {"who", 24, "", on((*box).hello)},
	"speak":     {"who", 60, "", on((*box).speak)},
	"retry":     {"who", 6, "", on((*box).retry)},
	"give-up":   {"who", 3, "", on((*box).giveUp)},
	"flush":     {"who", 90, "", on((*box).flush)},
	"follow":    {"who n", 30, "", onN((*box).follow)},
	"reconcile": {"who", 30, "", on((*box).reconcile)},
	"save":      {"who", 6, "", on((*box).save)},
	"hear":      {"who whom", 12, "", on2((*box).hear)},

	// Docker, and the upkeep of blocks. n is a pool and something in it.
	"run":    {"who n", 70, "", onN((*box).startContainer)},
	"run-at": {"who n", 14, "", func(s *site, e event) bool { return s.boxes[e.who].startAt(e.n/perPool, e.n%perPool) }},
	"stop":   {"who n", 34, "", onN((*box).stop)},
	"sweep":  {"who", 4, "", on((*box).sweep)},
	"grow":   {"who n", 16, "", func(s *site, e event) bool { return s.boxes[e.who].grow(e.n/perPool, e.n%perPool) }},
	"want":   {"who n", 9, "", func(s *site, e event) bool { return s.boxes[e.who].want(e.n/perPool, e.n%perPool) }},
	"drain":  {"who n", 36, "", onN((*box).drain)},
	"carve":  {"who n", 14, "", func(s *site, e event) bool { return s.boxes[e.who].carve(e.n/perPool, e.n%perPool) }},
	"remind": {"who", 16, "", on((*box).remind)},

	// The network.
	"deliver": {"what who n", 130, "", func(s *site, e event) bool { return s.deliver(e.what, e.who, e.n, false) }},
	"repeat":  {"what who n", 30, "", func(s *site, e event) bool { return s.deliver(e.what, e.who, e.n, true) }},
	"lose":    {"what who n", 10, "", (*site).lose},
	"cut":     {"who whom", 2, "cut", func(s *site, e event) bool { return s.part(e.who, e.whom, true) }},
	"mend":    {"who whom", 4, "cut", func(s *site, e event) bool { return s.part(e.who, e.whom, false) }},

	// Machines.
	"crash":    {"who", 8, "crash", on((*box).crash)},
	"off":      {"who", 2, "crash", on((*box).off)},
	"on":       {"who", 12, "crash", on((*box).power)},
	"snapshot": {"who", 2, "rollback", on((*box).snapshot)},
	"set-back": {"who", 5, "rollback", func(s *site, e event) bool { return s.boxes[e.who].rollback(false) }},
	"restore":  {"who", 5, "rollback", func(s *site, e event) bool { return s.boxes[e.who].rollback(true) }},
	"clone":    {"who whom", 4, "clone", on2((*box).clone)},
	"reset":    {"who", 4, "forget", on((*box).reset)},
	"bury":     {"who", 1, "forget", on((*box).bury)},

	// The log. n is how many entries it loses.
	"amnesia": {"n", 2, "amnesia", (*site).amnesia},
	"rebuild": {"who", 2, "rebuild", on((*box).rebuild)},

	// Operators. n is an identity, in the order in which they were made.
	"forget":  {"who n", 8, "forget", func(s *site, e event) bool { return s.boxes[e.who].forget(e.n, false) }},
	"dead":    {"who n", 8, "forget", func(s *site, e event) bool { return s.boxes[e.who].forget(e.n, true) }},
	"confirm": {"who", 12, "forget", on((*box).confirm)},
	"leave":   {"who", 6, "forget", on((*box).leave)},
}

// perPool is how many values of n belong to one pool.
const perPool = 32

var allShapes = func() shapes {
	out := shapes{}
	for _, all := range []map[string]happening{happenings, foundingHappenings} {
		for op, h := range all {
			out[op] = h.fields
		}
	}
	return out
}()

// dice are the ops that a config allows, with their weights summed up.
type dice struct {
	ops   []string
	until []int
}

// loaded makes the dice of a config, with some ops more likely than usual; those
// with a minus are less so.
func (c config) loaded(likely []string) dice {
	var d dice
	sum := 0
	for _, op := range sortedKeys(happenings) {
		h := happenings[op]
		if h.fault != "" && !c.has(h.fault) {
			continue
		}
		switch {
		case slices.Contains(likely, op):
			sum += 3 * h.weight
		case slices.Contains(likely, "-"+op):
			sum += (h.weight + 2) / 3
		default:
			sum += h.weight
		}
		d.ops, d.until = append(d.ops, op), append(d.until, sum)
	}
	return d
}

func (d dice) roll(rng *rand.Rand) string {
	i, _ := slices.BinarySearch(d.until, rng.IntN(d.until[len(d.until)-1])+1)
	return d.ops[i]
}

func (s *site) draw(rng *rand.Rand) event {
	e := event{op: s.dice.roll(rng)}
	switch e.op {
	case "deliver", "repeat", "lose":
		if len(s.net) == 0 {
			return e
		}
		i := rng.IntN(len(s.net))
		e.what, e.who, e.n = s.net[i].kind, s.net[i].box, s.nth(i)
		return e
	case "cut", "mend":
		e.who, e.whom = rng.IntN(len(s.boxes)+1), rng.IntN(len(s.boxes)+1)
		return e
	}
	e.who, e.whom = rng.IntN(len(s.boxes)), rng.IntN(len(s.boxes))
	switch e.op {
	case "bury":
		if rng.IntN(8) > 0 {
			e.op = "off" // for ever is rare
		}
	case "follow":
		e.n = rng.IntN(2)
	case "run":
		e.n = rng.IntN(len(s.pools))
	case "run-at", "want", "carve", "grow":
		e.n = rng.IntN(len(s.pools))*perPool + rng.IntN(s.widest)
	case "amnesia":
		e.n = 1 + rng.IntN(6)
	case "stop":
		e.n = rng.IntN(1 + len(s.boxes[e.who].containers))
	case "drain":
		n := 1
		for _, shelf := range s.boxes[e.who].disk.lease.Pools {
			n += len(shelf.Blocks)
		}
		e.n = rng.IntN(n)
	case "forget", "dead":
		e.n = rng.IntN(len(s.born))
	}
	return e
}

func (s *site) do(e event) bool {
	h, ok := happenings[e.op]
	if !ok || h.fault != "" && !s.has(h.fault) || e.who >= len(s.cut) || e.whom >= len(s.cut) {
		return false
	}
	if e.op != "cut" && e.op != "mend" && (e.who >= len(s.boxes) || e.whom >= len(s.boxes)) {
		return false
	}
	return h.do(s, e)
}

func (s *site) lose(e event) bool {
	i := s.find(e.what, e.who, e.n)
	if i >= 0 {
		s.net = slices.Delete(slices.Clone(s.net), i, i+1)
	}
	return i >= 0
}
