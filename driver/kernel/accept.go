package kernel

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// commentPrefix, followed by the name of a link or of two (in, out), is the comment by
// which we recognise our rules in chains of others.
const commentPrefix = "isthmus "

// dockerChains are the chains of table filter that may hold our accept rules.
// It belongs into DOCKER-USER where FORWARD leads there: Docker never changes what is
// in it, and asks it before all its own. Somebody may have flushed FORWARD, which
// Docker does not notice; then it belongs there.
var dockerChains = []string{"DOCKER-USER", "FORWARD"}

var filterFamilies = []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// filter is what matters of table filter in one family.
type filter struct {
	family nftables.TableFamily
	target string               // chain for our rules; empty: none exists, so none drops
	ours   map[string][]rawRule // rules of ours, by chain
}

func (k *Linux) readFilters() ([]filter, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	var out []filter
	for _, family := range filterFamilies {
		f := filter{family: family, ours: map[string][]rawRule{}}
		found, reached := map[string]bool{}, false
		for _, name := range dockerChains {
			for _, c := range chains {
				if c.Table.Name != "filter" || c.Table.Family != family || c.Name != name {
					continue
				}
				rules, err := k.rules(uint8(family), "filter", name)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				for _, r := range rules {
					if r.comment != "" {
						f.ours[name] = append(f.ours[name], r)
					}
					reached = reached || name == "FORWARD" && r.jumps
				}
				found[name] = true
			}
		}
		switch {
		case found["DOCKER-USER"] && reached:
			f.target = "DOCKER-USER"
		case found["FORWARD"]:
			f.target = "FORWARD"
		}
		out = append(out, f)
	}
	return out, nil
}

// acceptComment is that of the rule of g, and acceptOf the reverse.
func acceptComment(g Guard) string { return strings.TrimSpace(commentPrefix + g.Dev + " " + g.Out) }

func acceptOf(comment string) Guard {
	in, out, _ := strings.Cut(strings.TrimPrefix(comment, commentPrefix), " ")
	return Guard{Rule: AcceptForward, Dev: in, Out: out}
}

// state reports whether g's rule is where it belongs, and whether there is
// any rule of it at all.
func (f filter) state(g Guard) (right, present bool) {
	n := 0
	for chain, rules := range f.ours {
		for _, r := range rules {
			if r.comment == acceptComment(g) {
				n++
				right = chain == f.target
			}
		}
	}
	return n == 1 && right || n == 0 && f.target == "", n > 0
}

// dumpAccepts adds the accept rules in Docker's chains to state. A host
// without such chains has nothing that drops: the guards that were asked for
// there hold although there is no rule of them.
func (k *Linux) dumpAccepts(state State) error {
	filters, err := k.readFilters()
	if err != nil {
		return err
	}
	guards := maps.Clone(k.granted)
	for _, f := range filters {
		for _, rules := range f.ours {
			for _, r := range rules {
				guards[acceptOf(r.comment)] = true
			}
		}
	}
	for g := range guards {
		all, any := true, false
		for _, f := range filters {
			right, present := f.state(g)
			all, any = all && right, any || present
		}
		if any || all {
			g.Broken = !all
			state.Put(g)
		}
	}
	return nil
}

// accepts is the rule of g, as iptables-nft would write it, so that it can read
// the chain.
func accepts(g Guard) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, named(g.Dev),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, named(cmp.Or(g.Out, g.Dev)),
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// named compares with the name of a link, which ends with a zero byte; or, where it
// ends with +, with what names begin with.
func named(link string) expr.Any {
	if begin, ok := strings.CutSuffix(link, "+"); ok {
		return equals([]byte(begin)...)
	}
	return equals(append([]byte(link), 0)...)
}

// acceptForward adds or removes accept rules. Only the filter tables that
// iptables-nft makes are in reach: those of iptables-legacy are not in nftables.
func (k *Linux) acceptForward(ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	filters, err := k.readFilters()
	if err != nil {
		return err
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return err
	}
	for _, op := range ops {
		g := mended(op.Object).(Guard)
		delete(k.granted, g)
		for _, f := range filters {
			right, present := f.state(g)
			if right && present && op.Action != Remove {
				continue
			}
			table := &nftables.Table{Name: "filter", Family: f.family}
			for chain, rules := range f.ours {
				for _, r := range rules {
					if r.comment != acceptComment(g) {
						continue
					}
					if err := conn.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chain}, Handle: r.handle}); err != nil {
						return err
					}
				}
			}
			if op.Action != Remove && f.target != "" {
				conn.InsertRule(&nftables.Rule{
					Table: table, Chain: &nftables.Chain{Name: f.target},
					UserData: userdata.AppendString(nil, userdata.TypeComment, acceptComment(g)),
					Exprs:    accepts(g),
				})
			}
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // flushed by somebody meanwhile: the next pass looks again
		return fmt.Errorf("write accept rules into Docker's chain: %w", err)
	}
	var added []Guard
	for _, op := range ops {
		if op.Action != Remove {
			added = append(added, mended(op.Object).(Guard))
		}
	}
	for _, g := range added {
		k.granted[g] = true
	}
	k.warnLegacy(filters, added)
	return nil
}

// warnLegacy says once of each rule that Docker's rules are where we cannot write.
func (k *Linux) warnLegacy(filters []filter, added []Guard) {
	added = slices.DeleteFunc(added, func(g Guard) bool { return k.warned[g] })
	if len(added) == 0 || filters[0].target == dockerChains[0] {
		return
	}
	var names []byte
	err := inside(int(k.ns), func() (err error) {
		names, err = os.ReadFile("/proc/thread-self/net/ip_tables_names")
		return err
	})
	if err != nil || !bytes.Contains(names, []byte("filter\n")) {
		return
	}
	var commands []string
	for _, g := range added {
		k.warned[g] = true
		commands = append(commands, fmt.Sprintf("iptables-legacy -I DOCKER-USER -i %s -o %s -j ACCEPT", g.Dev, cmp.Or(g.Out, g.Dev)))
	}
	k.log.Warnf("the firewall of this host is iptables-legacy, which isthmus does not change: if containers cannot reach others on their own host or elsewhere, run: %s; and the same with ip6tables-legacy", strings.Join(commands, "; "))
}
