//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-net/isthmus/e2e/lab"
)

// relations are what the tables below tell of containers A and B on one host and
// C on another, which are in a LAN with both hosts, a machine that is no host, and
// a router. Two meet when each gets an answer to what it asks the other; the last
// four are about what is sent to everybody, by multicast and by broadcast.
//
//	sibling  A and B meet
//	across   A and C, and B and C
//	lan      a container and the machine
//	gateway  a container and the router
//	host     a container and its own host
//	near     A hears what B sends to everybody, and B what A does
//	far      the same of A and C, and of B and C
//	out      the machine hears what containers send to everybody
//	in       containers hear what the machine sends to everybody
var relations = []string{"sibling", "across", "lan", "gateway", "host", "near", "far", "out", "in"}

// A reach says of each relation whether it is (+) or is not (-), by what is
// written of a mode, whatever a kernel does; ? is where nothing is written. ! is
// where the kernels measured (6.1) do other than is written: written is no.
type reach struct {
	of       string
	straight string // by a switch that sends no frame back to where it came from
	hairpin  string // by one that does; empty when that is not asked
}

// ip-link(8), and the message of commit 618e1b7482f7, "macvlan: implement bridge,
// VEPA and private mode", of which the words below are, but where another source
// is named. Of the link below, the host's own, the cover letter of that commit
// says that communication with it "is still missing": what the switch does not
// return does not arrive.
var macvlanReach = []reach{
	// "The behavior of a simple bridge between different macvlan interfaces on the
	// same port." When broadcasts "come back from a reflective relay, we don't
	// deliver them again"; the host's frames come from outside then.
	{of: "bridge",
		straight: "+ + + + - + + + +",
		hairpin:  "+ + + + + + + + +"},
	// "Never communicates with any other device on the same upper_dev. This even
	// includes frames coming back from a reflective relay." What the link below
	// and a private one make of such frames is not written.
	{of: "private",
		straight: "- + + + - - + + +",
		hairpin:  "- + + + ? - + + +"},
	// "We assume that the adjacent bridge returns all frames where both source and
	// destination are local", and "never deliver any frames locally". "Broadcast
	// frames coming in get flooded to all macvlan interfaces in VEPA mode."
	{of: "vepa",
		straight: "- + + + - - + + +",
		hairpin:  "+ + + + + + + + +"},
	// ip-link(8): a "list of allowed mac address, which is used to match against
	// source mac address from received frames on underlying interface". Those are
	// the network's own and the router's here. Siblings receive each other's only
	// when the switch returns them, and nothing is said against sending.
	{of: "source",
		straight: "- + - + - - + + -",
		hairpin:  "+ + - + - + + + -"},
	// ip-link(8): "not allowed for more than one endpoint on the same physical
	// interface. All traffic will be forwarded to this endpoint." So there is no B,
	// and the host is one more machine of the LAN, by its other interface.
	{of: "passthru",
		straight: "+ + + + + + + + +",
		hairpin:  "+ + + + + + + + +"},
}

// isolatedReach is docs/underlay.md: without a parent, with --internal, "the
// network reaches no further than its host".
var isolatedReach = reach{of: "isolated", straight: "+ - - - - + - - -"}

// answers returns what the table says of each relation.
func answers(t *testing.T, row string) map[string]string {
	t.Helper()
	f := strings.Fields(row)
	if len(f) != len(relations) {
		t.Fatalf("%q speaks of %d relations, not of %d", row, len(f), len(relations))
	}
	all := map[string]string{}
	for i, r := range relations {
		all[r] = f[i]
	}
	return all
}

// A company is who meets in a LAN. Containers are A, B and C, of which any but A
// may be missing, and so may the hosts.
type company struct {
	guests []guest
	quiet  time.Duration // how long those who do not meet are listened to
	pace   time.Duration // between two questions
}

func (c company) guest(name string) (guest, bool) {
	i := slices.IndexFunc(c.guests, func(g guest) bool { return g.name == name })
	if i < 0 {
		return guest{}, false
	}
	return c.guests[i], true
}

// hearings lists what is heard if a relation is.
func (c company) hearings(relation string) []hearing {
	var all []hearing
	meet := func(a, b string) { all = append(append(all, c.answered(a, b)...), c.answered(b, a)...) }
	cast := func(by, from string) { all = append(all, c.cast(by, from)...) }
	containers := []string{"A", "B", "C"}
	switch relation {
	case "sibling":
		meet("A", "B")
	case "across":
		meet("A", "C")
		meet("B", "C")
	case "lan", "gateway":
		for _, x := range containers {
			meet(x, map[string]string{"lan": "machine", "gateway": "router"}[relation])
		}
	case "host":
		meet("A", "host1")
		meet("B", "host1")
		meet("C", "host2")
	case "near":
		cast("A", "B")
		cast("B", "A")
	case "far":
		for _, x := range []string{"A", "B"} {
			cast(x, "C")
			cast("C", x)
		}
	case "out", "in":
		for _, x := range containers {
			if relation == "out" {
				cast("machine", x)
			} else {
				cast(x, "machine")
			}
		}
	}
	return all
}

