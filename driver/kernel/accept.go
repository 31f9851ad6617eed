package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// commentPrefix, followed by the link's name, is the comment by which we
// recognise our rules in chains of others.
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

// state reports whether dev's rule is where it belongs, and whether there is
// any rule of it at all.
func (f filter) state(dev string) (right, present bool) {
	n := 0
	for chain, rules := range f.ours {
		for _, r := range rules {
			if r.comment == commentPrefix+dev {
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
	devs := map[string]bool{}
	for _, f := range filters {
		for _, rules := range f.ours {
			for _, r := range rules {
				devs[strings.TrimPrefix(r.comment, commentPrefix)] = true
			}
		}
	}
	for dev := range k.granted {
		devs[dev] = true
	}
	for dev := range devs {
		all, any := true, false
		for _, f := range filters {
			right, present := f.state(dev)
			all, any = all && right, any || present
		}
		if any || all {
			g := Guard{Dev: dev, Rule: AcceptForward, Broken: !all}
			if dev == routedName {
				g.Dev, g.Rule = "", AcceptRouted
			}
			state.Put(g)
		}
	}
	return nil
}

// routedName stands for what our own table marked, instead of a link's name.
const routedName = "routed"

func acceptName(g Guard) string {
	if g.Rule == AcceptRouted {
		return routedName
	}
	return g.Dev
}

// accepts is the rule of dev, as iptables-nft would write it, so that it can read
// the chain.
func accepts(dev string) []expr.Any {
	if dev == routedName {
		// "-m mark --mark MARK/MARK -j ACCEPT": the match of xtables, with mark,
		// mask and no inversion. Versions differ in whether they know nftables' own.
		info := xt.Unknown(slices.Concat(native32(Mark), native32(Mark), make([]byte, 8)))
		return []expr.Any{&expr.Match{Name: "mark", Rev: 1, Info: &info}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
	}
	// "-i DEV -o DEV -j ACCEPT": the name with one zero byte.
	name := append([]byte(dev), 0)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// acceptForward adds or removes the accept rules of dev. Only the filter
// tables that iptables-nft makes are in reach: those of iptables-legacy are
// not in nftables.
func (k *Linux) acceptForward(action Action, dev string) error {
	filters, err := k.readFilters()
	if err != nil {
		return err
	}
	delete(k.granted, dev)
	conn, err := nftables.New(nftables.WithNetNSFd(int(k.ns)))
	if err != nil {
		return err
	}
	for _, f := range filters {
		right, present := f.state(dev)
		if right && present && action != Remove {
			continue
		}
		table := &nftables.Table{Name: "filter", Family: f.family}
		for chain, rules := range f.ours {
			for _, r := range rules {
				if r.comment != commentPrefix+dev {
					continue
				}
				if err := conn.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: chain}, Handle: r.handle}); err != nil {
					return err
				}
			}
		}
		if action != Remove && f.target != "" {
			conn.InsertRule(&nftables.Rule{
				Table: table, Chain: &nftables.Chain{Name: f.target},
				UserData: userdata.AppendString(nil, userdata.TypeComment, commentPrefix+dev),
				Exprs:    accepts(dev),
			})
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // flushed by somebody meanwhile: the next pass looks again
		return err
	}
	if action != Remove {
		k.granted[dev] = true
		k.warnLegacy(filters, dev)
	}
	return nil
}

// warnLegacy says once of bridges, and once of what is routed, that Docker's rules are where we cannot write.
func (k *Linux) warnLegacy(filters []filter, dev string) {
	if k.warned[dev == routedName] || filters[0].target == dockerChains[0] {
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
	k.warned[dev == routedName] = true
	match := fmt.Sprintf("-i %s -o %s", dev, dev)
	if dev == routedName {
		match = fmt.Sprintf("-m mark --mark %#x/%#x", Mark, Mark)
	}
	k.log.WithField("link", dev).Warnf("the firewall of this host is iptables-legacy, which isthmus does not change: if containers cannot reach others on their own host or elsewhere, run: iptables-legacy -I DOCKER-USER %s -j ACCEPT, and the same with ip6tables-legacy", match)
}