// controls is what is heard in every mode, and shows that a silence is one.
func (c company) controls() []hearing {
	var all []hearing
	for _, p := range [][2]string{{"host1", "machine"}, {"host2", "machine"}, {"router", "machine"}, {"outsider", "mate"}} {
		all = slices.Concat(all, c.answered(p[0], p[1]), c.answered(p[1], p[0]), c.cast(p[0], p[1]), c.cast(p[1], p[0]))
	}
	return all
}

// strays is what would be heard between the two in another VLAN, who have
// addresses of the network's subnet, and the others.
func (c company) strays() []hearing {
	var all []hearing
	for _, g := range c.guests {
		if g.name == "outsider" || g.name == "mate" {
			continue
		}
		for _, out := range []string{"outsider", "mate"} {
			all = slices.Concat(all, c.answered(g.name, out), c.answered(out, g.name), c.cast(g.name, out), c.cast(out, g.name))
		}
	}
	return all
}

func (c company) answered(by, from string) []hearing {
	x, isx := c.guest(by)
	y, isy := c.guest(from)
	var all []hearing
	if isx && isy {
		all = append(all, hearing{by, from, "answer4"})
		if x.ip6 != "" && y.ip6 != "" {
			all = append(all, hearing{by, from, "answer6"})
		}
	}
	return all
}

func (c company) cast(by, from string) []hearing {
	x, isx := c.guest(by)
	y, isy := c.guest(from)
	var all []hearing
	if isx && isy {
		all = append(all, hearing{by, from, "broadcast"}, hearing{by, from, "multicast4"})
		if x.ip6 != "" && y.ip6 != "" {
			all = append(all, hearing{by, from, "multicast6"})
		}
	}
	return all
}

// holds lets everybody talk to everybody, and compares with a row of a table.
func (c company) holds(t *testing.T, row string) {
	t.Helper()
	want := answers(t, row)
	must := c.controls()
	for _, r := range relations {
		if want[r] == "+" || want[r] == "!" {
			must = append(must, c.hearings(r)...)
		}
	}
	heard := c.meet(t, must)
	measured := make([]string, len(relations))
	for i, r := range relations {
		all := c.hearings(r)
		var did, not []hearing
		for _, h := range all {
			if heard[h] {
				did = append(did, h)
			} else {
				not = append(not, h)
			}
		}
		switch {
		case len(all) == 0:
			measured[i] = " "
		case len(not) == 0:
			measured[i] = "+"
		case len(did) == 0:
			measured[i] = "-"
		default:
			measured[i] = "±"
			if want[r] == "?" {
				t.Logf("%s, of which nothing is written: heard %v, not heard %v", r, did, not)
			}
		}
		if (want[r] == "+" || want[r] == "!") && len(not) > 0 {
			t.Errorf("%s: not heard: %v", r, not)
		}
		if want[r] == "-" && len(did) > 0 {
			t.Errorf("%s: heard: %v", r, did)
		}
	}
	t.Logf("%s", strings.Join(relations, " "))
	t.Logf("written  %s", row)
	t.Logf("measured %s", strings.Join(measured, " "))
	for _, h := range c.controls() {
		if !heard[h] {
			t.Errorf("this run proves nothing, as not heard: %v", h)
		}
	}
	for _, h := range c.strays() {
		if heard[h] {
			t.Errorf("another VLAN is heard: %v", h)
		}
	}
}

// The LAN of all hosts, the part of it that is the cluster's, and who else is
// there. Containers that are routed have a subnet of their own.
const (
	lanSubnet4, lanSubnet6 = "10.99.0.0/24", "fd99::/64"
	routedSubnet           = "10.96.0.0/24"

	isolatedNetwork                  = "isolated"
	isolatedSubnet4, isolatedSubnet6 = "10.97.0.0/24", "fd97::/64"

	machine4, machine6 = "10.99.0.90", "fd99::90"
	router4, router6   = "10.99.0.250", "fd99::250"
)

var lanArgs = []string{
	"--subnet", lanSubnet4, "--gateway", router4, "--ip-range", "10.99.0.128/26",
	"--ipv6", "--subnet", lanSubnet6, "--gateway", router6, "--ip-range", "fd99::1:0/112",
}

// A lan is a site of two hosts with a machine and a router.
type lan struct {
	*site
	machine, router *lab.Station
	isolated        map[string]*box // see stays
	before          map[string][]string
	quiet, pace     time.Duration
}

func newLAN(t *testing.T, quiet, pace time.Duration) *lan {
	t.Helper()
	l := &lan{site: newSite(t, lab.Config{Hosts: 2}), quiet: quiet, pace: pace}
	l.machine = l.station(t, "machine", machine4+"/24", machine6+"/64")
	l.router = l.station(t, "router", router4+"/24", router6+"/64")
	return l
}

// stays starts A and B on the first host and C on the second, which join the
// networks of the tests: a start costs more than all else, where processors are
// emulated. They are in a network without a parent meanwhile.
func (l *lan) stays(t *testing.T) {
	t.Helper()
	l.before = snapshots(t, l.site)
	l.createNetwork(t, isolatedNetwork, []string{"--subnet", isolatedSubnet4, "--ipv6", "--subnet", isolatedSubnet6, "--internal", "-o", "mode=macvlan"})
	l.isolated = l.boxes(t, isolatedNetwork, "A", "B", "C")
}

func (l *lan) hostOf(container string) *lab.Host {
	if container == "C" {
		return l.Host(2)
	}
	return l.Host(1)
}

func (l *lan) station(t *testing.T, name string, addrs ...string) *lab.Station {
	t.Helper()
	var all []netip.Prefix
	for _, a := range addrs {
		all = append(all, netip.MustParsePrefix(a))
	}
	s, err := l.Station(t.Context(), name, all...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// company is everybody in the LAN, with containers.
func (l *lan) company(boxes map[string]*box) company {
	c := l.containers(boxes)
	for _, h := range l.Hosts() {
		c.guests = append(c.guests, guest{name: h.Name, dev: "eth0", ip4: h.IP().String(), ip6: h.IP6().String(), command: h.Command})
	}
	c.guests = append(c.guests,
		guest{name: "machine", dev: "eth0", ip4: machine4, ip6: machine6, command: l.machine.Command},
		guest{name: "router", dev: "eth0", ip4: router4, ip6: router6, command: l.router.Command})
	return c
}

func (l *lan) containers(boxes map[string]*box) company {
	c := company{quiet: l.quiet, pace: l.pace}
	for name, b := range boxes {
		c.guests = append(c.guests, b.guest(name))
	}
	return c
}

// boxes starts containers of a network on their hosts.
func (l *lan) boxes(t *testing.T, network string, names ...string) map[string]*box {
	t.Helper()
	boxes := map[string]*box{}
	l.enter(t, network, boxes, names, func(h *lab.Host, name string) (*box, error) {
		return startQuick(t.Context(), h, network+"-"+name, network)
	})
	return boxes
}

// visit makes a network, which the containers that stay join by a second interface,
// for as long as test takes. All of it is undone even if it was made by half, so that
// it is not in the way of what comes after.
func (l *lan) visit(t *testing.T, network string, args, names, subnets []string, test func(boxes map[string]*box)) {
	t.Helper()
	boxes := map[string]*box{}
	defer l.drop(t, network, nil, subnets...)
	defer l.parts(t, network, boxes)
	l.createNetwork(t, network, args)
	l.enter(t, network, boxes, names, func(h *lab.Host, name string) (*box, error) {
		b := *l.isolated[name]
		b.network = network
		return &b, engine(t.Context(), h, http.MethodPost, "/networks/"+network+"/connect", map[string]any{"Container": b.id}, nil)
	})
	test(boxes)
}

// enter makes containers members of a network, one by one on each host, and
// learns their addresses there. Those that are in it are in boxes, also when another fails.
func (l *lan) enter(t *testing.T, network string, boxes map[string]*box, names []string, do func(*lab.Host, string) (*box, error)) {
	t.Helper()
	var mu sync.Mutex // guards boxes
	each(t, l.Hosts(), func(h *lab.Host) error {
		for _, name := range names {
			if h != l.hostOf(name) {
				continue
			}
			b, err := do(h, name)
			if err != nil {
				return err
			}
			mu.Lock()
			boxes[name] = b
			mu.Unlock()
			var seen struct {
				NetworkSettings struct {
					Networks map[string]struct{ IPAddress, GlobalIPv6Address, MacAddress string }
				}
			}
			if err := engine(t.Context(), h, http.MethodGet, "/containers/"+b.id+"/json", nil, &seen); err != nil {
				return err
			}
			n := seen.NetworkSettings.Networks[network]
			b.ip4, b.ip6, b.mac = n.IPAddress, n.GlobalIPv6Address, n.MacAddress
		}
		return nil
	})
}

// parts takes containers that stay out of a network.
func (l *lan) parts(t *testing.T, network string, boxes map[string]*box) {
	t.Helper()
	each(t, l.Hosts(), func(h *lab.Host) error {
		for _, b := range boxes {
			if b.host != h {
				continue
			}
			if err := engine(context.Background(), h, http.MethodPost, "/networks/"+network+"/disconnect", map[string]any{"Container": b.id}, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// drop removes a network with containers, and what is kept of it for its return:
// one of its subnets stands for all.
func (l *lan) drop(t *testing.T, network string, boxes map[string]*box, subnets ...string) {
	t.Helper()
	removeBoxes(t, slices.Collect(maps.Values(boxes))...)
	each(t, l.Hosts(), func(h *lab.Host) error {
		if err := removeNetwork(h, network); err != nil && !noSuchNetwork(err) {
			return err
		}
		if out, err := h.Exec(context.Background(), "isthmus", "networks", "forget", subnets[0]); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	for _, h := range l.Hosts() {
		eventually(t, 20*time.Second, func() error {
			out, err := isthmus(context.Background(), h, "ipam")
			if err == nil && slices.ContainsFunc(subnets, func(subnet string) bool { return strings.Contains(out, subnet) }) {
				err = fmt.Errorf("%s still knows network %s:\n%s", h.Name, network, out)
			}
			return err
		})
	}
}

// noSuchNetwork is what engines say of a network that they have not, in words that
// differ by release.
func noSuchNetwork(err error) bool {
	return strings.Contains(err.Error(), "No such network") || strings.Contains(err.Error(), "not found")
}

// holds makes a network with containers, and compares who reaches whom with what
// is written, by each kind of switch.
func (l *lan) holds(t *testing.T, r reach, args []string, names ...string) {
	network := "reach-" + strings.ReplaceAll(r.of, " ", "-")
	l.visit(t, network, slices.Concat(lanArgs, args), names, []string{lanSubnet4, lanSubnet6}, func(boxes map[string]*box) {
		l.bySwitch(t, r, l.company(boxes))
	})
}

func (l *lan) bySwitch(t *testing.T, r reach, c company) {
	t.Run("straight", func(t *testing.T) { c.holds(t, r.straight) })
	if r.hairpin == "" {
		return
	}
	l.hairpin(t, true)
	defer l.hairpin(t, false)
	t.Run("hairpin", func(t *testing.T) { c.holds(t, r.hairpin) })
}

func (l *lan) hairpin(t *testing.T, on bool) {
	t.Helper()
	for _, h := range l.Hosts() {
		if err := l.Hairpin(context.Background(), h.Index, on); err != nil {
			t.Fatal(err)
		}
	}
}

// leaves removes the containers that stay, with which all is gone.
func (l *lan) leaves(t *testing.T) {
	l.drop(t, isolatedNetwork, l.isolated, isolatedSubnet4, isolatedSubnet6)
	nothingLeft(t, l.site, l.before)
}

// TestLANReach: who reaches whom in every mode of macvlan, by every kind of
// packet, is what is written of the mode.
func TestLANReach(t *testing.T) {
	t.Parallel()
	l := newLAN(t, 1500*time.Millisecond, 100*time.Millisecond)
	l.stays(t)
	t.Run("isolated", func(t *testing.T) { l.bySwitch(t, isolatedReach, l.company(l.isolated)) })
	for _, r := range macvlanReach {
		t.Run(r.of, func(t *testing.T) {
			args, names := []string{"-o", "mode=macvlan", "-o", "parent=eth0", "-o", "macvlan_mode=" + r.of}, []string{"A", "B", "C"}
			switch r.of {
			case "source":
				mac := lab.Must(t)(l.router.Exec(t.Context(), "ip", "-br", "link", "show", "eth0"))
				args = append(args, "-o", "source="+strings.Fields(mac)[2])
			case "passthru":
				for _, h := range l.Hosts() {
					if err := l.AddLink(t.Context(), h.Index, "eth1"); err != nil {
						t.Fatal(err)
					}
				}
				args[3], names = "parent=eth1", []string{"A", "C"}
				defer each(t, l.Hosts(), func(h *lab.Host) error {
					_, err := h.Exec(context.Background(), "ip", "link", "del", "eth1")
					return err
				})
			}
			l.holds(t, r, args, names...)
		})
	}
	t.Run("nothing-left", func(t *testing.T) { l.leaves(t) })
}
